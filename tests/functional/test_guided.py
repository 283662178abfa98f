"""Guided backprop and deconvnet: closed forms, Captum where it is right, a loop over graphs where it is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torchvision.models as tv
import torchvision.ops as tv_ops
from captum.attr import Deconvolution, GuidedBackprop
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError
from lit_viz.functional import LayerUnits, deconvnet, find_activations, guided_backprop, input_gradient
from tests.functional.test_saliency import images, relative, small

Network = Callable[[str], nn.Module]

# Every ReLU a module, so that Captum sees it; no skip path reads a ReLU's input.
CAPTUM_IS_RIGHT = [
    "alexnet",
    "vgg16",
    "vgg11_bn",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "squeezenet1_1",
    "regnet_x_400mf",
]


def plain(x: Tensor) -> Tensor:
    return x.flatten(1).sum(dim=1, keepdim=True)


ONE = torch.tensor([[[[1.0, -1.0]]]])


def test_deconvnet_changes_the_relu_and_not_the_skip() -> None:
    assert deconvnet(lambda x: plain(x.relu() + 10 * x), ONE, 0).flatten().tolist() == [11, 11]


def test_guided_backprop_changes_the_relu_and_not_the_skip() -> None:
    def model(x: Tensor) -> Tensor:
        return plain(10 * x - x.relu())

    assert guided_backprop(model, ONE, 0).flatten().tolist() == [10, 10]
    assert input_gradient(model, ONE, 0).flatten().tolist() == [9, 10]


@pytest.mark.parametrize(
    "relu",
    [
        F.relu,
        nn.ReLU(),
        nn.ReLU(inplace=True),
        torch.relu,
        Tensor.relu,
        lambda x: x.clone().relu_(),
        lambda x: F.relu(x + 0, inplace=True),
        lambda x: x.clamp(min=0),
        lambda x: x.clamp_min(0),
        lambda x: F.threshold(x, 0.0, 0.0),
        F.relu6,
        nn.ReLU6(inplace=True),
        lambda x: F.hardtanh(x, 0.0, 6.0),
        lambda x: x.clamp(0, 6),
        torch.compile(nn.ReLU(), backend="aot_eager"),
    ],
)
def test_every_way_to_call_a_relu(relu: Callable[[Tensor], Tensor]) -> None:
    """A ReLU between two linear maps, by hand."""
    weights = torch.tensor([1.0, -2.0, 3.0, -4.0])
    x = torch.tensor([0.5, 0.5, -0.5, -0.5]).reshape(1, 1, 2, 2)

    def model(x: Tensor) -> Tensor:
        return (relu(2 * x).flatten(1) * weights).sum(1, keepdim=True)

    assert input_gradient(model, x, 0).flatten().tolist() == [2, -4, 0, 0]
    assert guided_backprop(model, x, 0).flatten().tolist() == [2, 0, 0, 0]
    assert deconvnet(model, x, 0).flatten().tolist() == [2, 0, 6, 0]


def test_relu6_lets_nothing_through_where_it_is_full() -> None:
    x = torch.tensor([[[[3.0, 7.0]]]])
    assert guided_backprop(lambda x: plain(F.relu6(x)), x, 0).flatten().tolist() == [1, 0]
    assert deconvnet(lambda x: plain(F.relu6(x)), x, 0).flatten().tolist() == [1, 1]


def test_a_clamp_that_is_no_relu_is_left_alone() -> None:
    def model(x: Tensor) -> Tensor:
        return plain(-(x.relu()).clamp(-1, 1) + 2 * x)

    assert guided_backprop(model, ONE, 0).flatten().tolist() == [2, 2]  # the ReLU's -1 is dropped
    with pytest.raises(UsageError, match="none between pixels and score"):
        guided_backprop(lambda x: plain(x.clamp(-1, 1)), ONE, 0)


def test_a_module_used_twice() -> None:
    """The rule of each call, against the same network with a ReLU of its own at each place."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)]
    relu, x = nn.ReLU(inplace=True), images(2, 3, 8, 8)

    def twice(x: Tensor) -> Tensor:
        h = relu(convs[0](x))
        h = h + relu(convs[1](h))
        return relu(convs[2](h)).sum((2, 3))

    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs, self.relus = nn.ModuleList(convs), nn.ModuleList(nn.ReLU() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            h = self.relus[0](self.convs[0](x))
            h = h + self.relus[1](self.convs[1](h))
            return self.relus[2](self.convs[2](h)).sum((2, 3))

    for ours, theirs in ((guided_backprop, GuidedBackprop), (deconvnet, Deconvolution)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = theirs(Once()).attribute(x.clone().requires_grad_(), 1).detach()
        assert relative(ours(twice, x, 1), expected) < 1e-5


@pytest.mark.parametrize("name", CAPTUM_IS_RIGHT)
def test_equals_captum_where_every_relu_is_a_module(name: str, network: Network) -> None:
    model, x = network(name), images(2, 3, 96, 64)
    target = torch.tensor([3, 11])
    for ours, theirs in ((guided_backprop, GuidedBackprop), (deconvnet, Deconvolution)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = theirs(model).attribute(x.clone().requires_grad_(), target).detach()
        assert relative(ours(model, x, target), expected) < 1e-5


def test_functional_relus_are_seen_where_captum_sees_none(network: Network) -> None:
    """Densenet calls F.relu behind its features: the same network with a module there is Captum's case."""

    class WithModule(nn.Module):
        def __init__(self, net: tv.DenseNet) -> None:
            super().__init__()
            self.features, self.relu, self.classifier = net.features, nn.ReLU(), net.classifier

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.relu(self.features(x)).mean((2, 3)))

    model, x = network("densenet121"), images(1, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = GuidedBackprop(WithModule(model)).attribute(x.clone().requires_grad_(), 3).detach()
        blind = GuidedBackprop(model).attribute(x.clone().requires_grad_(), 3).detach()
    assert relative(guided_backprop(model, x, 3), expected) < 1e-5
    assert relative(blind, expected) > 1e-2


def test_efficientnet_lite0_is_all_relu6(network: Network, photographs: Tensor) -> None:
    model = network("efficientnet_lite0")
    x = photographs[:1].clone().requires_grad_(True)
    found = find_activations(model(x).max())
    assert found.others == [] and found.note == ""
    # 16 blocks, the first without expansion, stem and head; modules are used twice in a block.
    assert len(found.rectifiers) == 33 > sum(isinstance(m, nn.ReLU6) for m in model.modules())


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "regnet_x_400mf", "mobilenet_v3_small", "efficientnet_lite0"])
def test_deconvnet_says_where_every_image_gives_the_same(name: str, network: Network) -> None:
    """Said exactly where it is true, found out with two images."""
    model, x = network(name), images(2, 3, 64, 64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = deconvnet(model, x, 3)
    same = relative(found[:1], found[1:]) < 1e-4
    assert any("the same for every image" in str(w.message) for w in caught) == same
    assert same == (name in ("regnet_x_400mf", "efficientnet_lite0"))


def test_activations_without_a_rule_are_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.ReLU(), nn.Flatten())
    with pytest.warns(UserWarning, match="no rule for GELU, SiLU"):
        guided_backprop(net, images(1, 3, 6, 6), 0)
    with pytest.raises(UsageError, match=r"none between pixels and score \(only GELU, SiLU\)"):
        guided_backprop(net[:4], images(1, 3, 6, 6), 0, score=lambda out: out.flatten(1))


@pytest.mark.parametrize("name", ["vit", "swin_t", "convnext_tiny"])
def test_networks_without_relu_are_refused(name: str, network: Network) -> None:
    with pytest.raises(UsageError, match="only GELU"):
        guided_backprop(network(name), images(1, 3, 64, 64), 0)


def test_pooling_of_regions_is_no_activation_function() -> None:
    x, box = images(1, 3, 6, 6).requires_grad_(), torch.tensor([[0.0, 0.0, 0.0, 5.0, 5.0]])
    found = find_activations(tv_ops.roi_align(x.relu(), box, 2).sum())
    assert len(found.rectifiers) == 1 and found.others == []


def test_mobilenet_v3_is_told_of_hardswish(network: Network) -> None:
    with pytest.warns(UserWarning, match="Hardswish"):
        guided_backprop(network("mobilenet_v3_small"), images(1, 3, 64, 64), 0)


def test_torchscript_hides_its_relus() -> None:
    net = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()), images(1, 3, 6, 6))
    x = images(1, 3, 6, 6)
    for _ in range(3):  # its profiling executor joins operations from the third run on, if at all
        net(x.clone().requires_grad_())
    try:
        found = guided_backprop(net, x, 0)
    except UsageError as error:
        assert "TorchScript" in str(error)
    else:
        eager = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
        eager.load_state_dict(net.state_dict())
        torch.testing.assert_close(found, guided_backprop(eager, x, 0))


