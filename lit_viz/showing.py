"""One line for a notebook: a sheet of the most telling pictures of what a network sees in an image."""

from __future__ import annotations

import base64
import io
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lit_viz import draw, functional
from lit_viz.draw.text import number
from lit_viz.errors import UsageError, nearest
from lit_viz.functional.classes import class_index, two_classes
from lit_viz.functional.scores import Score
from lit_viz.guard import untouched
from lit_viz.networks import Network, input_facts, network_inputs, network_of
from lit_viz.pixels import PixelSpace

Source = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

_BEST = 5
_CHANNELS = 9
_NAME = 20  # letters of a layer's name that fit on a line
# Floating-point operations that a picture may take, two for each multiplication with its sum: some seconds on two
# cores. Counted, not timed, so that the same sheet comes out every time.
_BUDGET = {"cpu": 2e11, "cuda": 2e13}
_POSITIONS = (4, 9)  # of the occluding patch along a side, fewest and most
_SAMPLES = (4, 25)  # noisy copies, or steps of a path
_TOO_MANY = 8  # budgets for the coarsest map, from which on it is only made when asked for


@dataclass(frozen=True, eq=False)
class Sheet:
    """Pictures of what a network sees in one image; a notebook displays it.

    Attributes:
        pixels: The whole sheet, uint8 (H, W, 3).
        pictures: Each picture by its name, uint8 (h, w, 3).
        left_out: Why there is no picture, for those that have no meaning for the network, by name.
        predictions: The most probable classes, best first, and their probabilities.
        name: Of the image file; empty for others.
    """

    pixels: NDArray[np.uint8]
    pictures: dict[str, NDArray[np.uint8]]
    left_out: dict[str, str]
    predictions: list[tuple[str, float]]
    name: str = ""

    @property
    def image(self) -> Image.Image:
        """The sheet as a picture of Pillow's."""
        return Image.fromarray(self.pixels)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the sheet, whole or not at all, in the format that the ending of the name says.

        Raises:
            UsageError: For an ending that is none of an image.
        """
        path = Path(path)
        kind = Image.registered_extensions().get(path.suffix.lower())
        if kind not in Image.SAVE:
            raise UsageError(f"{path} has no ending of an image file; call it {path.stem or 'sheet'}.png.")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        try:
            self.image.save(partial, format=kind)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.image.save(file, format="png")
        return file.getvalue()

    def __repr__(self) -> str:
        best = ", ".join(f"{name} {p:.2f}" for name, p in self.predictions[:1])
        return f"Sheet({' '.join(filter(None, (self.name, best)))}: {', '.join(self.pictures)})"


class Sheets(tuple[Sheet, ...]):
    """Sheets of several images; a notebook displays them one below the other."""

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes one PNG file for each, named after the image file or numbered."""
        names = distinct_names([sheet.name or f"image-{i}" for i, sheet in enumerate(self)])
        return [sheet.save(Path(folder) / name) for sheet, name in zip(self, names, strict=True)]

    def _repr_html_(self) -> str:
        encoded = (base64.b64encode(sheet._repr_png_()).decode() for sheet in self)
        return "".join(f'<img src="data:image/png;base64,{text}" style="max-width: 100%"/>' for text in encoded)


