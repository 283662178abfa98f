"""Style networks over images of any size: in tiles, with the norms of the whole image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.style import luminance, with_luminance
from lit_viz.networks.transformer_net import Block, TransformerNet, mean_and_variance

Span = tuple[int, int]

TILE = 512
_LEAST = 16  # px along a side, of what the network takes
_ROWS = 128  # that are mixed at once


def stylized(
    net: TransformerNet,
    colors: Tensor,
    style: Tensor | None = None,
    *,
    tile: int = TILE,
    strength: float = 1.0,
    keep_colors: bool = False,
    progress: bool = False,
) -> Tensor:
    """Images of any size stylised, those larger than a tile in tiles without seams.

    Instance norms ask for mean and variance of whole maps. So tiles go through the network side by side, a layer at a
    time: all tiles are convolved, their statistics are put together, and with these each is normalised before any goes
    on. Around a tile is seen what lies there in the map, and at the border of the image its reflection. All is as in
    one pass but for rounding (less than 1e-4 in colours).

    Maps are kept whole where they have half the resolution of the image, or a quarter; the two of its own resolution,
    the largest, are worked out twice instead, once for their statistics and once for what comes next, a sixth more
    work. What is kept comes to 3 · width bytes for each pixel, at most. For 4096 × 4096 px, on one core, a process of
    1.0 GiB that had read the image came to

    - 1.9 GiB at its most, and 160 s, for a network of width 16,
    - 2.7 GiB at its most, and 360 s, for one of width 32.

    Args:
        net: Is used as it is in evaluation, whatever its mode, which it keeps.
        colors: (N, 3, H, W), from 0 to 1, on the device of the network; below 16 px a side is reflected over and over.
        style: (N,) int64, which style each is to have; or (N, styles), shares of each. None for the only one.
        tile: Side of tiles, px, rounded down to a multiple of 4. Images of no larger sides go through in one pass.
        strength: From 0, the images as they are, to 1, the network's; between them colours are mixed, (1 − s)·image +
            s·made. Networks leave edges where they are, so that nothing is seen twice.
        keep_colors: Take over brightness alone, and leave hues as they are, see `with_luminance`.
        progress: Whether a bar shows how far it is.

    Returns:
        (N, 3, H, W), from 0 to 1, in 32 bits.

    Raises:
        UsageError: For arguments out of range.

    >>> net = TransformerNet(width=4, blocks=1)
    >>> image = torch.rand(1, 3, 70, 45)
    >>> bool((stylized(net, image, tile=32) - stylized(net, image)).abs().max() < 1e-5)
    True
    """
    check_at_least("tile", tile, 32, " pixels")
    if not 0 <= strength <= 1:
        raise UsageError(f"strength lies between 0, the image as it is, and 1, all style; got {strength!r}.")
    if colors.dim() != 4 or colors.shape[1] != net.channels or not colors.numel():
        raise UsageError(f"colours have shape (N, {net.channels}, H, W), not {tuple(colors.shape)}.")
    if strength == 0:
        return colors.float().clone()
    height, width = colors.shape[-2:]
    training = net.training
    try:
        net.eval()
        # Otherwise libraries choose algorithms by trial, and the same image may come out differently.
        exact = torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False)
        with torch.no_grad(), exact:
            enough = _extended(colors, _LEAST)
            if max(enough.shape[-2:]) <= tile:
                made = net(enough, style)
            else:
                made = _Pass(net, net.mix(style, enough), tile // 4 * 4, progress)(enough)
    finally:
        net.train(training)
    made = made[..., :height, :width].contiguous()
    if keep_colors or strength < 1:
        for top in range(0, height, _ROWS):
            was, rows = colors[..., top : top + _ROWS, :].float(), made[..., top : top + _ROWS, :]
            changed = with_luminance(was, luminance(rows)) if keep_colors else rows.clone()
            rows.copy_(torch.lerp(was, changed, strength))
    return made


def _extended(colors: Tensor, least: int) -> Tensor:
    """Reflected at the right and at the bottom, as often as it takes to come to that many pixels."""
    for dim in (2, 3):
        length = colors.shape[dim]
        if length < least:
            places = torch.arange(least, device=colors.device) % max(1, 2 * length - 2)
            colors = colors.index_select(dim, torch.minimum(places, (2 * length - 2 - places).abs()))
    return colors


def _layout(x: Tensor) -> torch.memory_format:
    last = x.stride(1) == 1  # of a part that was cut out as well
    return torch.channels_last if last else torch.contiguous_format


class _Map(Protocol):
    """A map (N, C, h, w) of which parts can be had."""

    size: tuple[int, int]

    def part(self, rows: Span, columns: Span) -> Tensor: ...


class _Kept:
    """A map in memory."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.size = values, (values.shape[2], values.shape[3])

    def part(self, rows: Span, columns: Span) -> Tensor:
        return self.values[..., slice(*rows), slice(*columns)]


