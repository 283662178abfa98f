"""Ctrl-C that ends long work between two steps, with what there is by then."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_TOLD = b"\nlit_viz: ends with what there is by now; Ctrl-C once more stops at once.\n"


class Interruption:
    """Whether Ctrl-C was pressed; pressed twice it does what it did before.

    An exception could come amid a step, or where results are put together, and be the end of them.
    """

    def __init__(self) -> None:
        self.pressed = False

    def __bool__(self) -> bool:
        return self.pressed

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
        os.write(2, _TOLD)  # print could be amid another print


@contextmanager
def until_interrupted(wanted: bool = True) -> Iterator[Interruption]:
    """Within, Ctrl-C raises nothing; ask what this yields, after each step.

    Work within work shares it, so that all of it ends. Python tells the main thread of signals, so that it changes
    nothing in others; nor where Ctrl-C is ignored.

    Args:
        wanted: Otherwise Ctrl-C goes on to whoever called.

    >>> with until_interrupted() as interrupted:
    ...     for step in range(10):
    ...         if step == 3:
    ...             signal.raise_signal(signal.SIGINT)
    ...         if interrupted:
    ...             break
    >>> step
    3
    """
    before = signal.getsignal(signal.SIGINT)
    if isinstance(before, Interruption):
        yield before if wanted else Interruption()
    elif wanted and callable(before) and threading.current_thread() is threading.main_thread():
        interruption = Interruption()
        signal.signal(signal.SIGINT, interruption)
        try:
            yield interruption
        finally:
            signal.signal(signal.SIGINT, before)
    else:
        yield Interruption()
