r"""Convolution by kernels of 3 × 3 with fewer multiplications.

Neighbouring results $Y$ (m × m) of a kernel $g$ (3 × 3) and of the tile $d$ (m + 2 × m + 2) that they see are

$$Y = A^T \left[ (G g G^T) \odot (B^T d B) \right] A$$

with $(m + 2)^2$ products for each pair of channels instead of $9 m^2$: Winograd's $F(m \times m, 3 \times 3)$, see
Lavin & Gray, *Fast Algorithms for Convolutional Neural Networks* (CVPR 2016), whose matrices these are. For all tiles
and channels they are $(m + 2)^2$ products of matrices. Nothing is approximated. For m = 2 the transforms $A$ and $B$
only add and subtract, and it rounds no more than plain sums do; for m = 4 there are 1.8 times fewer products than for
m = 2, and it rounds two or three times as much. What it costs is moving numbers, so it pays where there are many
channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

MOVED = 250.0
"""Cost of an element that is transformed, in multiply-adds."""

LEAST_GAIN = 1.25
"""How many times less it should cost than plain convolution: how fast both are differs between processors."""

TILES = 8 * 2**20
"""Bytes of tiles that are transformed at once: they should stay in the cache until they are multiplied."""

PART = 32
"""Output channels of kernels that are transformed at once."""

G = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}


def suits(weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> bool:
    """Whether a convolution can be computed so, and other libraries don't do so by themselves."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)  # shorter ones are rounded between the transforms
        and weight.shape[2:] == (3, 3)
        and groups == 1
        and {*stride, *dilation} == {1}
    )


def pays(inner: int, out: int, size: tuple[int, int], *, tile: int = 2) -> bool:
    """Whether it is worth it from so many channels to so many, for results of a size (H, W)."""
    height, width = size
    tiled = (height + -height % tile) * (width + -width % tile)
    return LEAST_GAIN * tiled * cost(inner, out, tile=tile) < height * width * 9 * inner * out


def cost(inner: int, out: int, *, tile: int = 2) -> float:
    """Of one pixel of the result, in multiply-adds."""
    return (1 + 2 / tile) ** 2 * inner * out + MOVED * (inner + out)


def filters(weight: Tensor, *, tile: int = 2) -> Tensor:
    """Kernels (O, I, 3, 3) transformed for results of tile × tile: ((tile + 2)², I, O)."""
    out, inner = weight.shape[:2]
    along = torch.tensor(G[tile], dtype=torch.float64)
    both = torch.kron(along, along)
    kernels = weight.new_empty(len(both), inner, out)
    # By parts, since in double precision all of a large layer takes more memory than many a batch.
    for part, result in zip(weight.detach().split(PART), kernels.split(PART, dim=2), strict=True):
        result.copy_((both @ part.double().permute(2, 3, 1, 0).reshape(9, -1)).unflatten(1, (inner, -1)))
    return kernels


