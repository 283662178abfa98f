"""What an image is to become like, and the gradient that takes it there, tile by tile where it is large."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import product
from operator import add

import torch
from torch import Tensor

from lit_viz.errors import check_at_least
from lit_viz.functional.tiles import Span, tiling, units
from lit_viz.networks.style_loss import StyleLoss, StyleSums, StyleTerms

Tile = tuple[Span, Span]


@dataclass(frozen=True)
class _Part:
    """One tile: where it lies, and what it is compared with."""

    tile: Tile
    content: dict[str, Tensor]
    masks: Tensor | None


class StyleTarget:
    r"""The content and the style that an image is to have: tells the loss of images of one size, and its gradient.

    A Gram matrix is a sum over places, so an image too large for one pass needs two over its tiles: one for the Gram
    matrices G of the whole image, whose loss tells ∂L/∂G, and one for the gradients, tile by tile, of

    $$\sum_l \langle \partial L / \partial G_l,\ G_l(\text{tile}) \rangle + \text{content}(\text{tile})$$

    Memory is that of one tile. Each tile shows some of its surroundings; where these hold all that units see
    (`exact`), loss and gradient are those of the whole image.

    Attributes:
        loss: The loss.
        exact: Whether tiles change nothing; True without tiles.

    Args:
        loss: The loss, which knows its styles.
        content: (1, C, H, W), colours from 0 to 1; what counts is its size, where the loss has no content layers.
        style: See `StyleLoss.forward`.
        masks: (1, styles, H, W), likewise.
        tile: Longest side of a tile, px; larger images are cut.

    Raises:
        UsageError: For tiles without room for their surroundings.
    """

    def __init__(
        self,
        loss: StyleLoss,
        content: Tensor,
        *,
        style: Tensor | None = None,
        masks: Tensor | None = None,
        tile: int | None = None,
    ) -> None:
        self.loss, self.style = loss, style
        self.exact, tiles = True, [tuple(Span(0, n, 0, n) for n in content.shape[2:])]
        self._strides: dict[str, tuple[int, int] | None] = {}
        if tile is not None:
            check_at_least("tile", tile, 64, " px")
        if tile is not None and max(content.shape[2:]) > tile:
            tiles = self._cut(content, tile)
        self._parts = []
        for rows, columns in tiles:
            place = (..., slice(rows.start, rows.stop), slice(columns.start, columns.stop))
            colors, where = content[place], None if masks is None else masks[place]
            features = loss.content_of(colors) if loss.content_layers else {}
            self._parts.append(_Part((rows, columns), self._inner(features, colors, (rows, columns)), where))

    def _cut(self, content: Tensor, tile: int) -> list[Tile]:
        height, width = (min(tile, n) for n in content.shape[2:])
        network = self.loss.network
        with torch.no_grad():
            maps = network(content[..., :height, :width])
        inside = network.layers_inside
        places = {inside[name]: (f.shape[2], f.shape[3]) for name, f in maps.items()}
        cut = tiling(network.module, (content.shape[1], height, width), places, halo=None, one_size=False)
        self._strides = {name: cut.strides[inside[name]] for name in network.layers}
        self.exact = cut.exact
        return list(product(*cut.cut(content.shape[2], content.shape[3])))

    def __call__(self, colors: Tensor) -> tuple[StyleTerms, Tensor]:
        """The loss of an image (1, C, H, W), colours from 0 to 1, and its gradient (1, C, H, W)."""
        if len(self._parts) == 1:
            values = colors.detach().requires_grad_(True)
            with torch.enable_grad():
                terms = self.loss.terms(self._sums(values, self._parts[0]), self.style)
                (gradient,) = torch.autograd.grad(terms.total.sum(), values)
            return terms, gradient
        with torch.no_grad():
            whole = reduce(add, (self._sums(self._crop(colors, part), part) for part in self._parts))
        leaves = [t.requires_grad_(True) for by_layer in (whole.grams, whole.content) for t in by_layer.values()]
        with torch.enable_grad():
            terms = self.loss.terms(whole, self.style)
            slopes = torch.autograd.grad(terms.total.sum(), leaves)
        gradient = torch.zeros_like(colors)
        for part in self._parts:
            crop = self._crop(colors, part).detach().clone().requires_grad_(True)
            with torch.enable_grad():
                sums = self._sums(crop, part)
                values = [t for by_layer in (sums.grams, sums.content) for t in by_layer.values()]
                share = sum((slope * value).sum() for slope, value in zip(slopes, values, strict=True))
                rows, columns = part.tile
                gradient[..., rows.start : rows.stop, columns.start : columns.stop] += torch.autograd.grad(share, crop)[
                    0
                ]
        return terms, gradient

    @torch.no_grad()
    def terms(self, colors: Tensor) -> StyleTerms:
        """The loss of an image (1, C, H, W), colours from 0 to 1."""
        whole = reduce(add, (self._sums(self._crop(colors, part), part) for part in self._parts))
        return self.loss.terms(whole, self.style)

    def _sums(self, crop: Tensor, part: _Part) -> StyleSums:
        """What the loss is reckoned from, of the places of a tile that count."""
        features = self._inner(self.loss.network(crop), crop, part.tile)
        masks = part.masks
        if masks is not None:
            rows, columns = part.tile
            masks = masks[
                ...,
                rows.inner_start - rows.start : rows.inner_stop - rows.start,
                columns.inner_start - columns.start : columns.inner_stop - columns.start,
            ]
        return self.loss.sums(features, part.content, masks=masks)

    def _inner(self, features: dict[str, Tensor], crop: Tensor, tile: Tile) -> dict[str, Tensor]:
        """Features of a tile, cut to the places that count."""
        if tile == tuple(Span(0, n, 0, n) for n in crop.shape[2:]):
            return features
        return {name: maps[(..., *self._places(name, maps, crop, tile))] for name, maps in features.items()}

    def _places(self, name: str, maps: Tensor, crop: Tensor, tile: Tile) -> list[slice]:
        strides = self._strides.get(name)
        return [
            slice(
                *units(
                    (span.inner_start - span.start, span.inner_stop - span.start),
                    maps.shape[2 + i],
                    crop.shape[2 + i],
                    None if strides is None else strides[i],
                )
            )
            for i, span in enumerate(tile)
        ]

    @staticmethod
    def _crop(colors: Tensor, part: _Part) -> Tensor:
        rows, columns = part.tile
        return colors[..., rows.start : rows.stop, columns.start : columns.stop]
