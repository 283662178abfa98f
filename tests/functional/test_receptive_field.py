"""The oracle for receptive fields is the support of the input gradient."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.functional.receptive_field import format_layer_table, layer_table, receptive_field
from lit_viz.layers import as_maps, capture, find_layer


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The networks are small: on a busy machine threads wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- Oracle -------------------------------------------------------------------------------------------------


class PositiveNorm(nn.Module):
    """Mixes what layer norm mixes, with positive weights."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.channels_first = isinstance(norm, tv.convnext.LayerNorm2d)

    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(1 if self.channels_first else -1, keepdim=True)


def positive(model: nn.Module) -> nn.Module:
    """A copy wired in the same way in which nothing cancels: all connected inputs have a gradient."""
    model = copy.deepcopy(model).double().eval()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, PositiveNorm(child))
            elif isinstance(child, (nn.BatchNorm2d, nn.ReLU, nn.Hardtanh, nn.SiLU, nn.GELU, nn.Sigmoid)):
                setattr(parent, name, nn.Identity())
    for p in model.parameters():
        p.data = (p.data.abs() + 0.1) / p[0].numel()
    return model


def average(x: Tensor, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, **_) -> Tensor:
    """The average over the windows of a max pool."""
    return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode)


def support(gradient: Tensor) -> tuple[int, int, int, int]:
    """Bounding box of what isn't zero in (1, C, H, W), half-open."""
    size = gradient.abs().amax((0, 1))
    # exp(-100) is how attention masks say zero.
    seen = size > size.max() * 1e-30 if size.max() > 1e-30 else size > 0
    if not seen.any():
        return 0, 0, 0, 0
    rows, cols = seen.any(1).nonzero().flatten().tolist(), seen.any(0).nonzero().flatten().tolist()
    return rows[0], cols[0], rows[-1] + 1, cols[-1] + 1


