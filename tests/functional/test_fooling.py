"""Fooling images against closed forms, brute force and a loop of our own; and that networks are really fooled."""

from __future__ import annotations

import copy
import math
import random
import signal
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from lit_viz.errors import UsageError
from lit_viz.functional import Fooling, fooling_image, same_size_noise
from lit_viz.functional.fooling import DEAD, NOT_FINITE, OUT_OF_RANGE
from lit_viz.functional.synthesis.optimize import SATURATED, TRAINING
from lit_viz.networks import load_network
from lit_viz.pixels import PixelSpace
from tests.digits import SPACE, classifier, digits

COLORS = PixelSpace()
WAYS: dict[str, dict[str, Any]] = {
    "lecture": {},
    "l2-bound": {"norm": "l2", "bound": 4.5},
    "linf-bound": {"norm": "linf", "bound": 64 / 255},
    "l2-smallest": {"norm": "l2"},
    "linf-smallest": {"norm": "linf"},
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def some_digits(count: int) -> tuple[Tensor, Tensor]:
    """Digits that were held out, and for each another class at random."""
    data = digits()
    shift = torch.randint(1, 10, (count,), generator=torch.Generator().manual_seed(3))
    return data.held_out[:count], (data.held_out_labels[:count] + shift) % 10


def linear(weights: Tensor, bias: Tensor) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(weights.shape[1], len(weights)))
    with torch.no_grad():
        model[1].weight.copy_(weights)
        model[1].bias.copy_(bias)
    return model


def predicted(model: nn.Module, eight_bit: Tensor, space: PixelSpace) -> Tensor:
    """Probabilities (N, K) of what 8-bit files hold."""
    with torch.no_grad():
        return model(space.from_color(eight_bit.float() / 255)).softmax(dim=1)


