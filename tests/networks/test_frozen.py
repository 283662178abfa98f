"""A frozen convolution is the convolution that it was made of."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from torch.nn import functional as F

from lit_viz.functional import winograd
from lit_viz.networks import PerceptualNetwork
from lit_viz.networks.frozen import FrozenConv2d


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few channels will do here."""
    monkeypatch.setattr(winograd, "pays", lambda *_, **__: True)


def layer(padding: int = 1, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(4, 6, 3, padding=padding, bias=bias).double().requires_grad_(False)


def image(*, grad: bool = False) -> Tensor:
    return torch.randn(2, 4, 7, 8, dtype=torch.float64, requires_grad=grad)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_values_and_gradients(padding: int, bias: bool) -> None:
    plain, x = layer(padding, bias=bias), image(grad=True)
    frozen = FrozenConv2d(plain)
    torch.testing.assert_close(frozen(x), plain(x), rtol=0, atol=1e-12)
    weights = torch.randn_like(plain(x))
    (expected,) = torch.autograd.grad((plain(x).tanh() * weights).sum(), x)
    (found,) = torch.autograd.grad((frozen(x).tanh() * weights).sum(), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.autograd.gradgradcheck(lambda x: frozen(x).tanh(), x[:1, :, :3, :4].detach().requires_grad_(True))
    assert frozen._filters is not None  # it was not torch's own that was compared with itself


def test_it_follows_its_weights() -> None:
    plain, x = layer(), image()
    frozen = FrozenConv2d(plain)
    frozen(x)
    plain.weight.mul_(2)
    torch.testing.assert_close(frozen(x), plain(x), rtol=0, atol=1e-12)
    frozen.load_state_dict(layer().state_dict())  # one parameter in two modules
    torch.testing.assert_close(frozen(x), plain(x), rtol=0, atol=1e-12)
    assert list(frozen.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    "change",
    [
        lambda frozen, other: frozen.load_state_dict(other.state_dict(), assign=True),
        lambda frozen, other: setattr(frozen.weight, "data", other.weight.data),
        lambda frozen, other: setattr(frozen, "weight", other.weight),
        lambda frozen, other: frozen.weight.copy_(other.weight),
    ],
)
def test_it_follows_weights_that_are_replaced(change: Callable[[nn.Conv2d, nn.Conv2d], Any]) -> None:
    frozen, x = copy.deepcopy(FrozenConv2d(layer())), image()
    frozen(x)
    change(frozen, layer())
    frozen.requires_grad_(False)
    expected = F.conv2d(x, frozen.weight, frozen.bias, padding=1)
    torch.testing.assert_close(frozen(x), expected, rtol=0, atol=1e-12)
    given = {"weight": torch.randn_like(frozen.weight)}
    expected = F.conv2d(x, given["weight"], frozen.bias, padding=1)
    torch.testing.assert_close(torch.func.functional_call(frozen, given, x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda frozen: pickle.loads(pickle.dumps(frozen))])
def test_copies_start_anew(copied: Callable[[FrozenConv2d], FrozenConv2d]) -> None:
    frozen, x = FrozenConv2d(layer()), image()
    frozen(x)
    twin = copied(frozen)
    assert twin._filters is None
    with torch.inference_mode():
        torch.testing.assert_close(twin(x), frozen(x))
    twin(image(grad=True)).sum().backward()  # what was made ready in inference mode serves afterwards too
    assert twin.float()(x.float()).dtype == torch.float32


def test_weights_that_are_trained_get_gradients() -> None:
    plain = layer().requires_grad_(True)
    FrozenConv2d(plain)(image()).sum().backward()
    assert plain.weight.grad is not None and plain.weight.grad.abs().sum() > 0
    plain.weight.requires_grad_(False)
    plain.bias.grad = None
    FrozenConv2d(plain)(image()).sum().backward()
    assert plain.bias.grad is not None


def test_derivatives_forwards_and_of_functions() -> None:
    plain = layer()
    frozen, x, change = FrozenConv2d(plain), image(), image()
    for _ in range(2):  # the second time with filters
        torch.testing.assert_close(*(torch.func.jvp(f, (x,), (change,)) for f in (frozen, plain)))
        gradients = (torch.func.grad(lambda x, f=f: f(x).tanh().sum())(x) for f in (frozen, plain))
        torch.testing.assert_close(*gradients)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, change)
            found = torch.autograd.forward_ad.unpack_dual(frozen(dual)).tangent
        torch.testing.assert_close(found, plain(change) - plain.bias[:, None, None])
        frozen(x)


def test_it_leaves_pytorch_as_the_convolution_that_it_was() -> None:
    frozen, x = FrozenConv2d(layer()), image()
    frozen(x)
    graph = torch.export.export(frozen, (x,)).graph
    assert not any("lit_viz" in str(node.target) for node in graph.nodes)


def test_in_16_bits_it_is_torchs_own() -> None:
    frozen, x = FrozenConv2d(layer().float()), image().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert frozen(x).dtype == torch.bfloat16
    assert frozen.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16
    assert frozen._filters is None


def test_gradients_are_not_rounded_where_autocast_begins_behind_it() -> None:
    plain, x = layer().float(), image().float().requires_grad_()
    made = FrozenConv2d(plain)(x)
    slopes = torch.randn_like(made)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(made, x, slopes)
    torch.testing.assert_close(found, torch.autograd.grad(plain(x), x, slopes)[0], rtol=1e-4, atol=1e-4)


def test_none_of_the_numbers_that_are_drawn_is_used_up() -> None:
    plain = layer()
    before = torch.get_rng_state()
    FrozenConv2d(plain)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(4, 6, 5, padding=2),
        nn.Conv2d(4, 6, 3, padding=3),
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)),
    ],
)
def test_what_it_is_not_made_for(other: nn.Conv2d) -> None:
    assert FrozenConv2d.suits(layer()) and not FrozenConv2d.suits(other)


def test_it_can_be_compiled_as_a_whole() -> None:
    last = nn.Conv2d(6, 4, 3).double().requires_grad_(False)
    net = nn.Sequential(FrozenConv2d(layer()), nn.ReLU(), FrozenConv2d(last))
    net(image())
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(str(graph.graph))
        return aot_eager(graph, inputs)

    compiled = torch.compile(net, backend=backend, fullgraph=True)
    for height in (7, 10, 12):  # from the second on, sizes are symbols
        one = torch.randn(2, 4, height, 8, dtype=torch.float64, requires_grad=True)
        other = one.detach().clone().requires_grad_(True)
        compiled(one).square().sum().backward()
        net(other).square().sum().backward()
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-12)
    assert all("frozen_convolution" in graph for graph in graphs)


def test_perceptual_networks_are_made_of_them() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2)).double()
    kept = copy.deepcopy(plain)
    network = PerceptualNetwork(["2", "3"], plain)
    assert not any(isinstance(module, FrozenConv2d) for module in plain.modules())  # which is not ours to change
    assert sum(isinstance(module, FrozenConv2d) for module in network.module.modules()) == 2
    colors = torch.rand(2, 3, 20, 22, dtype=torch.float64)
    found = network(colors)
    images = network.pixel_space.from_color(colors).double()
    torch.testing.assert_close(found["2"], kept[:3](images), rtol=0, atol=1e-12)
    torch.testing.assert_close(found["3"], kept(images), rtol=0, atol=1e-12)
