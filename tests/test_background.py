"""The t-SNE process beside a run: its answers, its failures and its end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from lit_viz.background import SCRIPT, EmbeddingWorker
from lit_viz.functional import tsne

Points = list[np.ndarray]
LONG = 60.0  # seconds until a test gives up


@pytest.fixture
def worker() -> Iterator[EmbeddingWorker]:
    """With a process of its own, for tests that harm it."""
    worker = EmbeddingWorker()
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def one_process() -> Iterator[EmbeddingWorker]:
    worker = EmbeddingWorker()
    yield worker
    worker.close()


@pytest.fixture
def shared(one_process: EmbeddingWorker) -> EmbeddingWorker:
    """Starting a process takes seconds: the same for all tests that leave it running."""
    assert not one_process.busy
    one_process.last = None
    return one_process


def features(seed: int, count: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6))


def job(number: int, **options: Any) -> Callable[[np.ndarray | None], dict[str, Any]]:
    return lambda last: {"features": features(number), "init": last, **options}


def fails(_: np.ndarray | None) -> dict[str, Any]:
    return {"features": np.full((10, 3), np.nan)}


def busy_for_long(_: np.ndarray | None) -> dict[str, Any]:
    return {"features": np.random.default_rng(0).normal(size=(6000, 20))}


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_answers_equal_those_of_the_function_each_started_from_the_one_before(
    shared: EmbeddingWorker,
) -> None:
    done: Points = []
    assert not shared.busy and shared.last is None
    for seed in range(3):
        shared.submit(job(seed, perplexity=8.0, seed=7), done.append)
    assert shared.busy and done == []  # nothing is handed over before `poll` or `finish`
    shared.finish(LONG)
    assert len(done) == 3 and not shared.busy
    with threadpool_limits(1):
        first = tsne(features(0), perplexity=8.0, seed=7)
        second = tsne(features(1), init=first, perplexity=8.0, seed=7)
        third = tsne(features(2), init=second, perplexity=8.0, seed=7)
        cold = tsne(features(1), perplexity=8.0, seed=7)
    for found, expected in zip(done, (first, second, third), strict=True):
        assert np.array_equal(found, expected)
    assert shared.last is done[-1]
    assert not np.array_equal(second, cold)  # the start does matter


def test_poll_hands_over_without_waiting(shared: EmbeddingWorker) -> None:
    done: Points = []
    shared.poll()
    shared.submit(job(0), done.append)
    start = time.monotonic()
    shared.poll()
    assert time.monotonic() - start < 0.5 and done == []  # starting Python alone takes longer
    wait(lambda: (shared.poll(), bool(done))[1])
    assert len(done) == 1 and not shared.busy


def test_an_error_is_raised_here_and_the_next_job_goes_on(shared: EmbeddingWorker) -> None:
    done: Points = []
    shared.submit(job(0), done.append)
    shared.submit(fails, done.append)
    shared.submit(job(1), done.append)
    with pytest.raises(RuntimeError, match="features hold NaN or infinite values"):
        shared.finish(LONG)
    shared.finish(LONG)
    assert len(done) == 2 and np.array_equal(shared.last, done[1])


def test_a_process_that_is_killed_is_reported_and_the_next_job_starts_another(
    worker: EmbeddingWorker,
) -> None:
    done: Points = []
    worker.submit(busy_for_long, done.append)
    worker.submit(job(1), done.append)
    first = worker._process
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="ended with exit code -9"):
        worker.finish(LONG)
    worker.finish(LONG)
    assert len(done) == 1 and worker._process is not first and worker._process is not None
    # Between two jobs:
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    worker.submit(job(2), done.append)
    with pytest.raises(RuntimeError, match="exit code -9"):
        worker.finish(LONG)
    assert not worker.busy


def test_what_the_caller_does_wrong_does_not_stop_the_jobs_after_it(shared: EmbeddingWorker) -> None:
    done: Points = []

    def raises(_: Any) -> Any:
        raise KeyError("mine")

    shared.submit(job(0), raises)  # fails when the answer is handed over
    shared.submit(raises, done.append)  # fails before it starts
    shared.submit(job(1), done.append)
    with pytest.raises(KeyError, match="mine"):
        shared.finish(LONG)
    shared.finish(LONG)
    assert len(done) == 1 and not shared.busy


def test_finish_gives_up(worker: EmbeddingWorker) -> None:
    done: Points = []
    for _ in range(3):
        worker.submit(busy_for_long, done.append)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"3 t-SNE embedding.*not ready after 0 s"):
        worker.finish(0.2)
    assert time.monotonic() - start < 10 and not worker.busy and worker._process is None
    worker.submit(job(0), done.append)  # and can be used again
    worker.finish(LONG)
    assert len(done) == 1
    # A run that is killed leaves no process behind: it ends with its input.
    assert worker._process is not None and worker._process.stdin is not None
    worker._process.stdin.close()
    assert worker._process.wait(LONG) == 0


@pytest.mark.filterwarnings("error")
def test_close_leaves_nothing_behind() -> None:
    worker = EmbeddingWorker()
    worker.close()
    worker.submit(busy_for_long, lambda points: None)
    assert worker._process is not None and worker._folder is not None
    process, folder = worker._process, Path(worker._folder.name)
    assert folder.exists()
    worker.close()
    assert process.returncode is not None and not folder.exists() and not worker.busy
    assert process.stdin is None or process.stdin.closed
    worker.close()


def test_files_of_answered_jobs_do_not_pile_up(shared: EmbeddingWorker) -> None:
    for seed in range(4):
        shared.submit(job(seed), lambda points: None)
    shared.finish(LONG)
    assert shared._folder is not None
    assert len(list(Path(shared._folder.name).iterdir())) == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_the_process_is_small(shared: EmbeddingWorker) -> None:
    shared.submit(job(0), lambda points: None)
    shared.finish(LONG)
    assert shared._process is not None
    process = Path("/proc") / str(shared._process.pid)
    maps = (process / "maps").read_text()
    assert "numpy" in maps and "libtorch" not in maps and "sklearn" not in maps
    environment = (process / "environ").read_bytes().split(b"\0")
    assert b"OMP_NUM_THREADS=1" in environment and b"OPENBLAS_NUM_THREADS=1" in environment
    assert str(SCRIPT).encode() in (process / "cmdline").read_bytes().split(b"\0")


def test_what_is_not_ready_in_time_is_dropped_and_told(worker: EmbeddingWorker) -> None:
    told: list[str] = []
    worker.submit(busy_for_long, lambda _: told.append("done"), lambda: told.append("first"))
    worker.submit(job(1), lambda _: told.append("done"), lambda: told.append("second"))
    with pytest.raises(TimeoutError, match="2 t-SNE"):
        worker.finish(0.1)
    assert told == ["first", "second"] and not worker.busy


def test_a_job_that_fails_is_told_too(shared: EmbeddingWorker) -> None:
    told: list[str] = []
    shared.submit(fails, lambda _: told.append("done"), lambda: told.append("dropped"))
    with pytest.raises(RuntimeError, match="t-SNE failed"):
        shared.finish(LONG)
    assert told == ["dropped"]


@pytest.mark.skipif(not hasattr(os, "setpriority"), reason="priorities of Unix")
@pytest.mark.parametrize("allowed", [True, False])
def test_it_stands_back_until_the_end(worker: EmbeddingWorker, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    worker.start()
    assert worker._process is not None
    pid = worker._process.pid
    wait(lambda: os.getpriority(os.PRIO_PROCESS, pid) == min(own + 10, 19))
    done: Points = []
    worker.submit(job(0, perplexity=8.0), done.append)
    if not allowed:

        def refuse(*_: Any) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "setpriority", refuse)
    worker._hurry()
    expected = own if allowed and os.geteuid() == 0 else min(own + 10, 19)
    assert os.getpriority(os.PRIO_PROCESS, pid) == expected
    worker.finish(LONG)
    assert len(done) == 1 and worker._process.pid == pid
