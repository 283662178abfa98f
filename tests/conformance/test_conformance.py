"""Promises 1 and 3 for every callback: no observer effect, and never the run."""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch.utils.data import DataLoader

from lit_viz.callbacks import VisualizationCallback
from tests.conformance.cases import CASES, TSNE, Case
from tests.conformance.harness import (
    MODES,
    Blobs,
    Outcome,
    Recorder,
    TinyModule,
    assert_no_hooks,
    assert_untouched,
    fit,
    loaders,
    trainer,
)

COMPILED = [mode for mode in MODES if mode.startswith("compiled")]
OFTEN = ["fp32", "bf16-mixed", "gradient-clipping"]
"""Ways of training that are tried by default; all others are slow only because they are many."""
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@cache
def alone(mode: str) -> Outcome:
    """The run without callbacks, shared by all cases."""
    return fit(mode)


def at_every_step(case: Case, **kwargs: Any) -> VisualizationCallback:
    schedule = {} if case.collects else {"every_n_steps": 1}
    return case.make(on_error="raise", **{**schedule, **kwargs})


@every_case
@pytest.mark.parametrize(
    "mode", [m if m in OFTEN else pytest.param(m, marks=pytest.mark.slow) for m in MODES if m not in COMPILED]
)
def test_fit_ends_in_the_same_weights(case: Case, mode: str) -> None:
    recorder = Recorder()
    seen = fit(mode, [at_every_step(case)], logger=recorder)
    assert_untouched(seen, alone(mode))
    assert recorder.tags == set(case.tags)
    steps = {step for _, step, _ in recorder.images}
    assert len(steps) >= 2
    if not case.collects:
        assert steps == set(range(seen.trainer.global_step + 1))


# Compiling takes seconds, so these modes have all in one run.
@pytest.mark.parametrize("mode", ["fp32", *(pytest.param(m, marks=pytest.mark.slow) for m in COMPILED)])
def test_all_together_end_in_the_same_weights(mode: str) -> None:
    recorder = Recorder()
    cases = [TSNE if case.id == "embeddings" and mode == "fp32" else case for case in CASES]
    seen = fit(mode, [at_every_step(case) for case in cases], logger=recorder)
    assert_untouched(seen, alone(mode))
    assert recorder.tags == {tag for case in CASES for tag in case.tags}
    steps = set(range(seen.trainer.global_step + 1))
    for case in CASES:
        drawn = {step for tag, step, _ in recorder.images if tag in case.tags and not tag.endswith("/change")}
        assert len(drawn) >= 2 if case.collects else drawn == steps, case


@every_case
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_finished_model_is_looked_at(case: Case, stage: str) -> None:
    torch.manual_seed(0)
    module = TinyModule().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    recorder, callback = Recorder(), case.make(on_error="raise")
    getattr(trainer([callback], logger=recorder), stage)(module, loaders()[1], verbose=False)
    assert recorder.tags == {t for t in case.tags if not t.endswith("/change")}
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert_no_hooks(module)


@every_case
def test_the_same_pictures_under_inference_mode(case: Case) -> None:
    """`trainer.validate` turns autograd off for real, where `enable_grad` alone brings no gradients back."""
    torch.manual_seed(0)
    module, pictures = TinyModule(), []
    for inference_mode in (True, False):
        recorder = Recorder()
        runner = trainer([case.make(on_error="raise")], logger=recorder, inference_mode=inference_mode)
        runner.validate(module, loaders()[1], verbose=False)
        pictures.append({tag: image for tag, _, image in recorder.images})
    assert pictures[0].keys() == pictures[1].keys() and pictures[0]
    assert all((image == pictures[1][tag]).all() for tag, image in pictures[0].items())


@every_case
def test_files_written_beside_training_are_what_loggers_get(case: Case, tmp_path: Path) -> None:
    recorder, callback = Recorder(), case.make(on_error="raise", folder=tmp_path)
    assert_untouched(fit("fp32", [callback], logger=recorder), alone("fp32"))
    files = {path.relative_to(tmp_path).as_posix(): np.asarray(Image.open(path)) for path in tmp_path.rglob("*.png")}
    assert files.keys() == {f"{tag}/step_{step:08d}.png" for tag, step, _ in recorder.images}
    assert all(np.array_equal(files[f"{tag}/step_{step:08d}.png"], image) for tag, step, image in recorder.images)
    assert callback.written == Counter(tag for tag, _, _ in recorder.images)


@every_case
def test_a_budget_leaves_out_all_but_the_first_look(case: Case) -> None:
    recorder, plain = Recorder(), Recorder()
    run = {"max_epochs": 3}
    fit("fp32", [case.make(on_error="raise")], logger=plain, **run)
    seen = fit("fp32", [case.make(on_error="raise", budget=1e-6)], logger=recorder, **run)
    assert_untouched(seen, fit("fp32", **run))
    first = plain.images[0][1]
    assert {step for _, step, _ in recorder.images} == {first}
    images = [(tag, image.tobytes()) for tag, step, image in plain.images if step == first]
    assert [(tag, image.tobytes()) for tag, _, image in recorder.images] == images


@every_case
def test_fast_dev_run_and_no_logger(case: Case) -> None:
    assert_untouched(fit("fp32", [case.make(on_error="raise")], logger=False), alone("fp32"))
    fast = fit("fp32", [case.make(on_error="raise")], fast_dev_run=True)
    assert fast.trainer.global_step == 1


