"""Ctrl-C as work that takes long has it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from lit_viz.functional.interruption import until_interrupted


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_work_within_work_ends_with_it() -> None:
    before = signal.getsignal(signal.SIGINT)
    with until_interrupted() as outer:
        with until_interrupted() as inner:
            assert not inner
            press()
            assert inner and outer
        assert signal.getsignal(signal.SIGINT) is not before
        with until_interrupted() as later:
            assert later
    assert signal.getsignal(signal.SIGINT) is before


def test_pressed_again_it_stops_at_once_and_then_is_as_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), until_interrupted():
        press()
        press()
    assert signal.getsignal(signal.SIGINT) is before


def test_whoever_called_gets_it_where_that_is_wanted() -> None:
    with pytest.raises(KeyboardInterrupt), until_interrupted(False) as interrupted:
        press()
    assert not interrupted


def test_threads_and_whoever_ignores_it_are_left_alone() -> None:
    found = []

    def work() -> None:
        with until_interrupted() as interrupted:
            found.append((bool(interrupted), signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [(False, before), (False, signal.SIG_IGN)]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process")
def test_a_command_that_is_stopped_writes_what_there_is(tmp_path: Path) -> None:
    code = (
        "import sys, torch, warnings; from torch import nn; from lit_viz.functional import activation_maximization\n"
        "torch.manual_seed(0); net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))\n"
        "def tell(step, images):\n"
        "    if step == 5: print('ready', flush=True)\n"
        "made = activation_maximization(net, [0, 1], shape=(3, 16, 16), recipe='plain', steps=10**7, on_step=tell)\n"
        "torch.save((made.images, made.interrupted, made.history.isfinite().all(1).sum()), sys.argv[1])\n"
    )
    file = tmp_path / "made.pt"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    images, interrupted, steps = torch.load(file, weights_only=True)
    assert process.returncode == 0 and b"Ctrl-C once more" in told
    assert interrupted and 5 <= int(steps) < 10**7 and images.abs().amax(dim=(1, 2, 3)).min() > 0