def assert_holds(found: Fooling, images: Tensor, model: nn.Module, space: PixelSpace, confidence: float = 0.9) -> None:
    """All that the result says of itself, told from the 8-bit images alone."""
    original = (space.to_color(images) * 255).round().long()
    change = found.eight_bit.long() - original
    assert torch.equal((found.perturbation.double() * 255).round().long(), change)
    size = change.double().flatten(1) / 255
    torch.testing.assert_close(found.l2, size.norm(dim=1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.linf, size.abs().amax(dim=1), rtol=1e-12, atol=1e-12)
    p = predicted(model, found.eight_bit, space)
    assert torch.equal(found.success, (p.argmax(1) == found.targets) & (found.confidence_after >= confidence))
    torch.testing.assert_close(found.scores_after.softmax(1), p, rtol=1e-3, atol=1e-5)
    changed = change.flatten(1).any(dim=1)
    torch.testing.assert_close(found.images[changed], space.from_color(found.eight_bit / 255)[changed], rtol=0, atol=0)
    assert all((note == "") == won for note, won in zip(found.notes, found.success.tolist(), strict=True))


def test_the_recipe_of_the_lecture_step_by_step() -> None:
    model = classifier()
    images, targets = some_digits(6)
    found = fooling_image(model, images, targets, pixels=SPACE, batch_size=1)
    for i in range(6):
        colors = start = SPACE.to_color(images[i : i + 1])
        colors = (colors * 255).round() / 255
        made = 0
        while True:
            pixels = ((colors * 255).round() / 255).requires_grad_()
            scores = model(SPACE.from_color(pixels))[0]
            if scores.argmax() == targets[i] and scores.softmax(0)[targets[i]] >= 0.9:
                break
            (g,) = torch.autograd.grad(scores[targets[i]], pixels)
            colors, made = (colors + 0.225 * g / g.norm()).clamp(0, 1), made + 1
        assert made == found.steps[i] > 0
        # A pixel at a tie of the rounding goes one way or the other by the processor, and others follow it a little.
        apart = (colors * 255).round() / 255 - found.eight_bit[i].float() / 255
        assert apart.norm() < 0.02 * found.l2[i]
        assert abs((colors - start).norm() - found.l2[i]) < 0.02
    assert_holds(found, images, model, SPACE)


@pytest.mark.parametrize("confidence", [0, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_distance_to_the_boundary_of_a_linear_network(seed: int, confidence: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(2, 3 * 8 * 8, generator=generator)
    images = 0.4 + 0.2 * torch.rand(2, 3, 8, 8, generator=generator)
    images = (images * 255).round() / 255
    odds = math.log(confidence / (1 - confidence)) if confidence else 0.0
    difference = (weights[1] - weights[0]).double()
    model = linear(weights, torch.zeros(2))
    # The bias puts both images 8 in score before the boundary of class 1, and the second a little further.
    lead = images.double().flatten(1) @ difference
    model[1].bias.data[0] = lead.max() + 8
    gap = (model[1].bias.detach()[0].double() - lead) + odds
    found = fooling_image(model, images, 1, norm="l2", confidence=confidence, pixels=COLORS)
    distance = gap / difference.norm()
    assert found.success.all()
    rounding = 0.5 / 255 * math.sqrt(3 * 8 * 8)
    assert (found.l2 >= distance - 1e-6).all()  # nothing nearer fools
    assert (found.l2 <= distance + rounding / 2).all()
    found = fooling_image(model, images, 1, norm="linf", confidence=confidence, pixels=COLORS)
    # A whole level for every pixel: the first whole number that is enough.
    fewest = torch.ceil(255 * gap / difference.abs().sum())
    assert torch.equal((found.linf * 255).round(), fewest)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_smallest_change_against_all_images_there_are(norm: Any) -> None:
    """Two pixels have 65,536 images."""
    grid = torch.cartesian_prod(torch.arange(256), torch.arange(256)).reshape(-1, 1, 1, 2)
    ratios = []
    for seed in range(7):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Flatten(), nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3))
            for layer in (model[1], model[3]):
                nn.init.normal_(layer.weight, std=3.0)
        start = torch.tensor([[[[100, 140]]]])
        scores = model(grid / 255)
        target = (int(model(start / 255).argmax()) + 1) % 3
        fooled = (scores.argmax(1) == target) & (scores.softmax(1)[:, target] >= 0.9)
        if not fooled.any():
            continue
        change = (grid[fooled] - start).double().flatten(1)
        least = float((change.norm(dim=1) if norm == "l2" else change.abs().amax(1)).min())
        found = fooling_image(model, start / 255, target, norm=norm, pixels=COLORS)
        assert found.success.all()
        size = float((found.l2 if norm == "l2" else found.linf) * 255)
        assert size >= least - 1e-9
        ratios.append(size / least)
    assert len(ratios) >= 5
    assert np.median(ratios) < 1.05, ratios  # gradients can end behind another part of the boundary
    assert sum(r < 1.1 for r in ratios) >= 0.75 * len(ratios), ratios


@every_way
def test_digits_are_fooled_and_noise_of_the_same_size_is_not(way: dict[str, Any]) -> None:
    model = classifier()
    images, targets = some_digits(60)
    found = fooling_image(model, images, targets, pixels=SPACE, **way)
    assert_holds(found, images, model, SPACE)
    assert found.success.float().mean() >= 0.95
    assert (found.steps <= 100).all() and (found.eight_bit.max() <= 255)
    p = predicted(model, same_size_noise(found), SPACE)
    assert (p.argmax(1) == found.targets).float().mean() <= 0.05
    if "bound" not in way and "norm" in way:
        size, name = (found.l2, "l2") if way["norm"] == "l2" else (found.linf, "linf")
        plain = fooling_image(model, images, targets, pixels=SPACE)
        assert (size <= getattr(plain, name) + 1e-9)[found.success & plain.success].all()


@pytest.mark.parametrize(
    ("norm", "bound"), [("linf", 1 / 255), ("linf", 8 / 255), ("linf", 0.05), ("l2", 0.3), ("l2", 1)]
)
def test_bounds_hold_to_the_last_bit(norm: Any, bound: float) -> None:
    """With images of their own at the ends of the range, and colours between those of 8 bits."""
    model = classifier()
    images, targets = some_digits(24)
    images = torch.cat([images[:12], SPACE.from_color(torch.rand(12, 1, 32, 32).round())])
    # All steps are made where nothing is ever confident enough.
    for confidence in (0.5, 1 - 1e-9):
        found = fooling_image(
            model, images, targets, norm=norm, bound=bound, confidence=confidence, steps=20, pixels=SPACE
        )
        original = (SPACE.to_color(images) * 255).round().to(torch.int64)
        change = found.eight_bit.to(torch.int64) - original
        assert change.any()
        if norm == "linf":
            assert change.abs().max() <= math.floor(255 * bound + 1e-9)
            assert confidence == 0.5 or change.abs().max() == math.floor(255 * bound + 1e-9)
        else:
            lengths = change.square().flatten(1).sum(1).double()
            assert (lengths <= (255 * bound) ** 2 + 1e-3).all()
            assert confidence == 0.5 or (lengths.max() > (0.9 * 255 * bound) ** 2)
        colors = found.images * 0.25 + 0.5
        assert colors.min() >= -1e-6 and colors.max() <= 1 + 1e-6


class Normalised(nn.Module):
    """Takes colours, and normalises by itself."""

    def __init__(self, inner: nn.Module, space: PixelSpace) -> None:
        super().__init__()
        self.inner, self.space = inner, space

    def forward(self, colors: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (self.space.mean, self.space.std))
        return self.inner((colors - mean) / std)


@every_way
@pytest.mark.parametrize("space", [SPACE, PixelSpace((0.2, 0.5, 0.7), (0.1, 0.3, 0.9))], ids=["grey", "colour"])
def test_the_same_numbers_whatever_the_normalisation(way: dict[str, Any], space: PixelSpace) -> None:
    channels = len(space.mean)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(channels, 8, 5), nn.Tanh(), nn.Flatten(), nn.LazyLinear(4)).double()
        colors = (torch.rand(3, channels, 12, 10, dtype=torch.float64) * 255).round() / 255
        model(colors)
        model[3].weight.data *= 4  # steep enough to be fooled
    seen = fooling_image(model, space.from_color(colors).double(), [1, 2, 3], pixels=space, **way)
    plain = fooling_image(Normalised(model, space).double(), colors, [1, 2, 3], pixels=COLORS, **way)
    assert torch.equal(seen.steps, plain.steps) or way.get("norm")
    for name in ("l2", "linf"):
        ratio = getattr(seen, name) / getattr(plain, name)
        assert ((ratio - 1).abs() < 0.03).all(), (name, ratio)
    assert seen.success.all() and plain.success.all()


@every_way
def test_what_is_fooled_already_stays_as_it_is(way: dict[str, Any]) -> None:
    model = classifier()
    images = digits().held_out[:8]
    sure = model(images).softmax(1).amax(1) > 0.95
    assert sure.sum() >= 6
    images = images[sure]
    found = fooling_image(model, images, model(images).argmax(1), pixels=SPACE, **way)
    assert not found.steps.any() and found.success.all() and not any(found.notes)
    assert torch.equal(found.images, images) and not found.perturbation.any()
    assert not found.l2.any() and torch.equal(found.scores_before, found.scores_after)
    # … also beside others that are not.
    targets = model(images).argmax(1)
    targets[0] = (targets[0] + 1) % 10
    mixed = fooling_image(model, images, targets, pixels=SPACE, **way)
    assert torch.equal(mixed.images[1:], images[1:]) and mixed.steps[0] > 0


def test_which_class_is_meant() -> None:
    model = classifier()
    images, _ = some_digits(5)
    ranks = model(SPACE.from_color((SPACE.to_color(images) * 255).round() / 255)).argsort(1, descending=True)
    for target in (None, "runner_up"):
        assert torch.equal(fooling_image(model, images, target, pixels=SPACE, steps=0).targets, ranks[:, 1])
    assert torch.equal(fooling_image(model, images, "least_likely", pixels=SPACE, steps=0).targets, ranks[:, -1])
    assert fooling_image(model, images, 4, pixels=SPACE, steps=0).targets.tolist() == [4] * 5
    assert fooling_image(model, images, [4, 3, 2, 1, 0], pixels=SPACE, steps=0).targets.tolist() == [4, 3, 2, 1, 0]
    nothing = fooling_image(model, images, "least_likely", pixels=SPACE, steps=0)
    assert torch.equal(nothing.images, images) and not nothing.success.any()


def test_one_score_is_two_classes() -> None:
    weights = torch.ones(1, 12)
    model = linear(weights, torch.tensor([-9.0]))
    images = torch.full((1, 1, 3, 4), 0.5)
    found = fooling_image(model, images, 1, norm="linf", pixels=COLORS)
    # 0.5 is 128 of 255 in 8 bits; 12 c − 9 = log 9 is where p reaches 0.9.
    assert round(float(found.linf) * 255) == math.ceil(255 * (9 + math.log(9)) / 12 - 128)
    assert found.success.all() and found.scores_after.shape == (1, 2)


@every_way
def test_batches_make_no_difference(way: dict[str, Any]) -> None:
    model = copy.deepcopy(classifier()).double()
    images, targets = some_digits(7)
    images = images.double()
    all_at_once = fooling_image(model, images, targets, pixels=SPACE, **way)
    in_threes = fooling_image(model, images, targets, pixels=SPACE, batch_size=3, **way)
    assert torch.equal(all_at_once.steps, in_threes.steps)
    assert torch.equal(all_at_once.eight_bit, in_threes.eight_bit)


@every_way
def test_leaves_no_trace_and_is_the_same_every_time(way: dict[str, Any]) -> None:
    model = nn.Sequential(copy.deepcopy(classifier()), nn.Dropout(0.5), nn.BatchNorm1d(10)).train()
    model[0].eval()
    model[0].conv1.weight.requires_grad_(False)
    images, targets = some_digits(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, numpy, python, kept = torch.get_rng_state(), np.random.get_state(), random.getstate(), images.clone()
    first = fooling_image(model, images, targets, pixels=SPACE, **way)
    with torch.inference_mode():
        second = fooling_image(model, images, targets, pixels=SPACE, **way)
    assert torch.equal(first.images, second.images) and torch.equal(first.scores_after, second.scores_after)
    assert torch.equal(state, torch.get_rng_state()) and python == random.getstate()
    assert (numpy[1] == np.random.get_state()[1]).all() and torch.equal(images, kept)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and model[1].training and not model[0].training
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["0.conv1.weight"]
    assert all(p.grad is None for p in model.parameters())


def test_a_network_that_ends_in_softmax_is_fooled_as_one_that_does_not() -> None:
    model, (images, targets) = classifier(), some_digits(6)
    for way in WAYS.values():
        seen = fooling_image(nn.Sequential(model, nn.Softmax(dim=1)), images, targets, pixels=SPACE, **way)
        assert seen.success.all() and (seen.scores_after.sum(1) - 1).abs().max() < 1e-5
        plain = fooling_image(model, images, targets, pixels=SPACE, **way)
        assert torch.equal(seen.targets, plain.targets)
        torch.testing.assert_close(seen.confidence_before, plain.confidence_before)
        if way.get("norm"):  # without one, what ascends is another thing: log p rather than the score
            torch.testing.assert_close(seen.l2, plain.l2, rtol=0.05, atol=0.05)


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.inner(images)


def test_lost_gradients_are_told_with_the_remedy() -> None:
    images, targets = some_digits(3)
    saturated = nn.Sequential(Scaled(classifier(), 1e4), nn.Softmax(dim=1))
    with pytest.warns(UserWarning, match="in front of the softmax"):
        found = fooling_image(saturated, images, targets, pixels=SPACE)
    assert found.notes == (SATURATED,) * 3 and not found.success.any() and torch.equal(found.images, images)
    dead = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 10))
    dead[0].bias.data.fill_(-1e3)
    with pytest.warns(UserWarning, match=r"ReLU that is off \(dead\)"):
        found = fooling_image(dead, images, targets, pixels=SPACE)
    assert found.notes == (DEAD,) * 3 and not found.success.any()
    # One image's gradient is lost, the others' are not.
    mixed = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    mixed[1].weight.data.copy_(-torch.eye(4))
    mixed[3].weight.data.copy_(torch.tensor([[0.0] * 4, [9.0] * 4]))
    centred = PixelSpace((0.5,), (0.5,))
    with pytest.warns(UserWarning, match="image 0: no gradient"):
        found = fooling_image(
            mixed, torch.tensor([0.5, -0.5]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2), 1, pixels=centred
        )
    assert found.notes[0] == DEAD and found.notes[1] == ""


