"""What growing a texture costs beside a plain NumPy loop, and how good the textures are.

    python benchmarks/texture.py                         # some five minutes on two cores
    python benchmarks/texture.py --photographs brick --repeats 9

Two parts:

* speed: Efros & Leung's sampling beside a plain loop in NumPy that makes one pixel after the other from the same
  masked, weighted squared distances, in single precision (quicker for it) and in double. Ratio of medians, and the
  smallest and largest of a pair: how many times longer the loop takes. From a seed of 3×3 px, and around the source.
* error: how far 7×7 patches of a texture are from the nearest ones of its source (`patch_error`), in steps of 8 bits,
  means over seeds: of both, of quilting, and of another part of the same photograph, which is what more of the texture
  really looks like.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from skimage import data
from torch import Tensor

from lit_viz.functional.texture import efros_leung, image_quilting, patch_error

Run = Callable[[], Any]

PHOTOGRAPHS: dict[str, Callable[[], NDArray[np.uint8]]] = {
    "brick": data.brick,
    "grass": data.grass,
    "gravel": data.gravel,
    "immunohistochemistry": data.immunohistochemistry,
}


def cut(name: str, side: int, corner: int) -> Tensor:
    """A square of a photograph, uint8 (C, side, side)."""
    pixels = PHOTOGRAPHS[name]()[corner : corner + side, corner : corner + side]
    return torch.from_numpy(np.ascontiguousarray(pixels.reshape(side, side, -1))).permute(2, 0, 1).contiguous()


def plain(
    source: Tensor,
    size: int,
    *,
    window: int = 11,
    keep_source: bool = False,
    tolerance: float = 0.1,
    seed: int = 0,
    dtype: Any = np.float32,
) -> Tensor:
    """Efros & Leung's sampling as one writes it down: one pixel at a time, all windows of the source at once."""
    generator = np.random.default_rng(seed)
    colors = source.numpy().astype(dtype) / 255
    channels, height, width = colors.shape
    half = window // 2
    patches = sliding_window_view(colors, (window, window), axis=(1, 2)).transpose(1, 2, 0, 3, 4)
    across = patches.shape[1]
    # A row for each place in the window, so that those of the known places are picked as a whole.
    patches = np.ascontiguousarray(patches.reshape(-1, channels * window**2).T)
    offsets = np.arange(window) - half
    gauss = np.exp(-0.5 * (offsets / (window / 6.4)) ** 2)
    weights = np.tile(np.outer(gauss, gauss).ravel(), channels).astype(dtype)
    made = np.zeros((channels, size + 2 * half, size + 2 * half), dtype)
    known = np.zeros(made.shape[1:], bool)
    part = colors
    if not keep_source:
        top, left = generator.integers(0, (height - 2, width - 2))
        part = colors[:, top : top + 3, left : left + 3]
    rows, columns = ((size - side) // 2 + half for side in part.shape[1:])
    made[:, rows : rows + part.shape[1], columns : columns + part.shape[2]] = part
    known[rows : rows + part.shape[1], columns : columns + part.shape[2]] = True
    inside = np.pad(np.ones((size, size), bool), half)
    largest = 0.3
    while not known[inside].all():
        neighbors = sliding_window_view(np.pad(known, 1), (3, 3)).sum(axis=(2, 3))
        layer = generator.permutation(np.argwhere(inside & ~known & (neighbors > 0)))
        layer = layer[np.argsort(-neighbors[layer[:, 0], layer[:, 1]], kind="stable")]
        taken = False
        for y, x in layer:
            around = np.s_[y - half : y + half + 1, x - half : x + half + 1]
            mask = np.flatnonzero(np.tile(known[around].ravel(), channels))
            template = made[:, *around].reshape(-1)[mask]
            weight = weights[mask]
            distances = (weight / weight.sum()) @ np.square(patches[mask] - template[:, None])
            best = distances.min()
            if best < largest:
                candidates = np.flatnonzero(distances <= (1 + tolerance) * best)
                row, column = divmod(int(generator.choice(candidates)), across)
                made[:, y, x] = colors[:, row + half, column + half]
                known[y, x] = taken = True
        if not taken:
            largest *= 1.1
    return torch.from_numpy(np.rint(255 * made[:, half:-half, half:-half]).astype(np.uint8))


def seconds(run: Run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def speed(args: argparse.Namespace) -> None:
    print("\n| texture | start | ours | loop, float32 : ours | pairs | loop, float64 : ours | pairs |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in args.photographs:
        source = cut(name, args.source, 100)
        for keep in (False, True):
            sizes: dict[str, Any] = {"size": args.size, "window": args.window, "keep_source": keep}
            runs = [partial(efros_leung, source, **sizes)]
            runs += [partial(plain, source, **sizes, dtype=dtype) for dtype in (np.float32, np.float64)]
            for run in runs:  # warm-up
                run()
            times: list[list[float]] = []
            for i in range(args.repeats):
                # Whoever comes second finds the caches as the other left them: take turns.
                order = range(3) if i % 2 == 0 else reversed(range(3))
                took = {which: seconds(runs[which]) for which in order}
                times.append([took[which] for which in range(3)])
            ours, *others = (statistics.median(t[i] for t in times) for i in range(3))
            row = [name, "source" if keep else "3×3 px", f"{ours:.2f} s"]
            for i, other in enumerate(others, start=1):
                ratios = [t[i] / t[0] for t in times]
                row += [f"{other / ours:.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]
            print(f"| {' | '.join(row)} |", flush=True)


def error(args: argparse.Namespace) -> None:
    print("\n| texture | another part | ours | plain loop | ours, copies=False | quilting |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in args.photographs:
        source = cut(name, args.source, 100)
        sizes: dict[str, Any] = {"size": args.size, "window": args.window}
        makers: list[Callable[[int], Tensor]] = [
            lambda seed, source=source, sizes=sizes: efros_leung(source, **sizes, seed=seed).image,
            lambda seed, source=source, sizes=sizes: plain(source, **sizes, seed=seed),
            lambda seed, source=source, sizes=sizes: efros_leung(source, **sizes, copies=False, seed=seed).image,
            lambda seed, source=source: image_quilting(source, size=args.size, seed=seed).image,
        ]
        row = [name, f"{255 * patch_error(cut(name, args.size, 300), source):.2f}"]
        for make in makers:
            values = [255 * patch_error(make(seed), source) for seed in range(args.seeds)]
            row.append(f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}")
        print(f"| {' | '.join(row)} |", flush=True)


PARTS = {"speed": speed, "error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--photographs", nargs="*", choices=PHOTOGRAPHS, default=list(PHOTOGRAPHS))
    parser.add_argument("--source", type=int, default=64, help="side of the source, px (%(default)s)")
    parser.add_argument("--size", type=int, default=80, help="side of the texture, px (%(default)s)")
    parser.add_argument("--window", type=int, default=11, help="side of the windows, px (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5, help="textures whose error is measured")
    args = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ",
        end="",
    )
    print(f"numpy {np.__version__}; {args.source}² to {args.size}² px, window {args.window}")
    for part in args.parts:
        PARTS[part](args)


if __name__ == "__main__":
    main()
