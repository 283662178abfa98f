"""The receptive fields of a layer's units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.functional.receptive_field.dependence import Dependence, Shadow, plain_attention
from lit_viz.functional.receptive_field.rules import core
from lit_viz.guard import untouched
from lit_viz.layers import as_maps, find_layer, first_tensor, named_layers


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """Which part of the image each unit of a layer depends on.

    A unit is one number of the layer's output for one image, addressed as (channel, row, column) of its maps.
    Tokens (T, D) count as D channels of T rows and one column, vectors (D,) as D channels of one place.

    All intervals are half-open, as in slicing: a unit with box (top, left, bottom, right) sees
    `image[:, top:bottom, left:right]`. The box is the smallest that holds all pixels the unit depends on. A
    unit that no pixel reaches has the empty box (0, 0, 0, 0).

    Attributes:
        layer: Full name of the layer.
        image_size: Height and width of the image, in pixels.
        rows: (2, C, H, W), int32: first image row, and the one after the last, of each unit. Repeated values
            share memory.
        cols: (2, C, H, W), int32: image columns likewise.
        approximations: Operators on the way from the image to this layer whose dependence isn't known, for
            instance `aten.grid_sampler_2d`. Each of their outputs was taken to depend on all their inputs, so
            that boxes may be too large, never too small. Empty: the boxes are exact.
    """

    layer: str
    image_size: tuple[int, int]
    rows: Tensor
    cols: Tensor
    approximations: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the layer's maps."""
        return tuple(self.rows.shape[1:])  # type: ignore[return-value]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the receptive field of a unit away from the image's borders, in pixels.

        The largest where units differ. If the image is so small that no unit's field is known in full, it is
        the largest extent inside the image.
        """
        return self._frames[0].size, self._frames[1].size

    @property
    def stride(self) -> tuple[int, int] | None:
        """Distance of neighbouring units' fields in pixels, down and across.

        None where it isn't constant or can't be seen: for layers of a single place, or units that all see the
        same.
        """
        rows, columns = (frames.stride for frames in self._frames)
        return None if rows is None or columns is None else (rows, columns)

    @property
    def is_global(self) -> bool:
        """Whether every unit sees the whole image, or as good as: its box spans all of it."""
        spans = zip((self.rows, self.cols), self.image_size, strict=True)
        return all(bool((core(s[0]) == 0).all() and (core(s[1]) == n).all()) for s, n in spans)

    def box(self, channel: int, row: int, column: int) -> tuple[int, int, int, int]:
        """The pixels a unit sees, as (top, left, bottom, right), half-open, inside the image.

        Raises:
            UsageError: If there is no such unit.
        """
        return tuple(self.boxes(*map(torch.tensor, ([channel], [row], [column])))[0].tolist())

    def boxes(self, channels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """The boxes of many units.

        Args:
            channels: (M,), integers.
            rows: (M,), places in the layer's maps.
            columns: (M,).

        Returns:
            (M, 4), int64: top, left, bottom, right.

        Raises:
            UsageError: If an index is out of range.
        """
        return self._pick((self.rows, self.cols), channels, rows, columns)

    def frame(self, channel: int, row: int, column: int) -> tuple[int, int, int, int]:
        """A unit's receptive field as if the image went on beyond its borders, as (top, left, bottom, right).

        It has the same size for all units of a channel where they form a regular grid; near a border it lies
        partly outside the image. With the part inside the image drawn at `(box top − frame top, box left −
        frame left)` of a blank of the frame's size, patches of border and inner units are aligned.

        The frames follow from the layer's own regularity: the first rows of fields that don't touch the upper
        border are exact and equally spaced, the last rows of those that don't touch the lower border too.
        Where there is no such rule (windows of a transformer, resampling) the box is extended to the largest
        extent, on the side where it touches the border, else evenly.
        """
        return tuple(self.frames(*map(torch.tensor, ([channel], [row], [column])))[0].tolist())

    def frames(self, channels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """The frames of many units; arguments, result and errors as for `boxes`."""
        return self._pick(tuple(f.spans for f in self._frames), channels, rows, columns)

    @cached_property
    def _frames(self) -> tuple[_Frames, _Frames]:
        return _frames(self.rows, self.image_size[0], 2), _frames(self.cols, self.image_size[1], 3)

    def _pick(self, spans: Sequence[Tensor], channels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        index = [torch.as_tensor(i).cpu().long() for i in (channels, rows, columns)]
        for i, n, what in zip(index, self.shape, ("channel", "row", "column"), strict=True):
            if i.numel() and not 0 <= int(i.min()) <= int(i.max()) < n:
                raise UsageError(
                    f"layer '{self.layer}' has maps of shape {self.shape}: there is no {what} "
                    f"{int(i.max()) if int(i.min()) >= 0 else int(i.min())}, they go from 0 to {n - 1}."
                )
        (top, bottom), (left, right) = (span[(slice(None), *index)] for span in spans)
        return torch.stack((top, left, bottom, right), dim=-1).long()


@overload
def receptive_field(model: nn.Module, image: Tensor | Sequence[int], layers: str) -> ReceptiveField: ...


@overload
def receptive_field(
    model: nn.Module, image: Tensor | Sequence[int], layers: Sequence[str] | None = None
) -> dict[str, ReceptiveField]: ...


def receptive_field(
    model: nn.Module, image: Tensor | Sequence[int], layers: str | Sequence[str] | None = None
) -> ReceptiveField | dict[str, ReceptiveField]:
    """The exact receptive field of every unit of a layer, at the borders too.

    The model runs once, on one image, and every operator it calls carries along for each element the bounding
    box of the pixels that it depends on. So it holds for any architecture, with skips, branches, dilation,
    odd padding, attention windows or code between layers, and nothing needs to be known about its modules.
    What counts is the wiring, not the values: a weight or a ReLU that happens to be zero still connects. Only
    masks do cut: constants chosen by `where` or `masked_fill`, and attention weights that underflow because
    of a constant mask.

    Args:
        model: Takes images (1, C, H, W).
        image: An example (N, C, H, W), of which the first image is used, or the shape (C, H, W).
        layers: Names of layers, see `lit_viz.layers.find_layer`. None: all innermost layers that run and put
            out maps, tokens or vectors. If a layer runs several times, the union over its calls (the last,
            where their outputs differ in shape).

    Returns:
        By full layer name; for a single name, not in a list, just its receptive field. Tensors are on the
        CPU.

    Raises:
        UsageError: For an unknown layer, one that doesn't run, or whose output has no units (see `as_maps`),
            and for a malformed image.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1))
    >>> field = receptive_field(net, (3, 32, 32), "2")
    >>> field.size, field.stride, field.box(0, 0, 5), field.frame(0, 0, 5)
    ((8, 8), (2, 2), (0, 7, 5, 15), (-3, 7, 5, 15))
    """
    names = [layers] if isinstance(layers, str) else layers
    modules = named_layers(model) if names is None else dict(find_layer(model, name) for name in names)
    runs = trace(model, image, modules)
    if names is None:
        runs = {name: run for name, run in innermost(runs).items() if has_units(run)}
    missing = [name for name in modules if name not in runs] if names is not None else []
    if missing:
        raise UsageError(
            f"layer '{missing[0]}' doesn't run or puts out no tensor: {type(model).__name__}'s forward skips "
            f"it, or uses its weights without calling it. Choose another one; `layer_table` lists them."
        )
    order = runs if names is None else modules
    fields = {name: field_of(name, runs[name], image_size(image)) for name in order}
    return next(iter(fields.values())) if isinstance(layers, str) else fields


@dataclass
class Run:
    """What a layer did during a forward pass.

    Attributes:
        module: The layer.
        calls: How often it was called.
        shape: Shape of its last output, with the batch dimension; None if it wasn't a tensor.
        shadow: What the elements of that output depend on.
    """

    module: nn.Module
    calls: int = 0
    shape: tuple[int, ...] | None = None
    shadow: Shadow | None = None

    def record(self, output: Tensor, shadow: Shadow) -> None:
        """Adds an output."""
        if self.shadow is not None and self.shape == tuple(output.shape):
            shadow = shadow.union(self.shadow)
        self.shape, self.shadow = tuple(output.shape), shadow


def trace(model: nn.Module, image: Tensor | Sequence[int], modules: Mapping[str, nn.Module]) -> dict[str, Run]:
    """Runs a model once and notes what its layers' outputs depend on.

    Args:
        model: Any module that takes images.
        image: See `receptive_field`.
        modules: The layers to watch, by name.

    Returns:
        The layers that ran and put out a tensor, in the order in which they started.
    """
    runs: dict[str, Run] = {}
    with untouched(model), torch.no_grad(), plain_attention():
        example = _example(model, image)
        with Dependence(example) as dependence, _hooks(modules, runs, dependence):
            model(example)
    return {name: run for name, run in runs.items() if run.shadow is not None}


def innermost(runs: Mapping[str, Run]) -> dict[str, Run]:
    """Those that have none of the others inside."""
    paths = [name.split(".") for name in runs]
    outer = {".".join(path[:depth]) for path in paths for depth in range(1, len(path))}
    return {name: run for name, run in runs.items() if name not in outer}


def has_units(run: Run) -> bool:
    """Whether the output is a map, tokens or a vector for one image."""
    return run.shape is not None and run.shape[0] == 1 and 2 <= len(run.shape) <= 4


def field_of(name: str, run: Run, size: tuple[int, int]) -> ReceptiveField:
    """The receptive field of a layer that has run.

    Raises:
        UsageError: If its output has no units.
    """
    if not has_units(run):
        raise UsageError(
            f"layer '{name}' puts out a tensor of shape {run.shape} for one image: no map, tokens or vector. "
            f"Choose the layer around it or the one after it."
        )
    top, bottom, left, right = (core(as_maps(r, image_size=size)[0]) for r in run.shadow.reach)
    shape = (2, *as_maps(torch.empty(run.shape, device="meta"), image_size=size).shape[1:])
    spans = [_spans(*sides, n).expand(shape) for sides, n in zip(((top, bottom), (left, right)), size, strict=True)]
    return ReceptiveField(name, size, *spans, run.shadow.inexact)


def _spans(near: Tensor, far: Tensor, length: int) -> Tensor:
    """Reaches towards both ends of an axis of `length` pixels as half-open intervals, stacked, on the CPU."""
    near, far = torch.broadcast_tensors(near, far)
    return torch.stack((torch.where(far > 0, length - near, 0), far)).int().cpu()


def image_size(image: Tensor | Sequence[int]) -> tuple[int, int]:
    """Height and width of an example, or of a shape (C, H, W)."""
    height, width = (image.shape if isinstance(image, Tensor) else image)[-2:]
    return int(height), int(width)


def _example(model: nn.Module, image: Tensor | Sequence[int]) -> Tensor:
    """The first image as a batch of one, where the model's weights are."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if isinstance(image, Tensor):
        if image.dim() != 4 or len(image) == 0:
            raise UsageError(f"an example must have shape (N, C, H, W), got {tuple(image.shape)}.")
        return image[:1].detach().to(weight.device, copy=True)
    if len(image) != 3 or not all(isinstance(n, int) and n > 0 for n in image):
        raise UsageError(f"an image shape is (channels, height, width), got {tuple(image)}.")
    return torch.zeros(1, *image, device=weight.device, dtype=weight.dtype)


