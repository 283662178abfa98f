"""Callbacks keep to a budget, by a clock that the tests hold: a training step takes a second."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from lit_viz.budget import Budget
from lit_viz.callbacks import Batch, CollectingCallback, Embeddings, Look, Saliency, Tap, VisualizationCallback
from lit_viz.errors import UsageError
from tests.conformance.harness import Recorder, TinyModule, fit, loaders, trainer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Timed(TinyModule):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.clock.now += 1.0
        return super().training_step(batch, batch_idx)


class Costly(VisualizationCallback):
    """Takes its time to draw nothing much."""

    tag = "costly"

    def __init__(self, clock: Clock, cost: float, **kwargs: Any) -> None:
        super().__init__(**{"on_error": "raise", **kwargs})
        self.clock, self.cost = clock, cost

    def visualize(self, look: Look) -> dict[str, Any]:
        self.clock.now += self.cost
        return {"probe": np.zeros((4, 4, 3), np.uint8)}


class Collects(CollectingCallback):
    """Takes its time in every batch of the pass; counts them."""

    tag = "collects"

    def __init__(self, clock: Clock, cost: float, **kwargs: Any) -> None:
        super().__init__(on_error="raise", **kwargs)
        self.clock, self.cost, self.read = clock, cost, 0

    def taps(self) -> list[Tap]:
        return [Tap("net.conv1", "output", self._reduce)]

    def _reduce(self, values: torch.Tensor) -> None:
        self.clock.now += self.cost
        self.read += 1

    def begin(self, trainer: Any, pl_module: Any) -> None: ...

    def update(self, batch: Batch, values: Any) -> None: ...

    def metrics(self) -> dict[str, Any]:
        return {}

    def finish(self, results: dict[str, Any]) -> None: ...

    def visualize(self, look: Look) -> dict[str, Any]:
        return {"probe": np.zeros((4, 4, 3), np.uint8)}


def run(clock: Clock, *callbacks: VisualizationCallback, epochs: int = 4, **kwargs: Any) -> Recorder:
    recorder = Recorder()
    trainer(callbacks, logger=recorder, max_epochs=epochs, **kwargs).fit(Timed(clock), *loaders())
    return recorder


def drawn(recorder: Recorder, tag: str) -> list[int]:
    return [step for key, step, _ in recorder.images if key == tag]


@pytest.mark.parametrize(
    ("share", "cost", "schedule", "expected"),
    [
        # Looks of a second, after n of them at step s: granted if n + 1 <= share (s + n + 1).
        (0.5, 1.0, {}, [0, 2, 3, 4, 5, 6, 7, 8]),
        (0.25, 1.0, {}, [0, 6]),
        (0.1, 0.25, {}, [0, 5, 7]),
        (0.25, 1.0, {"at_start": False}, [1, 6]),
        (0.01, 1.0, {}, [0]),
        (0.01, 1.0, {"every_n_steps": None, "every_n_epochs": None, "at_start": False}, [8]),  # what was never drawn
        (0.2, 1.0, {"every_n_steps": 3}, [0, 8]),  # at the end only because there is enough by then
    ],
)
def test_looks_over_the_budget_are_left_out(
    share: float, cost: float, schedule: dict[str, Any], expected: list[int]
) -> None:
    clock = Clock()
    callback = Costly(clock, cost, budget=Budget(share, clock), **{"every_n_steps": 1, **schedule})
    assert drawn(run(clock, callback, epochs=2), "costly/probe") == expected
    assert callback.seconds == pytest.approx(cost * len(expected))


def test_a_look_left_out_has_had_its_turn() -> None:
    """It is not made up for at the end of the same epoch, when the weights are others than validation's."""
    clock = Clock()
    callback = Costly(clock, 2.0, budget=Budget(0.2, clock))
    recorder = run(clock, callback, epochs=5)  # of four steps, the second look from step 16 on, the third from 24
    assert drawn(recorder, "costly/probe") == [0, 16]
    assert callback._due == 6


def test_a_pass_over_the_budget_is_not_read() -> None:
    clock = Clock()
    callback = Collects(clock, 0.5, budget=Budget(0.2, clock))  # a pass has three batches
    recorder = run(clock, callback, epochs=5)  # of four steps, the second pass from step 12 on, the third from 18
    assert drawn(recorder, "collects/probe") == [4, 12, 20]
    assert callback.read == 3 * 3
    assert callback.seconds == pytest.approx(4.5), "what hooks take counts"


