"""Finding layers, reading them, and the layouts of what they put out."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

from lit_viz.errors import UsageError, nearest
from lit_viz.layers import (
    as_maps,
    capture,
    convolutions,
    find_layer,
    first_convolution,
    first_tensor,
    head_of,
    named_layers,
    token_grid,
)

Network = Callable[[str], nn.Module]


def tiny() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 5))


class Wrapped(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


# --- Names ---


def test_all_names_are_found(network: Network) -> None:
    model = network("resnet18")
    for name, module in model.named_modules():
        if name:
            assert find_layer(model, name) == (name, module)
    assert named_layers(model).keys() == {name for name, _ in model.named_modules()} - {""}


def test_ends_of_names(network: Network) -> None:
    resnet = network("resnet18")
    model = Wrapped(resnet)
    assert find_layer(model, "layer3.0.conv1") == ("network.layer3.0.conv1", resnet.layer3[0].conv1)
    assert find_layer(model, "fc") == ("network.fc", resnet.fc)
    # A full name goes before ends of other names, and an end is whole parts, not letters.
    assert find_layer(resnet, "conv1") == ("conv1", resnet.conv1)
    with pytest.raises(UsageError, match="no layer 'c'"):
        find_layer(resnet, "c")


def test_ambiguous_ends_are_listed(network: Network) -> None:
    with pytest.raises(UsageError, match=r"several layers named '0\.conv2'") as caught:
        find_layer(network("resnet18"), "0.conv2")
    listed = str(caught.value).split(": ")[1].rstrip(".").split(", ")
    assert listed == [f"layer{i}.0.conv2" for i in (1, 2, 3, 4)]


def test_unknown_names_come_with_near_ones(network: Network) -> None:
    with pytest.raises(UsageError, match=r"ResNet has no layer 'layer5'; did you mean .*'layer4'"):
        find_layer(network("resnet18"), "layer5")
    with pytest.raises(UsageError, match="no layer 'qqq'; known: '0', '1', '2', '3'"):
        find_layer(tiny(), "qqq")
    with pytest.raises(UsageError, match="no layer ''"):
        find_layer(tiny(), "")


def test_nearest() -> None:
    assert nearest("zzz", ["a", "b", "c"], n=2) == "known: 'a', 'b' and 1 more"
    assert nearest("zzz", ["a", "b"], n=2) == "known: 'a', 'b'"
    assert nearest("relu_1", ["relu1", "conv"]) == "did you mean 'relu1'?"


def test_wrappers_of_compilation_do_not_show_in_names() -> None:
    plain = tiny()
    for model in (torch.compile(plain, backend="eager"), Wrapped(torch.compile(plain, backend="eager"))):
        names = named_layers(model)
        assert not any("_orig_mod" in name or name == "" for name in names)
        assert not any(type(module).__name__ == "OptimizedModule" for module in names.values())
        assert find_layer(model, "0")[1] is plain[0]
        assert find_layer(model, "_orig_mod.0")[1] is plain[0]
    nested = Wrapped(torch.compile(plain, backend="eager"))
    assert find_layer(nested, "network") == ("network", plain)
    assert find_layer(nested, "network._orig_mod.3") == ("network.3", plain[3])
    assert find_layer(nested, "network.3") == ("network.3", plain[3])


def test_convolutions_in_the_order_of_definition(network: Network) -> None:
    model = network("resnet18")
    names = list(convolutions(model))
    assert names == [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)] and len(names) == 20
    assert first_convolution(model) == ("conv1", model.conv1)
    with pytest.raises(UsageError, match="no 2-d convolution"):
        first_convolution(nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1)))


# --- Capture ---


def test_capture_of_outputs_and_inputs() -> None:
    model, x = tiny(), torch.randn(2, 3, 8, 8)
    with capture(model, ["0", "3"]) as outputs, capture(model, ["3"], where="input") as inputs:
        scores = model(x)
    assert list(outputs) == ["0", "3"] and [len(v) for v in outputs.values()] == [1, 1]
    assert outputs["3"][0] is scores
    expected = nn.functional.conv2d(x, model[0].weight, model[0].bias).relu().flatten(1)
    assert torch.equal(inputs["3"][0], expected)


def test_names_are_completed_and_each_call_is_kept() -> None:
    model, x = Wrapped(tiny()), torch.randn(2, 3, 8, 8)
    with capture(model, ["0", "network.0"]) as values:
        model(x), model(x + 1)
    assert list(values) == ["network.0"] and len(values["network.0"]) == 2
    assert not torch.equal(*values["network.0"])


def test_reduce_sees_values_before_a_relu_in_place() -> None:
    model, x = tiny(), torch.randn(2, 3, 8, 8)
    before = nn.functional.conv2d(x, model[0].weight, model[0].bias)
    assert (before < 0).any()
    with capture(model, ["0"], reduce=Tensor.clone) as reduced, capture(model, ["0"]) as kept:
        model(x)
    assert torch.equal(reduced["0"][0], before)
    assert torch.equal(kept["0"][0], before.relu())  # what happens without


class KeywordArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = KeywordOnly()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(index=torch.arange(3), image=x)["scores"][1]


class KeywordOnly(nn.Module):
    def forward(self, *, index: Tensor, image: Tensor) -> dict[str, list[Tensor]]:
        return {"index": [index], "scores": [index, image + 1]}


def test_capture_finds_the_first_floating_point_tensor() -> None:
    model, x = KeywordArguments(), torch.randn(2, 3)
    with capture(model, ["inner"]) as outputs, capture(model, ["inner"], where="input") as inputs:
        model(x)
    assert inputs["inner"][0] is x and torch.equal(outputs["inner"][0], x + 1)
    assert first_tensor({"a": (1, "b", torch.arange(3))}) is None
    assert first_tensor([None, {"a": x}]) is x


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_removed() -> None:
    model = tiny()
    with capture(model, ["0"]), capture(model, ["1"], where="input"):
        assert hooks(model) == 2
    assert hooks(model) == 0
    with pytest.raises(ArithmeticError), capture(model, ["0", "1"]):
        raise ArithmeticError
    assert hooks(model) == 0
    with pytest.raises(UsageError), capture(model, ["0", "nothing"]):
        pass
    assert hooks(model) == 0
    with pytest.raises(RuntimeError):
        head_of(model, lambda: model(torch.zeros(1, 9, 8, 8)), 5)
    assert hooks(model) == 0


# --- The head ---


def run(model: nn.Module, size: int = 64) -> Callable[[], object]:
    def forward() -> object:
        with torch.no_grad():
            return model.eval()(torch.zeros(1, 3, size, size))

    return forward


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", "fc"),
        ("alexnet", "classifier.6"),
        ("mobilenet_v3_small", "classifier.3"),
        ("vit", "heads.head"),
        ("swin_t", "head"),
        ("convnext_tiny", "classifier.2"),
        ("vgg11_bn", "classifier.6"),
    ],
)
def test_head_of_networks(name: str, expected: str, network: Network) -> None:
    model = network(name)
    assert head_of(model, run(model), 20) == expected
    assert head_of(Wrapped(model), run(model), 20) == f"network.{expected}"
    assert hooks(model) == 0


def test_head_that_is_a_convolution() -> None:
    model = tv.squeezenet1_1(num_classes=7)
    assert head_of(model, run(model), 7) == "classifier.1"


class WithLossNetwork(L.LightningModule):
    """A perceptual loss network is defined after the head, and one with as many outputs runs before it."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Conv2d(3, 5, 1)
        self.net = tiny()
        self.loss_network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 5))

    def forward(self, x: Tensor) -> Tensor:
        self.auxiliary(x)
        return self.net(x)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return self(batch).sum() + self.loss_network(batch).sum()


