"""Occlusion against Captum, a loop, and an identity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import Occlusion
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.functional import occlusion
from lit_viz.functional.baselines import gaussian_blur
from lit_viz.functional.occlusion.grid import positions, windows
from lit_viz.functional.occlusion.heatmap import spread

Network = Callable[[str], nn.Module]


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def total(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1, keepdim=True)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv, self.norm = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8)
            self.head = nn.Linear(8, 5)
            nn.init.normal_(self.head.weight, std=3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def captum(model: Any, x: Tensor, target: Any, window: Any, stride: Any, baseline: Any = 0) -> Tensor:
    found = Occlusion(model).attribute(
        x,
        sliding_window_shapes=(x.shape[1], *window),
        strides=(x.shape[1], *stride),
        target=target,
        baselines=baseline,
        perturbations_per_eval=8,
    )
    assert torch.equal(found.amin(1), found.amax(1))  # windows span all channels
    return found[:, 0].detach()


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to each map's largest effect."""
    peak = expected.abs().flatten(1).amax(1)
    assert (peak > 0).all()
    return float(((found - expected).abs().flatten(1).amax(1) / peak).max())


@pytest.mark.parametrize(
    ("name", "size", "window", "stride"),
    [
        ("resnet18", (32, 45), (9, 12), (9, 6)),
        ("vit", (64, 64), (16, 24), (16, 16)),
        ("convnext_tiny", (32, 40), (16, 16), (16, 11)),
    ],
)
def test_equals_captum_on_networks(
    name: str, size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], network: Network
) -> None:
    model, x = network(name).double(), images(2, 3, *size).double()
    target = torch.tensor([3, 11])
    found = occlusion(
        model, x, target, window=window, stride=stride, output="score", returns="attribution", batch_size=8
    )
    assert relative(found, captum(model, x, target, window, stride)) < 2e-7  # Captum gives single precision


def test_equals_captum_on_a_trained_network(network: Network, photographs: Tensor) -> None:
    model, x = network("efficientnet_lite0"), photographs[:1]
    found = occlusion(model, x, window=96, stride=64, output="score", returns="attribution")
    assert relative(found, captum(model, x, model(x).argmax(1), (96, 96), (64, 64))) < 1e-5


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((16, 16), (4, 4), (4, 4)),
        ((16, 16), (5, 5), (3, 3)),
        ((17, 23), (6, 4), (4, 3)),
        ((12, 31), (12, 7), (1, 7)),
        ((13, 11), (1, 1), (1, 1)),
        ((13, 11), (13, 11), (5, 5)),
        ((20, 7), (7, 2), (6, 2)),
    ],
)
def test_equals_captum_for_all_windows(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> None:
    model, x, target = Small().eval().double(), images(2, 3, *size).double(), torch.tensor([4, 1])
    for baseline in (0, -0.7, images(2, 3, *size, seed=2).double()):
        found = occlusion(
            model,
            x,
            target,
            window=window,
            stride=stride,
            baseline=baseline,
            output="score",
            returns="attribution",
        )
        assert found.dtype == torch.float64
        assert relative(found, captum(model, x, target, window, stride, baseline)) < 1e-6  # float32


@pytest.mark.parametrize("output", ["probability", "score"])
def test_heatmap_equals_a_loop(output: Any) -> None:
    model, x = Small().eval().double(), images(3, 3, 13, 18).double()
    channel = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64).reshape(3, 1, 1)
    found = occlusion(model, x, window=(5, 4), stride=(3, 5), baseline=channel, output=output, batch_size=4)
    chosen = model(x).argmax(1)
    assert found.shape == (3, 4, 4)
    for i in range(3):
        for r in range(4):
            for c in range(4):
                copy = x[i : i + 1].clone()
                for channels in range(3):
                    copy[0, channels, 3 * r : 3 * r + 5, 5 * c : 5 * c + 4] = channel[channels]
                scores = model(copy)[0]
                value = (scores.softmax(0) if output == "probability" else scores)[chosen[i]]
                assert found[i, r, c].item() == pytest.approx(value.item(), abs=1e-12)


def test_of_a_sum_is_the_sum_of_the_patch() -> None:
    x = images(2, 3, 10, 14).double()
    lost = total(x)[:, :, None] - occlusion(total, x, 0, window=(4, 5), stride=(3, 3), output="score")
    patches = torch.nn.functional.unfold(x, (4, 5), stride=(3, 3)).sum(1).reshape(2, 3, 4)
    assert torch.allclose(lost, patches, rtol=0, atol=1e-12)