def test_a_pass_of_our_own_is_paid_by_those_who_read_it() -> None:
    """Not by the last of them, which may have no look coming."""

    class Unread(Timed):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if not self.training and not self.trainer.sanity_checking:
                self.clock.now += 0.5
            return super().forward(images)

        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    clock = Clock()
    reads = Collects(clock, 0.0, budget=Budget(1.0, clock))
    idle = Collects(clock, 0.0, budget=Budget(1.0, clock), every_n_epochs=100, at_end=False, name="idle")
    trainer([reads, idle], logger=Recorder(), max_epochs=1).fit(Unread(clock), *loaders())
    assert reads.read == 3 and idle.read == 0
    assert reads.seconds == pytest.approx(3 * 0.5) and idle.seconds == 0


def test_one_account_for_all_who_share_it() -> None:
    clock = Clock()
    account = Budget(0.2, clock)
    callbacks = [Costly(clock, cost, budget=account, every_n_steps=1) for cost in (0.1, 0.4, 1.0)]
    recorder = run(clock, *callbacks, epochs=50)
    spent = sum(callback.seconds for callback in callbacks)
    assert 0.8 <= spent / (0.2 * (clock.now - 100)) <= 1
    looks = [len(drawn(recorder, f"{callback.name}/probe")) for callback in callbacks]
    assert looks[0] > looks[1] > looks[2] > 5


def test_each_look_tells_what_it_cost() -> None:
    clock = Clock()
    callback = Costly(clock, 1.0, budget=Budget(0.25, clock), every_n_steps=1)
    plain = Costly(clock, 1.0, name="plain")
    recorder = run(clock, callback, plain, epochs=2)
    costs = [(step, value) for tag, step, value in recorder.metrics if tag == "cost/costly"]
    assert costs == [(step, 1.0) for step in drawn(recorder, "costly/probe")] and len(costs) > 1
    assert not [tag for tag, _, _ in recorder.metrics if "plain" in tag]


def test_what_was_left_out_is_said_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    callbacks = [Costly(clock, 1.0, budget=Budget(share, clock), every_n_steps=1) for share in (0.25, 1.0)]
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        run(clock, *callbacks, epochs=1)
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert told == ["costly: 3 of 5 looks left out to stay within 25 % of the time."]


def test_another_run_has_another_budget() -> None:
    clock = Clock()
    callback = Costly(clock, 5.0, budget=Budget(0.01, clock))
    for _ in range(2):
        assert drawn(run(clock, callback, epochs=3), "costly/probe") == [0]


def test_a_finished_model_is_looked_at_whatever_it_costs() -> None:
    clock, recorder = Clock(), Recorder()
    callback = Costly(clock, 5.0, budget=Budget(0.01, clock))
    runner = trainer([callback], logger=recorder)
    for _ in range(2):
        runner.validate(TinyModule(), loaders()[1], verbose=False)
    assert drawn(recorder, "costly/probe") == [0, 0]
    assert not recorder.metrics or not any(tag.startswith("cost/") for tag, _, _ in recorder.metrics)


@pytest.mark.parametrize(("cores", "counted"), [(1, 0.1), (2, 0.0)])
def test_tsne_beside_training_counts_as_what_it_takes_from_it(
    cores: int, counted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_viz.callbacks import embeddings

    monkeypatch.setattr(embeddings.torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(embeddings.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    callback = Embeddings(budget=0.9, on_error="raise")
    worker = callback._worker = embeddings.EmbeddingWorker()
    for worker.seconds in (3.0, 10.0):
        callback._poll()
    assert callback.budget is not None
    assert callback.budget.spent.get("embeddings", 0.0) == pytest.approx(10.0 * counted)


def test_callbacks_sent_to_another_process_share_their_account_there() -> None:
    account = Budget(0.05)
    first, second = pickle.loads(pickle.dumps([Saliency(budget=account), Saliency(budget=account)]))
    assert first.budget is second.budget and first.budget.share == 0.05


def test_what_is_no_budget() -> None:
    with pytest.raises(UsageError, match=r"0\.05 for 5 %"):
        Saliency(budget=5)


def test_a_budget_of_all_time_leaves_nothing_out() -> None:
    recorders = []
    for budget in (None, 1.0):
        recorders.append(Recorder())
        fit("fp32", [Saliency(budget=budget, every_n_steps=1, on_error="raise")], logger=recorders[-1])
    first, second = ([(tag, step, image.tobytes()) for tag, step, image in r.images] for r in recorders)
    assert first == second
