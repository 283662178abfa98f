"""Memory that a process keeps."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PAGES = """
import resource, torch
from lit_viz.memory import keep_freed_memory
kept = {kept}
def fetched():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        one = torch.ones(2**24)
        two = torch.ones(2**24)
        del one, two
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**20
fetched()
print(kept, fetched())
"""


def run(kept: str, **environment: str) -> tuple[str, float]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PAGES.format(kept=kept)],
        env={**plain, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    told, fetched = done.stdout.split()
    return told, float(fetched)


@pytest.mark.skipif(sys.platform != "linux", reason="a matter of Linux's C library")
def test_memory_is_kept() -> None:
    assert run("keep_freed_memory()")[0] == "True"
    assert run("keep_freed_memory()")[1] < 64  # MiB, of 640 that were asked for
    assert run("None")[1] > 300  # otherwise there would be nothing to keep


def test_who_has_settings_of_their_own_keeps_them() -> None:
    assert run("keep_freed_memory()", MALLOC_ARENA_MAX="2")[0] == "False"
