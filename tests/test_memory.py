"""Memory that a process keeps."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from lit_viz.memory import keep_freed_memory
def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20
kept, before = {kept}, held()
tensors = [torch.ones(2**24) for _ in range(4)]
del tensors
print(kept, held() - before)
"""


def run(kept: str, **environment: str) -> tuple[str, float]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(kept=kept)],
        env={**plain, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    told, held = done.stdout.split()
    return told, float(held)


@pytest.mark.skipif(sys.platform != "linux", reason="a matter of Linux's C library")
def test_memory_is_kept() -> None:
    told, held = run("keep_freed_memory()")
    assert told == "True" and held > 250  # MiB, of 256 in tensors that are gone
    assert run("None")[1] < 60  # otherwise there would be nothing to keep


def test_who_has_settings_of_their_own_keeps_them() -> None:
    assert run("keep_freed_memory()", MALLOC_ARENA_MAX="2")[0] == "False"
