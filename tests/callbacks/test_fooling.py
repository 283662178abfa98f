"""Fooling images of the probe: what is drawn and counted is what the function gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lit_viz import draw, functional
from lit_viz.callbacks import FoolingImages
from lit_viz.callbacks import fooling as file
from lit_viz.callbacks.fooling import fooling_sheet, how_it_was_fooled
from lit_viz.draw import sheet
from lit_viz.errors import UsageError
from lit_viz.functional import fooling_image
from lit_viz.pixels import PixelSpace
from tests.conformance.harness import CLASSES, Blobs, Recorder, TinyModule, fit, trainer

SPACE = PixelSpace((0.4,), (0.25,))


@pytest.fixture
def module() -> TinyModule:
    torch.manual_seed(0)
    module = TinyModule()
    with torch.no_grad():
        module.net.head.weight *= 20  # sure enough of itself to be fooled
    return module


def looked(callback: FoolingImages, module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What one look gave: the call of the function, its result, the cards, and the numbers."""
    seen: dict[str, Any] = {}
    run, drawn = fooling_image, sheet  # those of the package, when a test looks several times

    def fool(model: Any, images: Tensor, target: Any, **options: Any) -> functional.Fooling:
        seen.update(images=images, target=target, options=options, found=run(model, images, target, **options))
        return seen["found"]

    monkeypatch.setattr(functional, "fooling_image", fool)
    monkeypatch.setattr(
        draw, "sheet", lambda cards, **page: (seen.update(cards=cards, page=page), drawn(cards, **page))[1]
    )
    recorder = Recorder()
    runner = trainer([callback], logger=recorder)
    runner.validate(module, DataLoader(Blobs(20, 3), 6), verbose=False)
    seen["numbers"] = {tag: value for tag, _, value in recorder.metrics if tag.startswith("fooling/")}
    seen["labels"] = callback._probe.labels
    return seen


