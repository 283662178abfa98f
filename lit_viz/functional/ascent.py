"""Images that excite a class, a channel or any other objective most: activation maximization by gradient ascent."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError, check_at_least, check_choice, nearest
from lit_viz.functional.scores import Model, Score
from lit_viz.functional.synthesis import (
    Blur,
    ClassScore,
    ClipSmallContribution,
    ClipSmallNorm,
    Code,
    Constraint,
    Decay,
    Fourier,
    Jitter,
    NormalizedSGD,
    Objective,
    Parameterization,
    Pixels,
    RandomAffine,
    Synthesis,
    Transform,
    normal,
    optimize,
    p_norm,
    total_variation,
)
from lit_viz.functional.synthesis.optimizers import MakeOptimizer
from lit_viz.functional.synthesis.parameterizations import per_channel
from lit_viz.functional.synthesis.regularizers import Penalty
from lit_viz.layers import convolutions
from lit_viz.pixels import PixelSpace, pixel_space_of, timm_configuration, usual_pixel_space

Shape = tuple[int, int, int]

PROBABILITIES = (
    "the network gives probabilities, which saturate and also rise when other classes fall; give the scores in front "
    "of the softmax, by score=… or by the name of their layer"
)


@dataclass(frozen=True)
class Recipe:
    r"""How an image is made: what is optimised, by which steps, and what keeps it from becoming noise.

    Settings mean the same for every network and every size of image: colours run from 0 (black) to 1, and lengths are
    shares of the shorter side, apart from the blur, which is there against single pixels.

    Args:
        parameterization: "pixel"; "fourier", the spectrum with decorrelated colours; or "code", that of a decoder.
        optimizer: "normalized" for steps along the gradient divided by its size, or "adam".
        lr: With "normalized" the root mean square of a step, in colours; for codes the mean of |step|, in mean
            standard deviations of the code. With "adam" its learning rate, for pixels in colours.
        final_lr: To which it falls evenly until the last step; None for a constant one. Not for "adam".
        steps: How many.
        noise: Standard deviation of the noise to start from: in colours, or that of the spectrum's values.
        falloff: Power of the frequency by which a spectrum falls; 1 as in photographs, more for smoother images.
        l2: Weight of the squared distance from grey, summed over pixels and channels.
        tv: Weight of the total variation, a sum likewise, so that an image and its enlargement have the same.
        decay: Share of itself, its distance from grey, that the image loses in each step.
        blur: Standard deviation of the blur, in pixels.
        blur_every: Steps from blur to blur.
        clip_norm: Percentile: pixels that differ less from grey become grey, in each step.
        clip_contribution: Percentile likewise of what pixels add to the objective.
        jitter: Largest shift before a step, as a share of the shorter side.
        scales: Factors of size of which one is taken before a step.
        degrees: Largest angle by which it is turned before a step.
        discriminate: Weight of the log-odds beside the score, for targets given as class indices: they move the image
            away from the classes that are likeliest beside its own.
        settle: Share of all steps, the last ones, that take the image as it is: without changes at random, which make
            it good on average, and without decay.

    Raises:
        UsageError: For what is out of range or has no meaning together.
    """

    parameterization: Literal["pixel", "fourier", "code"] = "pixel"
    optimizer: Literal["normalized", "adam"] = "normalized"
    lr: float = 0.01
    final_lr: float | None = None
    steps: int = 128
    noise: float = 0.0
    falloff: float = 1.0
    l2: float = 0.0
    tv: float = 0.0
    decay: float = 0.0
    blur: float = 0.0
    blur_every: int = 1
    clip_norm: float = 0.0
    clip_contribution: float = 0.0
    jitter: float = 0.0
    scales: tuple[float, ...] = (1.0,)
    degrees: float = 0.0
    discriminate: float = 0.0
    settle: float = 0.0

    def __post_init__(self) -> None:
        check_choice("parameterization", self.parameterization, ("pixel", "fourier", "code"))
        check_choice("optimizer", self.optimizer, ("normalized", "adam"))
        check_at_least("steps", self.steps, 0)
        if not 0 < self.lr < math.inf:
            raise UsageError(f"lr must be positive, got {self.lr}.")
        for name in ("noise", "falloff", "l2", "tv", "discriminate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be at least 0, got {getattr(self, name)}.")
        for name, what in (("jitter", "the shorter side"), ("settle", "all steps")):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is a share of {what}, from 0 to 1; got {getattr(self, name)}.")
        # The rest is checked by what it is for.
        Decay(self.decay)
        Blur(self.blur, every=self.blur_every)
        ClipSmallNorm(self.clip_norm)
        ClipSmallContribution(self.clip_contribution)
        RandomAffine(scales=self.scales, degrees=self.degrees)
        if self.parameterization != "pixel":
            pixelwise = [n for n in ("blur", "clip_norm", "clip_contribution") if getattr(self, n)]
            if pixelwise:
                raise UsageError(f"{pixelwise[0]} changes pixels: it goes with parameterization='pixel' alone.")
        if self.optimizer == "adam" and self.final_lr is not None:
            raise UsageError("final_lr goes with optimizer='normalized'.")


_NOISE, _NOISE_FOURIER = 0.1, 0.01  # where a recipe has none, but it is asked for

_AFFINE = {"scales": (0.9, 0.95, 1.0, 1.05, 1.1), "degrees": 10.0}

RECIPES: dict[str, Recipe] = {
    "plain": Recipe(lr=0.01, steps=100),
    "cs231n": Recipe(lr=0.0146, steps=100, noise=0.226, l2=0.0196, blur=0.5, blur_every=10, jitter=1 / 14),
    "yosinski-1": Recipe(lr=0.01, steps=500, noise=0.04, blur=0.5, blur_every=4, clip_norm=50.0),
    "yosinski-2": Recipe(lr=0.05, steps=750, noise=0.04, decay=0.3, clip_norm=20.0),
    "yosinski-3": Recipe(lr=0.01, steps=1000, noise=0.04, decay=1e-4, blur=1.0, blur_every=4),
    "yosinski-4": Recipe(lr=0.01, steps=1000, noise=0.04, blur=0.5, blur_every=4, clip_contribution=90.0),
    "fourier": Recipe("fourier", "adam", lr=0.05, steps=256, noise=0.01, jitter=1 / 16, **_AFFINE),
    "natural": Recipe(
        "fourier",
        "adam",
        lr=0.05,
        steps=128,
        noise=0.1,
        falloff=1.5,
        decay=0.008,
        jitter=0.1,
        scales=(0.9, 1.0, 1.1, 1.2, 1.4),
        degrees=10.0,
        discriminate=1.0,
    ),
    "small": Recipe(
        "fourier",
        "adam",
        lr=0.05,
        steps=128,
        noise=0.01,
        falloff=1.3,
        decay=0.03,
        jitter=0.07,
        scales=(0.95, 1.0, 1.05),
        degrees=5.0,
        discriminate=1.0,
        settle=0.25,
    ),
    "dgn-am": Recipe("code", lr=0.1, final_lr=0.0, steps=60),
}
"""Settings by name.

