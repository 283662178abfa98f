"""Work beside a training run: one low-priority process that answers t-SNE jobs, one after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lit_viz import functional

# By path: as a module it would drag the package, and with it torch, into the worker.
SCRIPT = Path(functional.__file__).with_name("tsne.py")

# The worker may not take threads from training.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass
class _Job:
    arguments: Callable[[np.ndarray | None], dict[str, Any]]
    done: Callable[[np.ndarray], None]
    dropped: Callable[[], None]
    answer: Path = field(default_factory=Path)
    started: float = 0.0


class EmbeddingWorker:
    """Computes t-SNE embeddings in a process of its own, each started from the one before.

    A process, not a thread: a thread would share the interpreter lock and the thread pool with training. Jobs are
    answered in order, so what comes out does not depend on timing. Nothing here blocks but `finish`.

    Attributes:
        last: The embedding before, (N, 2), or None.
        seconds: How long all jobs took that were answered.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._waiting: deque[_Job] = deque()
        self._running: _Job | None = None
        self._number = 0
        self.last: np.ndarray | None = None
        self.seconds = 0.0

    @property
    def busy(self) -> bool:
        """Whether jobs are waiting or running."""
        return self._running is not None or bool(self._waiting)

    def start(self) -> None:
        """Starts the process, unless it runs; jobs do so too, but what it imports takes seconds."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="lit_viz_")
        if self._process is None:
            # -P: the folder of the script holds modules that must not shadow others.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, **ONE_THREAD},
            )

    def submit(
        self,
        arguments: Callable[[np.ndarray | None], dict[str, Any]],
        done: Callable[[np.ndarray], None],
        dropped: Callable[[], None] = lambda: None,
    ) -> None:
        """Queues a job.

        Args:
            arguments: From the embedding before (None for the first) to the keyword arguments of `tsne`.
            done: Called in this process, by `poll` or `finish`, with the points (N, 2).
            dropped: Called so instead if there won't be any.
        """
        self._waiting.append(_Job(arguments, done, dropped))
        self._start_next()

    def poll(self) -> None:
        """Hands over what is ready.

        Raises:
            RuntimeError: If a job failed or the worker died; the job is dropped, the next one goes on.
        """
        self._start_next()  # where making the arguments of the job before failed
        while self._running is not None and self._running.answer.exists():
            job, self._running = self._running, None
            self.seconds += time.monotonic() - job.started
            try:
                with np.load(job.answer) as answer:
                    error = str(answer["error"]) if "error" in answer else None
                    points = None if error else answer["points"]
                job.answer.unlink()
                if error:
                    job.dropped()
                    raise RuntimeError(f"t-SNE failed:\n{error}")
                self.last = points
                job.done(points)
            finally:
                self._start_next()
        if self._running is not None and self._process is not None and self._process.poll() is not None:
            if self._running.answer.exists():
                return self.poll()
            job, self._running, code = self._running, None, self._forget_process()
            self._start_next()
            job.dropped()
            raise RuntimeError(f"the t-SNE process ended with exit code {code}.")
        return None

    def finish(self, timeout: float) -> None:
        """Waits until every job is answered, no longer standing back for anything else.

        Raises:
            TimeoutError: After `timeout` seconds; what is left is dropped.
            RuntimeError: As in `poll`.
        """
        deadline = time.monotonic() + timeout
        self.poll()
        if self.busy:
            self._hurry()
        while self.busy:
            if time.monotonic() > deadline:
                left = [job for job in (self._running, *self._waiting) if job is not None]
                self.close()
                for job in left:
                    job.dropped()
                raise TimeoutError(f"{len(left)} t-SNE embedding(s) were not ready after {timeout:.0f} s.")
            time.sleep(0.02)
            self.poll()

    def _hurry(self) -> None:
        """Gives the process the priority of any other, where that is allowed: training is over."""
        if self._process is not None and hasattr(os, "setpriority"):
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._process.pid, 0)

    def close(self) -> None:
        """Ends the process and drops what is left."""
        self._waiting.clear()
        self._running = None
        if self._process is not None:
            self._process.kill()
            self._forget_process()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _forget_process(self) -> int:
        """Of a process that ended or was killed; its exit code."""
        assert self._process is not None and self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        code, self._process = self._process.wait(), None
        return code

    def _start_next(self) -> None:
        if self._running is not None or not self._waiting:
            return
        job = self._waiting.popleft()
        self.start()
        assert self._folder is not None and self._process is not None
        self._number += 1
        stem = Path(self._folder.name) / f"{self._number:06d}"
        job.answer = stem.with_suffix(".answer.npz")
        arguments = {k: v for k, v in job.arguments(self.last).items() if v is not None}
        np.savez(stem.with_suffix(".npz"), **arguments)
        self._running, job.started = job, time.monotonic()
        assert self._process.stdin is not None
        line = json.dumps({"arguments": str(stem.with_suffix(".npz")), "answer": str(job.answer)})
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the worker died: `poll` reports it