@pytest.mark.parametrize("function", [guided_backprop, deconvnet])
def test_circumstances(function: Callable[..., Tensor], network: Network) -> None:
    """Inference mode, autocast, a compiled model, layouts of memory, batches: the same numbers."""
    model, x, target = network("resnet18"), images(4, 3, 72, 64), torch.tensor([3, 11, 0, 7])
    expected = function(model, x, target)
    with torch.inference_mode():
        assert torch.equal(function(model, x, target), expected)
    assert relative(function(torch.compile(model, backend="aot_eager"), x, target), expected) < 1e-5
    assert relative(function(model, x.contiguous(memory_format=torch.channels_last), target), expected) < 1e-5
    sliced = torch.cat([x, x], dim=3)[..., :64]
    assert not sliced.is_contiguous()
    assert relative(function(model, sliced, target), expected) < 1e-5
    assert relative(function(model, x[2:3], 0), expected[2:3]) < 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        rough = function(model, x, target)
    assert torch.nn.functional.cosine_similarity(rough.flatten(1), expected.flatten(1)).min() > 0.95
    many = images(64, 3, 12, 10)
    each = torch.cat([function(small(), one[None], 3) for one in many])
    torch.testing.assert_close(function(small(), many, 3), each, rtol=1e-4, atol=1e-7)