"plain" follows the gradient from grey, with nothing against noise. "cs231n" is the class visualisation of the course's
assignment, and "yosinski-1" to "yosinski-4" are the four settings of Yosinski, Clune, Nguyen, Fuchs & Lipson,
*Understanding Neural Networks Through Deep Visualization* (2015), with steps of a known size in place of theirs, which
suit one network; these five are made for networks of ImageNet's kind. "fourier" follows Olah, Mordvintsev & Schubert,
*Feature Visualization* (2017). "natural" is smoother and paler, with larger changes of scale; "small" is for images
where an object has a few pixels only. "dgn-am" is for decoders, after Nguyen et al. (2016); with steps
as large as theirs all seeds end at one image, in a corner of the bounds of codes.
"""

_SMALL_SIDE, _LARGE_SIDE = 48, 128  # px
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def recipe_for(model: Model, shape: Shape) -> Recipe:
    """A recipe that suits a network untuned.

    Below 48 pixels that is "small", else "natural", both in a spectrum, whose colours are decorrelated where there are
    three. Below 128 pixels "natural" takes twice as many steps: they cost little there, and classes that a network is
    not sure of need them. Normalisation layers make small contrasts large, and what they make of a pale image is less
    decided: networks without them get by with more decay where images are small.

    Args:
        model: The network.
        shape: Of its images, (C, H, W).
    """
    if min(shape[1:]) >= _SMALL_SIDE:
        natural = RECIPES["natural"]
        return natural if min(shape[1:]) >= _LARGE_SIDE else replace(natural, steps=2 * natural.steps)
    normalized = isinstance(model, nn.Module) and any(isinstance(m, _NORMS) for m in model.modules())
    return RECIPES["small"] if normalized else replace(RECIPES["small"], decay=0.05)


def activation_maximization(
    model: Model,
    target: int | Sequence[int] | Tensor | Objective,
    *,
    shape: Shape | None = None,
    recipe: Recipe | str | None = None,
    start: Literal["zero", "noise"] | Tensor | None = None,
    steps: int | None = None,
    seed: int = 0,
    pixels: PixelSpace | None = None,
    decoder: Code | None = None,
    score: Score | None = None,
    on_step: Callable[[int, Tensor], bool | None] | None = None,
    snapshot_every: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    interruptible: bool = True,
) -> Synthesis:
    r"""Images that excite what is asked for most, by gradient ascent with the network as it is.

    $$\arg\max_x\; f(x) - R(x)$$

    with f the score of a class before the softmax (Simonyan, Vedaldi & Zisserman, *Deep Inside Convolutional Networks*,
    2014) or any other objective, and R what a recipe has against noise.

    Args:
        model: Maps (N, C, H, W) to (N, K) scores; with `score`, to anything. Left as it was found.
        target: A class index; a list of these, for one image each; or an objective, such as
            `Channel("layer3", [1, 2, 3])`, `Unit("layer3", 7)` or `2 * ClassScore(3) - ClassScore(5)`.
        shape: (C, H, W) of the images; by default that of `start`, or as the network tells. A decoder has its own.
        recipe: Settings, or the name of one of `RECIPES`; by default `recipe_for`, and "dgn-am" with a decoder.
        start: "zero" for a grey image, the network's zero where that is neither black nor white; "noise", as strong as
            the recipe has it; or images (C, H, W) or (N, C, H, W) as the network takes them, codes with a decoder. By
            default noise where the recipe has any.
        steps: Instead of the recipe's.
        seed: Of all that is at random; noise is the same for each image.
        pixels: How network input relates to colours; by default as the network tells, or the usual one.
        decoder: Optimise its code instead of an image.
        score: See `lit_viz.functional.class_scores`.
        on_step: See `synthesis.optimize`.
        snapshot_every: Keep the images after every so many steps.
        batch_size: Images in one pass; by default as many as fit.
        progress: Show a progress bar, if it takes longer than three seconds.
        interruptible: Whether Ctrl-C ends it with what there is; otherwise it goes on to whoever called.

    Returns:
        The images, and how it went.

    Raises:
        UsageError: For a shape that can't be found, an unknown recipe or layer, classes or channels that aren't there.

    Warns:
        UserWarning: If no gradient reaches an image, its score didn't rise, the network gives probabilities or is in
            training mode; with the remedy, which `Synthesis.notes` has, too.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(9, 2, bias=False))
    >>> made = activation_maximization(net, [0, 1], shape=(1, 3, 3), recipe="plain", steps=5)
    >>> made.images.shape, bool((made.objective > made.history[0]).all())
    (torch.Size([2, 1, 3, 3]), True)
    """
    given = target if isinstance(target, Objective) else ClassScore(target)
    count = given.count or (len(start) if isinstance(start, Tensor) and start.dim() == 4 else 1)
    shape = _shape_of(start, decoder) if decoder is not None or shape is None else shape
    shape = shape or image_shape(model)
    first = next(iter(convolutions(model).values()), None) if isinstance(model, nn.Module) else None
    if decoder is not None and first is not None and first.in_channels != shape[0]:
        raise UsageError(
            f"the decoder makes images of {shape[0]} channel(s), but the network takes {first.in_channels}; give one "
            f"that was trained for it."
        )
    pixels = pixels or pixel_space_of(model) or usual_pixel_space(shape[0])
    settings = _settings(model, recipe, shape, decoder)
    settings = settings if steps is None else replace(settings, steps=steps)
    objective = given
    if given is not target and settings.discriminate:
        objective = given + settings.discriminate * ClassScore(target, of="log_odds")
    grey = grey_of(pixels, shape[0])
    std = per_channel(pixels.std, shape[0], grey)
    parameterization: Parameterization = decoder or (
        Fourier(shape[1:], pixels, decay=settings.falloff) if settings.parameterization == "fourier" else Pixels(pixels)
    )
    values = _start(start, count, shape, parameterization, settings, grey, std, seed)
    made = optimize(
        model,
        objective,
        values,
        parameterization=parameterization,
        make_optimizer=_optimizer(settings, values, std if decoder is None else decoder.std),
        steps=settings.steps,
        transforms=_transforms(settings, shape),
        settle=round(settings.settle * settings.steps),
        penalties=_penalties(settings, grey, std),
        constraints=_constraints(settings, grey),
        on_step=on_step,
        snapshot_every=snapshot_every,
        batch_size=batch_size,
        seed=seed,
        score=score,
        progress=progress,
        description="activation maximization",
        interruptible=interruptible,
    )
    if made.scores is None or not _are_probabilities(made.scores):
        return made
    if not all(made.notes):
        warnings.warn(f"activation maximization: {PROBABILITIES}.", stacklevel=2)
    return replace(made, notes=tuple(note or PROBABILITIES for note in made.notes))


def check_recipe(recipe: Recipe | str | None, decoder: bool) -> Recipe | None:
    """A recipe by its name, or as it was given.

    Raises:
        UsageError: For an unknown name, or a recipe for pixels with a decoder, or the other way about.
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise UsageError(f"there is no recipe {recipe!r}; {nearest(recipe, RECIPES, n=len(RECIPES))}")
        recipe = RECIPES[recipe]
    if recipe is not None and (recipe.parameterization == "code") != decoder:
        raise UsageError(
            f"with a decoder the recipe is one for its code, such as 'dgn-am', not for {recipe.parameterization!r}."
            if decoder
            else "this recipe is for the code of a decoder: give decoder=…, or another recipe."
        )
    return recipe


