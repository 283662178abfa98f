"""Activation maximization: closed forms, what each regulariser does, and that it works on networks that learned."""

from __future__ import annotations

import gzip
import math
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError
from lit_viz.functional import (
    RECIPES,
    Channel,
    ClassScore,
    Objective,
    Recipe,
    Synthesis,
    Unit,
    activation_maximization,
    recipe_for,
    total_variation,
)
from lit_viz.functional.ascent import PROBABILITIES, grey_of, image_shape
from lit_viz.functional.synthesis import Code, eight_bit_rounded
from lit_viz.functional.synthesis.optimize import DEAD, SATURATED, TRAINING
from lit_viz.networks import SmallCNN
from lit_viz.pixels import PixelSpace
from tests import digits

Network = Callable[[str], nn.Module]
COLORS = PixelSpace(0.5, 0.25)
FASHION = Path("/usr/share/datasets/fashion-mnist")


def linear(channels: int = 1, side: int = 6, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, classes))


def convolutional(channels: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()


def made(model: Any, target: Any, recipe: Recipe | str | None = None, **given: Any) -> Synthesis:
    return activation_maximization(model, target, recipe=recipe, **{"pixels": COLORS, **given})


def judged(model: nn.Module, found: Synthesis, space: PixelSpace, classes: int = 10) -> Tensor:
    """Probability of class i for image i as an 8-bit file holds it."""
    with torch.no_grad():
        return model(eight_bit_rounded(found.images, space)).softmax(dim=1)[range(classes), range(classes)]


# Closed forms.


def test_from_grey_a_linear_score_is_climbed_along_its_weight() -> None:
    model, steps = linear(), 7
    found = made(model, [0, 2], replace(RECIPES["plain"], lr=0.002), shape=(1, 6, 6), steps=steps)
    weights = model[1].weight[[0, 2]]
    # lr is the root mean square of a step in colours; a colour is std units of network input.
    expected = steps * 0.002 / 0.25 * 6 * weights / weights.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.images.flatten(1), expected.detach(), rtol=1e-4, atol=1e-6)
    assert found.notes == ("", "") and found.history.shape == (steps, 2)


def test_a_quadratic_score_is_climbed_to_its_top() -> None:
    top = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1.9, 1.9)

    def model(x: Tensor) -> Tensor:
        return -(x - top).square().flatten(1).sum(dim=1, keepdim=True)

    recipe = Recipe(lr=0.02, final_lr=1e-5, steps=200)
    found = made(model, 0, recipe, shape=(1, 8, 8))
    assert (found.images[0] - top).abs().max() < 1e-2
    adam = made(model, 0, Recipe(optimizer="adam", lr=0.02, steps=300), shape=(1, 8, 8), start="noise")
    assert (adam.images[0] - top).abs().max() < 1e-2
    fourier = made(model, 0, Recipe("fourier", "adam", lr=0.05, steps=300), shape=(1, 8, 8))
    assert (fourier.images[0] - top).abs().max() < 0.1


def test_the_courses_recipe_at_the_courses_size() -> None:
    """Step 25 on the normalised gradient of s − 1e-3 ‖x‖², jitter up to 16, for 224 px and ImageNet's deviation."""
    space = PixelSpace(0.45, 0.226)
    recipe = replace(RECIPES["cs231n"], noise=0.0, l2=0.0, jitter=0.0)
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        return x.flatten(1).mean(dim=1, keepdim=True)

    activation_maximization(
        model, 0, shape=(3, 224, 224), recipe=recipe, pixels=space, steps=1, on_step=lambda _, x: seen.append(x)
    )
    assert float(seen[0].norm()) == pytest.approx(25, rel=0.01)
    assert round(RECIPES["cs231n"].jitter * 224) == 16
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    penalty = RECIPES["cs231n"].l2 * (x * 0.226).square().sum()
    assert float(penalty) == pytest.approx(1e-3 * float(x.square().sum()), rel=0.01)


# What each setting does.


