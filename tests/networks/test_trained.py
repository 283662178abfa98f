"""A convolution that is trained is PyTorch's, with its gradients."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lit_viz.functional import format_layer_table, layer_table, winograd
from lit_viz.networks import TransformerNet, trained
from lit_viz.networks.trained import TrainedConv2d, enlarged_convolution


def image(channels: int = 3, size: tuple[int, int] = (17, 12)) -> Tensor:
    return torch.randn(2, channels, *size, dtype=torch.float64, requires_grad=True)


def gradients(made: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    slopes = torch.linspace(-1, 2, made.numel(), dtype=made.dtype).view_as(made)
    return torch.autograd.grad((made.tanh() * slopes).sum(), of)


def check_close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], share: float = 1e-6) -> None:
    """As far as norms in 32 bits leave it; where a norm takes a weight out again, all that is left is rounding."""
    largest = max(float(each.abs().max()) for each in theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=share * largest)


@pytest.mark.parametrize("pixels", [8192, 13])
@pytest.mark.parametrize("channels", [(3, 5), (5, 3), (2, 9)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (9, 1), (5, 3), (2, 1), (1, 1), (4, 2), (3, 4), (1, 3)])
@pytest.mark.parametrize("fewer", [True, False])
def test_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, kernel: int, stride: int, channels: tuple[int, int], pixels: int, fewer: bool
) -> None:
    monkeypatch.setattr(trained, "PIXELS", pixels)
    monkeypatch.setattr(winograd, "pays", lambda *_, **__: fewer)
    layer, x = TrainedConv2d(*channels, kernel, stride).double(), image(channels[0])
    assert layer._serves(x, kernel)
    made, expected = layer(x), F.conv2d(x, layer.weight, layer.bias, stride)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    of = (x, layer.weight, layer.bias)
    for ours, theirs in zip(gradients(made, *of), gradients(expected, *of), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [(5, 8), (1, 1)])
def test_enlarged(size: tuple[int, int]) -> None:
    x, weight = image(3, size), torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    made = enlarged_convolution(x, weight)
    expected = F.conv2d(F.pad(F.interpolate(x, scale_factor=2.0, mode="nearest"), (1, 1, 1, 1), mode="reflect"), weight)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients(made, x, weight), gradients(expected, x, weight), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_weights_are_transformed_once_until_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are written to, and whatever was computed of them before."""
    made, filters = [], winograd.filters
    monkeypatch.setattr(winograd, "pays", lambda *_, **__: True)
    monkeypatch.setattr(winograd, "filters", lambda weight, **given: made.append(1) or filters(weight, **given))
    layer, x = TrainedConv2d(3, 5, 3), image().detach().float()

    def check(transformed: int) -> None:
        made.clear()
        for _ in range(2):
            torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias), rtol=0, atol=1e-5)
        assert len(made) == transformed

    with torch.no_grad():
        check(transformed=1)
        layer.weight.data[0, 0, 0, 0] += 1
        check(transformed=1)
        layer = copy.deepcopy(layer)
        check(transformed=1)
        assert "_kept" not in layer.__getstate__()
        layer, x = layer.double(), x.double()
        check(transformed=1)
        layer.weight.data.fill_(float("nan"))
        assert layer(x).isnan().all()
    layer.weight.data.fill_(1)
    check(transformed=2)  # as it is trained, they change
    with torch.inference_mode():
        check(transformed=1)


def test_derivatives_of_derivatives() -> None:
    x, weight = image(2, (5, 4)), torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, weight: trained.convolution(x, weight, 1), (x[:1], weight))


def test_derivatives_forwards_and_of_functions() -> None:
    layer, x = TrainedConv2d(3, 4, 3).double(), image().detach()
    change = torch.randn_like(x)
    expected = F.conv2d(change, layer.weight)
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (change,))[1], expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, change)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent, expected)
    each = torch.func.vmap(torch.func.grad(lambda image: layer(image[None]).square().sum()))(x)
    y = x.clone().requires_grad_()
    torch.testing.assert_close(each, torch.autograd.grad(layer(y).square().sum(), y)[0])