def test_scores_that_are_no_numbers_and_networks_that_change() -> None:
    images, targets = some_digits(3)
    model = classifier()

    def broken(x: Tensor) -> Tensor:
        return torch.where(torch.arange(len(x))[:, None] == 0, torch.nan, model(x)) if len(x) == 3 else model(x)

    with pytest.warns(UserWarning, match="image 0: the scores are NaN"):
        found = fooling_image(broken, images, targets, pixels=SPACE)
    assert found.notes[0] == NOT_FINITE and found.success.tolist() == [False, True, True]
    calls = []

    def changing(x: Tensor) -> Tensor:
        calls.append(1)
        return model(x) if x.requires_grad else -model(x)

    with pytest.warns(UserWarning, match="at another time"):
        found = fooling_image(changing, images, targets, pixels=SPACE)
    assert found.notes == (TRAINING,) * 3 and not found.success.any()
    with pytest.warns(UserWarning, match="normalisation is not that of the images"):
        found = fooling_image(model, images, targets, pixels=PixelSpace((0.0,), (1.0,)))
    assert found.notes == (OUT_OF_RANGE,) * 3


def test_failures_are_said_in_the_note_alone() -> None:
    model, (images, targets) = classifier(), some_digits(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fooling_image(model, images, targets, norm="linf", bound=1 / 255, steps=7, pixels=SPACE)
    assert not found.success.any() and found.steps.tolist() == [7] * 4
    assert all("a larger bound" in note and "0.9" in note for note in found.notes)
    assert_holds(found, images, model, SPACE)


def test_same_size_noise_keeps_both_norms() -> None:
    model, (images, targets) = classifier(), some_digits(4)
    images = SPACE.from_color(SPACE.to_color(images) * 0.4 + 0.3)  # far from black and from full intensity
    found = fooling_image(model, images, targets, norm="linf", bound=50 / 255, pixels=SPACE)
    noise = same_size_noise(found, seed=5).long() - (SPACE.to_color(images) * 255).round().long()
    torch.testing.assert_close(noise.double().flatten(1).norm(dim=1) / 255, found.l2)
    torch.testing.assert_close(noise.double().flatten(1).abs().amax(1) / 255, found.linf)
    assert not torch.equal(noise.float() / 255, found.perturbation)
    assert torch.equal(same_size_noise(found, seed=5), same_size_noise(found, seed=5))
    assert not torch.equal(same_size_noise(found, seed=5), same_size_noise(found, seed=6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bound": 0.1}, "a bound is one of a norm"),
        ({"norm": "l2", "bound": 0.0}, "at least 1/255"),
        ({"norm": "linf", "bound": 0.5 / 255}, "at least 1/255"),
        ({"norm": "l1"}, "norm is 'l2' or 'linf'"),
        ({"confidence": 1.0}, "below 1"),
        ({"confidence": -0.1}, "below 1"),
        ({"steps": -1}, "steps must be"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"target": 10}, "class index 10 is out of range"),
        ({"target": "best"}, "target is 'runner_up'"),
        ({"target": [1, 2]}, "give one index or 3"),
        ({"images": torch.zeros(1, 32, 32)}, "add the batch dimension"),
        ({"model": lambda x: classifier()(x).detach()}, "through differentiable"),
        ({"model": lambda x: torch.zeros(len(x), 10, requires_grad=True)}, "do not depend on the image"),
    ],
)
def test_mistakes_are_told(arguments: dict[str, Any], message: str) -> None:
    images, _ = some_digits(3)
    given = {"model": classifier(), "images": images, "target": 1, "pixels": SPACE, **arguments}
    with pytest.raises(UsageError, match=message):
        fooling_image(given.pop("model"), given.pop("images"), given.pop("target"), **given)