def some_units(shape: torch.Size) -> Iterable[tuple[int, int, int]]:
    """Corners, an edge and the centre of maps (C, H, W), in different channels."""
    c, h, w = shape
    yield from {
        (0, 0, 0),
        (c - 1, h - 1, w - 1),
        (c // 2, h // 2, w // 2),
        (c // 3, 0, w - 1),
        (c - 1, h // 2, 0),
    }


def assert_exact(
    model: nn.Module, size: tuple[int, ...], layers: Iterable[str], *, oracle: nn.Module | None = None
) -> None:
    """Boxes of sampled units equal the support of their gradients."""
    oracle = positive(model) if oracle is None else oracle
    fields = receptive_field(model, size, list(layers))
    image = torch.rand(1, *size, dtype=torch.float64, requires_grad=True)
    with mock.patch.object(F, "max_pool2d", average), capture(oracle, fields, reduce=Tensor.clone) as seen:
        oracle(image)
    for name, field in fields.items():
        assert field.approximations == (), name
        maps = as_maps(seen[name][-1], image_size=size[1:])[0]
        assert tuple(maps.shape) == field.shape, name
        for unit in some_units(maps.shape):
            (gradient,) = torch.autograd.grad(maps[unit], image, retain_graph=True, allow_unused=True)
            expected = (0, 0, 0, 0) if gradient is None else support(gradient)
            assert field.box(*unit) == expected, (name, unit)


# --- Networks -----------------------------------------------------------------------------------------------

NETWORKS = {
    "alexnet": (96, ["features.3", "features.5", "features.10"]),
    "vgg16": (96, ["features.4", "features.16", "features.29"]),
    "resnet18": (96, ["conv1", "layer1.1", "layer3.0.downsample.0", "layer4"]),
    "resnet50": (96, ["maxpool", "layer2.1.conv2", "layer3"]),
    "densenet121": (
        64,
        ["features.denseblock1", "features.transition2.pool", "features.denseblock3.denselayer4"],
    ),
    "googlenet": (96, ["inception3a", "inception4a.branch4", "inception4d"]),
    "inception_v3": (139, ["Conv2d_3b_1x1", "Mixed_5b", "Mixed_6a", "Mixed_6b"]),
    "squeezenet1_1": (97, ["features.3", "features.7", "features.12"]),
    "mobilenet_v2": (64, ["features.1", "features.4", "features.10.conv.1"]),
    "shufflenet_v2_x1_0": (96, ["stage2.0", "stage2.1.branch2", "stage3"]),
    "regnet_x_400mf": (96, ["trunk_output.block1", "trunk_output.block2.block2-1"]),
    "efficientnet_b0": (64, ["features.0", "features.1.0.block.0", "features.1", "features.3"]),
    "convnext_tiny": (64, ["features.0", "features.1.1", "features.2.0", "features.3.0.block.0"]),
}


def build(name: str) -> nn.Module:
    """A network of torchvision; the half gigabyte of some classifiers isn't allocated."""
    if name in ("alexnet", "vgg16"):
        with torch.device("meta"):
            model = getattr(tv, name)(weights=None)
        model.classifier = nn.Identity()
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)
        return model
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return getattr(tv, name)(weights=None, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_gradients_support(name: str) -> None:
    side, layers = NETWORKS[name]
    assert_exact(build(name), (3, side, side + 8), layers)


def test_efficientnet_lite() -> None:
    efficientnet_lite = pytest.importorskip("efficientnet_lite_pytorch")
    model = efficientnet_lite.EfficientNet.from_name("efficientnet-lite0")
    assert_exact(model, (3, 64, 64), ["_conv_stem", "_blocks.1", "_blocks.3", "_blocks.5"])


def test_squeeze_and_excitation_sees_everything() -> None:
    fields = receptive_field(tv.efficientnet_b0(), (3, 64, 64), ["features.0", "features.1", "features.5"])
    assert [f.is_global for f in fields.values()] == [False, True, True]


def test_windows_of_attention() -> None:
    model = tv.swin_t()
    layers = ["features.0", "features.1.0", "features.1.1", "features.2", "features.3.1"]
    # 104 / 4 = 26 places are no multiple of the window, 7: some windows are padded.
    assert_exact(model, (3, 112, 104), layers, oracle=copy.deepcopy(model).double().eval())


def test_attention_over_all_tokens_is_global() -> None:
    model = tv.VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=16)
    model.heads.head.weight.data.normal_()
    layers = ["conv_proj", "encoder.layers.encoder_layer_0.ln_1", "encoder.layers.encoder_layer_0", "heads"]
    assert_exact(model, (3, 32, 32), layers, oracle=copy.deepcopy(model).double().eval())
    fields = receptive_field(model, (3, 32, 32), layers)
    first = fields["encoder.layers.encoder_layer_0.ln_1"]
    assert first.shape == (16, 17, 1)
    assert first.box(0, 0, 0) == (0, 0, 0, 0), "the class token sees nothing at first"
    assert first.box(0, 6, 0) == (8, 8, 16, 16)
    assert [f.is_global for f in fields.values()] == [False, False, True, True]


def test_maxvit_is_exact_and_global_after_its_first_block() -> None:
    model = tv.MaxVit((64, 64), 8, 4, [16, 32], [1, 1], 16, 0.0)
    fields = receptive_field(model, (3, 64, 64), ["stem", "blocks.0"])
    assert all(f.approximations == () for f in fields.values())
    assert (fields["stem"].size, fields["stem"].stride) == ((7, 7), (2, 2))
    assert fields["blocks.0"].is_global


class Forward(nn.Module):
    """A module of a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Branches(nn.Module):
    """Concatenates, or adds, what its children make of the input."""

    def __init__(self, *children: nn.Module, add: bool = False) -> None:
        super().__init__()
        self.children_ = nn.ModuleList(children)
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        outs = [child(x) for child in self.children_]
        return torch.stack(outs).sum(0) if self.add else torch.cat(outs, 1)


def conv(c_in: int, c_out: int, *args, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, *args, **kwargs)


def set_in_place(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[..., 1:, :] = x[..., :-1, :]
    out[:, :1] += x[:, 1:2].roll(3, -1)
    view = out[:, 2:]
    view.add_(x[:, :1])
    return out


SMALL = {
    "dilation": [conv(3, 4, 3, dilation=2), conv(4, 4, 3, dilation=3, padding=2)],
    "groups": [
        Branches(conv(3, 4, 1), conv(3, 4, 3, padding=1)),
        conv(8, 8, 3, groups=4),
        conv(8, 6, 1, groups=2),
    ],
    "channels differ": [Branches(conv(3, 4, 1), conv(3, 4, 5, padding=2)), conv(8, 8, 3, groups=8)],
    "asymmetric": [nn.ZeroPad2d((2, 0, 1, 3)), conv(3, 4, (2, 5), stride=(3, 2)), conv(4, 4, (3, 1))],
    "padding over kernel": [conv(3, 4, 1, padding=2), conv(4, 4, 3, padding=4)],
    "crop": [nn.ZeroPad2d((-2, 1, -3, 0)), conv(3, 4, 3)],
    "ceil mode": [nn.AvgPool2d(3, 2, ceil_mode=True), conv(3, 4, 3), nn.AvgPool2d(3, 2, 1, ceil_mode=True)],
    "max pool": [nn.MaxPool2d(3, 2, 1, ceil_mode=True), conv(3, 4, 2, stride=2)],
    "adaptive": [conv(3, 4, 3), nn.AdaptiveAvgPool2d((5, 7)), conv(4, 2, 3, padding=1)],
    "transposed": [
        conv(3, 4, 3, stride=2),
        nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1),
        conv(4, 4, 3),
    ],
    "transposed groups": [nn.ConvTranspose2d(3, 6, (2, 4), (3, 2), groups=3, dilation=(2, 1))],
    "nearest": [conv(3, 4, 3, stride=2), nn.Upsample(scale_factor=2), conv(4, 4, 3, padding=1)],
    "bilinear": [conv(3, 4, 3, stride=3), nn.Upsample(scale_factor=1.7, mode="bilinear"), conv(4, 4, 2)],
    "corners": [conv(3, 4, 3, stride=2), nn.UpsamplingBilinear2d((19, 31)), conv(4, 4, 2)],
    "downsample": [Forward(lambda x: F.interpolate(x, size=(7, 10), mode="bilinear", antialias=True))],
    "reflection": [nn.ReflectionPad2d((2, 3, 1, 4)), conv(3, 4, 3), nn.ReplicationPad2d(2), conv(4, 4, 3)],
    "circular": [conv(3, 4, 3, padding=1, padding_mode="circular")],
    "skip": [Branches(conv(3, 3, 3, padding=1), nn.Identity(), add=True), conv(3, 4, 3)],
    "pixel shuffle": [Branches(conv(3, 4, 1), conv(3, 4, 3, padding=1)), nn.PixelShuffle(2), conv(2, 4, 2)],
    "channel shuffle": [Branches(conv(3, 4, 1), conv(3, 4, 3, padding=1)), nn.ChannelShuffle(2)],
    "unfold": [Forward(lambda x: F.unfold(x, 3, padding=1).unflatten(2, x.shape[2:]))],
    "in place": [Forward(set_in_place), conv(3, 4, 3)],
    "slices": [Forward(lambda x: torch.stack([x[..., ::2, 1::2], x[..., 1::2, :-1:2]], 2).flatten(1, 2))],
    "indices": [Forward(lambda x: x[:, [2, 0]].index_select(3, torch.tensor([4, 1, 9])).flip(2))],
    "einsum": [Forward(lambda x: torch.einsum("nchw,dc->nhdw", x, torch.ones(5, 3, dtype=x.dtype)))],
    "sums": [Forward(lambda x: x.sum(1, keepdim=True) * x.mean(2, keepdim=True)), conv(3, 4, 3)],
    "cumulative": [Forward(lambda x: x.cumsum(-1).unfold(2, 3, 2).mean(-1))],
    "where": [Forward(lambda x: torch.where(torch.arange(x.shape[-1]) > 4, x, 0.0)), conv(3, 4, 5)],
    "vector": [conv(3, 4, 3, stride=4), nn.Flatten(), nn.Unflatten(1, (2, -1)), Forward(lambda x: x.mean(2))],
    "linear of rows": [nn.Linear(33, 5), conv(3, 4, 3)],
    "complex wiring": [
        Branches(
            conv(3, 4, 3, padding=1),
            nn.Sequential(nn.AvgPool2d(2, 2), conv(3, 2, 3, padding=1), nn.Upsample((22, 33))),
        ),
        conv(6, 4, 3, stride=2),
    ],
}


@pytest.mark.parametrize("name", SMALL)
def test_small_networks(name: str) -> None:
    model = nn.Sequential(*SMALL[name])
    assert_exact(model, (3, 22, 33), [str(i) for i in range(len(model))])


@pytest.mark.parametrize(
    "norm",
    [
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.LayerNorm([4, 9, 9]),
        nn.GroupNorm(4, 4),
        nn.BatchNorm2d(4),
    ],
)
def test_norms_mix_what_they_average(norm: nn.Module) -> None:
    model = nn.Sequential(conv(3, 4, 3, groups=1), norm, nn.Sigmoid(), conv(4, 4, 1, groups=4)).eval()
    assert_exact(model, (3, 11, 11), ["0", "1", "3"], oracle=copy.deepcopy(model).double())
    assert receptive_field(model, (3, 11, 11), "1").is_global == (not isinstance(norm, nn.BatchNorm2d))


def test_causal_attention_sees_the_past() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = Forward(lambda x: x.mean(1))
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.rows(x)
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
            return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]

    model = Causal().eval()
    assert_exact(model, (3, 6, 8), ["rows", "attention"], oracle=copy.deepcopy(model).double())
    assert receptive_field(model, (3, 6, 8), "attention").box(0, 3, 0) == (0, 0, 4, 8)


def test_equals_brute_force_perturbation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv(2, 4, 3, stride=2, padding=1), nn.Softplus(), conv(4, 4, 3, groups=2)).double()
    image = torch.randn(1, 2, 9, 8, dtype=torch.float64)
    field = receptive_field(model, image, "2")
    base = model(image)
    touched = torch.zeros(*field.shape, 9, 8, dtype=torch.bool)
    for y in range(9):
        for x in range(8):
            changed = image.clone()
            changed[..., y, x] += 1.0
            touched[..., y, x] = (model(changed) != base)[0]
    for unit in torch.cartesian_prod(*map(torch.arange, field.shape)).tolist():
        assert field.box(*unit) == support(touched[tuple(unit)].double()[None, None])


# --- What is made of it -------------------------------------------------------------------------------------


def test_size_stride_and_boxes_of_a_textbook_network() -> None:
    field = receptive_field(tv.alexnet(), (3, 224, 224), "features.10")
    assert (field.size, field.stride, field.is_global) == ((163, 163), (16, 16), False)
    assert field.shape == (256, 13, 13)
    channels, rows, cols = torch.tensor([0, 5]), torch.tensor([0, 6]), torch.tensor([6, 12])
    boxes = field.boxes(channels, rows, cols)
    assert boxes.tolist() == [list(field.box(0, 0, 6)), list(field.box(5, 6, 12))]
    assert field.rows.untyped_storage().nbytes() < 1000, "repeated values share memory"


@pytest.mark.parametrize(
    ("name", "layer", "size", "stride"),
    [
        ("vgg16", "features.29", 196, 16),
        ("resnet18", "layer2", 99, 8),
        ("resnet50", "layer3", 267, 16),
        ("googlenet", "inception4a", 107, 16),
    ],
)
def test_frames_are_those_of_a_larger_image(name: str, layer: str, size: int, stride: int) -> None:
    """Cut from the middle of a much larger image, no field touches a border: the frames without clipping."""
    model, margin = build(name), 144
    small = receptive_field(model, (3, 160, 192), layer)
    large = receptive_field(model, (3, 160 + 2 * margin, 192 + 2 * margin), layer)
    assert small.stride == large.stride == (stride, stride)
    channels, height, width = small.shape
    index = torch.cartesian_prod(torch.tensor([0, channels - 1]), torch.arange(height), torch.arange(width)).T
    frames = small.frames(*index)
    shift = torch.tensor([0, margin // stride, margin // stride])[:, None]
    assert torch.equal(frames + margin, large.boxes(*(index + shift)))
    assert small.size == large.size == (size, size)


def test_frames_without_a_rule_hold_their_boxes() -> None:
    model = nn.Sequential(conv(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d((5, 7)), conv(4, 2, 3, padding=1))
    field = receptive_field(model, (3, 22, 33), "2")
    index = torch.cartesian_prod(*map(torch.arange, field.shape)).T
    boxes, frames = field.boxes(*index), field.frames(*index)
    assert field.stride is None
    assert (frames[:, :2] <= boxes[:, :2]).all() and (frames[:, 2:] >= boxes[:, 2:]).all()
    assert len((frames[:, 2:] - frames[:, :2]).unique(dim=0)) == 1


def test_empty_boxes() -> None:
    model = nn.Sequential(conv(3, 4, 1, padding=1))
    field = receptive_field(model, (3, 4, 4), "0")
    assert field.box(0, 0, 2) == (0, 0, 0, 0)
    assert field.box(0, 1, 2) == (0, 1, 1, 2)


def test_unknown_operators_are_named_and_never_too_small() -> None:
    class Warp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            grid = F.affine_grid(torch.eye(2, 3)[None], list(x.shape), align_corners=False)
            return F.grid_sample(x, grid, align_corners=False)

    model = nn.Sequential(conv(3, 4, 3), Warp(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), Warp())
    fields = receptive_field(model, (3, 16, 16))
    assert fields["0"].approximations == ()
    assert fields["2"].approximations == ("aten.grid_sampler_2d",)
    assert fields["2"].is_global
    after_pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), Warp())
    assert receptive_field(after_pooling, (3, 16, 16), "1").approximations == ()


def test_layers_called_twice_unite_their_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    field = receptive_field(Twice(), (3, 16, 16), "conv")
    assert field.size == (5, 5)
    (row,) = layer_table(Twice(), (3, 16, 16))
    assert row.calls == 2


def test_layer_table() -> None:
    model = tv.resnet18()
    rows = layer_table(model, torch.zeros(2, 3, 64, 96))
    assert [r.name for r in rows[:4]] == ["conv1", "bn1", "relu", "maxpool"]
    assert rows[0].shape == (64, 32, 48) and rows[0].parameters == 9408 and rows[0].sees == "7×7"
    assert rows[-1].name == "fc" and rows[-1].sees == "global"
    assert not any(r.name == "layer1" for r in rows)
    everything = layer_table(model, (3, 64, 96), containers=True)
    names = [r.name for r in everything]
    assert names.index("layer1") < names.index("layer1.0") < names.index("layer1.0.conv1")
    text = format_layer_table(everything)
    assert len(text.splitlines()) == len(everything) + 1
    assert max(map(len, text.splitlines())) <= 110


def test_long_names_fit_the_table() -> None:
    deep = conv(3, 4, 3)
    for _ in range(40):
        deep = nn.ModuleDict({"wrapped": deep})
        deep.forward = deep["wrapped"].forward
    model = nn.Sequential(deep, *(nn.Identity() for _ in range(3)))
    lines = format_layer_table(layer_table(model, (3, 8, 8))).splitlines()
    assert max(map(len, lines)) <= 110


# --- Manners ------------------------------------------------------------------------------------------------


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("fails", [False, True])
def test_leaves_no_trace(fails: bool) -> None:
    def last(x: Tensor) -> Tensor:
        torch.rand(3)
        if fails:
            raise RuntimeError("forward failed")
        return x

    model = nn.Sequential(conv(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), Forward(last)).train()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fastpath = torch.backends.mha.get_fastpath_enabled()
    if fails:
        with pytest.raises(RuntimeError, match="forward failed"):
            receptive_field(model, torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    else:
        receptive_field(model, (3, 8, 8))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert torch.equal(rng, torch.get_rng_state())
    assert hooks_of(model) == 0
    assert torch.backends.mha.get_fastpath_enabled() == fastpath
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_works_in_inference_mode_in_low_precision_and_compiled() -> None:
    model = nn.Sequential(conv(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    expected = receptive_field(model, (3, 8, 8), "2")
    with torch.inference_mode():
        inside = receptive_field(model, torch.zeros(1, 3, 8, 8), "2")
    half = receptive_field(copy.deepcopy(model).bfloat16(), (3, 8, 8), "2")
    compiled = receptive_field(torch.compile(model, backend="eager"), (3, 8, 8), "2")
    for field in (inside, half, compiled):
        assert torch.equal(field.rows, expected.rows) and torch.equal(field.cols, expected.cols)


def test_memory_is_freed_as_activations_die() -> None:
    from lit_viz.functional.receptive_field.dependence import Dependence

    image = torch.zeros(1, 3, 8, 8)
    with torch.no_grad(), Dependence(image) as dependence:
        x = image
        for _ in range(20):
            x = F.conv2d(x, torch.ones(3, 3, 3, 3), padding=1) * 2
    assert len(dependence._shadows._own) == 2


def test_bad_input() -> None:
    model = nn.Sequential(conv(3, 4, 3), nn.ReLU())
    model.unused = nn.Identity()
    model.forward = lambda x: model[1](model[0](x))
    with pytest.raises(UsageError, match="no layer 'conv'"):
        receptive_field(model, (3, 8, 8), "conv")
    with pytest.raises(UsageError, match="doesn't run"):
        receptive_field(model, (3, 8, 8), "unused")
    with pytest.raises(UsageError, match=r"\(N, C, H, W\)"):
        receptive_field(model, torch.zeros(3, 8, 8))
    with pytest.raises(UsageError, match="channels, height, width"):
        receptive_field(model, (8, 8))
    field = receptive_field(model, (3, 8, 8), "0")
    with pytest.raises(UsageError, match="no channel 4"):
        field.box(4, 0, 0)
    with pytest.raises(UsageError, match="no row -1"):
        field.box(0, -1, 0)


def test_outputs_without_units() -> None:
    model = nn.Sequential(Forward(lambda x: x.unflatten(2, (2, 4)).permute(2, 0, 1, 3, 4)), nn.Flatten(0, 1))
    assert layer_table(model, (3, 8, 8))[0].sees == "–"
    with pytest.raises(UsageError, match="no map, tokens or vector"):
        receptive_field(model, (3, 8, 8), "0")
    assert find_layer(model, "1")[0] == "1"
