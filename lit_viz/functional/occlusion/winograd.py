r"""Convolution by kernels of 3 × 3 with fewer multiplications.

Four neighbouring results $Y$ (2 × 2) of a kernel $g$ (3 × 3) and of the tile $d$ (4 × 4) that they see are

$$Y = A^T \left[ (G g G^T) \odot (B^T d B) \right] A,$$

$$B^T = \begin{pmatrix} 1 & 0 & -1 & 0 \\ 0 & 1 & 1 & 0 \\ 0 & -1 & 1 & 0 \\ 0 & 1 & 0 & -1 \end{pmatrix}, \quad
G = \begin{pmatrix} 1 & 0 & 0 \\ 1/2 & 1/2 & 1/2 \\ 1/2 & -1/2 & 1/2 \\ 0 & 0 & 1 \end{pmatrix}, \quad
A^T = \begin{pmatrix} 1 & 1 & 1 & 0 \\ 0 & 1 & -1 & -1 \end{pmatrix},$$

with 16 products for each pair of channels instead of 36: Winograd's $F(2 \times 2, 3 \times 3)$, see Lavin & Gray,
*Fast Algorithms for Convolutional Neural Networks* (CVPR 2016). For all tiles and channels they are 16 products of
matrices. Nothing is approximated, and since $A$ and $B$ only add and subtract, it rounds no more than plain sums do;
larger tiles would save more and round more. What it costs is moving numbers, so it pays where there are many channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MOVED = 250.0
"""Cost of an element that is transformed, in multiply-adds."""

LEAST_GAIN = 1.25
"""How many times less it should cost than plain convolution: how fast both are differs between processors."""

TILES = 8 * 2**20
"""Bytes of tiles that are transformed at once: they should stay in the cache until they are multiplied."""

G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)


def pays(weight: Tensor, size: tuple[int, int]) -> bool:
    """Whether it is worth it for a kernel (O, I, 3, 3) and results of a size."""
    out, inner = weight.shape[:2]
    tiled = (size[0] + size[0] % 2) * (size[1] + size[1] % 2)
    return LEAST_GAIN * tiled * cost(inner, out) < size[0] * size[1] * 9 * inner * out


def cost(inner: int, out: int) -> float:
    """Of one pixel of the result, in multiply-adds."""
    return 4 * inner * out + MOVED * (inner + out)


def filters(weight: Tensor) -> Tensor:
    """Kernels (O, I, 3, 3) transformed, (16, I, O)."""
    out, inner = weight.shape[:2]
    flat = weight.detach().double().permute(2, 3, 1, 0).reshape(9, -1)
    return (torch.kron(G, G) @ flat).to(weight.dtype).reshape(16, inner, out)


def convolution(image: Tensor, kernels: Tensor, bias: Tensor | None, padding: list[int]) -> Tensor:
    """Convolution of whole maps, with zeros around.

    Args:
        image: (N, I, H, W).
        kernels: (16, I, O), from `filters`.
        bias: (O,).
        padding: At the top and bottom, and at the left and right.

    Returns:
        (N, O, H', W'), channels last in memory.
    """
    top, left = padding
    height, width = image.shape[2] + 2 * top - 2, image.shape[3] + 2 * left - 2
    padded = F.pad(image, (left, left + width % 2, top, top + height % 2))
    return convolve(padded, kernels, bias, (height, width))


def convolve(image: Tensor, kernels: Tensor, bias: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Convolution of maps that have all around them that is needed.

    Args:
        image: (N, I, H + 2, W + 2) for results of H and W, each rounded up to the next even number.
        kernels: (16, I, O), from `filters`.
        bias: (O,).
        size: H and W of the results.

    Returns:
        (N, O, H, W), channels last in memory.
    """
    pixels = image.permute(0, 2, 3, 1)
    count, rows, columns, inner = pixels.shape
    out = image.new_empty(count, *size, kernels.shape[2])
    some = max(1, TILES // (4 * (rows - 2) * (columns - 2) * inner * image.itemsize))
    for part, result in zip(pixels.split(some), out.split(some), strict=True):
        _tiles_to_results(torch.bmm(_to_tiles(part), kernels), bias, result)
    return out.permute(0, 3, 1, 2)


def _to_tiles(pixels: Tensor) -> Tensor:
    """$B^T d B$ of all tiles of (N, H + 2, W + 2, I): (16, N · H/2 · W/2, I)."""
    count, height, width, inner = pixels.shape
    down, across = height // 2 - 1, width // 2 - 1
    half = pixels.new_empty(4, count, down, width, inner)
    whole = pixels.new_empty(4, 4, count, down, across, inner)
    _differences([pixels[:, i : i + 2 * down - 1 : 2] for i in range(4)], half)
    _differences([half[:, :, :, i : i + 2 * across - 1 : 2] for i in range(4)], whole.unbind(1))
    return whole.view(16, -1, inner)


def _differences(lines: list[Tensor], out: Tensor | tuple[Tensor, ...]) -> None:
    """$B^T$ along one axis."""
    first, second, third, fourth = lines
    torch.sub(first, third, out=out[0])
    torch.add(second, third, out=out[1])
    torch.sub(third, second, out=out[2])
    torch.sub(second, fourth, out=out[3])


def _tiles_to_results(products: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """$A^T m A$ of all tiles (16, N · H/2 · W/2, O), into (N, H, W, O)."""
    count, height, width, channels = out.shape
    tiles = products.view(4, 4, count, -(-height // 2), -(-width // 2), channels)
    if bias is not None:
        tiles[1, 1] += bias  # enters all four results once
    lines = out.new_empty(4, count, tiles.shape[3], width, channels)
    _sums(tiles.unbind(1), [lines[:, :, :, 0::2], lines[:, :, :, 1::2]], axis=3)
    _sums(lines.unbind(0), [out[:, 0::2], out[:, 1::2]], axis=1)


def _sums(lines: tuple[Tensor, ...], out: list[Tensor], axis: int) -> None:
    """$A^T$ along one axis; of an odd number of results the last is left out."""
    first, second, third, fourth = lines
    torch.add(first, second, out=out[0])
    out[0] += third
    second, third, fourth = (line.narrow(axis, 0, out[1].shape[axis]) for line in (second, third, fourth))
    torch.sub(second, third, out=out[1])
    out[1] -= fourth
