"""Class activation maps against Captum, an identity, and the layouts of networks that are no plain CNN."""

from __future__ import annotations

import copy
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
from tests.functional.test_saliency import images, relative, small

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


@pytest.mark.parametrize("name", [n for n in LAYERS if n not in ("densenet121", "mobilenet_v3_small", "convnext_tiny")])
def test_guided_grad_cam_equals_captum(name: str, network: Network) -> None:
    model, x = network(name), images(2, 3, 96, 128)
    # In untrained networks some classes have no evidence anywhere, and zero proves nothing.
    peaks = [float(grad_cam(model, x, target, layer=LAYERS[name]).flatten(1).amax(1).min()) for target in range(6)]
    target = peaks.index(max(peaks))
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
    many = images(64, 3, 12, 10)
    each = torch.cat([function(small(), one[None], 3, layer="4") for one in many])
    torch.testing.assert_close(function(small(), many, 3, layer="4"), each, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        rough = function(model, x, target)
    assert torch.nn.functional.cosine_similarity(rough.flatten(1), expected.flatten(1)).min() > 0.95
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


class Attention(nn.Module):
    """Queries, keys and values by layers of their own, queries and keys normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width // 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(self.norm(q), k, v)
        return mixed.transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    """One block of a vision transformer whose class comes from its first token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.ones(1, 1, 8))
        self.norm1, self.attention, self.head = nn.LayerNorm(8), Attention(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), 1, 8), patches], dim=1)
        return self.head((tokens + self.attention(self.norm1(tokens)))[:, 0])


def test_queries_keys_and_values_are_not_the_last_layer() -> None:
    torch.manual_seed(0)
    assert last_spatial_layer(Transformer(), images(2, 3, 16, 16)) == "norm1"


class Branches(nn.Module):
    """Two branches at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(torch.cat([self.left(x).mean((2, 3)), self.right(x).amax((2, 3))], dim=1))


def test_a_layer_before_branches_is_preferred_to_one_of_them(network: Network) -> None:
    torch.manual_seed(0)
    assert last_spatial_layer(Branches(), images(1, 3, 8, 8)) == "stem"
    model = tv.inception_v3(num_classes=20, init_weights=False).eval()
    assert last_spatial_layer(model, images(1, 3, 96, 96)) == "Mixed_6e"  # behind it maps have a single place
    assert last_spatial_layer(model, images(1, 3, 160, 160)) == "Mixed_7c"


class Pyramid(nn.Module):
    """A backbone with maps of two sizes, of which the score reads one."""

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine, self.coarse = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            fine = self.fine(x)
            return {"0": fine, "1": self.coarse(fine)}

    def __init__(self, level: str) -> None:
        super().__init__()
        self.backbone, self.level, self.head = self.Backbone(), level, nn.ModuleDict()
        self.head["0"], self.head["1"] = nn.Linear(4, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.backbone(x)
        # All levels are in the graph, as behind the RoI pooling of a detector.
        both = torch.stack([self.head[level](maps[level].mean((2, 3))) for level in maps])
        return both[int(self.level)]


@pytest.mark.parametrize(("level", "layer"), [("0", "fine"), ("1", "coarse")])
def test_of_a_pyramid_the_level_that_the_score_reads(level: str, layer: str) -> None:
    torch.manual_seed(0)
    model, x, target = Pyramid(level), images(2, 3, 16, 16), torch.tensor([0, 2])
    assert last_spatial_layer(model, x) == f"backbone.{layer}"
    a, g = by_hand(model, f"backbone.{layer}", x, target)
    expected = (a * g.mean((2, 3), keepdim=True)).sum(1)
    assert relative(grad_cam(model, x, target, signed=True), expected) < 1e-5


@pytest.mark.parametrize("name", ["vit", "resnet18"])
def test_a_head_of_zeros_hides_no_layer(name: str, network: Network) -> None:
    model, x = copy.deepcopy(network(name)), images(1, 3, 64, 64)
    expected = last_spatial_layer(model, x)
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    nn.init.zeros_(head.weight)
    assert last_spatial_layer(model, x) == expected
    assert not grad_cam(model, x).any()


def test_a_part_compiled_by_torchscript() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3))), nn.ReLU())
    model = nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert last_spatial_layer(model, images(1, 3, 8, 8)) == "0"
    assert not any(m._forward_hooks for m in model.modules())
