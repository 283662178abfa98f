"""Pictures of any kind, from files and elsewhere, as plain 8-bit ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lit_viz.errors import UsageError

BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that are no pictures."""


def read_picture(file: str | os.PathLike[str]) -> Image.Image:
    """The picture in a file, in whatever mode it has.

    Raises:
        UsageError: If there is no such file, or it is no picture that can be read to its end.
    """
    if not Path(file).is_file():
        raise UsageError(f"there is no image file {file}.")
    try:
        with Image.open(file) as picture:
            picture.load()
            return picture
    except BROKEN as error:
        raise UsageError(f"broken image file {file} ({error}).") from error


def eight_bit(picture: Image.Image, channels: int) -> Image.Image:
    """A picture of any mode as plain grey (`channels=1`) or RGB (`channels=3`), upright, in 8 bits.

    What is transparent becomes white; 16-bit and floating-point values are scaled, not cut off.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture).astype(np.float32)
        top = float(values.max())
        full = 65535.0 if picture.mode != "F" else next((b for b in (1.0, 255.0) if top <= b), top)
        picture = Image.fromarray(np.clip(values / full * 255, 0, 255).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB" if channels == 3 else "L")


def eight_bit_alpha(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """A picture of any mode as RGB, upright, in 8 bits, and how opaque it is (mode L); None where all of it is.

    What can't be seen at all becomes white; what shines through keeps its own colour.
    """
    if not picture.has_transparency_data:
        return eight_bit(picture, 3), None
    picture = ImageOps.exif_transpose(picture).convert("RGBA")
    opacity = picture.getchannel("A")
    if opacity.getextrema() == (255, 255):
        return picture.convert("RGB"), None
    white = Image.new("RGB", picture.size, "white")
    return Image.composite(picture.convert("RGB"), white, opacity.point(lambda value: 255 if value else 0)), opacity


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file that is there whole or not at all: what this yields is written, and then takes its place.

    Makes the folder where it is missing. Whatever stops the writing, Ctrl-C too, nothing is left of it, and a file
    that was there before stays.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with whole(folder / "a.txt") as partial:
    ...     _ = partial.write_text("all of it")
    >>> [file.name for file in folder.iterdir()]
    ['a.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # With its ending, by which writers know what is wanted.
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
