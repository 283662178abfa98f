"""Objectives of images too large for one pass, or for a network that takes images of one size: tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.functional.receptive_field import ReceptiveField, receptive_field
from lit_viz.functional.scores import Model
from lit_viz.functional.synthesis.objectives import Objective, Unit, WeightedSum
from lit_viz.functional.synthesis.reading import Read, Reading

Size = tuple[int, int]


class Span(NamedTuple):
    """A tile along one axis, in pixels, half-open: what the network sees, and the part of it that counts."""

    start: int
    stop: int
    inner_start: int
    inner_stop: int


def spans(length: int, tile: int, *, halo: int, align: int, one_size: bool = False) -> list[Span]:
    """Tiles along an axis, whose counting parts share it out without gap or overlap.

    Args:
        length: Of the axis.
        tile: The most that the network sees at once.
        halo: What it sees at least beside a part that counts, where the image goes on; a multiple of `align`.
        align: Tiles start, and parts meet, at multiples of it.
        one_size: Whether all tiles are of that length; then they start anywhere.

    Raises:
        UsageError: If nothing is left between the halos.

    >>> spans(40, 24, halo=4, align=4)
    [Span(start=0, stop=24, inner_start=0, inner_stop=20), Span(start=16, stop=40, inner_start=20, inner_stop=40)]
    """
    if length <= tile:
        return [Span(0, length, 0, length)]
    core = (tile - 2 * halo) // align * align
    if core < 1:
        raise UsageError(
            f"tiles of {tile} px have no room for a halo of {halo} px on either side and {align} px between; take "
            f"larger tiles, or a smaller halo."
        )
    last = length - tile if one_size else -(-(length - tile) // align) * align
    count, step = 1 + -(-last // core), 1 if one_size else align
    starts = [k * last // (count - 1) // step * step for k in range(count)]
    # In the middle of what two tiles both see.
    edges = [0, *(b + (a + tile - b) // 2 // align * align for a, b in pairwise(starts)), length]
    return [Span(a, min(a + tile, length), *inner) for a, inner in zip(starts, pairwise(edges), strict=True)]


@dataclass(frozen=True)
class Tiling:
    """How images are cut into tiles.

    Attributes:
        size: Height and width of tiles, px.
        halo: What the network sees at least around the part of a tile that counts, px.
        align: Tiles start at multiples of it, px, so that strided layers fall on the same places as in the whole image.
        one_size: Whether the network takes images of that size alone.
        strides: Of the layers that are read, px; None where units lie on no grid, or each sees the whole image.
        exact: Whether the halo holds all that a unit sees, so that tiles give the gradient of the whole image.
    """

    size: Size
    halo: Size
    align: Size
    one_size: bool = False
    strides: Mapping[str, Size | None] = field(default_factory=dict)
    exact: bool = False

    def cut(self, height: int, width: int) -> tuple[list[Span], list[Span]]:
        """The tiles of an image along its height, and along its width."""
        rows, columns = (
            spans(n, self.size[i], halo=self.halo[i], align=self.align[i], one_size=self.one_size)
            for i, n in enumerate((height, width))
        )
        return rows, columns


def tiling(
    model: Model, shape: tuple[int, int, int], places: Mapping[str, Size], *, halo: int | None, one_size: bool
) -> Tiling:
    """Finds out how images must be cut for some layers, from their receptive fields.

    Args:
        model: The network.
        shape: (C, h, w) of a tile.
        places: For each layer that is read height and width of its map on a tile.
        halo: What a tile shows beside its part that counts, px; by default what the units there see, but at most a
            quarter of the tile.
        one_size: Whether the network takes images of that size alone.
    """
    size = (shape[1], shape[2])
    fields: dict[str, ReceptiveField | None] = dict.fromkeys(places)
    if isinstance(model, nn.Module):
        for layer in places:
            try:
                fields[layer] = receptive_field(model, shape, layer)
            except Exception:  # heads that take another size, operators without a rule: tiles are not exact then
                fields[layer] = None
    strides = {layer: None if found is None else found.stride for layer, found in fields.items()}
    halos, aligns, exact = [], [], not one_size
    for axis in range(2):
        steps = [max(1, size[axis] // places[layer][axis]) if s is None else s[axis] for layer, s in strides.items()]
        align = max(steps, default=1)
        if all(found is not None and found.stride is not None for found in fields.values()) and fields:
            needed = max(_beyond(found, axis) for found in fields.values() if found is not None)
        else:
            needed, exact = size[axis], False
        bound = size[axis] // 4 // align * align
        chosen = -(-(min(needed, bound) if halo is None else halo) // align) * align
        halos.append(min(chosen, bound) if halo is None else chosen)
        aligns.append(align)
        exact = exact and halos[-1] >= needed and all(align % step == 0 for step in steps)
    return Tiling(size, (halos[0], halos[1]), (aligns[0], aligns[1]), one_size, strides, exact)


def _beyond(field: ReceptiveField, axis: int) -> int:
    """How far units see beyond the pixels that their places stand for, px."""
    assert field.stride is not None
    channels = torch.arange(field.shape[0])
    zeros = torch.zeros_like(channels)
    frames = field.frames(channels, zeros, zeros)
    return max(0, -int(frames[:, axis].min()), int(frames[:, axis + 2].max()) - field.stride[axis])


@dataclass(frozen=True, eq=False)
class _Inner(Reading):
    """A reading of tiles whose maps are cut to the places that count."""

    rows: Size = (0, 0)
    columns: Size = (0, 0)
    strides: Mapping[str, Size | None] = field(default_factory=dict)

    def maps(self, name: str, call: int | None = None) -> Tensor:
        whole = super().maps(name, call)
        rows, columns = self.places(name, (whole.shape[2], whole.shape[3]))
        return whole[:, :, slice(*rows), slice(*columns)]

    def places(self, name: str, size: Size) -> tuple[Size, Size]:
        """First and after-last row, and column, of a layer's map that count."""
        stride = self.strides.get(name)
        found = [
            units(inner, size[i], self.images.shape[2 + i], None if stride is None else stride[i])
            for i, inner in enumerate((self.rows, self.columns))
        ]
        return found[0], found[1]


