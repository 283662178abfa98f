"""Moving pictures as files: GIF with what is there anyway, MP4 with an extra."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from lit_viz.errors import UsageError
from lit_viz.pictures import BROKEN, eight_bit, whole

FORMATS = ("gif", "mp4")
FILMS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
"""Endings of files that are videos and nothing else; read with the extra `video`."""
_MOVING = (".gif", ".png", ".apng", ".webp")  # pictures that may move
_STILL = 100  # ms, for frames of a GIF that don't say how long they are shown


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


@dataclass(frozen=True)
class Video:
    """A moving picture that is read as it goes.

    Attributes:
        frames: uint8 (H, W, 3), all of one shape; can be gone through once. Raises `UsageError` where the file breaks
            off.
        fps: Frames per second, their mean where they are shown for different times.
        durations: For how long each frame is shown, ms; None where all are for as long.
        count: How many frames, about; None where that is not known.
        sound: Whether there is any.
    """

    frames: Iterator[NDArray[np.uint8]]
    fps: float
    durations: Sequence[int] | None = None
    count: int | None = None
    sound: bool = False


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a video by its ending, or a picture (GIF, PNG, WebP) of several frames."""
    suffix = Path(path).suffix.lower()
    if suffix not in _MOVING:
        return suffix in FILMS
    try:
        with Image.open(path) as picture:
            return getattr(picture, "n_frames", 1) > 1
    except BROKEN:
        return False


def read_video(path: str | os.PathLike[str]) -> Video:
    """Opens a video, to be read frame by frame; what is transparent becomes white.

    Raises:
        UsageError: If there is no such file, it is no video, or the extra for its format is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"there is no video file {path}.")
    return _read_moving(path) if path.suffix.lower() in _MOVING else _read_film(path)


def _read_moving(path: Path) -> Video:
    def frames() -> Iterator[NDArray[np.uint8]]:
        try:
            with Image.open(path) as picture:
                for frame in ImageSequence.Iterator(picture):
                    yield np.array(eight_bit(frame, 3))
        except BROKEN as error:
            raise _broken(path, error) from error

    durations = []
    try:
        with Image.open(path) as picture:
            for frame in ImageSequence.Iterator(picture):
                frame.load()
                durations.append(round(frame.info.get("duration", 0)) or _STILL)
    except BROKEN as error:
        raise _broken(path, error) from error
    fps = 1000 * len(durations) / sum(durations)
    return Video(frames(), fps, durations if len(set(durations)) > 1 else None, len(durations))


def _read_film(path: Path) -> Video:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UsageError(f'to read {path} takes an extra: pip install "lit-viz[video]". GIF needs none.') from error
    reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
    try:
        told = next(reader)
    except (OSError, RuntimeError, ValueError, IndexError, StopIteration) as error:
        reader.close()
        raise _broken(path, "no video in it") from error
    width, height = told["size"]

    def frames() -> Iterator[NDArray[np.uint8]]:
        try:
            for frame in reader:
                yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
        except (OSError, RuntimeError) as error:
            raise _broken(path, error) from error
        finally:
            reader.close()

    fps = told.get("fps") or 25.0
    count = round(fps * told.get("duration", 0)) or None
    return Video(frames(), fps, None, count, bool(told.get("audio_codec")))


def _broken(path: Path, error: object) -> UsageError:
    return UsageError(f"broken video file {path} ({str(error).splitlines()[0] if str(error) else error!r}).")


def write_video(
    path: str | Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    fps: float = 10.0,
    durations: Sequence[int] | None = None,
    sound: str | Path | None = None,
) -> Path:
    """Writes frames as they come, into a file that is there whole or not at all.

    Args:
        path: Ends in .gif (256 colours) or .mp4 (H.264; an odd last row or column is left out).
        frames: uint8 (H, W, 3), of one shape; at least one.
        fps: Frames per second.
        durations: Of a GIF: for how long each frame is shown, ms, in place of `fps`.
        sound: Of an MP4: a file whose sound it gets.

    Raises:
        UsageError: For another ending, a missing package, or no frame.
        OSError: If it can't be written to its end.
    """
    path = Path(path)
    check_video(path)
    if not fps > 0:
        raise UsageError(f"fps must be positive, got {fps}.")
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise UsageError("a video needs at least one frame.")
    with whole(path) as partial:
        if path.suffix.lower() == ".gif":
            _write_gif(partial, first, iterator, round(1000 / fps) if durations is None else list(durations))
        else:
            _write_mp4(partial, first, iterator, fps, sound)
    return path


def _write_gif(
    path: Path, first: NDArray[np.uint8], rest: Iterator[NDArray[np.uint8]], duration: int | list[int]
) -> None:
    others = (Image.fromarray(frame) for frame in rest)
    Image.fromarray(first).save(path, format="gif", save_all=True, append_images=others, duration=duration, loop=0)


def _write_mp4(
    path: Path, first: NDArray[np.uint8], rest: Iterator[NDArray[np.uint8]], fps: float, sound: str | Path | None
) -> None:
    import imageio_ffmpeg

    height, width = (side // 2 * 2 for side in first.shape[:2])
    if not height or not width:
        raise UsageError(f"frames of {first.shape[1]}×{first.shape[0]} px are too small for MP4; take GIF.")
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=fps,
        codec="libx264",
        quality=8,
        macro_block_size=1,
        ffmpeg_log_level="error",
        audio_path=None if sound is None else str(sound),
    )
    writer.send(None)
    count = 0
    try:
        for frame in chain([first], rest):
            writer.send(np.ascontiguousarray(frame[:height, :width]))
            count += 1
    finally:
        writer.close()
    # The program that writes tells nobody how it ended.
    try:
        written = imageio_ffmpeg.count_frames_and_secs(str(path))[0]
    except RuntimeError:
        written = None
    if written != count:
        raise OSError("the video could not be written to its end; is the disk full?")
