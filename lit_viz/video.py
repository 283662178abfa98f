"""Moving pictures as files: GIF with what is there anyway, MP4 with an extra."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lit_viz.errors import UsageError

FORMATS = ("gif", "mp4")


def check_video(path: str | Path) -> None:
    """Raises `UsageError` unless a video of that name can be written, so that nobody works for nothing."""
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise UsageError(f"{path} has no ending of a video; call it {Path(path).stem or 'video'}.gif or .mp4.")
    if kind == "mp4":
        try:
            import imageio_ffmpeg  # noqa: F401
        except ImportError as error:
            raise UsageError('MP4 files need an extra: pip install "lit-viz[video]". GIF needs none.') from error


def write_video(path: str | Path, frames: Iterable[NDArray[np.uint8]], *, fps: float = 10.0) -> Path:
    """Writes frames as they come, into a file that is there whole or not at all.

    Args:
        path: Ends in .gif (256 colours) or .mp4 (H.264; an odd last row or column is left out).
        frames: uint8 (H, W, 3), of one shape; at least one.
        fps: Frames per second.

    Raises:
        UsageError: For another ending, a missing package, or no frame.
    """
    path = Path(path)
    check_video(path)
    if not fps > 0:
        raise UsageError(f"fps must be positive, got {fps}.")
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise UsageError("a video needs at least one frame.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        write = _write_gif if path.suffix.lower() == ".gif" else _write_mp4
        write(partial, first, iterator, fps)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _write_gif(path: Path, first: NDArray[np.uint8], rest: Iterator[NDArray[np.uint8]], fps: float) -> None:
    others = (Image.fromarray(frame) for frame in rest)
    duration = round(1000 / fps)
    Image.fromarray(first).save(path, format="gif", save_all=True, append_images=others, duration=duration, loop=0)


def _write_mp4(path: Path, first: NDArray[np.uint8], rest: Iterator[NDArray[np.uint8]], fps: float) -> None:
    import imageio_ffmpeg

    height, width = (side // 2 * 2 for side in first.shape[:2])
    if not height or not width:
        raise UsageError(f"frames of {first.shape[1]}×{first.shape[0]} px are too small for MP4; take GIF.")
    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=fps, codec="libx264", quality=8, macro_block_size=1, ffmpeg_log_level="error"
    )
    writer.send(None)
    try:
        for frame in chain([first], rest):
            writer.send(np.ascontiguousarray(frame[:height, :width]))
    finally:
        writer.close()
