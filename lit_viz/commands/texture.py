"""`texture`: more of a texture, or a hole in a photograph filled with it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.color import lab2rgb
from torch import Tensor

from lit_viz import draw, functional
from lit_viz.commands.base import Results, output_paths, short_path
from lit_viz.errors import UsageError, check_at_least
from lit_viz.pictures import eight_bit, read_picture

# The shorter side of a source that a method is through with in about a minute, px.
_LARGEST = {"quilting": 512, "efros-leung": 96}
_SHADE = 150


def run(args: Sequence[str]) -> None:
    """Writes the texture, and a sheet of it beside its source and where its pixels come from.

    Ctrl-C keeps what there is.
    """
    given = _parser().parse_args(args)
    method = given.method or ("efros-leung" if given.hole else "quilting")
    if given.size and given.hole:
        raise UsageError("give --size for more of a texture, or --hole for one that is to be filled, not both.")
    if given.hole and method == "quilting":
        raise UsageError("square blocks don't fit into holes; fill them with --method efros-leung.")
    files = [given.image, given.hole] if given.hole else [given.image]
    output_paths(given, files, ["texture.png", "texture-sheet.png"])
    source, hole = _read(given, method)
    results = Results(given.out)
    made = METHODS[method](given, source, hole)
    path = results.picture("texture", _pixels(made.image), tag="texture/made")
    height, width = made.image.shape[1:]
    stopped = "  stopped by hand" if made.interrupted else ""
    print(f"{short_path(path)}  {method}, {width}×{height} px{stopped}", flush=True)
    sheet = _sheet(source, hole, made, f"Texture · {method} · {Path(given.image).name}")
    print(short_path(results.picture("texture-sheet", sheet, tag="texture/sheet")), flush=True)
    results.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        f"{Path(sys.argv[0]).name} texture",
        description="Makes more of a texture, or fills a hole in a photograph with what is around it.",
    )
    parser.add_argument("image", help="image file with the texture")
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="quilting (blocks: quick, the default) or efros-leung (pixel by pixel: slow, the default for holes)",
    )
    parser.add_argument(
        "--size", type=_size, help="of the texture, px, such as 256 or 320x200 (width first); by default twice"
    )
    parser.add_argument("--hole", help="image file of the same size, white where the photograph is to be filled")
    parser.add_argument(
        "--side",
        type=int,
        help="shorter side that the photograph is brought to first, px; by default at most "
        f"{', '.join(f'{side} for {name}' for name, side in _LARGEST.items())}, and with a hole its own",
    )
    parser.add_argument(
        "--window", type=int, default=11, help="efros-leung: side of its windows, px, odd (%(default)s)"
    )
    parser.add_argument("--keep-source", action="store_true", help="efros-leung: grow around the whole photograph")
    parser.add_argument(
        "--no-copies", action="store_true", help="efros-leung: more variety, where whole parts of the source are copied"
    )
    parser.add_argument(
        "--block", type=int, help="quilting: side of its blocks, px; by default a quarter of the source"
    )
    parser.add_argument("--overlap", type=int, help="quilting: of its blocks, px; by default a sixth of them")
    parser.add_argument(
        "--tolerance", type=float, default=0.1, help="how much worse than the best a match may be (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (%(default)s)")
    parser.add_argument("--out", default="pictures", help="folder for what is made (%(default)s)")
    return parser


def _size(text: str) -> tuple[int, int]:
    """Height and width."""
    words = text.casefold().replace("×", "x").split("x")
    if len(words) > 2 or not all(word.strip().isdigit() for word in words):
        raise argparse.ArgumentTypeError(f"a size is a number of pixels, or two as in 320x200, not {text!r}.")
    return int(words[-1]), int(words[0])


def _quilting(given: argparse.Namespace, source: Tensor, hole: Tensor | None) -> functional.Texture:
    return functional.image_quilting(
        source,
        size=_wanted(given, source),
        block=given.block,
        overlap=given.overlap,
        tolerance=given.tolerance,
        seed=given.seed,
        progress=True,
    )


def _efros_leung(given: argparse.Namespace, source: Tensor, hole: Tensor | None) -> functional.Texture:
    return functional.efros_leung(
        source,
        size=None if hole is not None else _wanted(given, source),
        hole=hole,
        keep_source=given.keep_source,
        window=given.window,
        tolerance=given.tolerance,
        copies=not given.no_copies,
        seed=given.seed,
        progress=True,
    )


METHODS: dict[str, Callable[[argparse.Namespace, Tensor, Tensor | None], functional.Texture]] = {
    "quilting": _quilting,
    "efros-leung": _efros_leung,
}
"""By name, from what was typed, the source uint8 (C, H, W) and the hole bool (H, W), if any."""


def _wanted(given: argparse.Namespace, source: Tensor) -> tuple[int, int]:
    return given.size or (2 * source.shape[1], 2 * source.shape[2])


def _read(given: argparse.Namespace, method: str) -> tuple[Tensor, Tensor | None]:
    """The photograph, uint8 (C, H, W), and the hole in it, bool (H, W)."""
    picture = read_picture(given.image)
    grey = picture.mode in ("1", "L", "LA", "F") or picture.mode.startswith("I")
    picture = eight_bit(picture, 1 if grey else 3)
    mask = None if given.hole is None else eight_bit(read_picture(given.hole), 1)
    if mask is not None and mask.size != picture.size:
        raise UsageError(
            f"{given.hole} has {mask.width}×{mask.height} px, but {given.image} {picture.width}×{picture.height}; a "
            f"hole is marked on a picture of the same size."
        )
    side = given.side
    if side is not None:
        check_at_least("side", side, 1, " pixel")
    elif mask is None and min(picture.size) > _LARGEST[method]:
        side = _LARGEST[method]
        print(f"{Path(given.image).name} is brought to {side} px; --side says otherwise", flush=True)
    if side is not None:
        size = tuple(max(1, round(length * side / min(picture.size))) for length in picture.size)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        mask = mask and mask.resize(size, Image.Resampling.NEAREST)
    pixels = torch.from_numpy(np.array(picture)).reshape(picture.height, picture.width, -1).permute(2, 0, 1)
    return pixels, None if mask is None else torch.from_numpy(np.array(mask)) > 127


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    """(H, W, 3) of (C, H, W)."""
    return np.ascontiguousarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy())


def _sheet(source: Tensor, hole: Tensor | None, made: functional.Texture, title: str) -> NDArray[np.uint8]:
    there = np.ones(source.shape[1:], bool) if hole is None else ~hole.numpy()
    places = np.where(there, np.stack(np.mgrid[: source.shape[1], : source.shape[2]]), -1)
    shown = np.where(there[..., None], _pixels(source), np.uint8(_SHADE))
    size = (source.shape[1], source.shape[2])
    card = draw.Card(
        [shown, place_colors(places, size), _pixels(made.image), place_colors(made.positions.numpy(), size)]
    )
    return draw.sheet(
        [card],
        columns=("source", "each place a colour", "texture", "where its pixels come from"),
        title=title,
        subtitle="Where colours change smoothly, a piece of the source is as it was; where they come again, it does.",
    )


def place_colors(positions: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Places in a source as colours of one lightness: green to red from left to right, blue to yellow downwards.

    Args:
        positions: (2, H, W) rows and columns, -1 for none, which is grey.
        size: Height and width of the source.

    Returns:
        (H, W, 3).
    """
    down, across = (2 * (p / max(1, side - 1)) - 1 for p, side in zip(positions, size, strict=True))
    lab = np.stack([np.full(down.shape, 72.0), 45 * across, 45 * down], axis=-1)
    colors = np.rint(255 * np.clip(lab2rgb(lab), 0, 1)).astype(np.uint8)
    return np.where((positions[0] < 0)[..., None], np.uint8(_SHADE), colors)