def test_units_of_a_layer(network: Network) -> None:
    """Against the part of the network up to there, written out."""
    model, x = network("resnet18"), images(3, 3, 64, 64)
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool, model.layer1, model.layer2)
    with torch.no_grad():
        maps = stem(x)
    channel, row, column = 17, 3, 5
    units = LayerUnits(model, "layer2")
    assert torch.equal(units(x), maps.amax((2, 3)))
    assert torch.equal(LayerUnits(model, "layer2", place=(row, column))(x), maps[:, :, row, column])
    torch.testing.assert_close(LayerUnits(model, "layer2", place="mean")(x), maps.mean((2, 3)))
    places = torch.tensor([[0, 1], [2, 3], [7, 7]])
    each = LayerUnits(model, "layer2", place=places)(x)
    assert torch.equal(each[1], maps[1, :, 2, 3])
    expected = guided_backprop(lambda x: stem(x)[:, :, row, column], x, channel)
    found = guided_backprop(LayerUnits(model, "layer2", place=(row, column)), x, channel)
    assert relative(found, expected) < 1e-6


def test_units_that_are_not_there(network: Network) -> None:
    model, x = network("resnet18"), images(1, 3, 64, 64)
    with pytest.raises(UsageError, match="8 × 8 places"):
        LayerUnits(model, "layer2", place=(8, 0))(x)
    with pytest.raises(UsageError, match="called 2 times"):
        LayerUnits(model, "layer2.0.relu")(x)
    with torch.no_grad():
        first = LayerUnits(model, "layer2.0.relu", call=0)(x)
        last = LayerUnits(model, "layer2.0.relu", call=-1)(x)
        assert torch.equal(last, LayerUnits(model, "layer2.0")(x)) and not torch.equal(first, last)
    with pytest.raises(UsageError, match="did you mean"):
        LayerUnits(model, "layer9")


@pytest.mark.parametrize("function", [guided_backprop, deconvnet])
def test_nothing_is_left_behind(function: Callable[..., Tensor], network: Network) -> None:
    model, x = network("resnet18").train(), images(2, 3, 64, 64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    function(model, x, 1)

    def fails(out: Tensor) -> Tensor:
        raise FloatingPointError

    with pytest.raises(FloatingPointError):
        function(model, x, 1, score=fails)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules())
    # A graph of the user's own keeps its gradient: hooks lie on ours alone.
    loss = model.eval()(x.requires_grad_()).sum()
    function(model, x.detach(), 1)
    (gradient,) = torch.autograd.grad(loss, x)
    (again,) = torch.autograd.grad(model(x).sum(), x)
    assert torch.equal(gradient, again)


def test_a_frozen_batch_norm_stays_frozen(network: Network) -> None:
    model = network("resnet18").train()
    model.bn1.eval()
    LayerUnits(model, "layer1")
    assert not model.bn1.training and model.layer1.training
