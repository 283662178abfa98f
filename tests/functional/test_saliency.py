"""Saliency against Captum, an identity, and everything a network may not notice of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import Saliency
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.functional import input_gradient, saliency

Network = Callable[[str], nn.Module]
SIZES = {"alexnet": (96, 64), "resnet18": (72, 64), "vit": (64, 64), "swin_t": (64, 64), "vgg11_bn": (64, 80)}


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to each map's maximum."""
    peak = expected.abs().flatten(1).amax(1)
    assert (peak > 0).all()
    return float(((found - expected).abs().flatten(1).amax(1) / peak).max())


def small(inplace: bool = True) -> nn.Sequential:
    """Batch norm, dropout, in-place ReLU, max-pooling."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=inplace),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(inplace=inplace),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(32, 5),
        )


@pytest.mark.parametrize(
    "name",
    ["alexnet", "resnet18", "vgg11_bn", "densenet121", "mobilenet_v3_small", "vit", "swin_t", "convnext_tiny"],
)
def test_equals_captum(name: str, network: Network) -> None:
    model, x = network(name), images(2, 3, *SIZES.get(name, (64, 64)))
    target = torch.tensor([3, 11])
    expected = Saliency(model).attribute(x.clone().requires_grad_(), target, abs=False).detach()
    assert relative(input_gradient(model, x, target), expected) < 1e-5
    assert relative(saliency(model, x, target), expected.abs().amax(1)) < 1e-5


def test_equals_captum_on_a_trained_network(network: Network, photographs: Tensor) -> None:
    model = network("efficientnet_lite0")
    predicted = model(photographs).argmax(1)
    assert predicted[0].item() in range(281, 286)  # a cat is seen as a cat: weights and input are right
    expected = Saliency(model).attribute(photographs.clone().requires_grad_(), predicted).amax(1).detach()
    assert relative(saliency(model, photographs), expected) < 1e-5


def test_of_a_linear_model_is_its_weights() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 6, 5))
    weights = linear[1].weight.detach().reshape(5, 3, 4, 6)
    x, target = images(5, 3, 4, 6), [4, 2, 2, 0, 1]
    assert torch.equal(input_gradient(linear, x, target), weights[target])
    assert torch.equal(saliency(linear, x, target), weights[target].abs().amax(1))


def test_targets_agree() -> None:
    model, x = small().eval(), images(4, 3, 12, 10)
    predicted = model(x).argmax(1)
    assert torch.equal(saliency(model, x), saliency(model, x, predicted))
    assert torch.equal(saliency(model, x, predicted.tolist()), saliency(model, x, predicted))
    assert torch.equal(saliency(model, x, 3), saliency(model, x, torch.full((4,), 3)))
    assert not torch.allclose(saliency(model, x, 3), saliency(model, x, 1))
    with pytest.raises(UsageError, match="out of range"):
        saliency(model, x, 5)


def test_a_single_score_per_image_may_come_without_classes() -> None:
    weights = images(3, 4, 4)
    found = saliency(lambda x: (x * weights).sum((1, 2, 3)), images(2, 3, 4, 4), 0)
    assert torch.equal(found[1], weights.abs().amax(0))


def test_nothing_in_the_model_or_input_changes() -> None:
    model, x = small().train(), images(4, 3, 12, 10).requires_grad_()
    model[4].weight.requires_grad_(False)
    model[1].eval()
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.25)
    x.grad = torch.full_like(x, 0.5)
    before, state = x.detach().clone(), copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    saliency(model, x)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model] == [m is not model[1] for m in model] and model.training
    assert all(p.requires_grad == (p is not model[4].weight) for p in model.parameters())
    assert all((p.grad == 0.25).all() for p in model.parameters())
    assert torch.equal(x, before) and (x.grad == 0.5).all() and x.requires_grad
    assert torch.equal(torch.get_rng_state(), rng)


def test_a_model_in_training_mode_is_looked_at_in_evaluation_mode() -> None:
    model, x = small(), images(4, 3, 12, 10)
    assert torch.equal(saliency(model.train(), x), saliency(model.eval(), x))


def test_first_layer_in_place() -> None:
    x = images(2, 3, 6, 6)
    first = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(108, 4))
    before = x.clone()
    expected = first[2].weight.detach()[1].reshape(3, 6, 6) * (x > 0)
    assert torch.equal(input_gradient(first, x, 1), expected) and torch.equal(x, before)
    assert relative(saliency(small(True).eval(), x), saliency(small(False).eval(), x)) < 1e-6


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_without_gradients_around_it(mode: Callable[[], Any]) -> None:
    model, x = small().eval(), images(2, 3, 12, 10)
    expected = saliency(model, x)
    with mode():
        inner = x * 1  # under inference mode a tensor of the other kind
        found = saliency(model, inner)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert torch.equal(found, expected)


def test_under_autocast() -> None:
    model, x = small().eval(), images(2, 3, 12, 10)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        found = saliency(model, x, 1)
    assert found.dtype == torch.float32
    assert 0 < relative(found, saliency(model, x, 1)) < 0.1


def test_in_bfloat16_and_float64() -> None:
    x = images(2, 3, 12, 10)
    expected = saliency(small().eval(), x, 1)
    assert saliency(small().eval().double(), x.double(), 1).sub(expected).abs().max() < 1e-5 * expected.max()
    found = saliency(small().eval().bfloat16(), x.bfloat16(), 1)
    assert found.dtype == torch.bfloat16 and relative(found.float(), expected) < 0.1


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.flip(3).contiguous().flip(3),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.stack([x, x], dim=4)[..., 0],
    ],
)
def test_memory_layout_of_the_images_does_not_matter(layout: Callable[[Tensor], Tensor]) -> None:
    model, x = small().eval(), images(3, 3, 14, 9)
    found = saliency(model, layout(x))
    assert found.shape == (3, 14, 9) and relative(found, saliency(model, x)) < 1e-6


def test_expanded_images() -> None:
    model, x = small().eval(), images(1, 1, 14, 9)
    found = saliency(model, x.expand(2, 3, 14, 9))
    assert relative(found, saliency(model, x.repeat(2, 3, 1, 1))) < 1e-6


def test_batches_do_not_matter() -> None:
    # In float64: in float32 other kernels round differently, which turns some ReLU on or off.
    model, x = small().eval().double(), images(16, 3, 40, 32).double()
    one_by_one = torch.cat([saliency(model, image[None]) for image in x])
    assert relative(saliency(model, x), one_by_one) < 1e-10


def test_compiled() -> None:
    torch._dynamo.reset()
    model, x = small().eval(), images(2, 3, 12, 10)
    compiled = torch.compile(model, backend="aot_eager")
    assert torch.equal(compiled(x), model(x))
    assert torch.equal(saliency(compiled, x), saliency(model, x))
    module = small().eval()
    module.compile(backend="aot_eager")
    assert torch.equal(saliency(module, x), saliency(model, x))


class Breaks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.conv.bias.requires_grad_(False)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        self.conv.requires_grad_(False)
        self.eval()
        raise ArithmeticError("in forward")


def test_an_exception_in_forward_leaves_everything_as_it_was() -> None:
    model, x = Breaks().train(), images(1, 3, 8, 8)
    with pytest.raises(ArithmeticError, match="in forward"):
        saliency(model, x)
    assert model.training and model.conv.training
    assert model.conv.weight.requires_grad and not model.conv.bias.requires_grad  # type: ignore[union-attr]
    assert not x.requires_grad and torch.is_grad_enabled()


def test_broken_weights_give_a_broken_map() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    nn.init.constant_(model[0].weight, torch.nan)
    assert saliency(model, images(2, 3, 6, 6)).isnan().all()


class Dict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x), "loss": x.sum()}


def test_a_model_that_returns_a_dict_needs_score() -> None:
    model, x = Dict().eval(), images(2, 3, 12, 10)
    with pytest.raises(UsageError, match=r"Dict returned a dict with keys \['logits', 'loss'\]; pass score="):
        saliency(model, x)
    assert torch.equal(saliency(model, x, score=lambda out: out["logits"]), saliency(model.net, x))


def test_segmentation_scores() -> None:
    net, x = nn.Conv2d(3, 5, 3, padding=1), images(2, 3, 8, 8)
    found = input_gradient(net, x, 2, score=lambda maps: maps.sum((2, 3)))
    ones = torch.ones(2, 1, 8, 8)
    expected = nn.functional.conv_transpose2d(ones, net.weight[2:3].detach(), padding=1)
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize(
    "model",
    [
        lambda x: torch.ones(2, 3),
        lambda x: torch.ones(2, 3, requires_grad=True) * 2,
        lambda x: (x > 0).float().flatten(1),
        lambda x: x.detach().flatten(1),
    ],
)
def test_scores_that_do_not_depend_on_the_pixels(model: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UsageError, match="does not depend on the pixels"):
        saliency(model, images(2, 3, 4, 4), 0)


def test_what_is_no_batch_of_images() -> None:
    with pytest.raises(UsageError, match=r"images\[None\]"):
        saliency(small(), images(3, 8, 8))