@every_case
def test_sanity_check_alone_logs_nothing(case: Case) -> None:
    recorder = Recorder()
    seen = fit("fp32", [case.make(on_error="raise", at_start=False)], logger=recorder, max_epochs=0)
    assert seen.trainer.global_step == 0
    assert not recorder.images


@every_case
def test_two_of_a_class_write_side_by_side(case: Case) -> None:
    recorder = Recorder()
    callbacks = [case.make(on_error="raise"), case.make(on_error="raise")]
    assert_untouched(fit("fp32", callbacks, logger=recorder), alone("fp32"))
    assert callbacks[1].name == f"{callbacks[0].name}-2"
    variants = [{t.split("/", 1)[1] for t in recorder.tags if t.startswith(c.name + "/")} for c in callbacks]
    assert variants[0] == variants[1] == {t.split("/", 1)[1] for t in case.tags}


@every_case
def test_resuming_goes_on_as_if_never_stopped(case: Case, tmp_path: Path) -> None:
    outcomes = []
    for folder, callbacks in (("with", [case.make(on_error="raise")]), ("without", [])):
        kwargs: dict[str, Any] = {"enable_checkpointing": True, "logger": Recorder()}
        keep = ModelCheckpoint(tmp_path / folder, filename="first")
        fit("fp32", [*callbacks, keep], max_epochs=1, **kwargs)
        # A new process would have new callbacks: they learn of the first part from the checkpoint alone.
        fresh = [case.make(on_error="raise") for _ in callbacks]
        again = ModelCheckpoint(tmp_path / folder, filename="second")
        outcomes.append(fit("fp32", [*fresh, again], ckpt_path=tmp_path / folder / "first.ckpt", **kwargs))
    assert_untouched(*outcomes)
    (callback,) = (c for c in outcomes[0].trainer.callbacks if isinstance(c, VisualizationCallback))
    stored = torch.load(tmp_path / "with" / "first.ckpt", weights_only=True).get("lit_viz", {})
    assert (callback.name in stored) == bool(callback.memory())


@every_case
def test_a_look_that_fails_costs_one_warning(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = case.make()

    def fail(look: Any) -> None:
        next(look.model.parameters()).requires_grad_(False)
        look.model.train()
        torch.rand(1)
        raise ZeroDivisionError("pictures are hard")

    monkeypatch.setattr(callback, "visualize", fail)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = fit("fp32", [callback], logger=Recorder())
    told = [str(w.message) for w in caught if "pictures are hard" in str(w.message)]
    assert len(told) == 1, told
    assert type(callback).__name__ in told[0]
    assert_untouched(seen, alone("fp32"))


@every_case
def test_raise_stops_with_the_cause_and_a_clean_model(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = case.make(on_error="raise")
    monkeypatch.setattr(callback, "visualize", lambda look: 1 / 0)
    module = TinyModule()
    with pytest.raises(ZeroDivisionError):
        trainer([callback], logger=Recorder()).fit(module, *loaders())
    assert_no_hooks(module)


@every_case
def test_a_model_that_fails_in_a_look_is_left_clean(case: Case) -> None:
    class Fails(TinyModule):
        looked_at = False

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.looked_at and not torch.is_inference_mode_enabled() and not self.training:
                self.net.conv1(images)
                raise FloatingPointError("inside the model")
            return super().forward(images)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass  # so that collecting callbacks need a pass of their own, and meet the failure

    def make() -> Fails:
        torch.manual_seed(3)
        return Fails()

    results = []
    for callbacks in ([case.make()], []):
        torch.manual_seed(5)
        module = make()
        module.looked_at = bool(callbacks)
        runner = trainer(callbacks, logger=Recorder())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runner.fit(module, *loaders())
        results.append({k: v.clone() for k, v in module.state_dict().items()})
        assert_no_hooks(module)
    assert all(torch.equal(v, results[1][k]) for k, v in results[0].items())


@every_case
@pytest.mark.parametrize("kind", ["list", "dict", "nested"])
def test_any_batch_that_holds_images(case: Case, kind: str) -> None:
    def collate(samples: list[Any]) -> Any:
        images, labels = torch.utils.data.default_collate(samples)
        shapes = {
            "list": [images, labels],
            "dict": {"pixel_values": images, "labels": labels, "id": labels + 100},
        }
        return shapes.get(kind, ({"image": images}, {"target": labels}))

    train, val = (DataLoader(Blobs(n, i), 8, collate_fn=collate) for i, n in enumerate((16, 14)))
    recorder = Recorder()
    trainer([case.make(on_error="raise")], logger=recorder, max_epochs=2).fit(TinyModule(), train, val)
    assert recorder.tags == set(case.tags)


@every_case
def test_iterable_data(case: Case) -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(Blobs(14, 4))

    recorder = Recorder()
    runner = trainer([case.make(on_error="raise")], logger=recorder)
    runner.fit(TinyModule(), loaders()[0], DataLoader(Stream(), 6))
    assert recorder.tags == set(case.tags)


@every_case
def test_no_validation_data(case: Case) -> None:
    recorder = Recorder()
    trainer([case.make(on_error="raise")], logger=recorder).fit(TinyModule(), loaders()[0])
    assert recorder.tags == (set() if case.collects else set(case.tags))
