"""A trained style network for files: pictures, videos, and folders of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from lit_viz import draw
from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.temporal import Steady
from lit_viz.networks.style_network import Style, load_style_network, style_shares
from lit_viz.networks.tiled_style import TILE, stylized
from lit_viz.networks.transformer_net import TransformerNet
from lit_viz.pictures import eight_bit_alpha, read_picture, whole
from lit_viz.styles import picture_colors
from lit_viz.video import FILMS, check_video, is_video, read_video, write_video

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings of files in folders that are taken for pictures."""
_LARGE = 4  # tiles, from which on a bar shows how far an image is


class Styled(Protocol):
    """What has a network and names of its styles, such as `FastStyleTransfer` and `StyleNetwork`."""

    @property
    def net(self) -> TransformerNet: ...

    @property
    def style_names(self) -> Sequence[str]: ...


@dataclass
class Stylized:
    """What came of files.

    Attributes:
        written: Results, in the order of what they were made from.
        failed: What could not be read or written, and why.
    """

    written: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


def stylize(
    model: str | os.PathLike[str] | Styled,
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "pictures",
    *,
    style: Style | None = None,
    strength: float = 1.0,
    keep_colors: bool = False,
    size: int | None = None,
    tile: int = TILE,
    smooth: float = 0.0,
    video: str | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
    on_file: Callable[[Path, Path | str], None] | None = None,
) -> Stylized:
    """Stylises pictures, videos, and all of them in folders, of any size, with a trained style network.

    A picture becomes `<out>/<its name>-<style>.png`, upright, RGB in 8 bits, with its transparency and its colour
    profile. A video becomes one of the same kind, GIF or MP4, with its frames per second and its sound. Folders are
    searched with all that is below them, in alphabetical order, and results lie in folders of the same names. Where
    two results would have one name, or one that of an input, it gets a number.

    What can't be read or written is told in the result, and the rest goes on. Results are there whole or not at all:
    Ctrl-C, a `KeyboardInterrupt` here, leaves those that were done by then. The same checkpoint and the same file give
    the same bytes, on the same machine with the same settings.

    Args:
        model: A checkpoint of `FastStyleTransfer`, or such a module.
        inputs: Files and folders.
        out: Folder for results; is made where it is missing.
        style: Name, number from 0, or a blend of styles, see `style_shares`; None for the only one.
        strength: From 0, the picture as it is, to 1, see `stylized`.
        keep_colors: Take over brightness alone.
        size: Longer side that pictures and frames are brought to, px; None for their own.
        tile: Side of tiles, px: memory against time.
        smooth: From 0 to below 1: how much videos hold on to where nothing moves, see `Steady`; 0.8 takes away most
            flicker.
        video: "gif" or "mp4"; by default what moves as GIF, PNG or WebP becomes a GIF, and all else MP4.
        device: By default that of the module, and for a checkpoint the CPU.
        progress: Whether bars show how far it is.
        on_file: Is called for each file with its result, or with what is wrong with it.

    Raises:
        UsageError: For arguments out of range, and where there is nothing to stylise.

    Examples:
        stylize("style.ckpt", ["photo.jpg", "holiday/", "clip.mp4"], style="waves")
    """
    made_by = _Stylist(model, style, strength, keep_colors, size, tile, smooth, device, progress)
    if video is not None:
        check_video(f"video.{video}")
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    files = _listed([Path(each) for each in given], Path(out))
    names = _names(files, Path(out), made_by.label, video)
    done = Stylized()
    for (file, _), path in zip(files, names, strict=True):
        try:
            made_by.write(file, path)
        except (UsageError, OSError, RuntimeError, MemoryError) as error:
            done.failed.append((file, _fault(file, error)))
            told: Path | str = done.failed[-1][1]
        else:
            done.written.append(path)
            told = path
        if on_file is not None:
            on_file(file, told)
    return done


def _fault(file: Path, error: BaseException) -> str:
    """One sentence about what went wrong, which names the file."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        text = next(iter(str(error).splitlines()), "") or type(error).__name__
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in text):
        text = "too large for memory; give a smaller tile, or a smaller size"
    elif isinstance(error, RuntimeError):
        raise error
    return text if str(file) in text else f"{file}: {text}"


def _listed(given: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Files with their places below the folder of results; none twice, and no results of before."""
    found: list[tuple[Path, Path]] = []
    for path in given:
        if not path.is_dir():
            found.append((path, Path(path.name)))
            continue
        if path.resolve() == out.resolve():
            raise UsageError(f"{path} is read, and results are written to it too; give another folder as out.")
        inner = sorted((f.relative_to(path) for f in path.rglob("*")), key=lambda f: f.parts)
        kept = [
            f
            for f in inner
            if f.suffix.lower() in (*PICTURES, *FILMS)
            and not any(part.startswith(".") for part in f.parts)
            and not (path / f).resolve().is_relative_to(out.resolve())
            and (path / f).is_file()
        ]
        if not kept and len(given) == 1:
            raise UsageError(f"there is no picture and no video in the folder {path}.")
        found += [(path / f, f) for f in kept]
    if not found:
        raise UsageError("give files or folders to stylise.")
    unique: dict[Path, tuple[Path, Path]] = {}
    for file, place in found:
        unique.setdefault(file.resolve(), (file, place))
    return list(unique.values())


