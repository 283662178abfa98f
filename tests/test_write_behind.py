"""Jobs are done in order, beside whoever submits them, who never waits for ever."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lit_viz.write_behind import WriteBehind


class Owner:
    """Anything that jobs are written for."""


class Gate:
    """A job that hangs until it is let through; tells when it has begun."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.open.wait(60)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def told() -> list[tuple[str, Exception | None]]:
    return []


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "lit_viz writer"]


def telling(told: list[Any], name: str) -> Any:
    return lambda seconds, failure: told.append((name, failure))


def test_jobs_are_done_in_order_on_another_thread(told: list[Any]) -> None:
    behind, done, where = WriteBehind(), [], set()
    for i in range(50):
        behind.submit(lambda i=i: (done.append(i), where.add(threading.get_ident())), 1, telling(told, str(i)))
    behind.finish()
    assert done == list(range(50)) and told == [(str(i), None) for i in range(50)]
    assert threading.get_ident() not in where


def test_whoever_submits_goes_on(gate: Gate, told: list[Any]) -> None:
    behind = WriteBehind()
    behind.submit(gate, 1, telling(told, "hangs"))
    assert gate.reached.wait(60) and told == []
    gate.open.set()
    behind.finish()
    assert told == [("hangs", None)]


def test_a_job_that_fails_is_told_of_and_the_next_one_is_done(told: list[Any]) -> None:
    behind = WriteBehind()
    behind.submit(lambda: 1 / 0, 1, telling(told, "fails"))
    behind.submit(lambda: None, 1, telling(told, "next"))
    behind.finish()
    assert [(name, type(failure)) for name, failure in told] == [("fails", ZeroDivisionError), ("next", type(None))]


def test_the_thread_is_there_only_while_there_is_something_to_write(told: list[Any]) -> None:
    behind = WriteBehind()
    assert not threads()
    for _ in range(3):
        behind.submit(lambda: None, 1, telling(told, "job"))
        thread = behind._thread
        behind.finish()
        if thread is not None:
            thread.join(60)
        assert not threads()
    assert len(told) == 3


def test_whoever_finds_no_room_waits_until_there_is_some(gate: Gate, told: list[Any]) -> None:
    behind = WriteBehind(capacity=10, patience=60)
    behind.submit(gate, 6, telling(told, "first"))
    behind.submit(lambda: None, 4, telling(told, "second"))
    threading.Timer(0.05, gate.open.set).start()
    behind.submit(lambda: None, 7, telling(told, "third"))
    assert told[0] == ("first", None)  # there was no room before
    behind.finish()
    assert [name for name, _ in told] == ["first", "second", "third"]


def test_a_job_larger_than_all_room_is_done_alone(told: list[Any]) -> None:
    behind = WriteBehind(capacity=10, patience=60)
    behind.submit(lambda: None, 4, telling(told, "small"))
    behind.submit(lambda: None, 99, telling(told, "large"))
    behind.finish()
    assert told == [("small", None), ("large", None)]


def test_where_the_writer_hangs_jobs_are_dropped_and_that_is_told_once(gate: Gate, told: list[Any]) -> None:
    behind = WriteBehind(capacity=10, patience=0.01)
    behind.submit(gate, 10, telling(told, "hangs"))
    for i in range(3):
        behind.submit(lambda: None, 1, telling(told, f"dropped {i}"))
    ((name, failure),) = told
    assert name == "dropped 0" and isinstance(failure, TimeoutError) and "dropped" in str(failure)
    behind.finish()
    assert len(told) == 1, "told already"


def test_only_the_first_drop_waits(gate: Gate, told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    behind, waits = WriteBehind(capacity=10, patience=0.01), []
    wait_for = behind._changed.wait_for
    monkeypatch.setattr(behind._changed, "wait_for", lambda *args: (waits.append(args), wait_for(*args))[1])
    behind.submit(gate, 10, telling(told, "hangs"))
    for _ in range(5):
        behind.submit(lambda: None, 1, telling(told, "dropped"))
    assert len(waits) == 1


def test_after_it_has_caught_up_all_is_as_before(gate: Gate, told: list[Any]) -> None:
    behind = WriteBehind(capacity=10, patience=0.01)
    behind.submit(gate, 10, telling(told, "hangs"))
    behind.submit(lambda: None, 1, telling(told, "dropped"))
    thread = behind._thread
    gate.open.set()
    assert thread is not None
    thread.join(60)
    behind.submit(lambda: None, 1, telling(told, "written"))
    behind.finish()
    assert [(name, type(failure)) for name, failure in told] == [
        ("dropped", TimeoutError),
        ("hangs", type(None)),
        ("written", type(None)),
    ]


def test_the_end_waits_for_no_writer_that_hangs(gate: Gate, told: list[Any]) -> None:
    behind, late = WriteBehind(patience=0.01), []
    behind.submit(gate, 1, telling(told, "hangs"))
    behind.submit(lambda: late.append(1), 1, telling(told, "behind it"))
    thread = behind._thread
    behind.finish()
    ((name, failure),) = told
    assert name == "hangs" and "2 at the end were not written" in str(failure)
    gate.open.set()
    assert thread is not None
    thread.join(60)
    assert not late and len(told) == 1, "nobody is told, and nothing written, after the end"


def test_a_slow_writer_is_waited_for_as_long_as_it_moves(told: list[Any]) -> None:
    behind, pause = WriteBehind(patience=0.5), threading.Event()
    for i in range(8):
        behind.submit(lambda: pause.wait(0.1), 1, telling(told, str(i)))
    behind.finish()
    assert told == [(str(i), None) for i in range(8)]


def test_all_who_ask_for_an_owner_share_one_that_dies_with_it() -> None:
    owner, other = Owner(), Owner()
    behind = WriteBehind.of(owner)
    assert WriteBehind.of(owner) is behind and WriteBehind.of(other) is not behind
    import weakref

    kept = weakref.ref(behind)
    del behind, owner
    gc.collect()
    assert kept() is None


def _in_a_child(owner: Owner, queue: Any) -> None:
    told: list[Any] = []
    behind = WriteBehind.of(owner)
    behind.submit(lambda: None, 1, telling(told, "child"))
    behind.finish()
    queue.put((told, behind._process == os.getpid()))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_process_has_one_of_its_own(gate: Gate, told: list[Any]) -> None:
    """The thread does not come along, and what waits is the parent's to write."""
    context, owner = multiprocessing.get_context("fork"), Owner()
    WriteBehind.of(owner).submit(gate, 1, telling(told, "parent"))
    assert gate.reached.wait(60)
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(owner, queue))
    child.start()
    assert queue.get(timeout=60) == ([("child", None)], True)
    child.join(60)
    gate.open.set()
    WriteBehind.of(owner).finish()
    assert told == [("parent", None)]
