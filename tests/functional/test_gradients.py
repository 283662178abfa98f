"""SmoothGrad, integrated gradients and input × gradient against Captum and their identities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, NoiseTunnel
from captum.attr import Saliency as CaptumSaliency
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.functional import (
    completeness_error,
    input_gradient,
    input_x_gradient,
    integrated_gradients,
    smooth_grad,
)
from lit_viz.functional.smooth_grad import _noise
from tests.functional.test_saliency import images, relative, small

Network = Callable[[str], nn.Module]
NAMES = [
    "alexnet",
    "vgg11_bn",
    "resnet18",
    "squeezenet1_1",
    "regnet_x_400mf",
    "densenet121",
    "mobilenet_v3_small",
    "convnext_tiny",
    "vit",
    "swin_t",
]


@pytest.mark.parametrize("name", NAMES)
def test_input_x_gradient_and_integrated_gradients_equal_captum(name: str, network: Network) -> None:
    model, x, target = network(name), images(2, 3, 64, 64), torch.tensor([3, 11])
    expected = InputXGradient(model).attribute(x.clone().requires_grad_(), target).detach()
    assert relative(input_x_gradient(model, x, target), expected) < 1e-5
    baseline = images(2, 3, 64, 64, seed=2)
    theirs = IntegratedGradients(model)
    for start in (0.0, baseline):
        expected, delta = theirs.attribute(x, start, target, n_steps=4, return_convergence_delta=True)
        found = integrated_gradients(model, x, target, baseline=start, steps=4, batch_size=3)
        assert relative(found, expected.detach()) < 1e-5
    error = completeness_error(model, x, found, target, baseline=baseline)
    with torch.no_grad():
        change = (model(x) - model(baseline)).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(error, (delta / change).abs(), rtol=1e-3, atol=1e-4)


# The gradient at each copy is what `test_input_x_gradient_...` compares on all networks; that copies are drawn, added
# and averaged as they should is no matter of the network.
@pytest.mark.parametrize(
    ("name", "statistic", "absolute"),
    [(name, "mean", False) for name in ("resnet18", "squeezenet1_1", "mobilenet_v3_small", "vit")]
    + [("resnet18", statistic, absolute) for statistic in ("square", "variance") for absolute in (False, True)],
)
def test_smooth_grad_equals_captum_with_the_same_noise(
    name: str, statistic: Any, absolute: bool, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, target = network(name).double(), images(2, 3, 64, 64).double(), torch.tensor([3, 11])
    samples, sigma = 3, 0.5
    # One range for both images, since Captum's noise knows one deviation; and one that its float32 holds exactly.
    x = 2 * (x[:1] - x[:1].min()) / (x[:1].max() - x[:1].min())
    x = torch.cat([x, x.flip(3)])
    noise = _noise(torch.arange(samples), x.shape[1:], seed=3).double()
    monkeypatch.setattr(torch, "normal", lambda mean, std: noise.repeat(2, 1, 1, 1) * std)
    kind = {"mean": "smoothgrad", "square": "smoothgrad_sq", "variance": "vargrad"}[statistic]
    expected = NoiseTunnel(CaptumSaliency(model)).attribute(
        x.clone().requires_grad_(), nt_type=kind, nt_samples=samples, stdevs=sigma, target=target, abs=absolute
    )
    found = smooth_grad(
        model, x, target, samples=samples, noise=0.25, statistic=statistic, absolute=absolute, seed=3, batch_size=2
    )
    assert relative(found, expected.detach()) < 1e-5


def test_one_sample_without_noise_is_the_gradient() -> None:
    model, x = small().eval(), images(3, 3, 12, 10)
    assert torch.equal(smooth_grad(model, x, samples=1, noise=0.0), input_gradient(model, x))
    assert torch.equal(smooth_grad(model, x, samples=1, noise=0.0, statistic="variance"), torch.zeros_like(x))


def test_noise_grows_with_the_range_and_not_with_the_batch() -> None:
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return x.flatten(1).sum(1, keepdim=True)

    x = torch.stack([torch.linspace(0, 1, 3000), torch.linspace(-2, 8, 3000)]).reshape(2, 3, 25, 40)
    smooth_grad(model, x, 0, samples=4, noise=0.1, batch_size=3)
    noisy = torch.cat(seen[1:]).reshape(2, 4, 3, 25, 40) - x[:, None]
    assert noisy[0].std() == pytest.approx(0.1, rel=0.05) and noisy[1].std() == pytest.approx(1.0, rel=0.05)
    seen.clear()
    smooth_grad(model, x[1:], 0, samples=4, noise=0.1, batch_size=100)
    torch.testing.assert_close(torch.cat(seen[1:]) - x[1:], noisy[1], atol=1e-5, rtol=1e-5)


def test_seeds_and_generators() -> None:
    model, x = small().eval(), images(3, 3, 12, 10)
    state = torch.get_rng_state()
    first, second = (smooth_grad(model, x, 1, seed=s) for s in (1, 2))
    assert not torch.allclose(first, second)
    assert torch.equal(first, smooth_grad(model, x, 1, seed=1, batch_size=64))
    assert torch.equal(torch.get_rng_state(), state)


def test_predicted_class_is_that_of_the_clean_image() -> None:
    model, x = small().eval(), images(3, 3, 12, 10)
    predicted = model(x).argmax(1)
    assert torch.equal(smooth_grad(model, x, noise=2.0), smooth_grad(model, x, predicted, noise=2.0))
    assert torch.equal(integrated_gradients(model, x), integrated_gradients(model, x, predicted))


def test_integrated_gradients_of_a_square_in_closed_form() -> None:
    """The path integral of x² is (x − x′)·(x + x′): Gauss-Legendre is exact for it with a single point."""
    x, start = images(2, 3, 4, 5), images(2, 3, 4, 5, seed=2)

    def square(x: Tensor) -> Tensor:
        return x.square().flatten(1).sum(1, keepdim=True)

    found = integrated_gradients(square, x, 0, baseline=start, steps=1)
    torch.testing.assert_close(found, x.square() - start.square())
    assert completeness_error(square, x, found, 0, baseline=start).max() < 1e-5


def test_completeness_error_falls_with_steps() -> None:
    model, x = small().eval(), images(2, 3, 12, 10)
    errors = [
        completeness_error(model, x, integrated_gradients(model, x, 1, steps=n), 1).mean().item() for n in (1, 8, 256)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-2


def test_completeness_error_without_any_change() -> None:
    x = images(2, 1, 2, 2)

    def nothing(x: Tensor) -> Tensor:
        return 0 * x.flatten(1).sum(1, keepdim=True)

    assert completeness_error(nothing, x, torch.zeros_like(x), 0).tolist() == [0, 0]
    assert completeness_error(nothing, x, torch.ones_like(x), 0).isinf().all()


@pytest.mark.parametrize("function", [smooth_grad, integrated_gradients])
def test_memory_is_bounded(function: Any) -> None:
    largest = 0

    def model(x: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(x))
        return x.flatten(1).sum(1, keepdim=True)

    function(model, images(40, 3, 8, 8), 0, batch_size=7)
    assert largest == 40 or largest == 7  # the plain pass for scores may take all images


def test_batches_are_halved_when_memory_runs_out() -> None:
    def model(x: Tensor) -> Tensor:
        if len(x) > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return (x.square()).flatten(1).sum(1, keepdim=True)

    x = images(3, 3, 4, 4)
    torch.testing.assert_close(integrated_gradients(model, x, 0, steps=9), x.square())
    torch.testing.assert_close(smooth_grad(model, x, 0, samples=9, noise=0.0), 2 * x)


def test_copies_count_once_where_memory_runs_out_behind_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def square(tensor: Tensor) -> Tensor:
        monkeypatch.undo()
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    def model(x: Tensor) -> Tensor:
        return (x * x).flatten(1).sum(1, keepdim=True)

    x = images(2, 3, 4, 4)
    expected = smooth_grad(model, x, 0, samples=4, statistic="variance")
    monkeypatch.setattr(Tensor, "square", square)
    torch.testing.assert_close(smooth_grad(model, x, 0, samples=4, statistic="variance"), expected)


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (smooth_grad, {"samples": 0}, "samples"),
        (smooth_grad, {"noise": -0.1}, "noise"),
        (smooth_grad, {"statistic": "median"}, "statistic"),
        (integrated_gradients, {"steps": 0}, "steps"),
        (integrated_gradients, {"baseline": torch.zeros(4, 1, 1)}, "does not broadcast"),
        (integrated_gradients, {"target": 9}, "out of range"),
    ],
)
def test_bad_input(function: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        function(small().eval(), images(2, 3, 12, 10), **arguments)


@pytest.mark.parametrize(
    "function", [smooth_grad, pytest.param(integrated_gradients, marks=pytest.mark.slow), input_x_gradient]
)
def test_circumstances(function: Any, network: Network) -> None:
    model, x, target = network("resnet18"), images(2, 3, 40, 32), torch.tensor([3, 11])
    expected = function(model, x, target)
    with torch.inference_mode():
        assert torch.equal(function(model, x, target), expected)
    assert relative(function(torch.compile(model, backend="aot_eager"), x, target), expected) < 1e-5
    assert torch.equal(function(model.train(), x, target), expected) and model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        rough = function(model.eval(), x, target)
        pixels = x.clone().requires_grad_()
        (plain,) = torch.autograd.grad(model(pixels).gather(1, target[:, None]).sum(), pixels)
    if function is input_x_gradient:
        assert relative(rough, plain * x) < 1e-5
    else:  # sums of many gradients lose little by rounding
        assert torch.nn.functional.cosine_similarity(rough.flatten(1), expected.flatten(1)).min() > 0.95
    many = images(16, 3, 12, 10)
    each = torch.cat([function(small(), one[None], 3) for one in many])
    torch.testing.assert_close(function(small(), many, 3), each, rtol=1e-4, atol=1e-6)
