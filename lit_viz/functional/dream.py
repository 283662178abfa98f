"""DeepDream: an image that gets more of whatever a layer sees in it, at several sizes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.activations import _blocks
from lit_viz.functional.interruption import until_interrupted
from lit_viz.functional.scores import Model, Score, check_images
from lit_viz.functional.synthesis.objectives import ClassScore, Energy, Objective
from lit_viz.functional.synthesis.optimize import DEAD, NOT_RISEN, SATURATED, Synthesis, optimize
from lit_viz.functional.synthesis.optimizers import NormalizedSGD
from lit_viz.functional.synthesis.parameterizations import Pixels, clip
from lit_viz.functional.synthesis.reading import Read, Reading, reading, runs_in
from lit_viz.functional.synthesis.transforms import Jitter
from lit_viz.functional.tiles import Size, Tiled, Tiling, tiling
from lit_viz.guard import untouched
from lit_viz.layers import capture, named_layers, spatial_maps
from lit_viz.pixels import PixelSpace, guess_pixel_space, pixel_space_of, timm_configuration

LARGEST = 1024 * 1024
"""Pixels of an image that is seen at once where nobody says; larger ones are cut into tiles."""

TILE = 512
"""Side of these, px."""

SILENT = (
    "no gradient reaches the image: what is asked for does not respond to it at all (dead ReLUs), or is saturated; "
    "take other channels, another layer, or the one in front of the ReLU"
)


@dataclass(frozen=True, eq=False)
class Octave:
    """A dream at one of its sizes.

    Attributes:
        size: Height and width, px.
        images: (N, C, h, w), as the network takes them, on the CPU.
        before: (N,), the objective of the images at the start, with what smaller sizes have added.
        history: (steps, N), before each step, of the images as they were shifted; NaN where a step was not made.
        objective: (N,), of the images at the end.
    """

    size: Size
    images: Tensor
    before: Tensor
    history: Tensor
    objective: Tensor


@dataclass(frozen=True, eq=False)
class Dream:
    """What came of a dream.

    Attributes:
        images: (N, C, H, W), of the size and on the scale of those that went in, at least float32.
        octaves: The sizes that were gone through, the smallest first; none without any steps.
        notes: For each image what went wrong, in words with the remedy; empty where nothing did.
        tiling: How the larger sizes were cut into tiles; None where they were seen as a whole.
        interrupted: Whether it was stopped by hand, so that this is what had come of it by then.
    """

    images: Tensor
    octaves: tuple[Octave, ...]
    notes: tuple[str, ...]
    tiling: Tiling | None = None
    interrupted: bool = False


class GuideMatch(Objective):
    r"""How well each place of a layer matches the place of a guide that it matches best.

    $$\frac1n \sum_i \max_j \langle a_i, g_j \rangle$$

    Its gradient makes each place more like that one, as in the notebook of Mordvintsev, Olah & Tyka (2015).

    Args:
        layer: Dotted name, see `lit_viz.layers.find_layer`.
        guide: (channels, places) of the guide at that layer.
        channels: Only these; None for all of them.
    """

    def __init__(self, layer: str, guide: Tensor, *, channels: Sequence[int] | None = None) -> None:
        self.layer, self.channels, self.layers = layer, None if channels is None else list(channels), (layer,)
        self.guide = guide if self.channels is None else guide[self.channels]

    def __call__(self, reading: Reading) -> Tensor:
        maps = reading.maps(self.layer)
        places = (maps if self.channels is None else maps[:, self.channels]).flatten(2).transpose(1, 2)
        guide = self.guide.to(places)
        with torch.no_grad():  # in parts: all products of a large image with a large guide would not fit
            parts = places.detach().flatten(0, 1).split(max(1, 2**24 // guide.shape[1]))
            best = torch.cat([(part @ guide).argmax(dim=1) for part in parts])
        return (places.flatten(0, 1) * guide.T[best]).sum(dim=1).unflatten(0, places.shape[:2]).mean(dim=1)

    def __repr__(self) -> str:
        return f"match of {self.layer} with a guide"


def deep_dream(
    model: Model,
    images: Tensor,
    objective: Objective | str,
    *,
    channels: Sequence[int] | None = None,
    octaves: int = 4,
    octave_scale: float = 1.4,
    steps: int = 10,
    lr: float = 3.0,
    jitter: int = 32,
    guide: Tensor | None = None,
    tile: int | None = None,
    halo: int | None = None,
    on_octave: Callable[[Octave], None] | None = None,
    seed: int = 0,
    pixels: PixelSpace | None = None,
    score: Score | None = None,
    progress: bool = False,
    interruptible: bool = True,
) -> Dream:
    r"""Dreams of images: makes whatever a layer sees in them stronger.

    $$x \leftarrow \operatorname{clip}\Bigl(x + \eta\,\frac{g}{\operatorname{mean}|g|}\Bigr), \qquad
      g = \nabla_x \tfrac1{2n} \sum a(x)^2$$

    since the gradient of that energy at the layer is its activation a, each step amplifies what is there already. It
    starts on a small version of the image, where little steps make large structures; what they have added is enlarged
    and laid over the next size, and so on up to the image's own (Mordvintsev, Olah & Tyka, *Inceptionism: Going Deeper
    into Neural Networks*, 2015). Before each step the image is shifted at random, and back.

    Larger images than fit into memory are cut into tiles that overlap by a halo; so are those for a network that takes
    images of one size alone, as vision transformers do. Where the halo holds all that a unit of the layer sees, and
    sizes of layers follow from strides and fixed padding, tiles give the gradient of the whole image.

    Args:
        model: Maps (N, C, H, W) to anything; to (N, K) scores where the objective asks for them. Left as it was found.
        images: (N, C, H, W) of any size, as the network takes them.
        objective: Dotted name of the layer, see `lit_viz.layers.find_layer`; or what is to be made large instead.
        channels: Only these of the layer.
        octaves: How many sizes; those that are too small for the network are left out, with a warning.
        octave_scale: From each to the next, above 1.
        steps: At each size. None at all gives the images back as they are.
        lr: η; how far a step moves a pixel on average, where 255 is from black to full intensity.
        jitter: Shifts are of up to so many pixels along both axes.
        guide: An image (C, h, w) or (1, C, h, w): instead of the layer's own activations, the dream grows those of the
            guide's places that match best, see `GuideMatch`.
        tile: Side of tiles, px, for images larger than that. By default `TILE` for images of more than `LARGEST`
            pixels, the one size that the network takes where there is only one, and else the whole image.
        halo: What a tile shows at least around the part that counts, px; by default what units of the layer see, but at
            most a quarter of the tile.
        on_octave: Called at the end of each size.
        seed: Of the shifts.
        pixels: How network input relates to colours; by default told by the model or guessed from the images.
        score: See `lit_viz.functional.class_scores`.
        progress: Show a progress bar for each size that takes longer than three seconds, with the objective.
        interruptible: Whether Ctrl-C ends it with what there is; otherwise it goes on to whoever called.

    Returns:
        The images, and how it went.

    Raises:
        UsageError: For an unknown layer or channel, a network that can't take the images, tiles without room for their
            halo, and settings that make no sense.

    Warns:
        UserWarning: If sizes are left out, or an image didn't change as it was wanted, with the cause.
    """
    check_images(images)
    sought = _sought(objective, channels, guide, images)
    check_dream(octaves=octaves, octave_scale=octave_scale, steps=steps, lr=lr, jitter=jitter, tile=tile, halo=halo)
    count, device = len(images), runs_in(model)[0] or images.device
    dtype = runs_in(model)[1] or images.dtype
    with torch.inference_mode(False):  # whose tensors could not be changed later
        base = images.detach().to(device, torch.promote_types(torch.float32, dtype), copy=True)
    if steps == 0:
        return Dream(base, (), ("",) * count)
    space = pixels or pixel_space_of(model) or guess_pixel_space(images)
    done: list[Octave] = []
    notes: list[Sequence[str]] = []
    last = detail = base  # the images of the last size that was gone through, and what was added to them
    with (
        until_interrupted(interruptible) as interrupted,
        untouched(model, seed=seed),
        reading(model, sought.layers, needs_scores=sought.needs_scores, score=score) as read,
    ):
        if isinstance(model, nn.Module):
            for parameter in model.parameters():
                parameter.requires_grad_(False)
        plan = _plan(model, read, sought, base, dtype, tile=tile, halo=halo, scales=(octaves, octave_scale))
        if guide is not None:
            sought = _guided(read, sought, guide.to(base), plan.only, dtype)
        for index, size in enumerate(plan.sizes):
            small = resized(base, size)
            start = clip(small + resized(detail, size), space) if done else small
            settings: dict[str, Any] = {
                "make_optimizer": partial(NormalizedSGD, lr=lr / 255 / _mean(space.std), norm="mean_abs"),
                "steps": steps,
                "parameterization": Pixels(space),
                "transforms": [Jitter(jitter)],
                "seed": seed + index,
                "progress": progress,
                "description": f"dream {index + 1}/{len(plan.sizes)}, {size[1]}×{size[0]}",
                "interruptible": interruptible,
            }
            climb = partial(_climbed, model, read, sought, start, plan.tiling, dtype, score)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="dream ")  # told below, once for all sizes
                before = climb(settings | {"steps": 0, "progress": False}).objective.cpu()
                if interrupted and done:
                    break
                course = climb(settings)
            last, detail = course.images, course.images - small
            done.append(Octave(size, last.cpu(), before, course.history, course.objective.cpu()))
            if on_octave is not None:
                on_octave(done[-1])
            if interrupted:
                break  # and is no fault of an image
            notes.append([_note(*each) for each in zip(course.notes, before, done[-1].objective, strict=True)])
        whole = plan.sizes[-1]
        made = last if done[-1].size == whole else clip(base + resized(detail, whole), space)
    result = tuple(_worst([one[i] for one in notes]) for i in range(count))
    for note in dict.fromkeys(filter(None, result)):
        which = [str(i) for i, other in enumerate(result) if other == note]
        whom = "" if len(which) == count else f" image {', '.join(which)}:"
        warnings.warn(f"dream:{whom} {note}.", stacklevel=2)
    used = plan.tiling if plan.tiling is not None and any(_is_cut(o.size, plan.tiling) for o in done) else None
    return Dream(made, tuple(done), result, used, bool(interrupted))


def dream_zoom(
    model: Model, image: Tensor, objective: Objective | str, *, frames: int, zoom: float = 1.05, **kwargs: Any
) -> Iterator[Dream]:
    """Falls into a dream: each frame is the middle of the one before, enlarged, and dreamt on.

    Args:
        model: As for `deep_dream`, like all others.
        image: (1, C, H, W), where it starts.
        objective: A layer, or what is to be made large.
        frames: How many.
        zoom: From one to the next, above 1.
        **kwargs: See `deep_dream`. Two octaves of few steps are enough behind the first frame, which has a dream to
            start from.

    Yields:
        A dream for each frame. Ctrl-C makes the frame at work the last one.

    Raises:
        UsageError: As `deep_dream`; for more than one image, and a zoom that doesn't enlarge.
    """
    if len(check_images(image)) != 1:
        raise UsageError(f"a zoom starts from one image, not from {len(image)}.")
    check_at_least("frames", frames, 1)
    if not 1 < zoom < math.inf:
        raise UsageError(f"zoom is a factor above 1, got {zoom}.")
    # One range of colours for all frames, where it has to be guessed.
    space = kwargs.pop("pixels", None) or pixel_space_of(model) or guess_pixel_space(image)
    for frame in range(frames):
        with warnings.catch_warnings():
            if frame:
                warnings.simplefilter("ignore")  # the first one has told
            dream = deep_dream(model, image, objective, pixels=space, **kwargs)
        yield dream
        if dream.interrupted:
            return
        image = clip(enlarged(dream.images, zoom), space)


def enlarged(images: Tensor, zoom: float) -> Tensor:
    """The middle of images (N, C, H, W), enlarged to their own size."""
    theta = torch.tensor([[[1 / zoom, 0.0, 0.0], [0.0, 1 / zoom, 0.0]]], dtype=images.dtype, device=images.device)
    grid = F.affine_grid(theta, [1, *images.shape[1:]], align_corners=False).expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def resized(images: Tensor, size: Size) -> Tensor:
    """Images (N, C, H, W), or what was added to them, at another size; themselves at their own."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


