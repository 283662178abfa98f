"""Writing beside a training run: one thread that encodes and writes, in order, while training goes on."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

CAPACITY = 64 * 2**20  # bytes that may wait
PATIENCE = 20.0  # seconds

Done = Callable[[float, Exception | None], None]


@dataclass(eq=False)
class _Job:
    write: Callable[[], None]
    size: int
    done: Done


class WriteBehind:
    """Writes in the background, in the order of submission.

    A thread, not a process: encoding and writing let go of the interpreter lock. It lives only while there is
    something to write, so that nobody need end it.

    Memory is bounded: whoever submits waits for room, but not for ever. Where a disk or file system hangs, what finds
    no room is dropped, and training goes on.

    Args:
        capacity: Bytes that may wait; a single larger job has to wait for all others.
        patience: Seconds to wait for room; at the end, seconds to wait without anything getting written.
    """

    def __init__(self, capacity: int = CAPACITY, patience: float = PATIENCE) -> None:
        self.capacity, self.patience = capacity, patience
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._running: _Job | None = None
        self._size = 0  # of all that waits or is being written
        self._ended = 0  # jobs
        self._hangs = False  # nobody waits for it again before it has caught up
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    @staticmethod
    def of(owner: object) -> WriteBehind:
        """The one of an owner, a trainer for instance: all who ask get the same."""
        found = _KNOWN.get(owner)
        if found is None or found._process != os.getpid():  # that of a process we were forked from
            found = _KNOWN[owner] = WriteBehind()
        return found

    def submit(self, write: Callable[[], None], size: int, done: Done) -> None:
        """Queues a job.

        Args:
            write: What to do, on the thread.
            size: Bytes that it holds on to until then.
            done: Called with the seconds that it took and how it failed, or None; mostly on the thread, so that it had
                better be short. Of jobs that are dropped in a row the first gets a `TimeoutError`, the others no call.
        """

        def room() -> bool:
            return not self._size or self._size + size <= self.capacity

        with self._changed:
            if not room() and (self._hangs or not self._changed.wait_for(room, self.patience)):
                told, self._hangs = self._hangs, True
                failure = None if told else _hanging(self.patience, "what finds no room is dropped")
            else:
                if self._thread is None or not self._thread.is_alive():
                    thread = threading.Thread(target=self._run, name="lit_viz writer", daemon=True)
                    thread.start()  # and waits for the lock
                    self._thread = thread
                self._waiting.append(_Job(write, size, done))
                self._size += size
                return
        if failure is not None:
            done(0.0, failure)

    def finish(self) -> None:
        """Waits until all is written; drops what is left where nothing moves for `patience` seconds."""
        with self._changed:
            while self._running is not None or self._waiting:
                before = self._ended
                if not self._changed.wait_for(lambda before=before: self._ended > before, self.patience):
                    break
            left = [job for job in (self._running, *self._waiting) if job is not None]
            self._size -= sum(job.size for job in self._waiting)
            self._waiting.clear()
            self._running = None  # hangs; should it wake up, nobody is told
            told, self._hangs = self._hangs, bool(left)
        if left and not told:
            left[0].done(0.0, _hanging(self.patience, f"{len(left)} at the end were not written"))

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread, self._hangs = None, False
                    return
                job = self._running = self._waiting.popleft()
            started, failure = time.perf_counter(), None
            try:
                job.write()
            except Exception as error:
                failure = error
            except BaseException as error:  # `sys.exit` in a logger ends no run, nor this thread
                failure = RuntimeError(f"{type(error).__name__}: {error}")
            seconds = time.perf_counter() - started
            with self._changed:
                if self._running is job:
                    job.done(seconds, failure)
                    self._running = None
                self._size -= job.size
                self._ended += 1
                self._changed.notify_all()
            del job, failure  # a picture, and a traceback that holds one


_KNOWN: WeakKeyDictionary[object, WriteBehind] = WeakKeyDictionary()


def _hanging(seconds: float, outcome: str) -> TimeoutError:
    return TimeoutError(
        f"no picture got written for {seconds:g} s: the disk, network or logger seems to hang, and {outcome}."
    )