def show(
    model: nn.Module | Network | str,
    image: Source | Sequence[Source],
    target: int | str | None = None,
    *,
    pictures: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    size: int | None = None,
    score: Score | None = None,
    weights: str | Path | None = "DEFAULT",
    max_size: int = 1400,
) -> Sheet | Sheets:
    """Looks into a network with one image, without a trainer: what it takes the image for, and why.

    What has no meaning for a network, such as guided backprop without ReLUs, is replaced by a sentence that says so.
    Repeated, it gives the same sheet; the network is left as it was found.

    Args:
        model: Any module that maps images to class scores (with `score`, to anything), on whatever device it is; or the
            name of one for `lit_viz.networks.load_network`, such as "efficientnet_lite0" or "resnet18"; or what that
            returned.
        image: A file, a picture of Pillow's, an array (H, W, 3) of bytes or of numbers in [0, 1], a tensor (C, H, W) of
            bytes: these are resized, cropped to the middle square and normalised. Or a floating-point tensor (C, H, W)
            or (N, C, H, W) as the network takes it. Or a list of these.
        target: The class to ask about: its index, its name or a word of it; by default the predicted one.
        pictures: Names of those wanted, in their order; some of `PICTURES`, by default `DEFAULT`.
        class_names: By default those that come with the weights, or attributes `class_names` or `classes` of the
            module.
        mean: Of the normalisation that the network expects, in colour units from 0 to 1, one value or one for each
            channel. By default that of the weights or an attribute of the module (`pixel_space`, `mean`, or timm's
            `pretrained_cfg`); otherwise it is guessed, and the sheet says so.
        std: Likewise, the standard deviation.
        size: Side of the square that files and pictures are brought to; by default that of the weights or an attribute
            `image_size` of the module, else 224. Tensors that the network takes as they are keep their own size.
        score: From what the model returns to class scores (N, K), for instance `lambda out: out["logits"]`.
        weights: For a name: "DEFAULT", other weights of torchvision's, the path of a checkpoint, or None.
        max_size: Bound on both sides of the sheet, px.

    Returns:
        A sheet, which a notebook displays and `save` writes; for a list or a batch of images one for each.

    Raises:
        UsageError: For an image that can't be read, an unknown picture or class, or a model that doesn't run on it.
    """
    names = _wanted(pictures)
    network, label = network_of(model, weights)
    facts = input_facts(network, class_names=class_names, mean=mean, std=std, size=size)
    images = image if isinstance(image, (list, tuple)) else [image]
    many = isinstance(image, (list, tuple)) or (isinstance(image, Tensor) and image.dim() == 4)
    inputs = [pair for one in images for pair in network_inputs(one, facts)]
    sheets = []
    with untouched(network.module, seed=0):
        for pixels, space, name in inputs:
            look = _look(network.module, pixels, space, target, score, facts.class_names, given=class_names is not None)
            look = replace(look, insisting=pictures is not None)
            sheets.append(_sheet(look, names, label, name, max_size))
    return Sheets(sheets) if many else sheets[0]