def image_shape(model: Model) -> Shape:
    """Channels, height and width of the images that a network takes, as far as it tells them.

    Raises:
        UsageError: If it doesn't.
    """
    if isinstance(model, nn.Module):
        told = timm_configuration(model).get("input_size")
        if told:
            return tuple(told)
        first = next(iter(convolutions(model).values()), None)
        sizes = (getattr(p, n, None) for p in (model, *model.children()) for n in ("image_size", "input_image_size"))
        size = next((s for s in sizes if isinstance(s, int) and not isinstance(s, bool) and s > 0), None)
        if first is not None and size is not None:
            return first.in_channels, size, size
    raise UsageError(
        f"{type(model).__name__} does not tell how large its images are; give shape=(channels, height, width)."
    )


def grey_of(pixels: PixelSpace, channels: int) -> Tensor:
    """What an image starts from and is drawn to, (channels, 1, 1) as the network takes it, float32.

    That is the network's zero, the mean colour of its data, where this is neither black nor white; mid-grey elsewhere.
    """
    zero = torch.zeros(channels, 1, 1, dtype=torch.float32)
    return zero if all(0.1 <= mean <= 0.9 for mean in pixels.mean) else pixels.from_color(zero + 0.5)


def _settings(model: Model, recipe: Recipe | str | None, shape: Shape, decoder: Code | None) -> Recipe:
    found = check_recipe(recipe, decoder is not None)
    if found is None:
        return recipe_for(model, shape) if decoder is None else RECIPES["dgn-am"]
    return found


