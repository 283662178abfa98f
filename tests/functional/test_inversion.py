"""Inverting features: closed forms, a loop written by hand, and what must come out on networks that have learned."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.data.photographs import SOURCES
from lit_viz.errors import UsageError
from lit_viz.functional import FeatureMatch, invert_features, psnr
from lit_viz.functional.inversion import CosineAdam, feature_error, layer_features, prior
from lit_viz.functional.synthesis import Fourier, reading
from lit_viz.pixels import PixelSpace
from tests.digits import SPACE, classifier, digits

PLAIN = PixelSpace()
HALF = PixelSpace((0.5,), (0.25,))
FREE: dict[str, Any] = {"tv": 0.0, "norm": 0.0, "pixels": PLAIN}  # by the features alone


@pytest.fixture(autouse=True)
def _no_surprise() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(5))


@pytest.fixture
def net() -> nn.Module:
    model = small()
    model(torch.zeros(1, 3, 12, 10))
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return random(2, 3, 12, 10, seed=3)


@pytest.mark.parametrize("values", ["fourier", "pixels"])
def test_an_invertible_layer_gives_the_image_back(values: Any) -> None:
    """An orthogonal matrix throws nothing away: there is one image with these features."""
    matrix = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(1))).Q
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 48), nn.ReLU())
    with torch.no_grad():
        model[1].weight.copy_(matrix)
    image = 0.1 + 0.8 * random(3, 3, 4, 4)
    found = invert_features(model, image, "1", values=values, restarts=2, steps=30, **FREE)
    torch.testing.assert_close(found.images["1"], image.expand(2, -1, -1, -1, -1), atol=1e-3, rtol=0)
    assert found.errors["1"].max() < 1e-5 and found.psnr["1"].min() > 60


def test_a_pooling_layer_gives_its_means_back_and_nothing_else() -> None:
    """Images with the same 2 × 2 means are the same to it; which of them comes out is up to the noise."""
    image = 0.1 + 0.8 * random(2, 1, 8, 6)
    found = invert_features(nn.Sequential(nn.AvgPool2d(2)), image, "0", values="pixels", restarts=2, **FREE)
    made = found.images["0"]
    for restart in made:
        torch.testing.assert_close(F.avg_pool2d(restart, 2), F.avg_pool2d(image, 2), atol=1e-4, rtol=0)
    assert (made - image).abs().amax() > 0.2 and (made[0] - made[1]).abs().amax() > 0.05
    assert torch.equal(found.psnr["0"], psnr(made, image, PLAIN))


def test_adam_equals_a_loop_by_hand(net: nn.Module, images: Tensor) -> None:
    steps, tv, norm = 12, 0.7, 0.2
    fourier = Fourier((12, 10), HALF)
    values = fourier.noise(2, 3, std=0.01, seed=4).requires_grad_()
    optimizer = torch.optim.Adam([values], lr=0.1, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    wanted = net[:2](images).detach()
    for _ in range(steps):
        x = fourier.images(values)
        error = ((net[:2](x) - wanted) ** 2).sum(dim=(1, 2, 3)) / (wanted**2).sum(dim=(1, 2, 3))
        c = x * 0.25 + 0.5
        right, down = (c[..., 1:] - c[..., :-1]).square().sum(), (c[..., 1:, :] - c[..., :-1, :]).square().sum()
        loss = error.sum() + (tv * (right + down) + norm * (2 * (c - 0.5)).pow(6).sum()) / (3 * 12 * 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    given: dict[str, Any] = {"optimizer": "adam", "steps": steps, "lr": 0.1, "tv": tv, "norm": norm, "pixels": HALF}
    found = invert_features(net, images, "1", seed=4, **given)
    torch.testing.assert_close(found.images["1"][0], fourier.images(values).detach(), atol=1e-4, rtol=1e-4)


def test_weights_of_the_prior_mean_the_same_at_every_size_and_normalisation() -> None:
    ramp = (torch.arange(40.0) / 40).expand(1, 1, 40, 40)
    for space in (PLAIN, HALF):
        (tv, variation), (norm, size) = prior(space, tv=2.0, norm=3.0)
        assert (tv, norm) == (2.0, 3.0)
        c = space.mean[0] + (ramp - 0.5) / 2  # the same distance from the mean colour
        x = space.from_color(c)
        assert float(variation(x)) == pytest.approx(39 / 40 / 80**2, rel=1e-4)
        assert float(size(x)) == pytest.approx(float((2 * (c - space.mean[0])).pow(6).mean()), rel=1e-4)
        assert float(size(torch.cat([x, x], dim=3))) == pytest.approx(float(size(x)), rel=1e-4)
    assert prior(PLAIN, tv=0, norm=0) == []


def test_psnr_equals_scikit_images() -> None:
    a, b = random(2, 3, 8, 6), random(2, 3, 8, 6, seed=1)
    expected = [peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=1.0) for x, y in zip(a, b, strict=True)]
    assert psnr(HALF.from_color(a), HALF.from_color(b), HALF).tolist() == pytest.approx(expected, rel=1e-4)
    assert psnr(a[None], a, PLAIN).tolist() == [[torch.inf, torch.inf]]


def test_feature_match_is_minus_the_mean_error_of_its_layers(net: nn.Module, images: Tensor) -> None:
    wanted, other = layer_features(net, images, ["1", "3"]), random(4, 3, 12, 10, seed=9)
    torch.testing.assert_close(wanted["3"], net[:4](images))
    match = FeatureMatch(wanted, repeats=2)
    assert match.count == 4 and match.layers == ("1", "3")
    with reading(net, match.layers, needs_scores=False) as read, torch.no_grad():
        found = match(read(other, torch.arange(4)))
        last = match(read(other[3:], torch.tensor([3])))
    expected, net = [], net.requires_grad_(False)
    for i in range(4):
        parts = [net[:k](other[i : i + 1]) - net[:k](images[i % 2 : i % 2 + 1]) for k in (2, 4)]
        sizes = [net[:k](images[i % 2 : i % 2 + 1]) for k in (2, 4)]
        expected.append(-np.mean([float((d**2).sum() / (s**2).sum()) for d, s in zip(parts, sizes, strict=True)]))
    assert found.tolist() == pytest.approx(expected, rel=1e-4) and float(last) == pytest.approx(expected[3], rel=1e-4)


def test_cosine_adam_equals_torchs_schedule_and_resumes() -> None:
    start, pull = torch.randn(3, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, -2.0, 3.0])
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    optimizer = CosineAdam([ours], lr=0.3, steps=10)
    reference = torch.optim.Adam([theirs], lr=0.3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, 10)
    for step in range(10):
        if step == 4:
            state = optimizer.state_dict()
            optimizer = CosineAdam([ours], lr=0.1, steps=3)
            optimizer.load_state_dict(state)
        for x in (ours, theirs):
            x.grad = 2 * (x.detach() - pull)
        optimizer.step()
        reference.step()
        schedule.step()
    torch.testing.assert_close(ours, theirs)


def test_what_lies_behind_the_layer_is_not_computed(net: nn.Module, images: Tensor) -> None:
    calls: dict[str, int] = {"1": 0, "6": 0}
    for name in calls:

        def count(*_: Any, name: str = name) -> None:
            calls[name] += 1

        net.get_submodule(name).register_forward_hook(count)
    behind = []
    for steps in (2, 12):
        calls.update(dict.fromkeys(calls, 0))
        invert_features(net, images, ["0", "1"], optimizer="adam", steps=steps, pixels=HALF)
        assert calls["1"] >= steps
        behind.append(calls["6"])
    assert behind[0] == behind[1]


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_same_seed_same_bits_and_nothing_is_left_behind(net: nn.Module, images: Tensor, optimizer: Any) -> None:
    given: dict[str, Any] = {"optimizer": optimizer, "steps": 3, "pixels": HALF}
    net.train()
    weights, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    first = invert_features(net, images, ["1", "3"], restarts=2, **given)
    with torch.inference_mode():
        again = invert_features(net, images, ["1", "3"], restarts=2, **given)
    for name in ("1", "3"):
        assert torch.equal(first.images[name], again.images[name])
        assert torch.equal(first.errors[name], again.errors[name])
        assert first.images[name].shape == (2, *images.shape)
        assert (first.images[name][0] - first.images[name][1]).abs().max() > 1e-3
    # A restart is what its seed alone would give.
    second = invert_features(net, images, "1", seed=1, **given)
    torch.testing.assert_close(second.images["1"][0], first.images["1"][1], atol=1e-4, rtol=1e-4)
    assert torch.equal(torch.get_rng_state(), state) and net.training and all(m.training for m in net.modules())
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())


def test_errors_are_those_of_the_images(net: nn.Module, images: Tensor) -> None:
    for jointly in (False, True):
        found = invert_features(net, images, ["1", "3"], jointly=jointly, steps=4, pixels=HALF, snapshot_every=2)
        assert torch.equal(found.images["1"], found.images["3"]) == jointly
        for name, depth in (("1", 2), ("3", 4)):
            with torch.no_grad():
                expected = feature_error(net[:depth](found.images[name][0]), net[:depth](images))
            torch.testing.assert_close(found.errors[name][0], expected)
            assert [step for step, _ in found.snapshots[name]] == [2, 4]
            torch.testing.assert_close(found.snapshots[name][-1][1], found.images[name])
            assert found.notes[name] == (("", ""),)


def test_one_for_all_layers_is_a_compromise(net: nn.Module, images: Tensor) -> None:
    given: dict[str, Any] = {"steps": 6, "pixels": HALF}
    alone = invert_features(net, images, "3", **given)
    both = invert_features(net, images, ["0", "3"], jointly=True, **given)
    assert both.psnr["3"].min() > alone.psnr["3"].max()  # the shallow layer tells what the deep one has forgotten


def test_dead_layers_and_images_are_named(net: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        net[3].weight.zero_()
        net[3].bias.fill_(-1.0)
    with pytest.raises(UsageError, match=r"all features at layer '4' are zero \(a dead layer\)"):
        invert_features(net, images, ["1", "4"])
    with pytest.raises(UsageError, match="all features of image 1 at layer '0' are zero"):
        FeatureMatch({"0": torch.stack([torch.ones(3), torch.zeros(3)])})


def test_features_that_say_nothing_of_the_image_are_told(net: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        net[3].weight.zero_()
        net[3].bias.fill_(1.0)
    with pytest.warns(UserWarning, match="no gradient reaches the image"):
        found = invert_features(net, images, "4", optimizer="adam", steps=2, pixels=HALF)
    assert all("no gradient" in note for note in found.notes["4"][0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": "33"}, "no layer '33'; did you mean '3'"),
        ({"layers": []}, "at least one layer"),
        ({"restarts": 0}, "restarts"),
        ({"steps": 0}, "steps"),
        ({"optimizer": "sgd"}, "optimizer is 'lbfgs' or 'adam'"),
        ({"values": "code"}, "values is 'fourier' or 'pixels'"),
        ({"tv": -1.0}, "the weight tv"),
        ({"norm": float("nan")}, "the weight norm"),
        ({"lr": 0.0}, "lr must be positive"),
    ],
)
def test_bad_input(net: nn.Module, images: Tensor, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        invert_features(net, images, **{"layers": "1", **arguments})


def check_depth(
    model: nn.Module,
    images: Tensor,
    others: Tensor,
    stages: list[str],
    space: PixelSpace,
    **given: Any,
) -> None:
    """PSNR falls with depth at one weight of the prior while features agree, better than those of any other image."""
    found = invert_features(model, images, stages, pixels=space, **given)
    likeness = [float(found.psnr[name].mean()) for name in found.psnr]
    errors = [float(found.errors[name].mean()) for name in found.errors]
    print("PSNR", [round(v, 1) for v in likeness], "error", [round(v, 4) for v in errors])
    assert len(stages) >= 5 and spearmanr(range(len(stages)), likeness).statistic <= -0.9
    assert max(errors) <= 0.05
    for name, error in found.errors.items():
        wanted, known = (layer_features(model, x, [name])[name] for x in (images, others))
        apart = [feature_error(known, one.expand_as(known)) for one in wanted]
        nearest = torch.stack([e[e > 1e-6].min() for e in apart])  # the image itself is not another one
        assert (error[0] < nearest).all(), name


@pytest.mark.slow
def test_likeness_falls_with_depth_while_features_agree() -> None:
    data = digits()
    stages = ["conv1", "conv2", "conv3", "fc", "head"]
    check_depth(classifier(), data.held_out[:8], data.train, stages, SPACE, tv=0.01, norm=0.001, steps=4)


@pytest.mark.slow
def test_likeness_falls_with_depth_in_efficientnet(network: Callable[[str], nn.Module]) -> None:
    space, side = PixelSpace((127 / 255,), (128 / 255,)), 64
    photographs = []
    for load in SOURCES.values():
        colors = torch.from_numpy(np.array(load())).permute(2, 0, 1)[None].float() / 255
        short = min(colors.shape[2:])
        top, left = ((n - short) // 2 for n in colors.shape[2:])
        square = colors[..., top : top + short, left : left + short]
        photographs.append(F.interpolate(square, (side, side), mode="bicubic", antialias=True).clamp(0, 1))
    images = space.from_color(torch.cat(photographs))
    stages = ["_blocks.0", "_blocks.2", "_blocks.4", "_blocks.8", "_blocks.12"]
    check_depth(network("efficientnet_lite0"), images[:8], images, stages, space, steps=8)
