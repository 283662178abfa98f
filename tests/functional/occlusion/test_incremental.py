"""Computing only what changes gives what full passes give: on many networks, in double precision."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError
from lit_viz.functional import winograd
from lit_viz.functional.occlusion import incremental, occlusion, occlusion_map
from lit_viz.functional.occlusion.grid import Grid
from lit_viz.functional.occlusion.incremental import Batch, Incremental, whole_cost
from lit_viz.functional.occlusion.program import BATCH_NORMS, Program, prepared
from lit_viz.functional.occlusion.tape import Untraceable, aten, trace

Network = Callable[[str], nn.Module]


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def engine_for(model: nn.Module, x: Tensor, grid: Grid, **options: int) -> Incremental:
    program = prepared(trace(model, x[:1], x[:1].flip(3)))
    return Incremental(program, grid.rows, grid.columns, **options)


def both(
    model: nn.Module, x: Tensor, cover: Tensor, window: tuple[int, int], stride: tuple[int, int], **options: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores at each position by windows and by full passes (N, P, K), and of the whole images (N, 1, K)."""
    grid = Grid.of((x.shape[2], x.shape[3]), window, stride)
    with torch.no_grad():
        engine = engine_for(model, x, grid, **options)
        found = torch.stack([engine.run(engine.bases(x[i : i + 1]), cover[i : i + 1]) for i in range(len(x))])
        count = len(grid.boxes)
        expected = torch.stack(
            [
                model(grid.covered(a.expand(count, -1, -1, -1), c.expand(count, -1, -1, -1), list(range(count))))
                for a, c in zip(x, cover, strict=True)
            ]
        )
        return found, expected, model(x)[:, None]


def assert_same(found: Tensor, expected: Tensor, whole: Tensor, share: float) -> None:
    """Equal relative to the scores, and relative to what covering changes: else small effects would hide errors."""
    error = (found - expected).abs().amax((1, 2))
    assert (error <= share * expected.abs().amax((1, 2))).all()
    effect = (expected - whole).abs().amax((1, 2))
    assert (error <= 1e3 * share * effect).all()
    assert (effect > 0).all()


NAMED = [
    ("alexnet", (75, 96)),
    ("vgg11_bn", (65, 48)),
    ("resnet18", (75, 58)),
    ("resnet50", (64, 83)),
    ("resnext50_32x4d", (61, 50)),
    ("densenet121", (64, 79)),
    ("mobilenet_v2", (67, 50)),
    ("googlenet", (64, 81)),
    ("inception_v3", (95, 81)),
    ("squeezenet1_1", (57, 72)),
    ("regnet_x_400mf", (64, 49)),
    ("efficientnet_lite0", (71, 64)),
]


@pytest.mark.parametrize(("name", "size"), NAMED)
def test_networks(name: str, size: tuple[int, int], network: Network) -> None:
    model = network(name).double()
    x = images(2, 3, *size)
    found = both(model, x, images(2, 3, *size, seed=2), (13, 9), (18, 19))
    assert_same(*found, 1e-10)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v2", "efficientnet_lite0"])
def test_networks_in_single_precision(name: str, network: Network) -> None:
    model, x = network(name).float(), images(1, 3, 96, 96).float()
    found, expected, _ = both(model, x, torch.zeros_like(x), (16, 16), (8, 8))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vit", "swin_t", "convnext_tiny"])
def test_networks_that_mix_all_places_are_right_too(name: str, network: Network) -> None:
    model, x = network(name).double(), images(1, 3, 64, 64)
    assert_same(*both(model, x, torch.zeros_like(x), (16, 16), (16, 12)), 1e-9)


@pytest.mark.parametrize("stride", [(1, 1), (3, 5), (8, 8), (20, 16)])
@pytest.mark.parametrize("window", [(1, 1), (2, 7), (16, 16), (29, 31)])
def test_windows_and_strides(window: tuple[int, int], stride: tuple[int, int]) -> None:
    x = images(1, 3, 29, 31)
    found = both(Branches().double(), x, images(1, 3, 29, 31, seed=5), window, stride)
    assert_same(*found, 1e-10)