def test_attribution_of_single_pixels_is_their_value_and_zero_where_no_window_comes() -> None:
    x = images(2, 1, 7, 9).double()
    options: dict[str, Any] = {"window": 1, "output": "score", "returns": "attribution"}
    assert torch.allclose(occlusion(total, x, 0, stride=1, **options), x[:, 0], rtol=0, atol=1e-12)
    sparse = occlusion(total, x, 0, stride=(2, 4), **options)
    expected = torch.zeros_like(x[:, 0])
    expected[:, ::2, ::4] = x[:, 0, ::2, ::4]
    assert torch.allclose(sparse, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 7, 24, 1000])
def test_batches_do_not_matter(batch_size: int) -> None:
    model, x = Small().eval().double(), images(3, 3, 16, 20).double()
    expected = occlusion(model, x, window=6, stride=5)
    found = occlusion(model, x, window=6, stride=5, batch_size=batch_size)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_batch_size_holds_for_the_whole_images_too() -> None:
    model, seen = Small().eval(), []
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    occlusion(model, images(11, 3, 8, 8), window=8, stride=8, batch_size=4)
    assert seen == [4, 4, 3, 4, 4, 3]


class Limited(Small):
    """Runs out of memory on more than `most` images."""

    def __init__(self, most: int, error: Callable[[], Exception]) -> None:
        super().__init__()
        self.most, self.error = most, error
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise self.error()
        self.sizes.append(len(x))
        return super().forward(x)


MEMORY: list[Callable[[], Exception]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
]


@pytest.mark.parametrize("error", MEMORY)
@pytest.mark.parametrize("most", [1, 3, 8])
def test_less_memory_gives_the_same_map(most: int, error: Callable[[], Exception]) -> None:
    x = images(10, 3, 16, 20)
    limited = Limited(most, error).eval()
    found = occlusion(limited, x, window=6, stride=5, batch_size=64, engine="full")
    assert torch.allclose(found, occlusion(Small().eval(), x, window=6, stride=5), atol=1e-6)
    assert sum(limited.sizes) == 10 + 10 * 3 * 4  # nothing done twice, nothing left out
    assert max(limited.sizes) > most // 2  # halved, not crawling


@pytest.mark.parametrize("error", [*MEMORY, lambda: RuntimeError("wrong shapes"), lambda: ValueError("no")])
def test_errors_that_smaller_batches_do_not_mend_are_raised(error: Callable[[], Exception]) -> None:
    with pytest.raises(type(error()), match=str(error())[:12]):
        occlusion(Limited(0, error), images(1, 3, 16, 16))