def test_head_is_what_runs_last_not_what_is_defined_last() -> None:
    model = WithLossNetwork()
    assert head_of(model, run(model, 8), 5) == "net.3"


def test_no_head() -> None:
    model = tiny()
    with pytest.raises(UsageError, match=r"no linear layer that gives its 9 scores; name a layer, .* layer='3'"):
        head_of(model, run(model, 8), 9)
    with pytest.raises(UsageError, match="calls no linear or convolutional layer; name one"):
        head_of(nn.Sequential(nn.Flatten()), run(nn.Flatten()), 9)


# --- Layouts ---


@pytest.mark.parametrize("image_size", [None, (64, 64), (64, 96), (100, 40)])
def test_maps_of_convolutions_stay(image_size: tuple[int, int] | None, network: Network) -> None:
    model = network("resnet18")
    height, width = image_size or (64, 64)
    with torch.no_grad(), capture(model, ["conv1", "layer1", "layer2", "layer3", "layer4"]) as values:
        model(torch.zeros(2, 3, height, width))
    for (value,) in values.values():
        assert as_maps(value, image_size=image_size) is value


@pytest.mark.parametrize("image_size", [None, (64, 64), (64, 96), (128, 64)])
def test_maps_with_channels_last_are_turned(image_size: tuple[int, int] | None, network: Network) -> None:
    model = network("swin_t")
    height, width = image_size or (64, 64)
    layers = ["features.0", "features.1", "features.3", "features.5.1.norm2"]
    with torch.no_grad(), capture(model, layers) as values:
        model(torch.zeros(2, 3, height, width))
    for value, stride in zip((v for (v,) in values.values()), (4, 4, 8, 16), strict=True):
        maps = as_maps(value, image_size=image_size)
        assert maps.shape == (2, value.shape[-1], height // stride, width // stride)
        assert torch.equal(maps[1, 5], value[1, :, :, 5])


@pytest.mark.parametrize(
    ("shape", "image_size", "turned"),
    [
        ((2, 7, 7, 768), None, True),
        ((2, 7, 7, 768), (224, 224), True),
        ((2, 768, 7, 7), (224, 224), False),
        ((2, 64, 64, 64), None, False),  # square in any reading: the usual layout
        ((2, 64, 64, 64), (224, 224), False),
        ((2, 14, 14, 14), (224, 112), False),
        ((2, 512, 1, 1), (224, 224), False),
        ((2, 1, 1, 512), (32, 32), True),
        ((2, 16, 8, 12), (64, 96), False),
        ((2, 8, 12, 96), (64, 96), True),
        ((2, 3, 224, 225), (224, 225), False),
        ((2, 12, 17, 24), (65, 95), False),  # rounding in strided layers
    ],
)
def test_ambiguous_layouts(shape: tuple[int, ...], image_size: tuple[int, int] | None, turned: bool) -> None:
    values = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    expected = values.permute(0, 3, 1, 2) if turned else values
    assert torch.equal(as_maps(values, image_size=image_size), expected)


def test_tokens_and_vectors(network: Network) -> None:
    model = network("vit")
    with torch.no_grad(), capture(model, ["encoder.layers.encoder_layer_1", "heads.head"]) as values:
        model(torch.zeros(2, 3, 64, 64))
    tokens, scores = (v[0] for v in values.values())
    assert as_maps(tokens).shape == (2, 48, 17, 1) and torch.equal(as_maps(tokens)[1, 5, :, 0], tokens[1, :, 5])
    assert as_maps(scores).shape == (2, 20, 1, 1) and torch.equal(as_maps(scores)[:, :, 0, 0], scores)


@pytest.mark.parametrize("shape", [(), (4,), (1, 2, 3, 4, 5)])
def test_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="no channels and places"):
        as_maps(torch.zeros(shape))