def _names(files: Sequence[tuple[Path, Path]], out: Path, label: str, video: str | None) -> list[Path]:
    """Results, no two of one name on any file system, and none in place of an input."""
    taken, paths = {str(file.resolve()).casefold() for file, _ in files}, []
    for file, place in files:
        suffix = ".png"
        if is_video(file):
            suffix = f".{video}" if video else ".mp4" if file.suffix.lower() in FILMS else ".gif"
        name, number = f"{place.stem}-{label}", 1
        path = out / place.with_name(f"{name}{suffix}")
        while str(path.resolve()).casefold() in taken:
            number += 1
            path = path.with_name(f"{name}-{number}{suffix}")
        taken.add(str(path.resolve()).casefold())
        paths.append(path)
    return paths


class _Stylist:
    """A network on its device, and how it is to be used."""

    def __init__(
        self,
        model: str | os.PathLike[str] | Styled,
        style: Style | None,
        strength: float,
        keep_colors: bool,
        size: int | None,
        tile: int,
        smooth: float,
        device: str | torch.device | None,
        progress: bool,
    ) -> None:
        if size is not None:
            check_at_least("size", size, 1, " pixel")
        found = load_style_network(model) if isinstance(model, (str, os.PathLike)) else model
        self.net = found.net
        if device is not None:
            try:
                self.net.to(torch.device(device))
            except (RuntimeError, AssertionError) as error:
                raise UsageError(f"device {str(device)!r} can't be had: {str(error).splitlines()[0]}") from error
        self.device = self.net.last.weight.device
        shares, self.label = style_shares(style, found.style_names)
        self.style = None if self.net.styles == 1 else shares.to(self.device)
        self.size, self.smooth, self.progress, self.tile = size, smooth, progress, tile
        self.settings = {"tile": tile, "strength": strength, "keep_colors": keep_colors}
        # Mistakes are told before any work is done.
        Steady(smooth)
        stylized(self.net, torch.zeros(1, 3, 16, 16, device=self.device), self.style, **self.settings)

    def write(self, file: Path, path: Path) -> None:
        """Stylises a file."""
        if is_video(file):
            self._video(file, path)
            return
        source = read_picture(file)
        profile = source.info.get("icc_profile") if source.mode in ("RGB", "RGBA") else None
        picture, opacity = eight_bit_alpha(source)
        large = max(picture.size) > _LARGE * self.tile
        made = Image.fromarray(self._made(self._sized(picture), None, self.progress and large))
        if opacity is not None:
            made.putalpha(opacity.resize(made.size, Image.Resampling.LANCZOS))
        with whole(path) as partial:
            made.save(partial, format="png", icc_profile=profile)

    def _video(self, file: Path, path: Path) -> None:
        video = read_video(file)
        frames = tqdm(
            video.frames, total=video.count, desc=file.name, unit="frame", disable=not self.progress, leave=False
        )
        film = path.suffix == ".mp4"
        write_video(
            path,
            self._frames(frames),
            fps=video.fps,
            durations=None if film else video.durations,
            sound=file if film and video.sound else None,
        )

    def _frames(self, frames: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        steady = Steady(self.smooth) if self.smooth and self.settings["strength"] else None
        for frame in frames:
            yield self._made(self._sized(Image.fromarray(frame)), steady, False)

    def _sized(self, picture: Image.Image) -> Image.Image:
        if self.size is None or max(picture.size) == self.size:
            return picture
        scale = self.size / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        return picture.resize(size, Image.Resampling.LANCZOS)

    def _made(self, picture: Image.Image, steady: Steady | None, progress: bool) -> NDArray[np.uint8]:
        """(H, W, 3)."""
        colors = picture_colors(picture).to(self.device)
        seen = colors if steady is None else steady.seen(colors)
        made = stylized(self.net, seen, self.style, progress=progress, **self.settings)
        made = made if steady is None else steady.shown(made)
        return draw.to_uint8(made)[0]
