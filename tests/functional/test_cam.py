"""Class activation maps against Captum, an identity, and the layouts of networks that are no plain CNN."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.models as tv
from captum.attr import GuidedGradCam, LayerGradCam
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError
from lit_viz.functional import (
    activations_and_gradients,
    grad_cam,
    guided_grad_cam,
    hires_cam,
    last_spatial_layer,
    layer_cam,
    upsampled,
)
from lit_viz.layers import find_layer
from tests.functional.test_saliency import images, relative

Network = Callable[[str], nn.Module]

LAYERS = {
    "alexnet": "features.8",
    "vgg11_bn": "features.25",
    "vgg16": "features.28",  # an in-place ReLU follows
    "resnet18": "layer3",
    "resnet50": "layer4",
    "resnext50_32x4d": "layer4.1.conv2",
    "squeezenet1_1": "features.10",
    "regnet_x_400mf": "trunk_output",
    "densenet121": "features",
    "mobilenet_v3_small": "features.7",
    "convnext_tiny": "features.5",
}


@pytest.mark.parametrize("name", LAYERS)
def test_equals_captum(name: str, network: Network) -> None:
    model, x, target = network(name), images(2, 3, 96, 128), torch.tensor([3, 11])
    layer = find_layer(model, LAYERS[name])[1]
    # Captum reads a layer's output when the pass is over, after an in-place ReLU wrote to it.
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    expected = LayerGradCam(model, layer).attribute(x, target)[:, 0].detach()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    assert relative(grad_cam(model, x, target, layer=LAYERS[name], signed=True), expected) < 1e-5
    found = grad_cam(model, x, target, layer=LAYERS[name])
    assert (found - expected.clamp(min=0)).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "resnet18", "squeezenet1_1", "regnet_x_400mf"])
def test_guided_grad_cam_equals_captum(name: str, network: Network) -> None:
    model, x, target = network(name), images(2, 3, 96, 128), torch.tensor([3, 11])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = GuidedGradCam(model, find_layer(model, LAYERS[name])[1])
        expected = theirs.attribute(x.clone().requires_grad_(), target).detach()
    assert relative(guided_grad_cam(model, x, target, layer=LAYERS[name]), expected) < 1e-5


def by_hand(model: nn.Module, layer: str, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Activations and gradients through the graph from the pixels on, with a plain hook."""
    kept: list[Tensor] = []
    handle = find_layer(model, layer)[1].register_forward_hook(lambda _, args, out: kept.append(out))
    scores = model(x.clone().requires_grad_())
    handle.remove()
    (gradient,) = torch.autograd.grad(scores.gather(1, target[:, None]).sum(), kept[0])
    return kept[0].detach(), gradient


def test_successors_by_their_formulas(network: Network) -> None:
    model, x, target = network("resnet18"), images(2, 3, 64, 96), torch.tensor([3, 11])
    a, g = by_hand(model, "layer2", x, target)
    torch.testing.assert_close(hires_cam(model, x, target, layer="layer2"), (a * g).sum(1).relu())
    torch.testing.assert_close(layer_cam(model, x, target, layer="layer2"), (a * g.relu()).sum(1).relu())