def distinct_names(files: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Names of PNG files after those of image files, no two the same.

    >>> distinct_names(["a/cat.jpg", "b/cat.png", "dog.jpg"])
    ['cat.png', 'cat-2.png', 'dog.png']
    """
    out: list[str] = []
    for file in files:
        stem, number = Path(file).stem, 1
        name = f"{stem}.png"
        while name.casefold() in {n.casefold() for n in out}:
            number += 1
            name = f"{stem}-{number}.png"
        out.append(name)
    return out


@dataclass(frozen=True)
class _Look:
    """All that a picture needs: the model, one image (1, C, H, W), and the class that is asked about."""

    model: nn.Module
    image: Tensor
    space: PixelSpace
    score: Score | None
    scores: Tensor
    target: int
    class_names: list[str] | None
    cost: float
    insisting: bool = False

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[2], self.image.shape[3]

    @property
    def colors(self) -> NDArray[np.uint8]:
        """The image, uint8 (H, W, 3)."""
        return draw.to_uint8(self.space.to_color(self.image))[0]

    @property
    def asked(self) -> tuple[Any, ...]:
        """The first arguments of most functions."""
        return self.model, self.image, self.target

    @property
    def probabilities(self) -> list[float]:
        return functional.probabilities(self.scores)[0].cpu().tolist()

    @property
    def last_layer(self) -> str:
        """The last layer with places, looked for once: where there is none, that takes longest."""
        if isinstance(self._last_layer, UsageError):
            raise self._last_layer
        return self._last_layer

    @cached_property
    def _last_layer(self) -> str | UsageError:
        try:
            return functional.last_spatial_layer(*self.asked, score=self.score)
        except UsageError as error:
            return error

    def class_name(self, index: int) -> str:
        return self.class_names[index] if self.class_names else f"class {index}"

    def affordable(self, each: float, least: int, most: int) -> int:
        """How many times something that costs `each` forward passes can be done."""
        budget = _BUDGET.get(self.image.device.type, _BUDGET["cpu"])
        return int(min(max(budget / max(each * self.cost, 1.0), least), most))


# What is asked of the model.


def _wanted(pictures: Sequence[str] | None) -> list[str]:
    names = list(DEFAULT if pictures is None else [pictures] if isinstance(pictures, str) else pictures)
    for name in names:
        if name not in PICTURES:
            raise UsageError(f"there is no picture {name!r}; {nearest(str(name), PICTURES, n=len(PICTURES))}")
    if not names:
        raise UsageError(f"name at least one picture, of {', '.join(PICTURES)}.")
    return list(dict.fromkeys(names))


# What the network says.


def _look(
    model: nn.Module,
    image: Tensor,
    space: PixelSpace,
    target: int | str | None,
    score: Score | None,
    class_names: list[str] | None,
    *,
    given: bool,
) -> _Look:
    with torch.no_grad():
        try:
            scores = functional.class_scores(model, image.clone(), score=score)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise UsageError(
                f"{type(model).__name__} does not run on an image of shape {tuple(image.shape)}: {first}"
            ) from error
        if scores.shape[1] == 1 and (class_names is None or len(class_names) != 1):
            score, scores = two_classes(score), torch.cat([-scores / 2, scores / 2], dim=1)
        cost = _cost(model, image)
    if class_names is not None and len(class_names) != scores.shape[1]:
        if given:
            raise UsageError(f"{len(class_names)} class_names given for {scores.shape[1]} classes.")
        class_names = None
    chosen = None if target is None else class_index(target, class_names)
    asked = int(functional.resolve_target(scores, chosen)[0])
    return _Look(model, image, space, score, scores, asked, class_names, cost)


def _cost(model: nn.Module, image: Tensor) -> float:
    """Floating-point operations of a forward pass."""
    try:
        with FlopCounterMode(display=False) as counter:
            model(image.clone())
        return float(counter.get_total_flops())
    except Exception:  # what is counted by intercepting operations need not work inside of others that intercept
        return 4e9


def _sheet(look: _Look, names: Sequence[str], label: str, file: str, max_size: int) -> Sheet:
    predictions, bars = _best(look)
    finite = bool(torch.isfinite(look.scores).all())
    tiles: list[draw.Tile] = []
    shown: dict[str, NDArray[np.uint8]] = {}
    left_out: dict[str, str] = {}
    hero = None
    for name in names:
        heading, make = PICTURES[name]
        if name == "prediction":
            shown[name] = look.colors
            hero = draw.Tile(file or heading, look.colors, "" if finite else "The scores are NaN or infinite.")
            continue
        try:
            if not finite:
                raise UsageError("the scores are NaN or infinite.")
            shown[name], note = make(look)
            tiles.append(draw.Tile(heading, shown[name], note))
        except UsageError as error:
            left_out[name] = str(error)
        except Exception as error:
            left_out[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            warnings.warn(f"{name} failed and is left out: {left_out[name]}", stacklevel=3)
        if name in left_out:
            sentence = left_out[name]
            tiles.append(draw.Tile(heading, None, sentence[:1].upper() + sentence[1:]))
    pixels = draw.board(
        tiles,
        hero=hero,
        bars=bars if finite else None,
        title=_title(look) if finite else "no prediction",
        subtitle=f"{label} · {look.size[0]} × {look.size[1]} px · {_normalised(look.space)}",
        max_size=max_size,
    )
    return Sheet(pixels, shown, left_out, predictions, file)


def _best(look: _Look) -> tuple[list[tuple[str, float]], draw.Bars]:
    """The most probable classes; in the bars also the one that is asked about."""
    p = look.probabilities
    order = sorted(range(len(p)), key=lambda i: (-p[i] if math.isfinite(p[i]) else 0.0, i))[:_BEST]
    shown = order if look.target in order else [*order, look.target]
    bars = draw.Bars([look.class_name(i) for i in shown], [p[i] for i in shown], shown.index(look.target))
    return [(look.class_name(i), p[i]) for i in order], bars


def _title(look: _Look) -> str:
    p, best = look.probabilities, int(look.scores[0].argmax())
    title = f"{look.class_name(look.target)}  p = {_probability(p[look.target])}"
    rather = f"  (predicted: {look.class_name(best)} {_probability(p[best])})"
    return title + rather * (best != look.target)


def _normalised(space: PixelSpace) -> str:
    def numbers(values: Sequence[float]) -> str:
        return ", ".join(f"{v:.3g}" for v in (values[:1] if len(set(values)) == 1 else values))

    if space.source.startswith("none"):
        return f"normalisation {space.source}"
    if space.source.startswith(("guessed", "stretched")):
        return f"normalisation {space.source}; if that is wrong, give mean and std"
    return f"normalised with mean {numbers(space.mean)}, std {numbers(space.std)} ({space.source})"


def _probability(p: float) -> str:
    return f"{p:.2f}" if p >= 0.01 or not math.isfinite(p) else number(p)


def _short(layer: str) -> str:
    """The end of a long name, which tells most."""
    if len(layer) <= _NAME:
        return layer
    end = layer[-_NAME + 1 :]
    whole = end[end.find(".") + 1 :]
    return "…" + (whole if len(whole) > _NAME // 2 else end)


# The pictures: each returns itself and how to read it.

Made = tuple[NDArray[np.uint8], str]


def _grad_cam(look: _Look) -> Made:
    layer = look.last_layer
    heat = functional.grad_cam(*look.asked, layer=layer, score=look.score)[0].float()
    if not heat.any():
        raise UsageError(f"layer {layer} holds no evidence for this class: Grad-CAM is zero everywhere.")
    rows, columns = heat.shape
    picture = draw.overlay(look.colors, heat, low=0.0, high=float(heat.max()))
    return picture, f"Bright where layer {_short(layer)} ({rows} × {columns} places) holds evidence for the class."


def _guided_grad_cam(look: _Look) -> Made:
    gradient = _quiet(lambda: functional.guided_grad_cam(*look.asked, layer=look.last_layer, score=look.score))
    return _signed(gradient), "What excites the class in detail, where Grad-CAM sees evidence for it."


def _occlusion(look: _Look) -> Made:
    fewest, most = _POSITIONS
    positions = math.isqrt(look.affordable(1, fewest**2, most**2))
    budget = _BUDGET.get(look.image.device.type, _BUDGET["cpu"])
    if fewest**2 * look.cost > _TOO_MANY * budget and not look.insisting:
        raise UsageError(
            f"occlusion would take {fewest**2} passes through a slow network ({look.cost / 1e9:.0f} GFLOP each); "
            f"ask for it with pictures=['occlusion']."
        )
    window = tuple(max(1, side // 4) for side in look.size)
    stride = tuple(max(1, -(-(n - w) // (positions - 1))) for n, w in zip(look.size, window, strict=True))
    grey = torch.full((look.image.shape[1], 1, 1), 0.5, device=look.image.device)
    heat = functional.occlusion(
        *look.asked,
        window=(window[0], window[1]),
        stride=(stride[0], stride[1]),
        baseline=look.space.from_color(grey),
        score=look.score,
    )
    places = functional.on_image(heat, look.size, (window[0], window[1]), (stride[0], stride[1]))[0].float()
    whole = look.probabilities[look.target]
    picture = draw.overlay(look.colors, places, cmap="occlusion", low=0.0, high=whole, method="nearest")
    falls = f"{_probability(whole)} falls to {_probability(float(heat.min()))}"
    return picture, f"Red where a grey patch ({window[0]} px) costs probability: {falls}."


def _saliency(look: _Look) -> Made:
    gradient = functional.input_gradient(*look.asked, score=look.score)
    return _bright(gradient), "Bright pixels change the score of the class most."


def _smooth_grad(look: _Look) -> Made:
    samples = look.affordable(3, *_SAMPLES)
    gradient = functional.smooth_grad(*look.asked, samples=samples, score=look.score)
    return _bright(gradient), f"Bright pixels change the score most: mean gradient of {samples} noisy copies."


def _integrated_gradients(look: _Look) -> Made:
    black = look.space.from_color(torch.zeros(look.image.shape[1], 1, 1, device=look.image.device))
    steps = 2 * look.affordable(3, *_SAMPLES)
    values = functional.integrated_gradients(
        *look.asked, baseline=black.to(look.image), steps=steps, score=look.score
    ).sum(dim=1)[0]
    bound = draw.bright_end(values.abs()) or 1.0
    picture = draw.colorize(values, cmap="diverging", low=-bound, high=bound)
    return picture, "What each pixel adds to the score of a black image: red speaks for the class, blue against it."


def _guided_backprop(look: _Look) -> Made:
    gradient = _quiet(lambda: functional.guided_backprop(*look.asked, score=look.score))
    with torch.enable_grad():
        image = look.image.clone().requires_grad_(True)
        others = functional.find_activations(functional.class_scores(look.model, image, score=look.score)).others
    rest = f"; at {', '.join(others)} the plain gradient" if others else ""
    return _signed(gradient), f"What excites the class: only positive signals pass back through ReLUs{rest}."


def _early_channels(look: _Look) -> Made:
    return _channels(look, functional.telling_layers(look.model, look.image)[0])


def _late_channels(look: _Look) -> Made:
    return _channels(look, look.last_layer)


def _channels(look: _Look, layer: str) -> Made:
    """The channels of a layer that add most to the score, each up to its own peak."""
    values, gradients = functional.activations_and_gradients(*look.asked, layer=layer, score=look.score)
    maps = values[0].float()
    adds = (values * gradients)[0].float().sum(dim=(1, 2))
    chosen = torch.nan_to_num(adds, nan=-torch.inf).argsort(descending=True, stable=True)[:_CHANNELS]
    cells = []
    signed = bool((maps < 0).any())
    for heat in maps[chosen]:
        peak = float(heat.abs().max())
        cmap, low = ("diverging", -peak) if signed else ("gray", 0.0)
        cells.append(draw.colorize(heat, cmap=cmap, low=low, high=peak))
    told = "red" if signed else "bright"
    note = f"The {len(chosen)} of {len(maps)} channels of {_short(layer)} that add most to the score; {told}: active."
    return draw.mosaic(cells), note


def _rollout(look: _Look) -> Made:
    heat = functional.attention_rollout(look.model, look.image)[0]
    picture = draw.overlay(look.colors, heat)
    return picture, "Bright patches reach the output through attention; the same for every class."


def _bright(gradient: Tensor) -> NDArray[np.uint8]:
    """Largest absolute value over channels, up to what one pixel in a hundred exceeds."""
    heat = gradient.abs().amax(dim=1)[0].float()
    if not heat.any():
        raise UsageError("no gradient reaches the pixels: the score of this class is flat around the image.")
    return draw.colorize(heat, cmap="magma", low=0.0, high=draw.bright_end(heat))


def _signed(gradient: Tensor) -> NDArray[np.uint8]:
    if not gradient.any():
        raise UsageError("no signal reaches the pixels.")
    return draw.around_grey(gradient)[0]


def _quiet(run: Callable[[], Tensor]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the sheet says it
        return run()


def _no_picture(look: _Look) -> Made:
    raise AssertionError("the prediction is laid out by the sheet itself")


PICTURES: dict[str, tuple[str, Callable[[_Look], Made]]] = {
    "prediction": ("Image", _no_picture),
    "grad_cam": ("Grad-CAM", _grad_cam),
    "occlusion": ("Occlusion", _occlusion),
    "smooth_grad": ("SmoothGrad", _smooth_grad),
    "guided_backprop": ("Guided backprop", _guided_backprop),
    "early_channels": ("Early channels", _early_channels),
    "late_channels": ("Late channels", _late_channels),
    "saliency": ("Saliency", _saliency),
    "integrated_gradients": ("Integrated gradients", _integrated_gradients),
    "guided_grad_cam": ("Guided Grad-CAM", _guided_grad_cam),
    "rollout": ("Attention rollout", _rollout),
}
"""Every picture by its name, with its heading."""

DEFAULT = ("prediction", "grad_cam", "occlusion", "smooth_grad", "guided_backprop", "early_channels", "late_channels")
"""The pictures of a sheet if none are named."""