@pytest.mark.parametrize(
    "way",
    [
        {"norm": None, "confidence": 0.9},
        {"norm": "linf", "confidence": 0.9},
        {"norm": "l2", "bound": 3.0, "confidence": 0.6},
        {"norm": "l2", "confidence": 0.0},
    ],
    ids=["plain", "least", "bound", "default"],
)
def test_what_is_shown_is_what_the_function_gives(
    way: dict[str, Any], module: TinyModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {} if way == {"norm": "l2", "confidence": 0.0} else way  # what it does unasked
    callback = FoolingImages(num_images=5, mean=[0.4], std=[0.25], on_error="raise", steps=60, **given)
    seen = looked(callback, module, monkeypatch)
    found = functional.fooling_image(module, seen["images"], seen["target"], pixels=SPACE, steps=60, **way)
    assert torch.equal(found.eight_bit, seen["found"].eight_bit)
    won = found.success & (found.steps > 0)
    assert won.any()
    challenged = ~(found.success & (found.steps == 0))
    assert seen["numbers"] == pytest.approx(
        {
            "fooling/success": int(won.sum()) / int(challenged.sum()),
            "fooling/l2": float(found.l2[won].mean()),
            "fooling/linf": float(found.linf[won].mean()),
            "fooling/steps": float(np.median(found.steps[won])),
        }
    )
    factor = int(seen["page"]["columns"][2].split()[-1])
    for i, card in enumerate(seen["cards"]):
        original, fooled, difference = (image.astype(int) for image in card.images)
        eight_bit = found.eight_bit[i].permute(1, 2, 0).numpy().astype(int)
        assert (fooled == eight_bit).all()
        change = fooled - original
        assert (change == (found.perturbation[i] * 255).round().permute(1, 2, 0).numpy()).all()
        assert np.abs(difference - np.clip(127.5 + factor * change, 0, 255)).max() <= 1
        before, after = (functional.probabilities(s)[i] for s in (found.scores_before, found.scores_after))
        for p in (before, after):
            assert f"{CLASSES[int(p.argmax())]} {float(p.max()):.2f}" in card.caption
        assert f"L2 {float(found.l2[i]):.2f}" in card.detail and "shuffled: " in card.detail
        assert ("not fooled" in card.detail) == (not found.success[i])


def test_targets_stay_the_same_and_are_never_the_label(module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    first = looked(FoolingImages(num_images=12, steps=1), module, monkeypatch)
    assert (first["target"] != first["labels"]).all() and len(set(first["target"].tolist())) == 3
    torch.manual_seed(5)
    again = looked(FoolingImages(num_images=12, steps=1), TinyModule(), monkeypatch)
    assert torch.equal(first["target"], again["target"])
    other = looked(FoolingImages(num_images=12, steps=1, seed=1), module, monkeypatch)
    assert not torch.equal(first["target"], other["target"])


@pytest.mark.parametrize(
    ("to", "expected"),
    [("bee", 1), (2, 2), (["ant", 1, "cat"], [0, 1, 2]), ("runner_up", "runner_up"), ("least_likely", "least_likely")],
)
def test_classes_of_ones_choice(to: Any, expected: Any, module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = looked(FoolingImages(to=to, num_images=3, steps=1, on_error="raise"), module, monkeypatch)
    assert (seen["target"].tolist() if isinstance(seen["target"], Tensor) else seen["target"]) == expected


def test_numbers_that_mean_nothing_are_left_out(module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = looked(FoolingImages(num_images=4, norm="linf", bound=1 / 255, steps=2, confidence=0.9), module, monkeypatch)
    assert not seen["found"].success.any() and seen["numbers"] == {"fooling/success": 0.0}
    # All are taken for the target from the start.
    with torch.no_grad():
        module.net.head.bias[1] += 1e3
    seen = looked(FoolingImages(num_images=4, to="bee"), module, monkeypatch)
    assert seen["found"].success.all() and seen["numbers"] == {}


def test_curves_over_a_run() -> None:
    recorder = Recorder()
    fit("fp32", [FoolingImages(num_images=2, steps=5, on_error="raise", confidence=0)], logger=recorder)
    steps = {step for tag, step, _ in recorder.metrics if tag == "fooling/success"}
    assert len(steps) >= 2


def test_lost_gradients_are_said_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    module = TinyModule()
    with torch.no_grad():
        module.net.head.weight.zero_()
    seen = looked(FoolingImages(num_images=2, steps=3, on_error="raise"), module, monkeypatch)
    assert all("no gradient reaches the image" in card.detail for card in seen["cards"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": None, "bound": 0.1}, "a bound is one"),
        ({"confidence": 1}, "below 1"),
        ({"norm": "l0"}, "norm is"),
        ({"steps": -1}, "steps"),
    ],
)
def test_mistakes_are_told_by_the_constructor(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FoolingImages(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "dog"}, "there is no class 'dog'"),
        ({"to": 7}, "out of range"),
        ({"to": [0, 1]}, "2 classes for 3 probe"),
    ],
)
def test_mistakes_are_told_before_training(arguments: dict[str, Any], message: str, module: TinyModule) -> None:
    with pytest.raises(UsageError, match=message):
        trainer([FoolingImages(num_images=3, **arguments)]).validate(module, DataLoader(Blobs(20, 3), 6), verbose=False)


def test_words_and_amplification() -> None:
    assert "gradient ascent" in how_it_was_fooled(None, None, 0.9) and "p ≥ 0.9" in how_it_was_fooled(None, None, 0.9)
    assert "at most 8/255 (L∞)" in how_it_was_fooled("linf", 8 / 255, 0)
    assert "at most 1.5 (L2)" in how_it_was_fooled("l2", 1.5, 0) and "p ≥" not in how_it_was_fooled("l2", 1.5, 0)
    assert "as little as can be (L∞)" in how_it_was_fooled("linf", None, 0)
    for levels, factor in ((1, 100), (4, 20), (60, 2), (200, 1)):
        assert file._amplification(torch.full((1, 1, 4, 4), levels / 255)) == factor
    assert file._amplification(torch.zeros(1, 1, 4, 4)) == 100


def test_one_score(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(2, 1, 6, 6)
    found = functional.fooling_image(lambda x: x.sum((1, 2, 3))[:, None], images, 0, steps=2, pixels=PixelSpace())
    control = file.two_scores(lambda x: x.sum((1, 2, 3))[:, None], images)
    assert control.shape == (2, 2)
    picture = fooling_sheet(found, control, class_name=str, title="t", subtitle="s")
    assert picture.dtype == np.uint8 and picture.ndim == 3