@pytest.mark.parametrize("together", [1, 2, 7, 64])
def test_batches_of_any_size_and_little_memory(together: int) -> None:
    x = images(2, 3, 24, 33)
    model, cover = Branches().double(), torch.zeros_like(x)
    usual = both(model, x, cover, (5, 4), (3, 4))[0]
    assert torch.allclose(both(model, x, cover, (5, 4), (3, 4), together=together)[0], usual, atol=1e-12)
    assert torch.allclose(both(model, x, cover, (5, 4), (3, 4), memory=1)[0], usual, atol=1e-12)


class Branches(nn.Module):
    """Residual sums of unequal reach, channels side by side, and every kind of border."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.modes = nn.ModuleList(
                nn.Conv2d(8, 4, (3, 2), padding=(1, 1), padding_mode=m) for m in ("reflect", "replicate", "circular")
            )
            self.wide = nn.Conv2d(12, 12, 5, padding="same", dilation=2, groups=3)
            self.narrow = nn.Conv2d(12, 12, 1, stride=2)
            self.norm = nn.BatchNorm2d(12)
            self.head = nn.Linear(12, 6)
            nn.init.uniform_(self.norm.running_mean)
            nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu_()
        x = torch.cat([mode(x) for mode in self.modes], dim=1)
        x = x + self.wide(x).sigmoid()
        x = F.max_pool2d(x, 3, 1, 1) - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        a, b = x.split([5, 7], dim=1)
        x = self.norm(torch.cat([b * 2, a], dim=1))
        x = self.narrow(x)
        x += F.avg_pool2d(x, 2, 1, ceil_mode=True, padding=1)[..., :-1, :-1]
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, int], tuple[int, int], tuple[int, int]]:
    """A random small network, with a size of image, of patch and of stride."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    size = draw(st.integers(9, 30)), draw(st.integers(9, 30))
    layers: list[nn.Module] = []
    channels, least = 3, min(size)
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["conv", "depthwise", "max", "mean", "pad", "norm", "act", "residual", "cat"]))
        kernel, stride = draw(st.integers(1, 4)), draw(st.sampled_from([1, 1, 2, 3]))
        if kind == "conv":
            mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
            padding, dilation = draw(st.integers(0, 2)), draw(st.integers(1, 2))
            if least + 2 * padding < dilation * (kernel - 1) + 1 or padding >= least:
                continue
            out = draw(st.sampled_from([2, 4, 6]))
            bias = draw(st.booleans())
            layers.append(nn.Conv2d(channels, out, kernel, stride, padding, dilation, padding_mode=mode, bias=bias))
            channels, least = out, (least + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        elif kind == "depthwise":
            layers.append(nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels))
            channels *= 2
        elif kind in ("max", "mean"):
            padding, ceil = draw(st.integers(0, kernel // 2)), draw(st.booleans())
            if least + 2 * padding < kernel:
                continue
            if kind == "max":
                layers.append(nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil))
            else:
                inside = draw(st.booleans())
                layers.append(nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil, count_include_pad=inside))
            least = (least + 2 * padding - kernel) // stride + 1
        elif kind == "pad":
            pads = [draw(st.integers(0, 2)) for _ in range(4)]
            layer = draw(st.sampled_from([nn.ZeroPad2d, nn.ReplicationPad2d, nn.ReflectionPad2d, nn.CircularPad2d]))
            if least > 2:
                layers.append(layer(tuple(pads)))
        elif kind == "norm":
            norm = nn.BatchNorm2d(channels)
            nn.init.uniform_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            layers.append(norm)
        elif kind == "act":
            layers.append(draw(st.sampled_from([nn.ReLU(inplace=True), nn.SiLU(), nn.PReLU(), nn.ELU(inplace=True)])))
        elif kind == "residual":
            layers.append(Residual(nn.Conv2d(channels, channels, 3, padding=1)))
        else:
            layers.append(Beside(nn.Conv2d(channels, 3, 3, padding=1), nn.Identity()))
            channels += 3
    end = draw(st.sampled_from(["mean", "flat", "grid"]))
    if end == "mean":
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)]
    elif end == "flat":
        layers += [nn.Flatten(), nn.LazyLinear(4)]
    else:
        layers += [nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Linear(6 * channels, 4)]
    model = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, *size, dtype=torch.float64))
    window = draw(st.integers(1, size[0])), draw(st.integers(1, size[1]))
    return model, size, window, (draw(st.integers(2, 9)), draw(st.integers(2, 9)))


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        x += self.inner(x).relu()
        return x