def high_frequencies(images: Tensor) -> float:
    spectrum = torch.fft.fft2(images - images.mean(dim=(2, 3), keepdim=True)).abs().square()
    rows = torch.fft.fftfreq(images.shape[2])[:, None].square() + torch.fft.fftfreq(images.shape[3])[None].square()
    return float(spectrum[..., rows.sqrt() > 0.25].sum() / spectrum.sum())


def background(images: Tensor) -> float:
    return float((images.abs().amax(dim=1) < 1e-6).float().mean())


BASE = Recipe(lr=0.01, steps=40, noise=0.05)


@pytest.mark.parametrize(
    ("change", "measure", "falls"),
    [
        ({"tv": 1.0}, lambda x: float(total_variation(x).sum()), True),
        ({"l2": 0.3}, lambda x: float(x.norm()), True),
        ({"decay": 0.1}, lambda x: float(x.norm()), True),
        ({"blur": 0.7, "blur_every": 2}, high_frequencies, True),
        ({"clip_norm": 30.0}, background, False),
        ({"clip_contribution": 50.0}, background, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_regulariser_moves_its_own_measure(
    change: dict[str, float], measure: Callable[[Tensor], float], falls: bool
) -> None:
    before, after = (
        measure(made(convolutional(), [0, 3], replace(BASE, **c), shape=(3, 24, 24)).images) for c in ({}, change)
    )
    assert after < 0.7 * before if falls else after > before + 0.2


def test_a_steeper_spectrum_is_smoother() -> None:
    recipe = replace(RECIPES["natural"], scales=(1.0,), degrees=0.0, steps=30)
    rough, smooth = (
        high_frequencies(made(convolutional(), 0, replace(recipe, falloff=f), shape=(3, 24, 24)).images)
        for f in (0.5, 2.0)
    )
    assert smooth < 0.5 * rough


def test_total_variation_is_the_same_for_an_image_and_its_enlargement() -> None:
    from lit_viz.functional.ascent import _penalties

    small = F.interpolate(torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(0)), (40, 40), mode="bicubic")
    large = F.interpolate(small, (160, 160), mode="bicubic")
    ((weight, penalty),) = _penalties(Recipe(tv=2.0), torch.zeros(3, 1, 1), torch.full((3, 1, 1), 0.25))
    assert weight == 2.0 and float(penalty(large)) == pytest.approx(float(penalty(small)), rel=0.1)


def test_jitter_is_a_share_of_the_side() -> None:
    shifts = []
    for side in (16, 64):
        columns: set[int] = set()

        def model(x: Tensor, columns: set[int] = columns) -> Tensor:
            columns.add(int(x[0, 0, 0].argmax()))
            return x.flatten(1).sum(dim=1, keepdim=True)

        start = torch.zeros(1, side, side)
        start[:, :, side // 2] = 1.0
        made(model, 0, Recipe(lr=1e-6, jitter=0.125, steps=60), start=start)
        shifts.append(max(abs(c - side // 2) for c in columns))
    assert shifts == [2, 8]


# Starts, shapes, targets.


def test_starts() -> None:
    model, shape = convolutional(), (3, 12, 10)
    for recipe in ("plain", "fourier", "cs231n"):
        zero, noise, other = (
            made(model, 0, recipe, shape=shape, start=start, steps=0, seed=seed).images
            for start, seed in (("zero", 0), ("noise", 0), ("noise", 1))
        )
        assert zero.abs().max() < 1e-6 and noise.std() > 0.005 and not torch.equal(noise, other)
        assert noise.abs().max() <= 2.0
    image = torch.rand(3, 12, 10) * 2 - 1
    for start in (image, image[None], image.expand(2, 3, 12, 10)):
        assert torch.equal(made(model, [0, 1], "plain", start=start, steps=0).images, image.expand(2, 3, 12, 10))
    back = made(model, 0, "fourier", start=image, steps=0).images
    assert (back - image).abs().max() < 1e-3
    with pytest.raises(UsageError, match=r"start is \(2, 12, 10\).*\(3, 12, 10\) is needed"):
        made(model, 0, "plain", start=torch.zeros(2, 12, 10), shape=shape)
    with pytest.raises(UsageError, match="start is 'zero' or 'noise'"):
        made(model, 0, "plain", start="grey", shape=shape)


def test_grey_is_zero_unless_that_is_black() -> None:
    assert torch.equal(grey_of(PixelSpace(0.45, 0.2), 3), torch.zeros(3, 1, 1))
    torch.testing.assert_close(grey_of(PixelSpace(), 1), torch.full((1, 1, 1), 0.5))
    torch.testing.assert_close(grey_of(PixelSpace(0.05, 0.1), 1), torch.full((1, 1, 1), 4.5))


def test_the_shape_is_found_or_asked_for(network: Network) -> None:
    assert image_shape(network("vit")) == (3, 64, 64)
    assert image_shape(network("efficientnet_lite0")) == (3, 224, 224)
    for nothing in (convolutional(), lambda x: x):
        with pytest.raises(UsageError, match="give shape="):
            activation_maximization(nothing, 0)
    wrapped = nn.Sequential(convolutional(1))
    wrapped[0].image_size = 20
    assert made(wrapped, 0, steps=1).images.shape == (1, 1, 20, 20)


@pytest.mark.parametrize(
    "target",
    [[0, 3, 4], Channel("3", [1, 5, 7]), Unit("3", [1, 5, 7]), ClassScore([0, 1, 2]) - 0.5 * Channel("0", [3, 4, 5])],
    ids=["classes", "channels", "units", "sum"],
)
@pytest.mark.parametrize("recipe", ["cs231n", "natural"])
def test_several_at_once_are_each_alone(target: Any, recipe: str) -> None:
    def one(i: int) -> Any:
        if isinstance(target, list):
            return target[i]
        if isinstance(target, (Channel, Unit)):
            return type(target)(target.layer, target.channel[i])
        return ClassScore([0, 1, 2][i]) - 0.5 * Channel("0", [3, 4, 5][i])

    model, common = convolutional(), {"shape": (3, 16, 16), "steps": 6, "seed": 3}
    together = made(model, target, recipe, **common)
    for batch_size in (1, 2):
        split = made(model, target, recipe, batch_size=batch_size, **common)
        torch.testing.assert_close(split.images, together.images, rtol=1e-3, atol=1e-4)
    for i in range(3):
        alone = made(model, one(i), recipe, **common)
        torch.testing.assert_close(alone.images[0], together.images[i], rtol=1e-3, atol=1e-4)
    assert (together.images[0] - together.images[1]).abs().max() > 2e-3


def test_log_probability_tells_classes_apart_that_the_score_does_not() -> None:
    """The second class has the first one's evidence and some of its own."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[0, :4] = 1.0
        model[1].weight[1, :4], model[1].weight[1, 4:8] = 1.0, 1.0
    recipe = Recipe(lr=0.01, steps=40)
    score, both = (
        made(model, 0, replace(recipe, discriminate=d), shape=(1, 4, 4)).scores.softmax(dim=1)[0, 0] for d in (0.0, 1.0)
    )
    assert score == pytest.approx(0.5, abs=1e-3) and both > 0.9


def test_recipes_are_checked() -> None:
    for wrong, told in (
        ({"lr": 0.0}, "lr must be positive"),
        ({"tv": -1.0}, "tv must be at least 0"),
        ({"jitter": 16.0}, "share of the shorter side"),
        ({"clip_norm": 101.0}, "percentile"),
        ({"decay": 2.0}, "decay"),
        ({"parameterization": "fourier", "blur": 1.0}, "blur changes pixels"),
        ({"optimizer": "adam", "final_lr": 0.0}, "final_lr"),
        ({"parameterization": "pixels"}, "parameterization is"),
    ):
        with pytest.raises(UsageError, match=told):
            Recipe(**wrong)
    with pytest.raises(UsageError, match="no recipe 'cs231'; did you mean 'cs231n'"):
        made(convolutional(), 0, "cs231", shape=(3, 8, 8))
    with pytest.raises(UsageError, match="give decoder="):
        made(convolutional(), 0, "dgn-am", shape=(3, 8, 8))


def test_the_automatic_recipe_knows_sizes_and_norms() -> None:
    assert recipe_for(convolutional(), (3, 224, 224)) == RECIPES["natural"]
    assert recipe_for(SmallCNN(10, 1), (1, 28, 28)) == RECIPES["small"]
    assert recipe_for(convolutional(1), (1, 28, 28)).decay > RECIPES["small"].decay


# Promises.


def test_seeds_generators_and_the_model() -> None:
    model = convolutional().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    for recipe in (None, "cs231n"):
        first, again, other = (
            made(model, [0, 1], recipe, shape=(3, 16, 16), steps=8, seed=s).images for s in (5, 5, 6)
        )
        assert torch.equal(first, again) and (first - other).abs().max() > 1e-2
    assert torch.equal(torch.get_rng_state(), state) and np.random.get_state()[1].tolist() == numpy_state
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("where", ["on_step", "model"])
def test_whoever_stops_it_keeps_what_there_is(where: str) -> None:
    net, calls = convolutional(), 0

    def model(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if where == "model" and calls == 14:
            signal.raise_signal(signal.SIGINT)
        return net(x)

    def stop(step: int, images: Tensor) -> None:
        if where == "on_step" and step == 10:
            signal.raise_signal(signal.SIGINT)

    given: dict[str, Any] = {"shape": (3, 12, 12), "steps": 50, "on_step": stop, "batch_size": 1}
    found = made(model, [0, 1], "plain", **given)
    steps = torch.isfinite(found.history).sum(dim=0).tolist()
    assert found.interrupted and 8 < steps[0] < 20 and steps[1] == 0
    whole = made(net, [0, 1], "plain", shape=(3, 12, 12), steps=steps[0])
    torch.testing.assert_close(found.images[0], whole.images[0], rtol=1e-4, atol=1e-5)
    assert found.images[1].abs().max() == 0
    calls = 0
    with pytest.raises(KeyboardInterrupt):
        made(model, [0, 1], "plain", interruptible=False, **given)


def test_a_dead_unit_is_told() -> None:
    model = convolutional()
    with torch.no_grad():
        model[3].weight[2] = -1.0
        model[3].bias[2] = -1e3
    with pytest.warns(UserWarning, match=r"image 1: no gradient reaches.*dead.*start from noise"):
        found = made(model, Channel("4", [0, 2]), shape=(3, 16, 16), steps=24)
    assert found.notes[1] == DEAD and DEAD not in found.notes[:1]


def test_saturated_outputs_are_told() -> None:
    torch.manual_seed(0)
    steep = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.Softmax(dim=1))
    with torch.no_grad():
        steep[1].weight.mul_(1e3)
        steep[1].bias.copy_(torch.tensor([0.0, 1e4, 0.0]))
    with pytest.warns(UserWarning, match="in front of the softmax"):
        found = made(steep, 0, "plain", shape=(3, 4, 4), steps=10)
    assert found.notes == (SATURATED,)


def test_probabilities_are_told_also_where_they_rise() -> None:
    model = nn.Sequential(linear(3, 4), nn.Softmax(dim=1))
    with pytest.warns(UserWarning, match="gives probabilities.*score="):
        found = made(model, [0, 1], "plain", shape=(3, 4, 4), steps=10)
    assert found.notes == (PROBABILITIES,) * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made(model[0], [0, 1], "plain", shape=(3, 4, 4), steps=10).notes == ("", "")


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.Dropout(0.5)], ids=["batch_norm", "dropout"])
def test_training_mode_behind_a_function_is_told(layer: nn.Module) -> None:
    net = nn.Sequential(layer, convolutional()).train()
    with pytest.warns(UserWarning, match=r"training mode.*eval\(\)"):
        found = made(lambda x: net(x), 0, "cs231n", shape=(3, 16, 16), steps=3)
    assert found.notes == (TRAINING,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(net, 0, "plain", shape=(3, 16, 16), steps=3)  # a module is put into evaluation mode


def test_unknown_classes_channels_and_layers() -> None:
    for target, told in ((5, "out of range"), (Channel("3", 8), "channels 0 to 7"), (Channel("9", 0), "no layer '9'")):
        with pytest.raises(UsageError, match=told):
            made(convolutional(), target, shape=(3, 12, 12), steps=2)


def test_bfloat16_by_default_changes_nothing() -> None:
    first = made(convolutional(), 1, shape=(3, 16, 16), steps=5)
    model = convolutional()
    torch.set_default_dtype(torch.bfloat16)
    try:
        second = made(model, 1, shape=(3, 16, 16), steps=5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(first.images, second.images)


# A decoder's code.


class Known(nn.Module):
    """A decoder whose images are known: each unit of the code is the brightness of a quarter."""

    def forward(self, codes: Tensor) -> Tensor:
        return F.interpolate(codes.reshape(-1, 1, 2, 2), scale_factor=4, mode="nearest").sigmoid()


def code(**given: Any) -> Code:
    options = {"mean": torch.zeros(4), "std": torch.ones(4), "nonnegative": False, "space": COLORS, **given}
    return Code(Known(), **options)


def test_codes_are_climbed_within_their_bounds() -> None:
    model = linear(1, 8)
    found = made(model, [0, 1], decoder=code())
    assert found.images.shape == (2, 1, 8, 8) and found.values.shape == (2, 4)
    # The image of a code has the sign of each quarter's weight, as far as three deviations reach.
    quarters = F.avg_pool2d(model[1].weight.reshape(3, 1, 8, 8), 4).flatten(1)[:2]
    assert torch.equal(found.values.sign(), quarters.sign()) and found.values.abs().max() <= 3.0
    only = made(model, [0, 1], decoder=code(nonnegative=True))
    assert only.values.min() >= 0
    assert torch.equal(only.images, made(model, [0, 1], "dgn-am", decoder=code(nonnegative=True)).images)


def test_steps_of_codes_are_in_their_deviation_and_fall_evenly() -> None:
    """Without decay and bounds, each step moves a unit by η σ g ÷ mean |g|, with η falling from lr to 0."""

    class Flat(nn.Module):
        def forward(self, codes: Tensor) -> Tensor:
            return codes[:, :, None, None]

    free = Code(Flat(), mean=torch.zeros(4), std=torch.full((4,), 1e6), nonnegative=False, space=COLORS, decay=1.0)
    weight, recipe = torch.tensor([1.0, -2.0, 0.5, 3.0]), Recipe("code", lr=1e-3, final_lr=0.0, steps=200)
    found = made(lambda x: x.flatten(1) @ weight[:, None], 0, recipe, decoder=free, start="zero")
    travelled = 1e6 * sum(1e-3 * (1 - step / 200) for step in range(200))
    torch.testing.assert_close(found.values[0], travelled * weight / weight.abs().mean(), rtol=1e-4, atol=1e-3)


def test_the_first_step_of_a_code_by_hand() -> None:
    model, space = linear(1, 8), code(decay=1.0)
    start = space.noise(1, seed=4).clamp(-1, 1)
    found = made(model, 2, replace(RECIPES["dgn-am"], lr=0.1), decoder=space, start=start, steps=1)
    values = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(space.images(values))[0, 2], values)
    torch.testing.assert_close(found.values, start + 0.1 * gradient / gradient.abs().mean())


def test_a_decoder_goes_with_a_recipe_for_codes() -> None:
    with pytest.raises(UsageError, match="with a decoder"):
        made(linear(1, 8), 0, "natural", decoder=code())
    with pytest.raises(UsageError, match=r"makes images of 1 channel\(s\), but the network takes 3"):
        made(convolutional(3), 0, decoder=code())


# Networks that have learned something: the automatic recipe, untuned.


@pytest.mark.parametrize("kind", [pytest.param("convolutional", marks=pytest.mark.slow), "perceptron"])
def test_digits_are_certain(kind: str) -> None:
    model = digits.classifier(kind)
    found = activation_maximization(model, list(range(10)), shape=(1, 32, 32), pixels=digits.SPACE)
    assert judged(model, found, digits.SPACE).min() >= 0.99 and not any(found.notes)


def test_classes_of_the_scores_alone_and_by_code_names() -> None:
    """An objective that is given is taken as it is."""
    seen: list[Objective] = []

    class Noted(ClassScore):
        def __call__(self, reading: Any) -> Tensor:
            seen.append(self)
            return super().__call__(reading)

    found = made(convolutional(), Noted(1), shape=(3, 16, 16), steps=2)
    torch.testing.assert_close(found.objective, found.scores[:, 1])
    assert seen


def trained(model: nn.Module, batches: Any, **options: Any) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    for images, labels in batches:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@cache
def fashion() -> tuple[Tensor, Tensor]:
    if not FASHION.is_dir():
        pytest.skip("Fashion-MNIST is not installed (dataset-fashion-mnist)")
    images, labels = (
        np.frombuffer(gzip.decompress((FASHION / f"train-{name}-ubyte.gz").read_bytes()), np.uint8, offset=offset)
        for name, offset in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return torch.from_numpy(images.copy()).reshape(-1, 1, 28, 28), torch.from_numpy(labels.copy()).long()


def test_decay_ends_where_the_image_settles() -> None:
    """A network that doesn't care: only the decay changes the image, by a fifth in each step until then."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2, bias=False))
    nn.init.zeros_(model[1].weight)
    start = torch.full((1, 6, 6), 0.5)
    for settle, steps in ((0.0, 10), (0.3, 7), (1.0, 0)):
        recipe = Recipe(lr=1e-9, steps=10, decay=0.2, settle=settle)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = made(model, 1, recipe, start=start)
        torch.testing.assert_close(found.images, start[None] * 0.8**steps)


@pytest.mark.parametrize(("shape", "steps"), [((1, 28, 28), 128), ((3, 64, 64), 256), ((3, 224, 224), 128)])
def test_small_images_get_more_steps(shape: tuple[int, int, int], steps: int) -> None:
    assert recipe_for(convolutional(shape[0]), shape).steps == steps


@pytest.mark.slow
@pytest.mark.parametrize(("normalized", "seed"), [(True, 0), (False, 1)])
def test_fashion_is_nearly_certain(normalized: bool, seed: int) -> None:
    images, labels = fashion()
    space = PixelSpace(0.286, 0.353)

    def batches(count: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            which = torch.randint(0, len(images), (64,), generator=generator)
            yield space.from_color(images[which].float() / 255), labels[which]

    torch.manual_seed(seed)
    model = SmallCNN(10, 1, 16, 5, 1) if normalized else digits.Convolutional()
    if not normalized:
        model.fc = nn.Linear(512, 64)
    trained(model, batches(600), lr=0.004)
    p = judged(model, activation_maximization(model, list(range(10)), shape=(1, 28, 28), pixels=space), space)
    assert p.min() >= 0.99, p


@pytest.mark.reproduction
def test_photographs_are_nearly_certain(seed: int = 0) -> None:
    """A network trained for a minute is itself not certain: of photographs of some classes it gives none 0.99."""
    from lit_viz.data import Photographs

    torch.manual_seed(seed)
    data = Photographs(size=64, patches_per_epoch=64 * 500, jitter=0.0, grey=0.0)
    data.setup("fit")
    model = trained(SmallCNN(10, 3, 16), data.train_dataloader(), lr=0.005)
    p = judged(model, activation_maximization(model, list(range(10)), shape=(3, 64, 64), pixels=COLORS), COLORS)
    assert p.min() >= 0.99, p


@pytest.mark.slow
def test_imagenet_is_certain(network: Network) -> None:
    model, space = network("efficientnet_lite0"), PixelSpace((127 / 255,) * 3, (128 / 255,) * 3)
    classes = [9, 130]
    found = activation_maximization(model, classes, pixels=space, steps=64)
    with torch.no_grad():
        p = model(eight_bit_rounded(found.images, space)).softmax(dim=1)[range(2), classes]
    assert p.min() >= 0.99 and not any(found.notes)
    assert math.isfinite(float(found.objective.sum()))
