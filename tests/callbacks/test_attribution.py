"""What the attribution callbacks draw, against the functions behind them, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision.models as tv
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_viz import functional
from lit_viz.callbacks import GradCAM, GuidedBackprop, Saliency
from lit_viz.errors import UsageError
from tests.conformance.harness import Blobs, Recorder, TinyModule, trainer


@pytest.fixture
def module() -> TinyModule:
    torch.manual_seed(0)
    return TinyModule()


class Plain(LightningModule):
    """Any network, to be validated."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


def validated(callback: Any, module: Any, monkeypatch: pytest.MonkeyPatch | None = None, sheet: str = "") -> Any:
    """What a callback hands to the sheet it draws, and what is logged."""
    seen: dict[str, Any] = {}
    if monkeypatch is not None:
        import sys

        file = sys.modules[type(callback).__module__]
        original = getattr(file, sheet)

        def spied(look: Any, maps: Any, **kwargs: Any) -> Any:
            seen.update(look=look, maps=maps, **kwargs)
            return original(look, maps, **kwargs)

        monkeypatch.setattr(file, sheet, spied)
    recorder = Recorder()
    trainer([callback], logger=recorder).validate(module, DataLoader(Blobs(20, 3), 6), verbose=False)
    return seen, recorder


@pytest.mark.parametrize("method", ["smooth_grad", "input_x_gradient", "integrated_gradients"])
def test_the_saliency_family(method: Any, module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = Saliency(method=method, samples=3, steps=5, num_images=4, mean=[0.4], std=[0.2], on_error="raise")
    seen, recorder = validated(callback, module, monkeypatch, "attribution_sheet")
    images, labels = seen["look"].images, seen["look"].labels
    if method == "smooth_grad":
        expected = functional.smooth_grad(module, images, labels, samples=3).abs().amax(1)
    elif method == "input_x_gradient":
        expected = functional.input_x_gradient(module, images, labels).sum(1)
    else:
        black = torch.tensor(-2.0)  # colour 0, with that mean and deviation
        full = functional.integrated_gradients(module, images, labels, steps=5, baseline=black)
        expected = full.sum(1)
        error = functional.completeness_error(module, images, full, labels, baseline=black)
        assert seen["notes"] == [f"error {100 * e:.2g} %" for e in error.tolist()]
    torch.testing.assert_close(seen["maps"], expected)
    assert recorder.tags == {f"{method}/probe"}


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam", "layer_cam"])
def test_class_activation_maps(method: Any, module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = GradCAM(method=method, layer="conv2", num_images=4, on_error="raise")
    seen, recorder = validated(callback, module, monkeypatch, "attribution_sheet")
    images, labels = seen["look"].images, seen["look"].labels
    expected = getattr(functional, method)(module, images, labels, layer="conv2")
    torch.testing.assert_close(seen["maps"], expected)
    assert recorder.tags == {f"{method}/net.conv2"}
    attributed = callback.attribute(seen["look"])
    torch.testing.assert_close(attributed, functional.upsampled(expected, (16, 20)))


def test_a_map_without_evidence_says_so(module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        module.net.head.weight.zero_()
    seen, _ = validated(GradCAM(layer="conv2", num_images=3), module, monkeypatch, "attribution_sheet")
    assert seen["notes"] == ["no evidence for this class"] * 3


@pytest.mark.parametrize("method", ["guided", "deconv"])
def test_guided_backprop_of_a_class(method: Any, module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, _ = validated(
        GuidedBackprop(method=method, num_images=4, on_error="raise"), module, monkeypatch, "gradient_sheet"
    )
    run = functional.guided_backprop if method == "guided" else functional.deconvnet
    torch.testing.assert_close(seen["maps"], [run(module, seen["look"].images, seen["look"].labels)])


def test_guided_backprop_of_units(module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """The channels that respond most to each image, or those that were named."""
    seen, recorder = validated(
        GuidedBackprop(layer="conv2", channels=2, num_images=4, on_error="raise"),
        module,
        monkeypatch,
        "gradient_sheet",
    )
    images = seen["look"].images
    units = functional.LayerUnits(module.eval(), "conv2")
    with torch.no_grad():
        order = units(images).argsort(dim=1, descending=True)
    assert seen["captions"] == [f"ch {a} · ch {b}" for a, b in order[:, :2].tolist()]
    for found, channels in zip(seen["maps"], order.T, strict=False):
        torch.testing.assert_close(found, functional.guided_backprop(units, images, channels))
    assert recorder.tags == {"guided_backprop/net.conv2"}
    with pytest.raises(UsageError, match="channels 0 to 5"):
        validated(GuidedBackprop(layer="conv2", channels=[1, 6]), module)


def test_what_has_no_meaning_is_told_before_training() -> None:
    smooth = Plain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(UsageError, match="only GELU"):
        validated(GuidedBackprop(), smooth)
    with pytest.raises(UsageError, match="only GELU"):
        validated(GradCAM(guided=True), smooth)
    unpooled = Plain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(UsageError, match="same for every image"):
        validated(GuidedBackprop(method="deconv"), unpooled)
    flat = Plain(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 20, 4)))
    with pytest.raises(UsageError, match="no layer with places"):
        validated(GradCAM(), flat)


def test_other_activation_functions_are_named_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    seen, _ = validated(GuidedBackprop(on_error="raise"), Plain(net), monkeypatch, "gradient_sheet")
    assert "No rule for SiLU" in seen["subtitle"]


def test_vision_transformers_have_class_activation_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = tv.VisionTransformer(16, 4, 2, 2, 12, 24, num_classes=3)
    nn.init.normal_(net.heads.head.weight)
    recorder = Recorder()
    data = [(torch.randn(3, 16, 16), 1) for _ in range(4)]
    trainer([GradCAM(on_error="raise")], logger=recorder).validate(Plain(net), DataLoader(data, 4), verbose=False)
    assert recorder.tags == {"grad_cam/net.encoder.layers.encoder_layer_1.ln_1"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Saliency(method="smoothgrad"), "method is"),
        (lambda: Saliency(samples=0), "samples"),
        (lambda: Saliency(noise=-1), "noise"),
        (lambda: Saliency(steps=0), "steps"),
        (lambda: Saliency(baseline=2.0), "baseline"),
        (lambda: GradCAM(method="eigen_cam"), "method is"),
        (lambda: GradCAM(layer=3), "dotted name"),
        (lambda: GuidedBackprop(channels=0), "channels"),
        (lambda: GuidedBackprop(channels=[]), "channels"),
    ],
)
def test_bad_arguments(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()
