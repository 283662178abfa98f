"""Objects cut out of probe images: what is drawn, and what is said when there is nothing to draw."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lit_viz import draw, functional
from lit_viz.callbacks import ObjectExtraction
from lit_viz.callbacks import segmentation as file
from lit_viz.errors import UsageError
from tests.conformance.harness import Blobs, Recorder, TinyModule, loaders, trainer

pytest.importorskip("cv2")


@pytest.fixture
def module() -> TinyModule:
    torch.manual_seed(0)
    return TinyModule()


def looked(callback: ObjectExtraction, module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    sheet, drawn = file._sheet, draw.sheet
    monkeypatch.setattr(
        file,
        "_sheet",
        lambda look, maps, masks: (seen.update(look=look, maps=maps, masks=masks), sheet(look, maps, masks))[1],
    )
    monkeypatch.setattr(draw, "sheet", lambda cards, **page: (seen.update(cards=cards), drawn(cards, **page))[1])
    recorder = Recorder()
    trainer([callback], logger=recorder).validate(module, DataLoader(Blobs(20, 3), 6), verbose=False)
    assert recorder.tags == {"objects/probe"}
    return seen


@pytest.mark.parametrize("method", ["smooth_grad", "gradient"])
def test_masks_are_those_of_the_function(method: Any, module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = ObjectExtraction(method=method, samples=3, num_images=4, mean=[0.5], std=[1.0], on_error="raise")
    seen = looked(callback, module, monkeypatch)
    images, labels = seen["look"].images, seen["look"].labels
    if method == "gradient":
        maps = functional.saliency(module, images, labels)
    else:
        maps = functional.smooth_grad(module, images, labels, samples=3).abs().amax(1)
    torch.testing.assert_close(seen["maps"], maps)
    masks = functional.segment((images + 0.5).clamp(0, 1), maps)
    assert torch.equal(seen["masks"], masks) and masks.any() and not masks.all()
    for card, mask, image in zip(seen["cards"], masks, images, strict=True):
        assert f"{mask.float().mean():.0%} of the image" in card.detail
        color = ((image + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        assert (card.images[3][mask.numpy()] == color[mask.numpy()]).all()
        assert (card.images[3][~mask.numpy()] >= 216).all()


def test_a_network_without_gradients_and_one_that_broke(module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        module.net.head.weight.zero_()
    seen = looked(ObjectExtraction(method="gradient", num_images=2, on_error="raise"), module, monkeypatch)
    assert not seen["masks"].any() and all("the map is flat" in card.detail for card in seen["cards"])
    with torch.no_grad():
        module.net.head.weight.fill_(torch.nan)
    seen = looked(ObjectExtraction(method="gradient", num_images=2, on_error="raise"), module, monkeypatch)
    assert not seen["masks"].any() and all("NaN" in card.detail for card in seen["cards"])


def test_a_mask_of_everything_is_said(module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "segment", lambda colors, maps, **_: torch.ones_like(maps, dtype=torch.bool))
    seen = looked(ObjectExtraction(method="gradient", num_images=2, on_error="raise"), module, monkeypatch)
    assert all("the mask is the whole image" in card.detail for card in seen["cards"])


def test_without_opencv_the_run_does_not_start(module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    runner = trainer([ObjectExtraction()], logger=Recorder(), num_sanity_val_steps=0)
    with pytest.raises(UsageError, match=r"lit-viz\[segmentation\]"):
        runner.fit(module, *loaders())
    assert runner.global_step == 0


def test_what_can_not_work_is_said_before_training(module: TinyModule) -> None:
    with pytest.raises(UsageError, match="method"):
        ObjectExtraction(method="magic")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="quantiles"):
        trainer([ObjectExtraction(foreground=0.1)], logger=Recorder()).fit(module, *loaders())