@pytest.mark.parametrize("patch", [8, 14, 16])
@pytest.mark.parametrize("extra", [0, 1, 2, 4, 5, 8, 9, 16])
def test_tokens_of_images_that_patches_fill(patch: int, extra: int) -> None:
    for rows, columns in ((2, 2), (3, 3), (4, 4), (7, 7), (14, 14), (16, 16), (3, 5), (4, 8)):
        size = (rows * patch, columns * patch)
        found = token_grid(rows * columns + extra, size)
        # Smaller patches may fill the image as well: 4×4 of half the size, where twelve are called extra tokens.
        assert found is not None
        assert found == (rows, columns, extra) or (found[2] < extra and size[0] % found[0] == size[1] % found[1] == 0)


@pytest.mark.parametrize(
    ("tokens", "size", "expected"),
    [
        (9, (32, 32), (2, 2, 5)),  # class token and four registers, not 3×3
        (25, (64, 64), (4, 4, 9)),  # class token and eight registers, not 5×5
        (37, (100, 100), (6, 6, 1)),  # patches of 16 leave a rim
        (201, (224, 224), (14, 14, 5)),
        (198, (224, 224), (14, 14, 2)),
        (7, (224, 224), (2, 2, 3)),
        (3, (4, 4), (1, 1, 2)),
    ],
)
def test_tokens_in_front_of_the_patches(tokens: int, size: tuple[int, int], expected: tuple[int, int, int]) -> None:
    assert token_grid(tokens, size) == expected


def test_narrow_maps_of_square_images_are_not_channels_last() -> None:
    """Strides that differ along the axes, as for spectrograms."""
    maps = torch.zeros(2, 16, 8, 64)
    assert as_maps(maps, image_size=(64, 64)).shape == (2, 16, 8, 64)
    assert as_maps(torch.zeros(2, 7, 7, 64), image_size=(64, 64)).shape == (2, 64, 7, 7)
    assert as_maps(torch.zeros(2, 4, 16, 96), image_size=(64, 256)).shape == (2, 96, 4, 16)
