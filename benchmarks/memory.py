"""Peak memory of one piece of work, in a process of its own (Linux)."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak(call: str, module: str) -> int:
    """Bytes that a call of a function in `module`, a file of this folder, prints by `print_peak`."""
    code = f"import {module}; {module}.{call}"
    out = subprocess.run([sys.executable, "-c", code], cwd=sys.path[0], capture_output=True, text=True, check=True)
    return int(out.stdout.split()[-1])


def print_peak(run: Callable[[], Any]) -> None:
    """Prints the bytes that `run` needs at most on top of what is there."""
    warnings.filterwarnings("ignore")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _resident("VmRSS")
    run()
    print(_resident("VmHWM") - before)


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))