def units(inner: Size, count: int, length: int, stride: int | None) -> Size:
    """From pixels of a tile of that length to those of a layer's `count` places along an axis."""
    ends = [x // stride if stride else round(x * count / length) for x in inner]
    start, stop = ends[0], count if inner[1] == length else ends[1]
    return (start, stop) if start < stop else (min(start, count - 1), min(start, count - 1) + 1)


class Tiled:
    """An objective of large images, one tile at a time: a network (N, C, H, W) → (N, 1) whose score it is.

    It is the mean over all places of the layers that are read, each seen in the tile where it counts. Its gradient is
    taken tile by tile, so that memory is that of one tile; where `tiling.exact`, it is that of the whole image.

    Args:
        read: See `lit_viz.functional.synthesis.reading`.
        objective: Means over places; class scores are those of each tile, by its share of the image.
        tiling: How images are cut.
        which: Which of all images those are that come, for objectives that are one for each.
        dtype: What the network takes.

    Raises:
        UsageError: For a single unit, which no tile has for itself.
    """

    def __init__(self, read: Read, objective: Objective, tiling: Tiling, which: int, dtype: torch.dtype) -> None:
        self.read, self.tiling, self.which, self.dtype = read, tiling, which, dtype
        self.terms = _terms(objective)
        if any(isinstance(term, Unit) for _, term in self.terms):
            raise UsageError(
                "a single unit can't be sought in tiles: each tile would have its own; take a channel, or an image "
                "that needs no tiles."
            )

    def __call__(self, images: Tensor) -> Tensor:
        return _TiledGradient.apply(images, self.evaluate)[:, None]

    def evaluate(self, images: Tensor, differentiate: bool) -> tuple[Tensor, Tensor]:
        """The objective (n,) of images, and its gradient (n, C, H, W); zeros where nobody asks for it."""
        height, width = images.shape[-2:]
        rows, columns = self.tiling.cut(height, width)
        which = torch.full((len(images),), self.which, dtype=torch.int64, device=images.device)
        total, gradient = torch.zeros(len(images), dtype=torch.float32, device=images.device), torch.zeros_like(images)
        totals: dict[str, Size] = {}
        # From the last one on, which tells how many places there are in all.
        for row in reversed(rows):
            for column in reversed(columns):
                place = (..., slice(row.start, row.stop), slice(column.start, column.stop))
                crop = images[place].detach().clone().requires_grad_(differentiate)
                with torch.set_grad_enabled(differentiate):
                    seen = self.read(crop.to(self.dtype), which)
                    part = _Inner(
                        crop,
                        which,
                        seen.calls,
                        seen.all_scores,
                        (row.inner_start - row.start, row.inner_stop - row.start),
                        (column.inner_start - column.start, column.inner_stop - column.start),
                        self.tiling.strides,
                    )
                    area = (row.inner_stop - row.inner_start) * (column.inner_stop - column.inner_start)
                    shares = [self._share(t, seen, part, (row, column), totals) for _, t in self.terms]
                    values = [
                        weight * (area / (height * width) if share is None else share) * term(part).float()
                        for (weight, term), share in zip(self.terms, shares, strict=True)
                    ]
                    value = torch.stack(values).sum(dim=0)
                if differentiate:
                    if not value.requires_grad:
                        raise UsageError(
                            "the objective does not depend on the image through differentiable operations."
                        )
                    (slope,) = torch.autograd.grad(value, crop, torch.ones_like(value))
                    gradient[place] += slope
                total = total + value.detach()
        return total, gradient

    def _share(
        self, term: Objective, seen: Reading, part: _Inner, tile: tuple[Span, Span], totals: dict[str, Size]
    ) -> float | None:
        """What share of a layer's places count in a tile; None where that is the share of pixels."""
        name = term.layers[0] if term.layers else ""
        stride = self.tiling.strides.get(name)
        if stride is None:
            return None
        maps = seen.maps(name, getattr(term, "call", None))
        size = (maps.shape[2], maps.shape[3])
        totals.setdefault(name, (tile[0].start // stride[0] + size[0], tile[1].start // stride[1] + size[1]))
        rows, columns = part.places(name, size)
        return (rows[1] - rows[0]) * (columns[1] - columns[0]) / (totals[name][0] * totals[name][1])


class _TiledGradient(torch.autograd.Function):
    """Takes gradients on the way there, one tile after the other, since no graph of all of them would fit."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, evaluate: Callable[[Tensor, bool], tuple[Tensor, Tensor]]) -> Tensor:
        value, gradient = evaluate(images, ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return upstream[0].to(gradient.dtype)[:, None, None, None] * gradient, None


def _terms(objective: Objective) -> Sequence[tuple[float, Objective]]:
    """A weighted sum, however nested, as its terms."""
    if not isinstance(objective, WeightedSum):
        return [(1.0, objective)]
    return [(weight * inner, term) for weight, nested in objective.terms for inner, term in _terms(nested)]