def convolution(image: Tensor, kernels: Tensor, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
    """Convolution of whole maps, with zeros around.

    Args:
        image: (N, I, H, W).
        kernels: (16 or 36, I, O), from `filters`.
        bias: (O,).
        padding: At the top and bottom, and at the left and right.

    Returns:
        (N, O, H', W'), channels last in memory.
    """
    top, left = padding
    tile = _tile(kernels)
    height, width = image.shape[2] + 2 * top - 2, image.shape[3] + 2 * left - 2
    image = image.contiguous(memory_format=torch.channels_last)
    around = left, left + -width % tile, top, top + -height % tile
    return convolve(F.pad(image, around) if any(around) else image, kernels, bias, (height, width))


def convolve(image: Tensor, kernels: Tensor, bias: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Convolution of maps that have all around them that is needed.

    Args:
        image: (N, I, H + 2, W + 2) for results of H and W, each rounded up to a multiple of the tile's size.
        kernels: (16 or 36, I, O), from `filters`.
        bias: (O,).
        size: H and W of the results.

    Returns:
        (N, O, H, W), channels last in memory.
    """
    tile = _tile(kernels)
    pixels = image.permute(0, 2, 3, 1)
    count, rows, columns, inner = pixels.shape
    out = image.new_empty(count, *size, kernels.shape[2])
    row = len(kernels) // tile * (columns - 2) * inner * image.itemsize  # bytes of a row of tiles
    some = max(1, TILES * tile // (row * (rows - 2)))
    down = rows if some > 1 else tile * max(1, TILES // row)
    for part, result in zip(pixels.split(some), out.split(some), strict=True):
        for top in range(0, rows - 2, down):
            tiles = _to_tiles(part[:, top : top + down + 2], tile)
            _to_results(torch.bmm(tiles, kernels), bias, result[:, top : top + down], tile)
    return out.permute(0, 3, 1, 2)


def weight_gradient(gradient: Tensor, image: Tensor) -> Tensor:
    r"""What a loss's gradient with respect to results is with respect to the weights, without padding, by tiles of 4.

    What `convolve` does is linear in the kernels, so that, summed over all tiles,

    $$\frac{\partial L}{\partial g} = G^T \Big[ \sum (B^T d B) \odot (A\,\frac{\partial L}{\partial Y}\,A^T) \Big] G$$

    Args:
        gradient: (N, O, H, W).
        image: (N, I, H + 2, W + 2).

    Returns:
        (O, I, 3, 3).
    """
    tile = 4
    right, below = -gradient.shape[3] % tile, -gradient.shape[2] % tile
    pixels, slopes = (F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, right, 0, below)) for x in (image, gradient))
    sums = pixels.new_zeros((tile + 2) ** 2, pixels.shape[3], slopes.shape[3])
    row = (tile + 2) ** 2 // tile * slopes.shape[2] * (pixels.shape[3] + slopes.shape[3]) * pixels.itemsize
    down = tile * max(1, TILES // row)
    for part, result in zip(pixels.split(1), slopes.split(1), strict=True):
        for top in range(0, slopes.shape[1], down):
            tiles = _to_tiles(part[:, top : top + down + 2], tile)
            sums.baddbmm_(tiles.mT, _to_slopes(result[:, top : top + down]))
    along = torch.tensor(G[tile], dtype=torch.float64)
    kernels = torch.einsum("abio,ar,bc->oirc", sums.double().unflatten(0, (tile + 2, tile + 2)), along, along)
    return kernels.to(image.dtype)


def _tile(kernels: Tensor) -> int:
    return math.isqrt(len(kernels)) - 2


def _to_tiles(pixels: Tensor, tile: int) -> Tensor:
    """$B^T d B$ of all tiles of (N, H + 2, W + 2, I): ((m + 2)², N · H/m · W/m, I)."""
    count, height, width, inner = pixels.shape
    down, across, side = (height - 2) // tile, (width - 2) // tile, tile + 2
    transform = _to_tiles_of_2 if tile == 2 else _to_tiles_of_4
    part = pixels.new_empty(side, count, down, width, inner)
    transform([pixels[:, i : i + tile * (down - 1) + 1 : tile] for i in range(side)], part.unbind(0))
    whole = pixels.new_empty(side, side, count, down, across, inner)
    transform([part[:, :, :, i : i + tile * (across - 1) + 1 : tile] for i in range(side)], whole.unbind(1))
    return whole.view(side * side, -1, inner)


def _to_results(products: Tensor, bias: Tensor | None, out: Tensor, tile: int) -> None:
    """$A^T m A$ of all tiles ((m + 2)², N · H/m · W/m, O), into (N, H, W, O)."""
    count, height, width, channels = out.shape
    side = tile + 2
    tiles = products.view(side, side, count, -(-height // tile), -(-width // tile), channels)
    if bias is not None:
        tiles[1, 1] += bias  # enters all results once
    transform = _to_results_of_2 if tile == 2 else _to_results_of_4
    lines = out.new_empty(side, count, tiles.shape[3], width, channels)
    transform(tiles.unbind(1), [lines[:, :, :, i::tile] for i in range(tile)], 3)
    transform(lines.unbind(0), [out[:, i::tile] for i in range(tile)], 1)


def _to_slopes(slopes: Tensor) -> Tensor:
    """$A y A^T$ of all tiles of (N, H, W, O), for tiles of 4: (36, N · H/4 · W/4, O)."""
    count, height, width, channels = slopes.shape
    down, across = height // 4, width // 4
    part = slopes.new_empty(6, count, down, width, channels)
    _to_slopes_of_4([slopes[:, i::4] for i in range(4)], part.unbind(0))
    whole = slopes.new_empty(6, 6, count, down, across, channels)
    _to_slopes_of_4([part[:, :, :, i::4] for i in range(4)], whole.unbind(1))
    return whole.view(36, -1, channels)


def _to_slopes_of_4(lines: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """$A$ along one axis: (1, 0, 0, 0), (1, 1, 1, 1), (1, −1, 1, −1), (1, 2, 4, 8), (1, −2, 4, −8), (0, 0, 0, 1)."""
    a, b, c, d = lines
    out[0].copy_(a)
    out[5].copy_(d)
    even, odd = a + c, b + d
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.add(a, c, alpha=4, out=even)
    torch.add(b, d, alpha=4, out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])


def _to_tiles_of_2(lines: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """$B^T$ along one axis: (1, 0, −1, 0), (0, 1, 1, 0), (0, −1, 1, 0), (0, 1, 0, −1)."""
    a, b, c, d = lines
    torch.sub(a, c, out=out[0])
    torch.add(b, c, out=out[1])
    torch.sub(c, b, out=out[2])
    torch.sub(b, d, out=out[3])


def _to_results_of_2(lines: Sequence[Tensor], out: Sequence[Tensor], axis: int) -> None:
    """$A^T$ along one axis: (1, 1, 1, 0), (0, 1, −1, −1)."""
    a, b, c, d = lines
    _sum(out[0], axis, (a, 1), (b, 1), (c, 1))
    _sum(out[1], axis, (b, 1), (c, -1), (d, -1))


def _to_tiles_of_4(lines: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """$B^T$ along one axis.

    (4, 0, −5, 0, 1, 0), (0, −4, −4, 1, 1, 0), (0, 4, −4, −1, 1, 0), (0, −2, −1, 2, 1, 0), (0, 2, −1, −2, 1, 0) and
    (0, 4, 0, −5, 0, 1).
    """
    a, b, c, d, e, f = lines
    even, odd = torch.sub(e, c, alpha=4), torch.sub(d, b, alpha=4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(e, c, out=even)
    torch.sub(d, b, out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.sub(a, c, out=out[0])
    torch.add(even, out[0], alpha=4, out=out[0])
    torch.sub(f, d, out=out[5])
    torch.sub(out[5], odd, alpha=4, out=out[5])


def _to_results_of_4(lines: Sequence[Tensor], out: Sequence[Tensor], axis: int) -> None:
    """$A^T$ along one axis: (1, 1, 1, 1, 1, 0), (0, 1, −1, 2, −2, 0), (0, 1, 1, 4, 4, 0), (0, 1, −1, 8, −8, 1)."""
    a, b, c, d, e, f = lines
    near, apart, far, further = b + c, b - c, d + e, d - e
    _sum(out[0], axis, (a, 1), (near, 1), (far, 1))
    _sum(out[1], axis, (apart, 1), (further, 2))
    _sum(out[2], axis, (near, 1), (far, 4))
    _sum(out[3], axis, (apart, 1), (further, 8), (f, 1))


def _sum(out: Tensor, axis: int, first: tuple[Tensor, int], *others: tuple[Tensor, int]) -> None:
    """A sum of tensors with factors (the first one's is 1), as far as the result goes: the last tile may lie beyond."""
    total, length = first[0].narrow(axis, 0, out.shape[axis]), out.shape[axis]
    for tensor, factor in others:
        torch.add(total, tensor.narrow(axis, 0, length), alpha=factor, out=out)
        total = out