class Beside(nn.Module):
    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleList(inner)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([f(x) for f in self.inner], dim=1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(networks())
def test_random_networks(
    drawn: tuple[nn.Module, tuple[int, int], tuple[int, int], tuple[int, int]],
) -> None:
    model, size, window, stride = drawn
    x = images(2, 3, *size)
    found, expected, _ = both(model, x, images(2, 3, *size, seed=3), window, stride)
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max().clamp(min=1e-6)


def test_random_networks_with_fewer_multiplications(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise only large networks have them."""
    monkeypatch.setattr(winograd, "pays", lambda *_, **__: True)
    test_random_networks()


def test_pooling_to_the_size_that_is_there() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d((11, 14)), nn.Flatten(), nn.Linear(616, 5))
    x = images(1, 3, 24, 30)
    assert_same(*both(model.double(), x, torch.zeros_like(x), (4, 5), (3, 3)), 1e-10)


def test_weights_are_read_anew(network: Network) -> None:
    model, x = network("resnet18").double(), images(1, 3, 40, 40)
    before = occlusion_map(model, x, 3, engine="incremental", output="score")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
        model.bn1.running_mean.add_(0.3)
    after = occlusion_map(model, x, 3, engine="incremental", output="score")
    expected = occlusion_map(model, x, 3, engine="full", output="score")
    assert after.engine == "incremental" and not torch.allclose(before.heat, after.heat)
    assert torch.allclose(after.heat, expected.heat, rtol=1e-10)


class Decides(nn.Module):
    """What it does depends on what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2 if x.mean() > 0 else x * 3
        return x.mean((2, 3))


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + torch.rand_like(x)).mean((2, 3))


class Peeks(nn.Module):
    """Takes a number from the image past torch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * torch.from_numpy(x.detach().numpy().mean(keepdims=True)).reshape(1, 1)


class WritesIntoSlices(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        x[:, :1] = 0.0
        return x.mean((2, 3))


class CountsCalls(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.mean((2, 3)) * self.calls


class WritesLater(nn.Module):
    """Changes a constant between two uses of it, through views; and a class that can never be."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).relu().mean((2, 3))
        t = torch.ones(8, dtype=h.dtype)
        t.mul_(2)
        a = h + t.view(1, -1)
        t.mul_(100)
        h = a * t.view(1, -1)
        return torch.cat([h, torch.full_like(h[:, :1], -math.inf)], 1)


class Masked(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return torch.cat([scores, torch.full_like(scores[:, :1], -math.inf)], 1)


class Rereads(nn.Module):
    """Looks at one pixel and decides, each time in another way past the operations of torch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        pixel = x[:, 0, 3, 17]
        match self.how:
            case "numpy":
                black = bool((pixel.numpy() == 0).any())
            case "array":
                black = 0 in np.asarray(pixel)
            case "list":
                black = 0 in pixel.tolist()
            case "length":
                black = len(pixel[pixel == 0]) > 0
            case _:
                black = False
                with suppress(Exception):
                    black = bool((pixel == 0).any())
        return x.mean((2, 3)) * (3 if black else 1)


@pytest.mark.parametrize("how", ["numpy", "array", "list", "length", "caught"])
def test_a_decision_that_shows_at_few_positions_is_seen(how: str) -> None:
    x = images(1, 3, 24, 24)
    given = dict(window=4, stride=2, output="score", batch_size=1)
    found = occlusion_map(Rereads(how), x, 1, **given)
    assert found.engine == "full" and "can't be followed" in found.note
    assert torch.equal(found.heat, occlusion(Rereads(how), x, 1, engine="full", **given))


class Busy(nn.Module):
    """Has a state that is right again at the end of its forward."""

    busy = False

    def forward(self, x: Tensor) -> Tensor:
        assert not self.busy
        self.busy = True
        x = x * 2 if x.mean() > 0 else x * 3
        self.busy = False
        return x.mean((2, 3))


def test_a_network_that_cannot_be_followed_is_run_to_its_end() -> None:
    model = Busy()
    assert occlusion_map(model, images(1, 3, 24, 24), 1, window=4, stride=2).engine == "full"
    assert not model.busy


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_can_be_covered(value: float) -> None:
    x = images(2, 3, 24, 24)
    x[1, 0, 3, 17] = value
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    given = dict(window=6, stride=2, output="score")
    found = occlusion(model, x, 1, engine="incremental", **given)
    expected = occlusion(model, x, 1, engine="full", **given)
    assert expected[0].isfinite().all() and expected[1].isfinite().any() and not expected[1].isfinite().all()
    assert torch.allclose(found, expected, rtol=1e-10, equal_nan=True)


class InParts(nn.Module):
    """Takes eight images at a time."""

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean((2, 3), keepdim=True)
        return torch.cat([part.relu().amax((2, 3)) for part in x.split(8)])


def test_a_network_that_splits_large_batches() -> None:
    x = images(1, 3, 24, 24)
    found = occlusion_map(InParts(), x, 1, window=4, stride=2, output="score")
    assert torch.equal(found.heat, occlusion(InParts(), x, 1, window=4, stride=2, output="score", engine="full"))


@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d(1),
        nn.MaxPool2d(1, 2),
        nn.AvgPool2d(1),
        nn.AvgPool2d((1, 3), (2, 1), (0, 1), count_include_pad=False),
        nn.AvgPool2d((2, 1), (1, 3), ceil_mode=True, divisor_override=3),
        nn.InstanceNorm2d(4),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 2), nn.BatchNorm1d(4), nn.Unflatten(2, (20, 22))),
    ],
    ids=str,
)
def test_layers_between_convolutions(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Conv2d(4, 4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1))
    model.append(nn.Flatten())
    x = images(1, 3, 23, 23)
    assert_same(*both(model.double().eval(), x, torch.zeros_like(x), (5, 4), (3, 2), together=7), 1e-10)


class Accumulates(nn.Module):
    """Writes a result in one number format into a tensor of another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.5
        x += torch.ones(3, 1, 1, dtype=torch.float64)
        x = self.inner(x)
        return (x * x.clone().gt_(0)).mean((2, 3))


def test_results_take_on_the_number_format_of_what_they_are_written_to() -> None:
    x = images(1, 3, 24, 24).float()
    found, expected, _ = both(Accumulates(), x, torch.zeros_like(x), (5, 5), (4, 4))
    assert found.dtype == torch.float32 and (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_norms_are_not_folded_where_weights_are_coarse() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    for format, steps in ((torch.float32, 0), (torch.bfloat16, 1)):
        x = images(1, 3, 24, 24).to(format)
        with torch.no_grad():
            program = prepared(trace(model.to(format), x, x.flip(3)))
        assert sum(step.op in BATCH_NORMS for step in program.steps.values()) == steps


class Ahead(nn.Module):
    """Batch norm and ReLU before convolutions, as in dense blocks."""

    def __init__(self, signs: list[float], padding: int) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.one, self.two = nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(4, 6, 1, padding=padding, bias=False)
        self.norm.weight.data, self.norm.bias.data = torch.tensor(signs), torch.randn(4)
        self.norm.running_mean.normal_(), self.norm.running_var.uniform_(0.5, 2.0)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(x).relu()
        return torch.cat([self.one(y).mean((2, 3)), self.two(y).amax((2, 3)), x.mean((2, 3))], dim=1)


@pytest.mark.parametrize(
    ("signs", "padding", "op"),
    [
        ([0.5, 1.0, 2.0, 1.5], 0, torch.ops.aten.maximum.default),
        ([0.5, -1.0, 2.0, -1.5], 0, torch.ops.aten.clamp.Tensor),
        ([0.5, 0.0, 2.0, 1.5], 0, torch.ops.aten.relu_.default),  # no bound for a channel that is constant
        ([0.5, 1.0, 2.0, 1.5], 1, torch.ops.aten.relu_.default),  # zeros around the map are no normalised values
    ],
)
def test_norms_ahead_of_convolutions_are_folded(signs: list[float], padding: int, op: Any) -> None:
    model, x = Ahead(signs, padding).double(), images(2, 3, 20, 24)
    ops = [step.op for step in prepared(trace(model, x[:1], x[:1].flip(3))).steps.values()]
    assert ops.count(op) == 1 and any(o in BATCH_NORMS for o in ops) == (op is torch.ops.aten.relu_.default)
    assert_same(*both(model, x, torch.zeros_like(x), (6, 5), (3, 4)), 1e-10)


@pytest.mark.parametrize("model", [Decides(), Draws(), Peeks(), WritesIntoSlices()])
def test_what_cannot_be_followed_gets_full_passes_and_a_reason(
    model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    x = images(1, 3, 24, 24) + 0.1
    with pytest.raises(Untraceable):
        trace(model, x, -x)
    with caplog.at_level(logging.DEBUG, logger="lit_viz"):
        found = occlusion_map(model, x, 1, window=4, stride=2, output="score")
    assert found.engine == "full" and "can't be followed" in found.note and found.note in caplog.text
    with pytest.raises(UsageError, match="engine='auto'"):
        occlusion(model, x, 1, window=4, stride=2, engine="incremental")


@pytest.mark.parametrize("calls", range(4))
def test_a_network_that_counts_its_calls_is_found_out(calls: int) -> None:
    """Also where the number of its calls is by chance that of the images."""
    model = CountsCalls()
    model.calls = calls
    found = occlusion_map(model, images(1, 3, 24, 24), 1, window=4, stride=2, output="score")
    assert found.engine == "full" and "can't be followed" in found.note


def test_steps_that_give_other_scores_are_found_out_beside_a_class_that_is_masked() -> None:
    model, x = WritesLater().double(), images(1, 3, 24, 24)
    found = occlusion_map(model, x, 1, window=4, stride=2, output="score")
    assert found.engine == "full" and "other scores than itself" in found.note
    expected = occlusion(model, x, 1, window=4, stride=2, output="score", engine="full")
    assert torch.allclose(found.heat, expected, rtol=1e-9)
    # The mask by itself is no reason against windows.
    masked = nn.Sequential(Branches(), Masked()).double()
    found = occlusion_map(masked, x, 1, window=4, stride=2, output="score", engine="incremental")
    assert torch.allclose(
        found.heat, occlusion(masked, x, 1, window=4, stride=2, output="score", engine="full"), rtol=1e-9
    )


def test_batches_of_windows_shrink_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Branches().double(), images(2, 3, 48, 48)
    given = dict(window=8, stride=4, output="score")
    expected = occlusion_map(model, x, 3, engine="full", **given).heat
    run, sizes = Batch.run, []

    def scarce(self: Batch) -> Tensor:
        sizes.append(self.count)
        if self.count > 16:
            raise torch.OutOfMemoryError("out of memory")
        return run(self)

    monkeypatch.setattr(Batch, "run", scarce)
    found = occlusion_map(model, x, 3, engine="incremental", **given)
    assert torch.allclose(found.heat, expected, rtol=1e-9)
    assert max(sizes) > 16 >= sizes[-1]


@pytest.mark.parametrize("engine", ["incremental", "full"])
def test_mixed_precision_that_overflows_is_told(engine: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        model[0].weight.mul_(3e5)
    x = images(1, 3, 24, 24).float()
    found = occlusion_map(model, x, 1, window=4, stride=2, output="score", autocast=torch.float16, engine=engine)
    assert not found.heat.isfinite().all() and found.error == math.inf


def test_the_error_of_mixed_precision_is_that_to_the_weights_own(network: Network) -> None:
    """Also where the run itself has mixed precision, which a callback looks in."""
    model, x = network("squeezenet1_1"), images(1, 3, 64, 64).float()
    given = dict(window=16, stride=8, output="score", autocast=torch.bfloat16, engine="full")
    alone = occlusion_map(model, x, 3, **given).error
    with torch.autocast("cpu", torch.bfloat16):
        within = occlusion_map(model, x, 3, **given).error
    assert alone == within > 0


def test_squeeze_and_excitation_gets_full_passes_with_folded_norms(network: Network) -> None:
    model, x = network("mobilenet_v3_small").double(), images(1, 3, 64, 64)
    found = occlusion_map(model, x, 3, output="score")
    assert found.engine == "full" and "too little" in found.note
    assert torch.allclose(found.heat, occlusion(model, x, 3, output="score", engine="full"), rtol=1e-9)


def test_images_with_targets_of_their_own(network: Network) -> None:
    model, x = network("squeezenet1_1").double(), images(3, 3, 64, 48)
    target = torch.tensor([4, 0, 11])
    found = occlusion_map(model, x, target, window=12, stride=6, engine="incremental")
    assert torch.allclose(found.heat, occlusion(model, x, target, window=12, stride=6, engine="full"), rtol=1e-9)


@pytest.mark.parametrize("engine", ["incremental", "full"])
def test_region(engine: str, network: Network) -> None:
    model, x = Branches().double(), images(2, 3, 64, 72)
    given = dict(window=16, stride=8, output="score", engine=engine)
    everything = occlusion(model, x, 3, **given)
    some = occlusion(model, x, 3, region=(20, 33, 30, 41), **given)
    touching = torch.zeros(7, 8, dtype=torch.bool)
    for r in range(7):
        for c in range(8):
            touching[r, c] = 8 * r < 30 and 8 * r + 16 > 20 and 8 * c < 41 and 8 * c + 16 > 33
    assert touching.any() and not touching.all()
    assert torch.equal(~some.isnan(), touching.expand(2, 7, 8))
    assert torch.allclose(some[:, touching], everything[:, touching], rtol=1e-9)
    pixels = occlusion(model, x, 3, region=(20, 33, 30, 41), returns="attribution", **given)
    assert pixels.isfinite().all() and (pixels[:, 24, 36] != 0).all() and (pixels[:, 60, 5] == 0).all()
    # Where all windows over a pixel touch the region, the region makes no difference.
    whole = occlusion(model, x, 3, returns="attribution", **given)
    assert torch.allclose(pixels[:, 24:28, 36:40], whole[:, 24:28, 36:40], rtol=1e-9)


@pytest.mark.parametrize("region", [(0, 0, 0, 5), (5, 5, 2, 9), (0, 0, 65, 9), (-1, 0, 9, 9), (0, 0, 9)])
def test_bad_regions_are_named(region: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="region is"):
        occlusion(Branches().double(), images(1, 3, 64, 64), 0, region=region)


def test_a_region_between_windows_is_named() -> None:
    with pytest.raises(UsageError, match="no window touches"):
        occlusion(Branches().double(), images(1, 3, 64, 64), 0, window=4, stride=20, region=(6, 6, 9, 9))


def test_mixed_precision_says_how_wrong_it_is(network: Network) -> None:
    model, x = network("squeezenet1_1"), images(1, 3, 64, 64).float()
    exact = occlusion_map(model, x, 3, output="score")
    mixed = occlusion_map(model, x, 3, output="score", autocast=torch.bfloat16, engine="incremental")
    assert exact.error is None and mixed.engine == "incremental"
    assert mixed.error is not None and 1e-4 < mixed.error < 0.5
    apart = (mixed.heat - mixed.whole - exact.heat + exact.whole).abs().max() / (exact.heat - exact.whole).abs().max()
    assert mixed.error <= 1.5 * apart  # measured at a few positions, so it may be less than the largest


def test_under_autocast_windows_equal_full_passes(network: Network) -> None:
    model, x = network("squeezenet1_1"), images(1, 3, 64, 64).float()
    with torch.autocast("cpu", torch.bfloat16):
        a = occlusion_map(model, x, 3, output="score", engine="incremental")
        b = occlusion_map(model, x, 3, output="score", engine="full")
    assert a.engine == "incremental"
    assert (a.heat - b.heat).abs().max() < 0.02 * b.heat.abs().max()


def test_little_memory_means_full_passes(network: Network) -> None:
    found = occlusion_map(network("resnet18"), images(1, 3, 96, 96).float(), 3, memory=1)
    assert found.engine == "full" and "MiB" in found.note
    for bad in (0, -3):
        with pytest.raises(UsageError, match="memory"):
            occlusion(network("resnet18"), images(1, 3, 96, 96).float(), 3, memory=bad)


def test_unknown_engine() -> None:
    with pytest.raises(UsageError, match="'auto', 'incremental' or 'full'"):
        occlusion(Branches(), images(1, 3, 32, 32), engine="quick")
    with pytest.raises(UsageError, match="bfloat16"):
        occlusion(Branches(), images(1, 3, 32, 32), autocast=torch.float64)


def test_it_computes_less(network: Network) -> None:
    """Elements that convolutions put out, against full passes: the point of it all."""
    from torch.utils.flop_counter import FlopCounterMode

    model, x = network("squeezenet1_1"), images(1, 3, 128, 128).float()
    counts = []
    for engine in ("incremental", "full"):
        with FlopCounterMode(display=False) as counter:
            occlusion(model, x, 3, window=8, stride=8, engine=engine)
        counts.append(counter.get_total_flops())
    assert counts[0] < counts[1] / 2


def test_tokens_cost_what_each_of_them_does() -> None:
    """Images and their tokens lie in one dimension there."""
    net = nn.Sequential(nn.Flatten(2), nn.Linear(64, 32), nn.Flatten(), nn.Linear(96, 5))
    images = torch.randn(2, 3, 8, 8)
    steps = prepared(trace(net, images[:1], images[1:])).steps.values()
    assert [whole_cost(step) for step in steps if step.op is aten.addmm.default] == [3 * 64 * 32, 96 * 5]


def test_the_gain_counts_the_batches_that_memory_allows() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.AvgPool2d(32))
    x = images(1, 3, 32, 32)
    grid = Grid.of((32, 32), (8, 8), (4, 4))
    wide, narrow = (engine_for(net.double(), x, grid, memory=memory) for memory in (2**28, 2**20))
    some, more = (len(list(engine.batches(engine.bases(x), x))) for engine in (wide, narrow))
    assert some < more and narrow.gain < wide.gain


def test_whole_maps_behind_windows_come_in_batches_that_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel shuffle ends windows while maps are large still."""
    monkeypatch.setattr(incremental, "LARGEST_MAP", 5 * 16 * 16 * 16 * 8)
    counts, go_on = [], Program.go_on

    def counted(self: Program, values: Any, images: int, **options: Any) -> None:
        counts.append(images)
        go_on(self, values, images, **options)

    monkeypatch.setattr(Program, "go_on", counted)
    shuffle = nn.ChannelShuffle(2)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), shuffle, nn.Conv2d(8, 16, 3, padding=1), nn.AvgPool2d(16))
    x = images(1, 3, 32, 32)
    found, expected, whole = both(nn.Sequential(net, nn.Flatten()).double(), x, torch.zeros_like(x), (8, 8), (4, 4))
    assert_same(found, expected, whole, 1e-10)
    assert counts[1:] == [5] * 9 + [4]  # first the uncovered image


def test_what_waits_where_windows_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all that comes after it is small, as in VGG's classifier."""
    monkeypatch.setattr(incremental, "LARGEST_MAP", 10 * 8 * 16 * 16 * 8)
    sizes, cat = [], torch.cat

    def measured(tensors: Any, *args: Any, **options: Any) -> Tensor:
        out = cat(tensors, *args, **options)
        sizes.append(out.nbytes if out[0].numel() == 8 * 16 * 16 else 0)
        return out

    monkeypatch.setattr(torch, "cat", measured)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Flatten(), nn.Linear(8 * 16 * 16, 4)).double()
    x = images(1, 3, 32, 32)
    found, expected, whole = both(net, x, torch.zeros_like(x), (8, 8), (4, 4))
    assert_same(found, expected, whole, 1e-10)
    assert 0 < max(sizes) <= 2 * incremental.LARGEST_MAP


def test_maps_are_kept_once() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.AvgPool2d(32))
    x = images(1, 3, 32, 32)
    engine = engine_for(net.double(), x, Grid.of((32, 32), (8, 8), (4, 4)), memory=2**28)
    bases = engine.bases(x)
    before = {ref: bases.whole(ref).clone() for ref in engine.kept}
    list(engine.batches(bases, x))
    assert bases._margined
    for (ref, _), (padded, _) in bases._margined.items():
        assert bases.whole(ref).untyped_storage().data_ptr() == padded.untyped_storage().data_ptr()
        assert torch.equal(bases.whole(ref), before[ref])


def test_only_convolutions_that_are_computed_get_kernels_of_fewer_products(monkeypatch: pytest.MonkeyPatch) -> None:
    made, filters = [], winograd.filters
    monkeypatch.setattr(winograd, "pays", lambda *_, **__: True)
    monkeypatch.setattr(winograd, "filters", lambda weight: made.append(weight) or filters(weight))
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()).eval()
    x = torch.randn(1, 8, 16, 16)
    prepared(trace(net, x, x.flip(3)))
    assert len(made) == 1  # not also the one that the batch norm was folded into