def pictures() -> Tensor:
    """Photographs of scikit-image and scikit-learn as EfficientNet-Lite takes them."""
    from PIL import Image
    from skimage import data
    from sklearn.datasets import load_sample_images

    space = load_network("efficientnet_lite0").pixel_space or COLORS
    raw = [data.chelsea(), data.coffee(), data.rocket(), data.astronaut(), *load_sample_images().images]
    squares = [v2.CenterCrop(224)(v2.Resize(224)(Image.fromarray(one))) for one in raw]
    return torch.stack([space.from_color(torch.from_numpy(np.array(one)).permute(2, 0, 1) / 255) for one in squares])


def on_lite0(model: nn.Module, images: Tensor, targets: Tensor, **way: Any) -> Fooling:
    space = PixelSpace((127 / 255,) * 3, (128 / 255,) * 3)
    found = fooling_image(model, images, targets, pixels=space, **way)
    assert_holds(found, images, model, space)
    noise = predicted(model, same_size_noise(found), space)
    assert (noise.gather(1, targets[:, None]) < 0.05).all()
    return found


def test_a_network_of_imagenet_is_fooled(network: Callable[[str], nn.Module], photographs: Tensor) -> None:
    model, photographs, targets = network("efficientnet_lite0"), photographs[:2], torch.tensor([1, 859])
    found = on_lite0(model, photographs, targets)
    assert found.success.all() and (found.steps <= 100).all() and (found.l2 < 3).all()
    found = on_lite0(model, photographs, targets, norm="linf", bound=8 / 255)
    assert found.success.all() and (found.linf <= 8 / 255 + 1e-12).all()


