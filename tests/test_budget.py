"""What looks may take is kept, by a clock that the tests hold."""

from __future__ import annotations

import copy
import pickle

import pytest

from lit_viz.budget import Budget
from lit_viz.errors import UsageError


class Run:
    """Stands for a trainer."""


RUN = Run()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def turn(budget: Budget, clock: Clock, name: str, cost: float) -> bool:
    """A look that is due, and is taken if it may be."""
    granted = budget.allows(name)
    budget.settle(name, granted)
    if granted:
        clock.now += cost
        budget.spend(name, cost)
    return granted


def opened(share: float, *names: str) -> tuple[Budget, Clock]:
    clock = Clock()
    budget = Budget(share, clock)
    for name in names:
        budget.open(name, RUN)
    return budget, clock


def test_the_first_look_is_granted_and_made_up_for() -> None:
    budget, clock = opened(0.1, "a")
    assert turn(budget, clock, "a", 1.0)
    # The next one would make it 2 of 1 + t + 1 seconds: a tenth after 18 more.
    clock.now += 17.9
    assert not turn(budget, clock, "a", 1.0)
    clock.now += 0.2
    assert turn(budget, clock, "a", 1.0)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_the_share_is_kept_after_every_look_but_the_first(share: float) -> None:
    budget, clock = opened(share, "a")
    began, looks = clock.now, 0
    for step in range(2000):
        clock.now += 1.0
        if turn(budget, clock, "a", 0.5):
            looks += 1
            assert step == 0 or budget.spent["a"] <= share * (clock.now - began) * (1 + 1e-9)
    assert 0.9 * share <= budget.spent["a"] / (clock.now - began), "and used up"
    assert looks > 10


def test_what_fits_is_never_left_out() -> None:
    budget, clock = opened(0.2, "a")
    clock.now += 10
    for _ in range(50):
        assert turn(budget, clock, "a", 1.0)
        clock.now += 5


def test_a_look_that_came_out_dearer_is_made_up_for() -> None:
    budget, clock = opened(0.1, "a")
    clock.now += 100
    assert turn(budget, clock, "a", 1.0)
    assert turn(budget, clock, "a", 15.0)  # by what is known it costs 1
    assert budget.cost("a") == 15.0
    clock.now += 100
    assert not turn(budget, clock, "a", 1.0)  # 16 spent, and 15 more, of 231
    clock.now += 100
    assert turn(budget, clock, "a", 1.0)


def test_time_beside_looks_counts_too() -> None:
    budget, clock = opened(0.1, "a")
    assert turn(budget, clock, "a", 0.0)
    budget.spend("a", 5.0)  # writing, waiting
    clock.now += 94
    assert not turn(budget, clock, "a", 5.0)
    clock.now += 2
    assert turn(budget, clock, "a", 5.0)


def test_those_that_share_stay_within_it_together() -> None:
    budget, clock = opened(0.05, "a", "b", "c")
    began = clock.now
    for _ in range(3000):
        clock.now += 1.0
        for name, cost in (("a", 0.02), ("b", 0.1), ("c", 0.4)):
            turn(budget, clock, name, cost)
    assert sum(budget.spent.values()) <= 0.05 * (clock.now - began) * (1 + 1e-9)


def test_an_expensive_look_gets_its_turn_beside_cheap_ones() -> None:
    budget, clock = opened(0.05, "cheap", "expensive")
    looks = {"cheap": 0, "expensive": 0}
    for _ in range(4000):
        clock.now += 1.0
        for name, cost in (("cheap", 0.06), ("expensive", 8.0)):
            looks[name] += turn(budget, clock, name, cost)
    # Each has at least about half of 200 seconds; of their own schedule they would take 240 and 32000.
    assert looks["cheap"] >= 1500 and looks["expensive"] >= 10


def test_what_one_leaves_is_there_for_the_others() -> None:
    budget, clock = opened(0.1, "idle", "busy")
    clock.now += 10
    turn(budget, clock, "idle", 0.0)
    began, spent = clock.now, 0.0
    for _ in range(1000):
        clock.now += 1.0
        spent += 0.1 * turn(budget, clock, "busy", 0.1)
    assert spent >= 0.09 * (clock.now - began)


@pytest.mark.parametrize("run", [RUN, Run()], ids=["same trainer", "another"])
def test_another_run_begins_anew(run: Run) -> None:
    budget, clock = opened(0.1, "a", "b")
    for name in ("a", "b"):
        assert turn(budget, clock, name, 50.0)
        assert not turn(budget, clock, name, 50.0)
    for name in ("a", "b"):
        budget.open(name, run)
    assert budget.spent == {"a": 0.0, "b": 0.0}
    assert turn(budget, clock, "a", 1.0) and turn(budget, clock, "b", 1.0)


def test_a_run_owes_nothing_for_what_others_took_in_the_run_before() -> None:
    budget, clock = opened(0.1, "a")
    assert turn(budget, clock, "a", 50.0)
    another = Run()
    budget.open("b", another)
    assert budget.spent == {"b": 0.0}
    looks = 0
    for _ in range(20):
        clock.now += 1.0
        looks += turn(budget, clock, "b", 0.05)
    assert looks == 20


@pytest.mark.parametrize("share", [0, -0.1, 1.5, 5, True, "0.05", float("nan")])
def test_what_is_no_share(share: object) -> None:
    with pytest.raises(UsageError, match=r"budget is a share of the time, above 0 and at most 1"):
        Budget(share)  # type: ignore[arg-type]


def test_it_goes_to_other_processes_with_its_callbacks() -> None:
    budget = Budget(0.05)
    budget.open("a", RUN)
    for other in (pickle.loads(pickle.dumps(budget)), copy.deepcopy(budget)):
        assert other.share == 0.05 and other.allows("a")