def test_other_errors_do_not_halve_the_batch() -> None:
    model = Limited(3, lambda: RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        occlusion(model, images(2, 3, 16, 16), window=4, stride=4, engine="full")


@pytest.mark.parametrize("length", range(1, 14))
def test_windows(length: int) -> None:
    for w in range(1, length + 1):
        for s in range(1, 16):
            boxes = windows((length, 1), (w, 1), (s, 1))
            count = positions((length, 1), (w, 1), (s, 1))[0]
            assert len(boxes) == count and [box[0] for box in boxes] == [s * i for i in range(count)]
            assert all(0 <= top < bottom <= length for top, _, bottom, _ in boxes)
            covered = {pixel for top, _, bottom, _ in boxes for pixel in range(top, bottom)}
            if s <= w:
                assert count == math.ceil((length - w) / s) + 1 and covered == set(range(length))
            assert boxes[-1][0] + max(w, s) >= length  # no room for another one
            assert boxes[max(0, count - 2)][0] + w < length or count == 1  # and none too many


def test_spread_is_the_mean_over_windows() -> None:
    overlapping = spread(torch.tensor([[[1.0, 3.0, 7.0]]]), (1, 4), (1, 2), (1, 1))
    assert overlapping.tolist() == [[[1.0, 2.0, 5.0, 7.0]]]
    sparse = spread(torch.tensor([[[1.0, 3.0]]]), (1, 5), (1, 1), (1, 3))
    assert sparse.tolist() == [[[1.0, 0.0, 0.0, 3.0, 0.0]]]


def cover(x: Tensor, **options: Any) -> Tensor:
    """The image with one window over all of it."""
    seen: list[Tensor] = []

    def model(inner: Tensor) -> Tensor:
        seen.append(inner.clone())
        return total(inner)

    occlusion(model, x, 0, window=tuple(x.shape[-2:]), stride=1, **options)
    return seen[-1]


def test_baselines() -> None:
    x = images(2, 3, 12, 16)
    assert (cover(x, baseline=0.25) == 0.25).all()
    assert torch.equal(cover(x, baseline=torch.arange(3.0).reshape(3, 1, 1))[1, 2], torch.full((12, 16), 2.0))
    mean = cover(x, baseline="mean")
    assert torch.allclose(mean, x.mean((2, 3), keepdim=True).expand_as(x))
    noise = cover(50 * images(1, 3, 96, 96) + 20, baseline="noise")
    expected = 50 * images(1, 3, 96, 96) + 20
    assert (noise.mean((2, 3)) - expected.mean((2, 3))).abs().max() < 3  # standard error 0.5
    assert (noise.std((2, 3)) / expected.std((2, 3)) - 1).abs().max() < 0.05
    assert not torch.equal(noise[:, 0], noise[:, 1])


def test_blur() -> None:
    from scipy.ndimage import gaussian_filter

    x = images(2, 3, 17, 12)
    expected = torch.stack(
        [torch.from_numpy(gaussian_filter(p.numpy(), 2.0, mode="nearest", radius=6)) for p in x.flatten(0, 1)]
    ).reshape_as(x)
    assert torch.allclose(gaussian_blur(x, 2.0), expected, atol=1e-5)
    covered = cover(x, baseline="blur")
    assert torch.allclose(covered, gaussian_blur(x, 17 / 4), atol=1e-6)


def test_noise_is_reproducible_and_its_own() -> None:
    model, x = Small().eval(), images(1, 3, 16, 16)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = occlusion(model, x, baseline="noise")
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(occlusion(model, x, baseline="noise"), first)
    assert not torch.equal(occlusion(model, x, baseline="noise", seed=1), first)


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), nn.Identity()])
def test_model_and_images_are_left_as_they_were(first: nn.Module) -> None:
    model, x = nn.Sequential(first, Small()).train(), images(2, 3, 16, 16).requires_grad_()
    before, state = x.detach().clone(), {k: v.clone() for k, v in model.state_dict().items()}
    found = occlusion(model, x)
    assert torch.equal(x, before) and x.grad is None
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules()) and torch.is_grad_enabled()
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not found.requires_grad
    assert torch.equal(found, occlusion(model.eval(), x))
    with torch.inference_mode():
        assert torch.equal(found, occlusion(model, x * 1))


def test_training_under_autocast_goes_on_after_a_look() -> None:
    model, x = Small(), images(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        occlusion(model, x)
        model(x).sum().backward()  # a weight cast without gradient may not stay in autocast's cache
    assert all(p.grad is not None for p in model.parameters())


def test_targets_and_score() -> None:
    model, x = Small().eval(), images(3, 3, 16, 16)
    predicted = model(x).argmax(1)
    assert torch.equal(occlusion(model, x), occlusion(model, x, predicted.tolist()))
    assert torch.equal(occlusion(model, x, 2), occlusion(model, x, torch.full((3,), 2)))
    wrapped = occlusion(lambda images: {"logits": model(images)}, x, score=lambda out: out["logits"])
    assert torch.equal(wrapped, occlusion(model, x))
    assert occlusion(model, x).min() >= 0 and occlusion(model, x).max() <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 17}, "17×17 is larger than the image 16×16; take a smaller one, for instance window=4"),
        ({"window": (4, 17)}, "4×17 is larger"),
        ({"window": 0}, "window must be"),
        ({"window": (4, 4, 4)}, "window must be"),
        ({"stride": 0}, "stride must be"),
        ({"stride": (1, -1)}, "stride must be"),
        ({"baseline": "grey"}, "'grey' is unknown"),
        ({"baseline": torch.zeros(2, 1, 1)}, r"\(2, 1, 1\) does not broadcast to images \(2, 3, 16, 16\)"),
        ({"baseline": torch.zeros(4, 3, 16, 16)}, "does not broadcast"),
        ({"target": 5}, "out of range"),
        ({"target": [0, 1, 2]}, "2 images"),
        ({"output": "logit"}, "'logit'"),
        ({"returns": "map"}, "'map'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"score": lambda out: {"x": out}}, "pass score="),
    ],
)
def test_errors(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        occlusion(Small(), images(2, 3, 16, 16), **{"window": 4, **options})
    with pytest.raises(UsageError, match=r"images\[None\]"):
        occlusion(Small(), images(3, 16, 16))