def dream_layer(model: nn.Module, images: Tensor) -> str:
    """A layer to dream at where nobody names one: at two thirds of the depth of those that have places.

    Of blocks, where the network has any. There a layer knows parts of things, and still where they are.

    Args:
        model: Any module.
        images: (N, C, H, W), as the network takes them; the first one is tried.

    Raises:
        UsageError: If no layer has places.
    """
    image = check_images(images)[:1].detach()
    size = (image.shape[2], image.shape[3])
    layers = {n: m for n, m in named_layers(model).items() if not isinstance(m, torch.jit.ScriptModule)}

    def placed(output: Tensor) -> bool:
        maps = spatial_maps(output, image_size=size) if output.dim() > 2 and len(output) == 1 else None
        return maps is not None and min(maps.shape[2:]) > 1

    with untouched(model), torch.no_grad(), capture(model, layers, reduce=placed) as calls:
        model(image.clone())
    once = {name: layers[name] for name, seen in calls.items() if seen == [True]}
    if not once:
        raise UsageError(f"{type(model).__name__} calls no layer (once) that has maps; name the layer to dream at.")
    chosen = _blocks(once)
    return chosen[2 * len(chosen) // 3]


@dataclass(frozen=True)
class _Plan:
    """The sizes of a dream, the smallest first; how they are cut; and the one size that the network takes, if so."""

    sizes: tuple[Size, ...]
    tiling: Tiling | None
    only: Size | None


def _plan(
    model: Model,
    read: Read,
    sought: Objective,
    base: Tensor,
    dtype: torch.dtype,
    *,
    tile: int | None,
    halo: int | None,
    scales: tuple[int, float],
) -> _Plan:
    channels, height, width = base.shape[1:]
    octaves, scale = scales

    def places(size: Size) -> dict[str, Size] | str:
        """The sizes of the layers' maps for an image of a size, or why the network doesn't take it."""
        trial = resized(base[:1], size).to(dtype)
        try:
            with torch.no_grad():
                seen = read(trial, torch.zeros(1, dtype=torch.int64, device=base.device))
                maps = {name: seen.maps(name, _call(sought, name)) for name in sought.layers}
        except UsageError:
            raise
        except Exception as error:  # whatever a network says of images of another size
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        return {name: (values.shape[2], values.shape[3]) for name, values in maps.items()}

    if tile is None and height * width > LARGEST:
        tile = TILE
    largest = (height, width) if tile is None else (min(height, tile), min(width, tile))
    whole, only = places(largest), None
    if isinstance(whole, str):
        only, found = _one_size(model, places)
        if only is None or isinstance(found, str):
            raise UsageError(
                f"the network doesn't take images of {_told(largest)} ({whole}); where it takes those of one size "
                f"alone, give its side as tile."
            )
        if height < only[0] or width < only[1]:
            raise UsageError(
                f"the network takes images of {_told(only)} alone, and the image has {_told((height, width))}: "
                f"enlarge it to at least that."
            )
        whole, largest = found, only
    wanted = [(round(height / scale**k), round(width / scale**k)) for k in range(octaves - 1, -1, -1)]
    kept = []
    for size in wanted:
        if size == wanted[-1] or (only is None and size[0] >= largest[0] and size[1] >= largest[1]):
            kept.append(size)
        elif only is not None:
            kept += [size] if size[0] >= only[0] and size[1] >= only[1] else []
        elif min(size) > 0 and not isinstance(there := places(_within(size, largest)), str):
            # A map that has shrunk to a line has no structure to enlarge.
            small = any(min(there[name]) < 2 <= min(places_) for name, places_ in whole.items())
            kept += [] if small else [size]
    if len(kept) < octaves:
        takes = f"it takes images of {_told(only)} alone" if only else "they are too small for it"
        left = ", ".join(_told(size) for size in wanted if size not in kept)
        warnings.warn(f"dream: the network doesn't see the image at {left}: {takes}; left out.", stacklevel=4)
    cut = None
    if height > largest[0] or width > largest[1]:
        shape = (channels, *largest)
        cut = tiling(model, shape, whole, halo=halo, one_size=only is not None)
        if only is None and isinstance(places(tuple(n - 1 for n in largest)), str):  # type: ignore[arg-type]
            cut = tiling(model, shape, whole, halo=halo, one_size=True)
        cut.cut(height, width)  # tiles without room between their halos are told here
    return _Plan(tuple(kept), cut, only)


def _climbed(
    model: Model,
    read: Read,
    sought: Objective,
    start: Tensor,
    cut: Tiling | None,
    dtype: torch.dtype,
    score: Score | None,
    settings: dict[str, Any],
) -> Synthesis:
    """One octave: in one go, or tile by tile and image by image."""
    if cut is None or not _is_cut((start.shape[2], start.shape[3]), cut):
        return optimize(model, sought, start, score=score, **settings)
    made = [
        optimize(Tiled(read, sought, cut, i, dtype), ClassScore(0), start[i : i + 1], **settings)
        for i in range(len(start))
    ]
    history = torch.full((settings["steps"], len(start)), torch.nan, dtype=torch.float32)
    for i, one in enumerate(made):
        history[: len(one.history), i] = one.history[:, 0]
    return Synthesis(
        images=torch.cat([one.images for one in made]),
        values=torch.cat([one.values for one in made]),
        objective=torch.cat([one.objective for one in made]),
        history=history,
        scores=None,
        notes=tuple(note for one in made for note in one.notes),
        interrupted=any(one.interrupted for one in made),
    )


def _sought(
    objective: Objective | str, channels: Sequence[int] | None, guide: Tensor | None, images: Tensor
) -> Objective:
    if isinstance(objective, str):
        if channels is not None and not len(channels):
            raise UsageError("channels is an empty list; give at least one, or none for all of them.")
        sought: Objective = Energy(objective, channels=channels)
    elif isinstance(objective, Objective):
        if channels is not None or guide is not None:
            raise UsageError("channels and a guide go with the name of a layer, not with an objective.")
        sought = objective
    else:
        raise UsageError(f"what is dreamt of is the name of a layer or an objective, not {objective!r}.")
    if sought.count not in (None, len(images)):
        raise UsageError(f"the objective is for {sought.count} images, but there are {len(images)}.")
    if guide is not None and (guide.dim() not in (3, 4) or (guide.dim() == 4 and len(guide) != 1)):
        raise UsageError(f"a guide is one image (C, h, w) or (1, C, h, w), not {tuple(guide.shape)}.")
    return sought


def check_dream(
    *,
    octaves: int,
    octave_scale: float,
    steps: int,
    lr: float,
    jitter: int,
    tile: int | None = None,
    halo: int | None = None,
) -> None:
    """Raises `UsageError` for settings of `deep_dream` that make no sense."""
    check_at_least("octaves", octaves, 1)
    check_at_least("steps", steps, 0)
    check_at_least("jitter", jitter, 0)
    if not 1 < octave_scale < math.inf:
        raise UsageError(f"octave_scale is a factor above 1, got {octave_scale}.")
    if not 0 < lr < math.inf:
        raise UsageError(f"lr must be positive, got {lr}.")
    if tile is not None:
        check_at_least("tile", tile, 1, " pixel, or None")
    if halo is not None:
        check_at_least("halo", halo, 0, ", or None to choose it")


def _guided(read: Read, sought: Objective, guide: Tensor, only: Size | None, dtype: torch.dtype) -> GuideMatch:
    """The match with a guide, in place of the energy of a layer."""
    assert isinstance(sought, Energy)
    guide = guide if guide.dim() == 4 else guide[None]
    guide = guide if only is None else resized(guide, only)
    with torch.no_grad():
        maps = read(guide.to(dtype), torch.zeros(1, dtype=torch.int64, device=guide.device)).maps(sought.layer)
    return GuideMatch(sought.layer, maps[0].flatten(1), channels=sought.channels)


def _one_size(
    model: Model, places: Callable[[Size], dict[str, Size] | str]
) -> tuple[Size | None, dict[str, Size] | str]:
    """The one size of images that a network takes, as it tells itself, and the sizes of its layers' maps there."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    told = [getattr(m, name, None) for m in modules for name in ("image_size", "img_size", "input_size")]
    if isinstance(model, nn.Module):
        told.insert(0, (timm_configuration(model).get("input_size") or (None,))[-1])
    for size in dict.fromkeys(_pair(value) for value in told):
        if size is not None and not isinstance(found := places(size), str):
            return size, found
    return None, {}


def _pair(value: Any) -> Size | None:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value, value
    if isinstance(value, (tuple, list)) and len(value) in (2, 3) and all(isinstance(v, int) and v > 0 for v in value):
        return value[-2], value[-1]
    return None


def _call(sought: Objective, layer: str) -> int | None:
    """Which call of a layer is meant, as far as an objective tells."""
    terms = [term for _, term in getattr(sought, "terms", [(1.0, sought)])]
    return next((getattr(term, "call", None) for term in terms if layer in term.layers), None)


def _within(size: Size, largest: Size) -> Size:
    return min(size[0], largest[0]), min(size[1], largest[1])


def _is_cut(size: Size, cut: Tiling) -> bool:
    return size[0] > cut.size[0] or size[1] > cut.size[1]


def _note(note: str, before: Tensor, after: Tensor) -> str:
    """What to say of an image at one size; whether it has risen is judged without shifts."""
    if note in (DEAD, SATURATED):
        return SILENT
    if note in ("", NOT_RISEN):
        return "" if after > before else NOT_RISEN
    return note


def _worst(notes: Sequence[str]) -> str:
    """What to say of an image from what was said of it at each size, the largest first."""
    return next(filter(None, reversed(notes)), "")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _told(size: Size) -> str:
    return f"{size[1]}×{size[0]} px"
