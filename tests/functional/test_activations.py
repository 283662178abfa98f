"""Activation maps against hooks written by hand, and the layers that are chosen without being named."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError
from lit_viz.functional import activations, layer_maps, telling_layers

Network = Callable[[str], nn.Module]


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def small() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 5, 3),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.LazyLinear(2),
        )


def test_equals_the_layers_called_one_by_one() -> None:
    model, x = small().eval(), images(2, 3, 8, 10)
    model(x)
    by_hand = copy.deepcopy(model)
    for layer in by_hand:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    hidden = x
    for index, layer in enumerate(by_hand):
        hidden = layer(hidden)
        expected = hidden if hidden.dim() == 4 else hidden[:, :, None, None]
        # An in-place ReLU behind a convolution must not show in what the convolution gave.
        assert torch.equal(activations(model, x, str(index)), expected.detach()), index


def test_several_layers_are_those_of_one_pass() -> None:
    model, x = small().eval(), images(2, 3, 8, 10)
    model(x)
    found = layer_maps(model, x, ["0", "5"])
    assert list(found) == ["0", "5"]
    assert torch.equal(found["5"].maps, activations(model, x, "5")) and found["5"].extra.shape == (2, 0, 5)


def test_nothing_in_the_model_or_input_changes() -> None:
    model, x = small(), images(4, 3, 8, 10)
    model(x)
    model.train()[1].eval()
    before, state, rng = x.clone(), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.inference_mode():
        activations(model, x, "2")
    telling_layers(model, x)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model] == [m is not model[1] for m in model]
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), rng)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_tokens_are_folded_and_the_class_token_stands_apart(network: Network) -> None:
    model, x = network("vit"), images(2, 3, 64, 64)
    tokens: list[Tensor] = []
    handle = model.encoder.layers[1].register_forward_hook(lambda m, a, out: tokens.append(out.detach()))
    with torch.no_grad():
        model(x)
    handle.remove()
    found = layer_maps(model, x, ["encoder_layer_1"])["encoder.layers.encoder_layer_1"]
    assert found.maps.shape == (2, 48, 4, 4) and found.extra.shape == (2, 1, 48)
    assert torch.equal(found.extra[:, 0], tokens[0][:, 0])
    for place in range(16):
        assert torch.equal(found.maps[:, :, place // 4, place % 4], tokens[0][:, 1 + place])


def test_channels_last_is_permuted(network: Network) -> None:
    model, x = network("swin_t"), images(1, 3, 64, 96)
    values: list[Tensor] = []
    handle = model.features[1].register_forward_hook(lambda m, a, out: values.append(out.detach()))
    with torch.no_grad():
        model(x)
    handle.remove()
    assert values[0].shape == (1, 16, 24, 96)
    assert torch.equal(activations(model, x, "features.1"), values[0].permute(0, 3, 1, 2))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.idle = nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 1)
        nn.init.constant_(self.conv.weight, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(-self.act(self.conv(x)) + 10).flatten(1)


def test_a_layer_that_is_called_twice() -> None:
    x = torch.tensor([[[[1.0, -3.0]]]])
    with pytest.raises(UsageError, match="called 2 times"):
        activations(Twice(), x, "act")
    assert activations(Twice(), x, "act", call=0).flatten().tolist() == [2, 0]
    assert activations(Twice(), x, "act", call=-1).flatten().tolist() == [8, 10]


def test_what_can_not_be_shown() -> None:
    with pytest.raises(UsageError, match="takes no part"):
        activations(Twice(), torch.zeros(1, 1, 1, 2), "idle")
    with pytest.raises(UsageError, match="no layer 'conv7'"):
        activations(Twice(), torch.zeros(1, 1, 1, 2), "conv7")
    with pytest.raises(UsageError, match=r"'0' puts out 4 entries for 2 images"):
        activations(nn.Sequential(nn.Flatten(0, 1), nn.Identity()), images(2, 2, 3, 3), "0")


def test_layers_worth_looking_at(network: Network) -> None:
    x = images(1, 3, 64, 64)
    assert telling_layers(network("resnet18"), x) == ["relu", "layer2.0", "layer3.0", "layer4"]
    assert telling_layers(network("vit"), x, 2) == ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_2"]
    alexnet = telling_layers(network("alexnet"), x, 5)
    assert alexnet == ["features.1", "features.4", "features.7", "features.9", "features.11"]  # its five ReLUs
    swin = network("swin_t")
    blocks = telling_layers(swin, x)
    assert {type(swin.get_submodule(name)).__name__ for name in blocks} == {"SwinTransformerBlock"}
    assert blocks[0] == "features.1.0" and blocks[-1] == "features.7.1"


def test_a_network_without_places() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(x).mean((2, 3)))

    with pytest.raises(UsageError, match="name the layers"):
        telling_layers(Mean(), images(1, 3, 8, 8))


def test_a_part_compiled_by_torchscript() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), scripted, nn.Conv2d(4, 4, 3), nn.ReLU())
    assert telling_layers(model, images(1, 3, 16, 16)) == ["1", "4"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