def test_hires_cam_adds_up_to_the_score() -> None:
    """For a network that ends in one linear layer on its last maps, less the bias."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4))
    x = images(3, 3, 10, 10)
    heat = hires_cam(net, x, 2, layer="3", signed=True)
    torch.testing.assert_close(heat.sum((1, 2)), (net(x)[:, 2] - net[5].bias[2]).detach())
    assert not torch.allclose(grad_cam(net, x, 2, layer="3", signed=True).sum((1, 2)), heat.sum((1, 2)))


def test_hires_cam_behind_an_average_pool_is_grad_cam(network: Network) -> None:
    model, x = network("resnet18"), images(2, 3, 64, 96)
    torch.testing.assert_close(hires_cam(model, x, 4, layer="layer4"), grad_cam(model, x, 4, layer="layer4"))


def test_tokens_are_folded_without_the_class_token(network: Network) -> None:
    model, x, target = network("vit"), images(2, 3, 64, 64), torch.tensor([3, 11])
    layer = last_spatial_layer(model, x)
    assert layer == "encoder.layers.encoder_layer_2.ln_1"
    a, g = by_hand(model, layer, x, target)
    assert a.shape == (2, 17, 48)
    weights = g[:, 1:].mean(dim=1, keepdim=True)
    expected = (weights * a[:, 1:]).sum(2).reshape(2, 4, 4)
    assert relative(grad_cam(model, x, target, signed=True), expected) < 1e-5


def test_layers_behind_the_last_attention_are_refused(network: Network) -> None:
    model, x = network("vit"), images(1, 3, 64, 64)
    for layer in ("encoder.layers.encoder_layer_2", "encoder.ln", "encoder.layers.encoder_layer_2.ln_2"):
        with pytest.raises(UsageError, match="class token alone"):
            grad_cam(model, x, 0, layer=layer)


def test_channels_last_maps(network: Network) -> None:
    model, x, target = network("swin_t"), images(2, 3, 64, 96), torch.tensor([3, 11])
    a, g = by_hand(model, "norm", x, target)
    assert a.shape == (2, 2, 3, 768)
    expected = (g.mean((1, 2), keepdim=True) * a).sum(3)
    assert relative(grad_cam(model, x, target, layer="norm", signed=True), expected) < 1e-5
    assert last_spatial_layer(model, x) == "norm"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alexnet", "features.11"),
        ("vgg16", "features.29"),
        ("resnet18", "layer4"),
        ("resnet50", "layer4"),
        ("squeezenet1_1", "features"),
        ("regnet_x_400mf", "trunk_output"),
        ("densenet121", "features"),
        ("mobilenet_v3_small", "features"),
        ("convnext_tiny", "features"),
        ("efficientnet_lite0", "_bn1"),
    ],
)
def test_the_last_spatial_layer(name: str, expected: str, network: Network) -> None:
    model, x = network(name), images(1, 3, 128, 128)
    assert last_spatial_layer(model, x) == expected
    assert grad_cam(model, x).shape[0] == 1


def test_segmentation_is_asked_before_its_own_scores() -> None:
    model = tv.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).eval()
    x = images(1, 3, 64, 96)

    def score(out: dict[str, Tensor]) -> Tensor:
        return out["out"].sum((2, 3))

    layer = last_spatial_layer(model, x, 2, score=score)
    with torch.no_grad():
        maps = activations_and_gradients(model, x, 2, layer=layer, score=score)[0]
    assert maps.shape[1] > 5
    assert grad_cam(model, x, 2, score=score).shape[1:] == maps.shape[2:]


def test_what_has_no_places() -> None:
    with pytest.raises(UsageError, match="no layer with places"):
        last_spatial_layer(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), images(1, 3, 4, 4))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(UsageError, match="no places of the image"):
        grad_cam(net, images(1, 3, 4, 4), layer="2")
    with pytest.raises(UsageError, match="has no layer 'conv'"):
        grad_cam(net, images(1, 3, 4, 4), layer="conv")


def test_a_layer_that_the_score_does_not_depend_on() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.aside = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.aside(x)
            return self.used(x).mean((2, 3))

    with pytest.raises(UsageError, match="does not depend on layer 'aside'"):
        grad_cam(Branch(), images(1, 3, 6, 6), layer="aside")
    # Its channels are the classes, but there is no other.
    assert last_spatial_layer(Branch(), images(1, 3, 6, 6), 1) == "used"


def test_a_layer_called_twice_is_refused(network: Network) -> None:
    with pytest.raises(UsageError, match="called 2 times"):
        grad_cam(network("resnet18"), images(1, 3, 64, 64), layer="layer2.0.relu")


@pytest.mark.parametrize("function", [grad_cam, hires_cam, layer_cam, guided_grad_cam])
def test_circumstances(function: Any, network: Network) -> None:
    model, x, target = network("resnet18"), images(4, 3, 72, 64), torch.tensor([3, 11, 0, 7])
    expected = function(model, x, target)
    with torch.inference_mode():
        assert torch.equal(function(model, x, target), expected)
    assert relative(function(torch.compile(model, backend="aot_eager"), x, target), expected) < 1e-5
    assert relative(function(model, x.contiguous(memory_format=torch.channels_last), target), expected) < 1e-4
    assert torch.equal(function(model.train(), x, target), expected) and model.training
    assert relative(function(model, x[2:3], 0), expected[2:3]) < 1e-4
    for p in model.parameters():
        p.requires_grad_(False)
    assert torch.equal(function(model, x, target), expected)
    with pytest.raises(ZeroDivisionError):
        function(model, x, target, layer="layer4", score=lambda out: 1 / 0)
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.is_grad_enabled()


def test_grad_mode_is_restored_after_an_exception_inside_the_model(network: Network) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.conv(x)
            raise FloatingPointError

    with torch.no_grad(), pytest.raises(FloatingPointError):
        activations_and_gradients(Fails(), images(1, 3, 6, 6), 0, layer="conv")
    with torch.no_grad():
        with pytest.raises(FloatingPointError):
            activations_and_gradients(Fails(), images(1, 3, 6, 6), 0, layer="conv")
        assert not torch.is_grad_enabled()


def test_upsampled_is_bilinear() -> None:
    maps = images(2, 3, 4)
    torch.testing.assert_close(
        upsampled(maps, (9, 16)), F.interpolate(maps[:, None], (9, 16), mode="bilinear", align_corners=False)[:, 0]
    )