def _shape_of(start: object, decoder: Code | None) -> Shape | None:
    """Of the images, where something at hand has it."""
    if decoder is None:
        return tuple(start.shape[-3:]) if isinstance(start, Tensor) and start.dim() in (3, 4) else None
    like = next(decoder.decoder.parameters(), decoder.mean)
    with torch.no_grad():
        return tuple(decoder.images(decoder.noise(1, seed=0).to(like)).shape[1:])


def _start(
    start: Literal["zero", "noise"] | Tensor | None,
    count: int,
    shape: Shape,
    parameterization: Parameterization,
    settings: Recipe,
    grey: Tensor,
    std: Tensor,
    seed: int,
) -> Tensor:
    """Values (count, …) to start from."""
    code = parameterization if isinstance(parameterization, Code) else None
    if isinstance(start, Tensor):
        wanted = tuple(shape if code is None else code.mean.shape)
        fits = start.shape in ((*wanted,), (1, *wanted), (count, *wanted)) and start.is_floating_point()
        if not fits:
            raise UsageError(
                f"start is {tuple(start.shape)}, {start.dtype}; {wanted} is needed, or one such for each of the "
                f"{count} images, of floating-point numbers as the network takes them."
            )
        given = start.detach().float().cpu().expand(count, *wanted).clone()
        return given if code else parameterization.values(given)
    check_choice("start", start or "noise", ("zero", "noise"))
    noisy = start == "noise" or (start is None and settings.noise > 0)
    if code is not None:
        return (start != "zero") * code.noise(count, seed=seed)
    if isinstance(parameterization, Fourier):
        return parameterization.noise(count, shape[0], std=noisy * (settings.noise or _NOISE_FOURIER), seed=seed)
    image = grey + noisy * (settings.noise or _NOISE) / std * normal(shape, seed)
    values = image.expand(count, *shape).clone()
    parameterization.project(values)
    return values