@contextmanager
def _hooks(modules: Mapping[str, nn.Module], runs: dict[str, Run], dependence: Dependence) -> Iterator[None]:
    def start(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, *_: Any) -> None:
            runs.setdefault(name, Run(module)).calls += 1

        return hook

    def end(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                runs[name].record(tensor, dependence.shadow(tensor))

        return hook

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(start(name)).remove)
            stack.callback(module.register_forward_hook(end(name)).remove)
        yield


class _Frames(NamedTuple):
    """Fields along one axis as if the image had no borders: (2, C, H, W), the largest size, the spacing."""

    spans: Tensor
    size: int
    stride: int | None


def _frames(spans: Tensor, length: int, axis: int) -> _Frames:
    """Continues the fields of one axis beyond the image.

    Args:
        spans: (2, C, H, W), first and after-last pixel of each unit along the axis.
        length: The image's pixels along the axis.
        axis: The dimension of `spans` in which units move along it.
    """
    shape = spans.shape
    start, stop = core(spans, keep=[0, axis]).movedim(axis, -1)
    extent = stop - start
    inner = (start > 0) & (stop < length)
    full = inner & (extent == torch.where(inner, extent, 0).amax(-1, keepdim=True))

    # Fields that touch no border give the rule if there are two of them. Where all touch one, in deep layers,
    # their other ends still follow it.
    frames, known, stride = _line(start, full, stop, full)
    ends, known_ends, stride_ends = _line(start, start > 0, stop, (stop < length) & (extent > 0))
    frames, stride = torch.where(known, frames, ends), torch.where(known, stride, stride_ends)
    known = known | known_ends

    largest = extent.amax(-1, keepdim=True)
    missing = largest - extent
    at_start, at_end = (start == 0) & (stop < length), (start > 0) & (stop == length)
    before = torch.where(at_start, missing, torch.where(at_end, 0, missing // 2))
    extended = torch.stack((start - before, start - before + largest))

    frames = torch.where(known, frames, extended)
    size = int((frames[1] - frames[0]).max())
    strides = set(stride[known].tolist())
    regular = bool(known.all()) and len(strides) == 1 and shape[axis] > 1
    return _Frames(frames.movedim(-1, axis).expand(shape), size, strides.pop() if regular else None)


def _line(start: Tensor, known_start: Tensor, stop: Tensor, known_stop: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fits start = a + s·i and stop = b + s·i, with one s, to the known entries of `start` and `stop`.

    Args:
        start: (..., n).
        known_start: (..., n), bool.
        stop: (..., n).
        known_stop: (..., n), bool.

    Returns:
        The lines, (2, ..., n); whether they are determined, meet all known entries and hold all intervals,
        (..., 1); and s, (..., 1).
    """
    n = start.shape[-1]
    i = torch.arange(n, dtype=start.dtype)

    def ends(values: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First known index, its value, and the slope to the last; slope 0 if there is just one."""
        first = known.int().argmax(-1, keepdim=True)
        last = n - 1 - known.flip(-1).int().argmax(-1, keepdim=True)
        rise = values.gather(-1, last) - values.gather(-1, first)
        return first, values.gather(-1, first), rise // (last - first).clamp(min=1)

    (i_start, v_start, slope), (i_stop, v_stop, slope_stop) = ends(start, known_start), ends(stop, known_stop)
    many = known_start.sum(-1, keepdim=True) > 1, known_stop.sum(-1, keepdim=True) > 1
    slope = torch.where(many[0], slope, slope_stop)
    lines = torch.stack((v_start + slope * (i - i_start), v_stop + slope * (i - i_stop))).to(start.dtype)
    meets = ((lines[0] == start) | ~known_start) & ((lines[1] == stop) | ~known_stop)
    holds = (lines[0] <= start) & (lines[1] >= stop) | (stop <= start)
    known = (many[0] | many[1]) & known_start.any(-1, keepdim=True) & known_stop.any(-1, keepdim=True)
    return lines, known & (meets & holds).all(-1, keepdim=True), slope.to(start.dtype)