def test_only_what_is_wanted_is_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = TrainedConv2d(3, 4, 3).double(), image()
    with monkeypatch.context() as patch:
        patch.setattr(trained, "image_gradient", None)
        layer(x.detach()).sum().backward()
    layer.requires_grad_(False)
    monkeypatch.setattr(trained, "weight_gradient", None)
    layer(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_it_is_torchs_own(dtype: torch.dtype) -> None:
    layer, x = TrainedConv2d(3, 4, 3), torch.randn(1, 3, 8, 8)
    assert layer._serves(x, 3)
    assert not layer.to(dtype)._serves(x.to(dtype), 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert not layer.float()._serves(x, 3)
        assert layer(x).dtype == torch.bfloat16


def test_gradients_are_not_rounded_where_autocast_begins_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "pays", lambda *_, **__: True)
    layer, x = TrainedConv2d(3, 4, 3), image().detach().float().requires_grad_()
    made = layer(x)
    slopes = torch.randn_like(made)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(made, (x, layer.weight), slopes)
    expected = torch.autograd.grad(F.conv2d(x, layer.weight, layer.bias), (x, layer.weight), slopes)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fewer", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_what_they_tell_compilers(monkeypatch: pytest.MonkeyPatch, fewer: bool, stride: int) -> None:
    monkeypatch.setattr(winograd, "pays", lambda *_, **__: fewer)
    x, weight = torch.randn(2, 9, 8, 11), torch.randn(10, 9, 3, 3)
    slopes = F.conv2d(x, weight, None, stride)
    for last in (False, True):
        if last:
            x, weight, slopes = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight, slopes))
        given = x.clone().requires_grad_(), weight.clone().requires_grad_(), stride
        torch.library.opcheck(trained.convolution, given)
        torch.library.opcheck(trained.image_gradient, (slopes, x, weight, stride))
        torch.library.opcheck(trained.weight_gradient, (slopes, x, 3, stride))


@pytest.mark.slow
def test_compiled_with_channels_last() -> None:
    net = TransformerNet(width=32, blocks=1).to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(net)
    torch.testing.assert_close(compiled(x), net(x), rtol=0, atol=1e-4)
    parts = [torch.autograd.grad(f(x).square().sum(), list(net.parameters())) for f in (compiled, net)]
    check_close(*parts, share=1e-4)


def test_hooks_are_called_and_what_watches_sees_convolutions() -> None:
    net, x = TransformerNet(width=4, blocks=1), torch.rand(1, 3, 32, 32)
    called = []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    net(x)
    assert called == [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    layer = TrainedConv2d(3, 8, 9)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 24 * 24 * 8 * 3 * 81
    assert "9×9" in format_layer_table(layer_table(nn.Sequential(layer), x))  # its receptive field


def test_empty_batches_and_images_that_are_too_small() -> None:
    assert TransformerNet(width=4, blocks=1)(torch.rand(0, 3, 16, 16)).shape == (0, 3, 16, 16)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        TrainedConv2d(4, 3, 9)(torch.rand(1, 4, 6, 12))
    with pytest.raises(RuntimeError, match="to have 4 channels"):
        TrainedConv2d(4, 3, 3)(torch.rand(1, 5, 6, 12))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_network_can_be_saved(tmp_path: Path) -> None:
    net, x = TransformerNet(width=4, blocks=1).eval(), torch.rand(1, 3, 16, 16)
    torch.jit.trace(net, (x,)).save(tmp_path / "net.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "net.pt")(x), net(x), rtol=0, atol=1e-5)


def test_it_leaves_pytorch_as_a_convolution() -> None:
    program = torch.export.export(TrainedConv2d(3, 4, 3), (torch.randn(1, 3, 8, 8),))
    assert not any("lit_viz" in str(node.target) for node in program.graph.nodes)


def test_a_network_can_be_compiled_as_a_whole() -> None:
    net, x = TransformerNet(width=4, blocks=1).double(), torch.rand(2, 3, 16, 20, dtype=torch.float64)
    compiled = torch.compile(net, backend=aot_eager, fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x))
    check_close(*(torch.autograd.grad(f(x).square().sum(), list(net.parameters())) for f in (compiled, net)))


def test_the_whole_network_is_as_with_torchs_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = TransformerNet(width=4, blocks=2, styles=2).double(), torch.rand(2, 3, 22, 17, dtype=torch.float64)
    weights, style = list(net.parameters()), torch.tensor([0, 1])
    made = net(x, style)
    found = torch.autograd.grad(made.square().sum(), weights)
    monkeypatch.setattr(TrainedConv2d, "_serves", lambda *_, **__: False)
    expected = net(x, style)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)  # its norms are in 32 bits
    check_close(found, torch.autograd.grad(expected.square().sum(), weights))


def test_it_begins_as_torchs_own() -> None:
    torch.manual_seed(3)
    ours = TrainedConv2d(3, 4, 3, 2, bias=False)
    torch.manual_seed(3)
    torch.testing.assert_close(ours.weight, nn.Conv2d(3, 4, 3, 2, bias=False).weight, rtol=0, atol=0)