def _optimizer(settings: Recipe, values: Tensor, std: Tensor) -> MakeOptimizer:
    """For values (count, …), which are pixels, a spectrum or codes; `std` is that of the pixels or the code."""
    scale = {"pixel": 1.0 / float(std.mean()), "fourier": 1.0, "code": float(std.mean())}[settings.parameterization]
    if settings.optimizer == "adam":
        return partial(torch.optim.Adam, lr=settings.lr * scale)
    norm: Literal["mean_abs", "l2"] = "mean_abs" if settings.parameterization == "code" else "l2"
    if norm == "l2":
        scale *= math.sqrt(values[0].numel())  # from the root mean square to the norm
    final = None if settings.final_lr is None else settings.final_lr * scale
    return partial(NormalizedSGD, lr=settings.lr * scale, norm=norm, final_lr=final, steps=settings.steps)


def _transforms(settings: Recipe, shape: Shape) -> list[Transform]:
    found: list[Transform] = []
    if settings.scales != (1.0,) or settings.degrees:
        found.append(RandomAffine(scales=settings.scales, degrees=settings.degrees))
    if settings.jitter:
        found.append(Jitter(max(1, round(settings.jitter * min(shape[1:])))))
    return found


def _penalties(settings: Recipe, grey: Tensor, std: Tensor) -> list[tuple[float, Penalty]]:
    found: list[tuple[float, Penalty]] = []
    if settings.l2:
        found.append((settings.l2, lambda x: p_norm((x - grey.to(x)) * std.to(x))))
    if settings.tv:
        found.append((settings.tv, lambda x: total_variation(x * std.to(x))))
    return found


def _constraints(settings: Recipe, grey: Tensor) -> list[Constraint]:
    center = grey if settings.parameterization == "pixel" else 0.0  # of a spectrum, that is grey
    decay, settling = Decay(settings.decay, center=center), settings.steps - round(settings.settle * settings.steps)
    steps = [
        (settings.decay, lambda: lambda x, gradient, step: decay(x, gradient, step) if step < settling else None),
        (settings.blur, lambda: Blur(settings.blur, every=settings.blur_every)),
        (settings.clip_norm, lambda: ClipSmallNorm(settings.clip_norm, center=center)),
        (settings.clip_contribution, lambda: ClipSmallContribution(settings.clip_contribution, center=center)),
    ]
    return [make() for used, make in steps if used]


def _are_probabilities(scores: Tensor) -> bool:
    rows = scores.float()
    return rows.shape[1] > 1 and bool((rows >= 0).all() and ((rows.sum(dim=1) - 1).abs() < 1e-3).all())