@pytest.mark.slow
def test_a_network_of_imagenet_is_fooled_into_anything(network: Callable[[str], nn.Module]) -> None:
    model, images = network("efficientnet_lite0"), pictures()
    images = images.repeat(4, 1, 1, 1)
    targets = torch.randint(0, 1000, (len(images),), generator=torch.Generator().manual_seed(0))
    found = on_lite0(model, images, targets)
    assert found.success.float().mean() >= 0.95 and (found.steps <= 100).all()
    found = on_lite0(model, images, targets, norm="linf", bound=8 / 255)
    assert found.success.float().mean() >= 0.95 and found.linf.median() <= 8 / 255


@pytest.mark.slow
def test_the_smallest_change_that_fools_a_network_of_imagenet(network: Callable[[str], nn.Module]) -> None:
    model, images = network("efficientnet_lite0"), pictures()[:3]
    targets = torch.randint(0, 1000, (3,), generator=torch.Generator().manual_seed(0))
    plain = on_lite0(model, images, targets)
    least = on_lite0(model, images, targets, norm="l2")
    assert least.success.all() and (least.l2 < 0.75 * plain.l2).all()
    least = on_lite0(model, images, targets, norm="linf")
    assert least.success.all() and (least.linf <= 3 / 255 + 1e-9).all()