class _Convolved:
    """What a layer makes of a map, worked out anew each time; before its norm, and behind it once `affine` is there."""

    def __init__(self, block: Block, source: _Map) -> None:
        self.block, self.source = block, source
        self.stride = block.conv.stride[0]
        self.size = (source.size[0] * block.scale // self.stride, source.size[1] * block.scale // self.stride)
        self.affine: tuple[Tensor, Tensor] | None = None

    def part(self, rows: Span, columns: Span) -> Tensor:
        x = self._enlarged(rows, columns) if self.block.scale > 1 else self._plain(rows, columns)
        return x if self.affine is None else _normalized(x, self.affine).relu_()

    def _plain(self, rows: Span, columns: Span) -> Tensor:
        pad = self.block.pad
        needed = ((self.stride * a - pad, self.stride * (b - 1) + pad + 1) for a, b in (rows, columns))
        return self.block.conv(_around(self.source, *needed))

    def _enlarged(self, rows: Span, columns: Span) -> Tensor:
        """With a pixel more around, which is cut off again: what a convolution sees there is no reflection."""
        needed, cut = [], []
        for (start, stop), length in zip((rows, columns), self.source.size, strict=True):
            first = max(0, start // 2 - 1)
            needed.append((first, min(length, -(-stop // 2) + 1)))
            cut.append(slice(start - 2 * first, stop - 2 * first))
        return self.block.conv(self.source.part(*needed), enlarge=True)[..., cut[0], cut[1]]


def _normalized(x: Tensor, affine: tuple[Tensor, Tensor]) -> Tensor:
    """In place: x · factor + shift."""
    factor, shift = (value[:, :, None, None].to(x) for value in affine)
    return x.mul_(factor).add_(shift)


def _around(source: _Map, rows: Span, columns: Span) -> Tensor:
    """A part of a map that is reflected at its borders, which may begin and end beyond them."""
    inside, beyond = [], []
    for (start, stop), length in zip((rows, columns), source.size, strict=True):
        inside.append((max(0, start), min(length, stop)))
        beyond.append((max(0, -start), max(0, stop - length)))
    return F.pad(source.part(*inside), (*beyond[1], *beyond[0]), mode="reflect")


class _Moments:
    """Mean and variance over all places, from those of the tiles (Chan, Golub & LeVeque 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        mean, variance = (v.double() for v in mean_and_variance(x.float()))
        count = x.shape[2] * x.shape[3]
        if not self.count:
            self.count, self.mean, self.squares = count, mean, variance * count
            return
        total, change = self.count + count, mean - self.mean
        self.squares = self.squares + variance * count + change**2 * (self.count * count / total)
        self.mean = self.mean + change * (count / total)
        self.count = total

    def found(self) -> tuple[Tensor, Tensor]:
        return self.mean.float(), (self.squares / self.count).float()


class _Pass:
    """One way through a network, a layer at a time."""

    def __init__(self, net: TransformerNet, mix: Tensor | None, tile: int, progress: bool) -> None:
        self.net, self.mix, self.tile, self.progress = net, mix, tile, progress

    def __call__(self, colors: Tensor) -> Tensor:
        """Colours (N, 3, H, W) of those given, 16 px a side or more."""
        net, (height, width) = self.net, colors.shape[-2:]
        x = F.pad(colors.to(net.last.weight), (0, -width % 4, 0, -height % 4), mode="reflect") - 0.5
        self.full = (x.shape[2], x.shape[3])
        steps = (6 + 2 * len(net.residual)) * len(list(self._tiles(self.full)))
        with tqdm(total=steps, disable=not self.progress, leave=False, desc="tiles", unit="") as self.bar:
            first, second, third = net.down
            kept = self._kept(second, self._found_again(first, _Kept(x))).relu_()
            del x
            kept = self._kept(third, _Kept(kept)).relu_()
            for one, two in net.residual:
                kept += self._kept(two, _Kept(self._kept(one, _Kept(kept)).relu_()))
            up, last = net.up
            kept = self._kept(up, _Kept(kept)).relu_()
            source, pad = self._found_again(last, _Kept(kept)), net.last.kernel_size[0] // 2
            made = torch.empty(len(colors), net.channels, *self.full, dtype=torch.float32, device=colors.device)
            for rows, columns in self._tiles(self.full):
                around = _around(source, *((a - pad, b + pad) for a, b in (rows, columns)))
                made[..., slice(*rows), slice(*columns)] = torch.sigmoid(net.last(around).float())
                self.bar.update()
        return made[..., :height, :width]

    def _kept(self, block: Block, source: _Map) -> Tensor:
        """The whole map of a layer, behind its norm."""
        layer, moments, values = _Convolved(block, source), _Moments(), None
        for rows, columns in self._tiles(layer.size):
            x = layer.part(rows, columns)
            if values is None:
                values = torch.empty_like(x[..., :1, :1].expand(-1, -1, *layer.size), memory_format=_layout(x))
            values[..., slice(*rows), slice(*columns)] = x
            moments.add(x)
            self.bar.update()
        assert values is not None
        return _normalized(values, block.affine(*moments.found(), self.mix))

    def _found_again(self, block: Block, source: _Map) -> _Convolved:
        """A layer of which no more is kept than its statistics."""
        layer, moments = _Convolved(block, source), _Moments()
        for rows, columns in self._tiles(layer.size):
            moments.add(layer.part(rows, columns))
            self.bar.update()
        layer.affine = block.affine(*moments.found(), self.mix)
        return layer

    def _tiles(self, size: tuple[int, int]) -> Iterator[tuple[Span, Span]]:
        """Rows and columns of tiles; of maps of fewer places than the image they have fewer too."""
        tile = self.tile * size[0] // self.full[0]
        for top in range(0, size[0], tile):
            for left in range(0, size[1], tile):
                yield (top, min(top + tile, size[0])), (left, min(left + tile, size[1]))
