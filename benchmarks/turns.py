"""Programs that run by turns, a few seconds each: what a shared machine does meanwhile, it does to all of them.

A whole run of some minutes and the next one can differ by a quarter where others use the machine as well. Cut into
slices that alternate, with all that belongs to a program (its threads and processes) stopped while another has its
turn, they can be compared to a percent.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

SLICE = 2.0
"""Seconds of a turn."""

KEPT = {"MALLOC_MMAP_THRESHOLD_": 2**32, "MALLOC_TRIM_THRESHOLD_": 2**32, "MALLOC_TOP_PAD_": 2**26}
"""Memory is kept rather than given back: fetching it anew costs up to a third, and now more, now less."""

ASLEEP = "asleep"


class Runner:
    """A program in a session of its own, which runs when it is told to.

    Args:
        call: What to run, a Python expression.
        module: File in this folder where that stands; the call says `ready` when what is to be timed begins.
        folder: Its own; in a file there it learns how long it was stopped.
    """

    def __init__(self, call: str, module: str, folder: Path) -> None:
        self.asleep = np.memmap(folder / ASLEEP, np.float64, "w+", shape=(1,))
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import {module}; {module}.{call}"
        kept = {name: str(value) for name, value in KEPT.items()}
        environment = {**os.environ, **kept, "TURNS_FOLDER": str(folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, start_new_session=True, stdout=sys.stderr
        )
        self.seconds = 0.0
        self.running = self._waited(block=True)
        self._stopped = time.perf_counter()

    def turn(self, seconds: float) -> None:
        """Lets it run for so long, or to its end."""
        started = time.perf_counter()
        self.asleep[0] += started - self._stopped
        os.killpg(self.process.pid, signal.SIGCONT)
        while self.running and time.perf_counter() < started + seconds:
            time.sleep(0.005)
            self.running = self._waited(block=False)
        if self.running:
            os.killpg(self.process.pid, signal.SIGSTOP)
        self._stopped = time.perf_counter()
        self.seconds += self._stopped - started

    def end(self) -> None:
        """Ends it, with all that belongs to it."""
        if self.running:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _waited(self, block: bool) -> bool:
        """Whether it goes on; blocking until it stops or ends."""
        pid, status = os.waitpid(self.process.pid, os.WUNTRACED if block else os.WNOHANG)
        if pid == 0 or os.WIFSTOPPED(status):
            return True
        if code := os.waitstatus_to_exitcode(status):
            raise RuntimeError(f"a program ended with exit code {code}.")
        return False


def by_turns(calls: dict[str, str], module: str) -> dict[str, float]:
    """Seconds that each call takes, from where it says `ready`.

    Args:
        calls: Python expressions by name, functions of `module`.
        module: File in this folder.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        runners = {}
        for number, (name, call) in enumerate(calls.items()):
            own = Path(folder) / str(number)
            own.mkdir()
            runners[name] = Runner(call, module, own)
            stack.callback(runners[name].end)
        while any(runner.running for runner in runners.values()):
            for runner in runners.values():
                if runner.running:
                    runner.turn(SLICE)
    return {name: runner.seconds for name, runner in runners.items()}


def ready() -> Callable[[], float]:
    """Ends what isn't timed: waits for the first turn.

    Returns:
        A clock that stands still while others have their turn.
    """
    asleep = np.memmap(own_folder() / ASLEEP, np.float64, "r", shape=(1,))
    os.kill(os.getpid(), signal.SIGSTOP)
    return lambda: time.perf_counter() - float(asleep[0])


def own_folder() -> Path:
    """A folder for what a program writes, which goes when all have ended."""
    return Path(os.environ["TURNS_FOLDER"])