@every_way
def test_ctrl_c_keeps_the_best_that_was_found(way: dict[str, Any]) -> None:
    """Of two images, one after the other, the second has hardly begun."""
    net, (images, targets) = classifier(), some_digits(2)
    whole, passes = fooling_image(net, images, targets, pixels=SPACE, batch_size=1, **way), 0
    first = fooling_image(net, images[:1], targets[:1], pixels=SPACE, **way)
    assert torch.equal(whole.eight_bit[:1], first.eight_bit) and not whole.interrupted

    def model(x: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        if passes == last:
            signal.raise_signal(signal.SIGINT)
        return net(x)

    # The first pass tells the classes; the smallest change takes all steps, others as many as they need.
    last = 1 + (100 if "bound" not in way and way else int(whole.steps[0])) + 1 + 2
    found = fooling_image(model, images, targets, pixels=SPACE, batch_size=1, **way)
    assert found.interrupted and bool(found.success[0]) and not bool(found.success[1])
    assert torch.equal(found.eight_bit[:1], first.eight_bit) and found.steps.tolist() == [int(first.steps[0]), 1]
    assert found.notes[0] == "" and "stopped by hand" in found.notes[1] and "after 1 steps" in found.notes[1]
    passes = 0
    with pytest.raises(KeyboardInterrupt):
        fooling_image(model, images, targets, pixels=SPACE, batch_size=1, interruptible=False, **way)
