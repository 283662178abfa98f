"""What a layer has kept of an image: another image that looks the same to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError, check_at_least, check_choice
from lit_viz.functional.batches import fitting
from lit_viz.functional.scores import check_images
from lit_viz.functional.synthesis.objectives import Objective
from lit_viz.functional.synthesis.optimize import optimize
from lit_viz.functional.synthesis.optimizers import CosineAdam, MakeOptimizer, quasi_newton
from lit_viz.functional.synthesis.parameterizations import Fourier, Parameterization, Pixels, normal, per_channel
from lit_viz.functional.synthesis.reading import Reading, reading, runs_in
from lit_viz.functional.synthesis.regularizers import Penalty, p_norm, total_variation
from lit_viz.guard import untouched
from lit_viz.layers import find_layer
from lit_viz.pixels import PixelSpace, guess_pixel_space, pixel_space_of

TV_WEIGHT = 1.0
NORM_WEIGHT = 0.01
ITERATIONS = 10
"""Of L-BFGS, in each of its steps."""

STEPS = {"lbfgs": 20, "adam": 400}
RATES = {"lbfgs": 1.0, "adam": 0.05}
_NORM = 6.0
_HISTORY = 20
_START = {"fourier": 0.01, "pixels": 0.1}

Method = Literal["lbfgs", "adam"]
Values = Literal["fourier", "pixels"]


@dataclass(frozen=True, eq=False)
class Inversion:
    r"""Images that look the same to a layer as given ones, and how much the same.

    Attributes:
        images: By full name of each layer (restarts, N, C, H, W), as the network takes them.
        errors: By layer (restarts, N), $\lVert\Phi(x) - \Phi_0\rVert^2 / \lVert\Phi_0\rVert^2$: 0 is the same to
            the layer, 1 as far away as nothing at all.
        psnr: By layer (restarts, N), of the colours, dB: 20 is alike, 40 hardly to be told from the image.
        snapshots: By layer, steps and the images (restarts, N, C, H, W) after them, on the CPU.
        notes: By layer, for each restart and each image what went wrong, in words with the remedy.
        interrupted: Whether it was stopped by hand; layers whose turn had not come are missing.
    """

    images: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, Tensor] = field(default_factory=dict)
    psnr: dict[str, Tensor] = field(default_factory=dict)
    snapshots: dict[str, tuple[tuple[int, Tensor], ...]] = field(default_factory=dict)
    notes: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    interrupted: bool = False


class FeatureMatch(Objective):
    r"""How well an image agrees with given features: minus the normalised error, mean over the layers.

    $$-\frac{\lVert\Phi(x) - \Phi_0\rVert^2}{\lVert\Phi_0\rVert^2}$$

    0 for the same features, −1 for none at all.

    Args:
        features: By layer, the output (N, …) that is sought, of any shape.
        call: Which call of the layers, where a forward pass calls them several times; −1 for the last.
        repeats: How many times the N images are made, one run of them after the other.

    Raises:
        UsageError: For features of nothing but zeros, which a dead layer has: no image is nearer to them than others.
    """

    def __init__(self, features: Mapping[str, Tensor], *, call: int | None = None, repeats: int = 1) -> None:
        if not features:
            raise UsageError("features of at least one layer are needed.")
        self.features = {name: values.detach() for name, values in features.items()}
        self.call, self.layers = call, tuple(features)
        self.images = len(next(iter(self.features.values())))
        self.count = self.images * repeats
        for name, values in self.features.items():
            dead = (values.flatten(1) == 0).all(dim=1).nonzero()[:, 0].tolist()
            if dead:
                which = "" if len(dead) == len(values) else f" of image {', '.join(map(str, dead[:8]))}"
                raise UsageError(
                    f"all features{which} at layer '{name}' are zero (a dead layer): nothing of the image is left to "
                    f"be made visible; take a layer in front of it."
                )

    def __call__(self, reading: Reading) -> Tensor:
        return -torch.stack(list(self.errors(reading).values())).mean(dim=0)

    def errors(self, reading: Reading) -> dict[str, Tensor]:
        """The normalised error (n,) at each layer."""
        which = reading.which % self.images
        out = {}
        for name, wanted in self.features.items():
            found = reading.layer(name, self.call)
            if found.shape[1:] != wanted.shape[1:] or len(found) != len(which):
                raise UsageError(
                    f"layer '{name}' puts out {tuple(found.shape)} for {len(which)} images, but features of shape "
                    f"{tuple(wanted.shape)} are sought."
                )
            out[name] = feature_error(found, wanted.to(found.device)[which])
        return out

    def __repr__(self) -> str:
        return f"features of {', '.join(self.layers)}"


def feature_error(features: Tensor, wanted: Tensor) -> Tensor:
    r"""$\lVert\Phi - \Phi_0\rVert^2 / \lVert\Phi_0\rVert^2$ of each of n images.

    Args:
        features: Φ, (n, …).
        wanted: Φ₀, of the same shape and not 0.

    Returns:
        (n,), float32.

    >>> feature_error(torch.tensor([[3.0, 1.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([0.3600])
    """
    difference = (features.float() - wanted.float()).square().flatten(1).sum(dim=1)
    return difference / wanted.float().square().flatten(1).sum(dim=1)


def layer_features(
    model: nn.Module, images: Tensor, layers: Sequence[str], *, call: int | None = None
) -> dict[str, Tensor]:
    """What layers put out for images, computed no further than the deepest of them.

    Args:
        model: Left as it was found.
        images: (N, C, H, W).
        layers: Dotted names, see `lit_viz.layers.find_layer`.
        call: Which call of the layers, where a forward pass calls them several times; −1 for the last.

    Returns:
        By full name (N, …).
    """
    names = [find_layer(model, name)[0] for name in layers]
    device, dtype = runs_in(model)
    with untouched(model), torch.no_grad(), reading(model, names, needs_scores=False) as read:
        parts = []
        for which in torch.arange(len(images)).split(fitting(images[0])):
            batch = images[which].detach().to(device or images.device, dtype or images.dtype)
            found = read(batch, which.to(batch.device))
            parts.append({name: found.layer(name, call).clone() for name in names})
    for name, values in parts[0].items():
        if values.dim() < 2 or sum(len(part[name]) for part in parts) != len(images):
            raise UsageError(f"layer '{name}' puts out {tuple(values.shape)}, not something for each image.")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def prior(
    space: PixelSpace, *, tv: float = TV_WEIGHT, norm: float = NORM_WEIGHT, beta: float = 2.0
) -> list[tuple[float, Penalty]]:
    r"""What photographs have that layers don't ask for: neighbours alike, no glaring colours.

    $$\lambda_{TV}\,\frac{TV_\beta(c)}{CHW} + \lambda_p\,\frac{\lVert 2(c - \bar c)\rVert_6^6}{CHW}$$

    for colours c in [0, 1] and their mean $\bar c$, to which the network was normalised. Means over pixels: weights
    have the same effect whatever the size of an image and its normalisation.

    Args:
        space: How network input relates to colours.
        tv: $\lambda_{TV}$; a photograph of 100 px has a total variation (β = 2) of about 0.01.
        norm: $\lambda_p$; an image of black and white alone has a norm of about 1.
        beta: β; see `total_variation`.

    Returns:
        Weights and penalties, for `optimize`; none where the weight is 0.
    """
    for name, weight in (("tv", tv), ("norm", norm)):
        if not 0 <= weight < math.inf:
            raise UsageError(f"the weight {name} is a number, at least 0; got {weight!r}.")

    def scaled(images: Tensor, factor: float) -> Tensor:
        return images * (factor * per_channel(space.std, images.shape[1], images))

    def variation(images: Tensor) -> Tensor:
        return total_variation(scaled(images, 1.0), beta=beta) / images[0].numel()

    def size(images: Tensor) -> Tensor:
        return p_norm(scaled(images, 2.0), p=_NORM) / images[0].numel()

    return [(weight, penalty) for weight, penalty in ((tv, variation), (norm, size)) if weight]


def psnr(images: Tensor, others: Tensor, space: PixelSpace) -> Tensor:
    r"""Peak signal-to-noise ratio of images against others, $-10 \log_{10}$ of the mean square difference of colours.

    Args:
        images: (…, C, H, W), as the network takes them; colours beyond black and full intensity are clipped.
        others: Likewise.
        space: How network input relates to colours.

    Returns:
        (…,), dB; infinite for equal ones.

    >>> psnr(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.1), PixelSpace())
    tensor([20.])
    """
    difference = space.to_color(images) - space.to_color(others)
    return -10 * difference.square().flatten(-3).mean(dim=-1).log10()


def default_steps(method: Method) -> int:
    """How many steps an optimizer is given by default."""
    check_choice("optimizer", method, tuple(STEPS))
    return STEPS[method]


def inversion_optimizer(method: Method, *, steps: int, lr: float | None = None) -> MakeOptimizer:
    """Makes the optimizer of an inversion: Adam with a falling rate, or L-BFGS with `ITERATIONS` to a step.

    Args:
        method: "lbfgs" or "adam".
        steps: How many there will be.
        lr: Rate, by default 1 for L-BFGS, which searches along each line by itself, and 0.05 for Adam.
    """
    check_choice("optimizer", method, tuple(STEPS))
    rate = RATES[method] if lr is None else lr
    if not rate > 0:
        raise UsageError(f"lr must be positive, got {lr}.")
    if method == "adam":
        return partial(CosineAdam, lr=rate, steps=steps)
    return quasi_newton(lr=rate, iterations=ITERATIONS, history=_HISTORY)


def inversion_start(
    values: Values, shape: Sequence[int], space: PixelSpace, *, seeds: Sequence[int]
) -> tuple[Parameterization, Tensor]:
    """What is optimised, and faint noise about mid-grey or the mean colour to start from.

    Args:
        values: "fourier" for spectra with decorrelated colours, in range by themselves; "pixels" for the pixels, whose
            range is up to the penalties.
        shape: (C, H, W).
        space: How network input relates to colours.
        seeds: One for each start.

    Returns:
        The way from values to images, and values (starts, …).
    """
    check_choice("values", values, ("fourier", "pixels"))
    channels, height, width = shape
    std = _START[values]
    if values == "fourier":
        fourier = Fourier((height, width), space)
        return fourier, torch.cat([fourier.noise(1, channels, std=std, seed=seed) for seed in seeds])
    return Pixels(), torch.stack([std * normal(tuple(shape), seed) for seed in seeds])


def invert_features(
    model: nn.Module,
    images: Tensor,
    layers: str | Sequence[str],
    *,
    jointly: bool = False,
    restarts: int = 1,
    optimizer: Method = "lbfgs",
    steps: int | None = None,
    lr: float | None = None,
    values: Values = "fourier",
    tv: float = TV_WEIGHT,
    norm: float = NORM_WEIGHT,
    beta: float = 2.0,
    call: int | None = None,
    pixels: PixelSpace | None = None,
    snapshot_every: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
    interruptible: bool = True,
) -> Inversion:
    r"""Reconstructs images from what layers of a network say of them.

    $$x^* = \arg\min_x \frac{\lVert\Phi(x) - \Phi(x_0)\rVert^2}{\lVert\Phi(x_0)\rVert^2} + \lambda_{TV} R_{TV}(x) +
    \lambda_p R_6(x)$$

    with the penalties of `prior` (Mahendran & Vedaldi, *Understanding Deep Image Representations by Inverting Them*,
    2015). Where the error is small and the image another one, the layer doesn't tell the two apart: what differs is
    what it has thrown away. Restarts from other noise show how much room it leaves. The network is run no further than
    to the layer.

    Args:
        model: Left as it was found.
        images: (N, C, H, W), as the network takes them.
        layers: Dotted names, see `lit_viz.layers.find_layer`.
        jointly: One image for all layers at once, with their mean error, instead of one for each.
        restarts: How often each image is made, from other noise each time.
        optimizer: "lbfgs", with `ITERATIONS` iterations to a step and one image at a time, comes closest; "adam", all
            images at once, is quicker where they are many.
        steps: 20 by default for L-BFGS, 400 for Adam.
        lr: See `inversion_optimizer`.
        values: What is optimised, see `inversion_start`.
        tv: Weight of the total variation, see `prior`.
        norm: Weight of the norm, see `prior`.
        beta: Of the total variation; below 2 edges are kept sharper.
        call: Which call of the layers, where a forward pass calls them several times; −1 for the last.
        pixels: How network input relates to colours; by default what the model tells, or a guess from the images.
        snapshot_every: Keep the images after every so many steps.
        batch_size: For Adam, images in one pass; by default as many as fit into memory.
        seed: Of the first start; restarts take the following ones.
        progress: Show a progress bar, if it takes longer than three seconds.
        interruptible: Whether Ctrl-C ends it with what there is.

    Returns:
        The reconstructions, by layer in the order of `layers`, with their errors.

    Raises:
        UsageError: For an unknown layer, one that puts out nothing but zeros, and arguments out of range.

    Warns:
        UserWarning: If an image could not be made as it was wanted, with the cause and the remedy.
    """
    names = [layers] if isinstance(layers, str) else list(layers)
    if not names:
        raise UsageError("give at least one layer to invert.")
    check_images(images)
    check_at_least("restarts", restarts, 1)
    steps = default_steps(optimizer) if steps is None else steps
    check_at_least("steps", steps, 1)
    make = inversion_optimizer(optimizer, steps=steps, lr=lr)
    space = pixels or pixel_space_of(model) or guess_pixel_space(images)
    penalties = prior(space, tv=tv, norm=norm, beta=beta)
    features = layer_features(model, images, names, call=call)
    parameterization, starts = inversion_start(
        values, images.shape[1:], space, seeds=[seed + i for i in range(restarts)]
    )
    groups = [features] if jointly else [{name: wanted} for name, wanted in features.items()]
    matches = [FeatureMatch(group, call=call, repeats=restarts) for group in groups]  # what is dead is told at once
    split, result = (restarts, len(images)), Inversion()
    for match in matches:
        made = optimize(
            model,
            match,
            starts.repeat_interleave(len(images), dim=0),
            make_optimizer=make,
            steps=steps,
            parameterization=parameterization,
            penalties=penalties,
            snapshot_every=snapshot_every,
            batch_size=1 if optimizer == "lbfgs" else batch_size,
            seed=seed,
            progress=progress,
            description=f"inverting {', '.join(match.layers)}",
            interruptible=interruptible,
        )
        found, ours = layer_features(model, made.images, match.layers, call=call), made.images.unflatten(0, split)
        for name in match.layers:
            wanted = features[name].repeat(restarts, *[1] * (features[name].dim() - 1))
            result.images[name] = ours
            result.errors[name] = feature_error(found[name], wanted).unflatten(0, split)
            result.psnr[name] = psnr(ours, images.to(ours.device), space)
            result.snapshots[name] = tuple((step, shot.unflatten(0, split)) for step, shot in made.snapshots)
            result.notes[name] = tuple(made.notes[i : i + split[1]] for i in range(0, len(made.notes), split[1]))
        if made.interrupted:
            return replace(result, interrupted=True)
    return result
