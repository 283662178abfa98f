"""Files, folders and videos in the style of a trained network: what is written, and what happens where it can't be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from skimage import data
from torch import nn
from torch.utils.data import DataLoader

import lit_viz
from lit_viz import draw, stylizing
from lit_viz.errors import UsageError
from lit_viz.modules import FastStyleTransfer
from lit_viz.networks.tiled_style import stylized
from lit_viz.networks.transformer_net import ConditionalInstanceNorm
from lit_viz.stylizing import stylize
from lit_viz.video import Video, read_video, write_video


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that Lightning saved, of a network of two styles that was not trained."""
    path = tmp_path_factory.mktemp("trained") / "style.ckpt"
    torch.manual_seed(0)
    model = FastStyleTransfer(["waves", "tissue"], width=4, blocks=1)
    for module in model.modules():
        if isinstance(module, ConditionalInstanceNorm):
            for gamma, beta in zip(module.gamma, module.beta, strict=True):
                nn.init.normal_(gamma, 1, 0.3)
                nn.init.normal_(beta, 0, 0.3)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


PHOTO = data.coffee()[100:171, 200:293]  # 93 × 71 px


def photo(name: str = "cup.png") -> Path:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PHOTO).save(name)
    return Path(name)


def expected(pixels: np.ndarray, checkpoint: Path, style: int = 0, **settings: Any) -> np.ndarray:
    """By the module itself."""
    model = FastStyleTransfer.load_from_checkpoint(checkpoint, weights_only=True)
    assert model.loss is None  # what it was trained by is not needed
    colors = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
    return draw.to_uint8(stylized(model.net, colors, torch.tensor([style]), **settings))[0]


def read(path: str | Path) -> np.ndarray:
    return np.array(Image.open(path))


def files(folder: str | Path = "pictures") -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in Path(folder).rglob("*") if f.is_file())


def test_a_picture_comes_out_as_the_network_makes_it(checkpoint: Path) -> None:
    done = stylize(checkpoint, photo(), style="tissue", tile=32)
    assert done.written == [Path("pictures/cup-tissue.png")] and not done.failed
    np.testing.assert_array_equal(read("pictures/cup-tissue.png"), expected(PHOTO, checkpoint, 1, tile=32))
    first = Path("pictures/cup-tissue.png").read_bytes()
    model = FastStyleTransfer.load_from_checkpoint(checkpoint, weights_only=True)
    assert lit_viz.stylize(model, ["cup.png"], style=1, tile=32).written
    assert Path("pictures/cup-tissue.png").read_bytes() == first


def test_trainers_predict_images_of_any_size(checkpoint: Path) -> None:
    model = FastStyleTransfer.load_from_checkpoint(checkpoint, weights_only=True)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    wide = np.concatenate([PHOTO] * 7, axis=1)  # more than a tile
    images = [torch.from_numpy(pixels).permute(2, 0, 1) / 255 for pixels in (PHOTO, PHOTO[:7, :9], wide)]
    made = trainer.predict(model, DataLoader(images, batch_size=1))  # type: ignore[arg-type]
    for colors, pixels in zip(made or [], (PHOTO, PHOTO[:7, :9], wide), strict=True):
        np.testing.assert_array_equal(draw.to_uint8(colors)[0], expected(pixels, checkpoint))
    assert model.loss is None


def test_options_reach_the_network(checkpoint: Path) -> None:
    photo()
    stylize(checkpoint, "cup.png", "a", style=0, strength=0.5, keep_colors=True)
    np.testing.assert_array_equal(read("a/cup-waves.png"), expected(PHOTO, checkpoint, strength=0.5, keep_colors=True))
    stylize(checkpoint, "cup.png", "b", style={"waves": 1, "tissue": 3})
    blend = read("b/cup-waves-25-tissue-75.png").astype(float)
    ends = [expected(PHOTO, checkpoint, style) for style in (0, 1)]
    assert all(abs(blend - end).max() > 5 for end in ends)
    stylize(checkpoint, "cup.png", "c", style=0, size=40)
    small = np.array(Image.fromarray(PHOTO).resize((40, 31), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(read("c/cup-waves.png"), expected(small, checkpoint))
    stylize(checkpoint, "cup.png", "d", style=0, strength=0)
    np.testing.assert_array_equal(read("d/cup-waves.png"), PHOTO)


GREY = PHOTO[..., 0]


def _exif(path: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(PHOTO).save(path, exif=exif, quality=100, subsampling=0)


KINDS: dict[str, tuple[Any, Any]] = {
    "grey.png": (lambda f: Image.fromarray(GREY).save(f), np.dstack([GREY] * 3)),
    "deep.png": (lambda f: Image.fromarray(GREY.astype(np.uint16) * 257).save(f), np.dstack([GREY] * 3)),
    "palette.gif": (lambda f: Image.fromarray(PHOTO).quantize(16).save(f), None),
    "cmyk.jpg": (lambda f: Image.fromarray(PHOTO).convert("CMYK").save(f), None),
    "turned.jpg": (_exif, None),
    "bits.png": (lambda f: Image.fromarray(GREY > 90).save(f), np.dstack([np.uint8(255) * (GREY > 90)] * 3)),
    "point.png": (lambda f: Image.fromarray(PHOTO[:1, :1]).save(f), PHOTO[:1, :1]),
    "sliver.png": (lambda f: Image.fromarray(PHOTO[:3]).save(f), PHOTO[:3]),
}


@pytest.mark.parametrize("name", KINDS)
def test_pictures_of_any_kind(name: str, checkpoint: Path) -> None:
    save, pixels = KINDS[name]
    save(name)
    done = stylize(checkpoint, name, style=0)
    made = Image.open(done.written[0])
    assert made.mode == "RGB" and not done.failed
    if pixels is None:
        pixels = np.array(Image.open(name).convert("RGB"))
    if name == "turned.jpg":
        pixels = np.rot90(pixels, -1)
    np.testing.assert_array_equal(np.array(made), expected(pixels, checkpoint))


def test_transparency_stays(checkpoint: Path) -> None:
    opacity = np.full(PHOTO.shape[:2], 255, np.uint8)
    opacity[:, :30], opacity[:, 30:60] = 0, 128
    Image.fromarray(np.dstack([PHOTO, opacity])).save("glass.png")
    stylize(checkpoint, "glass.png", style=0)
    made = read("pictures/glass-waves.png")
    np.testing.assert_array_equal(made[..., 3], opacity)
    shown = PHOTO.copy()
    shown[:, :30] = 255
    np.testing.assert_array_equal(made[..., :3], expected(shown, checkpoint))
    Image.fromarray(np.dstack([PHOTO, np.full_like(opacity, 255)])).save("solid.png")
    stylize(checkpoint, "solid.png", style=0)
    assert read("pictures/solid-waves.png").shape[2] == 3


def test_folders_are_walked_and_no_result_replaces_another(checkpoint: Path) -> None:
    for name in ("in/b.png", "in/a.png", "in/sub/a.png", "in/.hidden/a.png", "in/a.jpg", "a.png", "other/A.png"):
        photo(name)
    Path("in/notes.txt").write_text("no picture")
    told: list[Path] = []
    done = stylize(
        checkpoint, ["in", "a.png", "other/A.png", "a.png"], style=0, on_file=lambda file, _: told.append(file)
    )
    assert [str(f) for f in told] == ["in/a.jpg", "in/a.png", "in/b.png", "in/sub/a.png", "a.png", "other/A.png"]
    assert [str(path.relative_to("pictures")) for path in done.written] == [
        "a-waves.png",
        "a-waves-2.png",
        "b-waves.png",
        "sub/a-waves.png",
        "a-waves-3.png",
        "A-waves-4.png",
    ]
    again = stylize(checkpoint, ".", "pictures", style=0)  # results of before are no inputs
    assert not any("pictures" in str(path.relative_to("pictures")) for path in again.written)


def test_inputs_are_never_replaced(checkpoint: Path) -> None:
    photo("cup.png")
    photo("cup-waves.png")
    before = Path("cup-waves.png").read_bytes()
    done = stylize(checkpoint, ["cup.png", "cup-waves.png"], ".", style=0)
    assert [path.name for path in done.written] == ["cup-waves-2.png", "cup-waves-waves.png"]
    assert Path("cup-waves.png").read_bytes() == before
    with pytest.raises(UsageError, match="another folder"):
        stylize(checkpoint, ".", ".", style=0)


def test_what_can_not_be_read_is_told_and_the_rest_goes_on(checkpoint: Path) -> None:
    photo("in/z.png")
    whole = Path("in/z.png").read_bytes()
    Path("in/a.png").write_bytes(whole[: len(whole) // 2])
    Path("in/b.jpg").write_bytes(b"no picture")
    Path("in/c.gif").write_bytes(b"GIF89a")
    Path("in/d.mp4").write_bytes(b"no video")
    done = stylize(checkpoint, ["in", "missing.png", "missing.mp4"], style=0)
    assert done.written == [Path("pictures/z-waves.png")] and files() == ["z-waves.png"]
    assert [file.name for file, _ in done.failed] == ["a.png", "b.jpg", "c.gif", "d.mp4", "missing.png", "missing.mp4"]
    assert all(str(file) in fault and "\n" not in fault for file, fault in done.failed)


def test_results_are_whole_or_not_there(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [photo(name) for name in ("a.png", "b.png", "c.png")]
    save = Image.Image.save
    fault: list[BaseException] = [OSError(28, "No space left on device")]

    def fails(self: Image.Image, path: Path, *args: Any, **kwargs: Any) -> None:
        if "b-waves" in str(path):
            Path(path).write_bytes(b"half")
            raise fault[0]
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", fails)
    done = stylize(checkpoint, names, style=0)
    assert files() == ["a-waves.png", "c-waves.png"]
    assert [(file.name, text) for file, text in done.failed] == [("b.png", "b.png: No space left on device")]
    fault[0] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        stylize(checkpoint, names, "more", style=0)
    assert files("more") == ["a-waves.png"]


def test_memory_that_is_lacking_is_told_and_other_faults_are_not_hidden(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo()
    faults = iter([RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError(), RuntimeError("a bug")])

    def fails(*args: Any, **kwargs: Any) -> None:
        raise next(faults)

    monkeypatch.setattr(stylizing._Stylist, "_made", fails)
    for _ in range(2):
        assert "cup.png: too large for memory" in stylize(checkpoint, "cup.png", style=0).failed[0][1]
    with pytest.raises(RuntimeError, match="a bug"):
        stylize(checkpoint, "cup.png", style=0)


def noisy(count: int, seed: int = 0, scene: np.ndarray = PHOTO) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield np.clip(scene + 6 * generator.normal(size=scene.shape), 0, 255).round().astype(np.uint8)


def shown(path: str | Path) -> np.ndarray:
    return np.stack(list(read_video(path).frames)).astype(float)


def flicker(frames: np.ndarray) -> float:
    return float(np.abs(np.diff(frames, axis=0)).mean())


def test_gifs_keep_their_times(checkpoint: Path) -> None:
    scenes = [PHOTO, 255 - PHOTO, PHOTO[::-1]]
    write_video("clip.gif", scenes, durations=[50, 200, 120])
    done = stylize(checkpoint, "clip.gif", style=0)
    made = read_video(done.written[0])
    assert done.written == [Path("pictures/clip-waves.gif")] and made.durations == [50, 200, 120]
    for frame, scene in zip(made.frames, read_video("clip.gif").frames, strict=True):
        assert np.abs(frame.astype(int) - expected(scene, checkpoint)).mean() < 6  # of 256 colours


def test_films_keep_their_frames_a_second(checkpoint: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    write_video("clip.mp4", list(noisy(5)), fps=12.5)
    done = stylize(checkpoint, "clip.mp4", style=0)
    assert done.written == [Path("pictures/clip-waves.mp4")]
    made = read_video("pictures/clip-waves.mp4")
    frames = list(made.frames)
    assert made.fps == 12.5 and len(frames) == 5 and frames[0].shape == (70, 92, 3)
    for frame, scene in zip(frames, read_video("clip.mp4").frames, strict=True):
        assert np.abs(frame.astype(int) - expected(scene, checkpoint)).mean() < 8  # of compression
    assert stylize(checkpoint, "clip.mp4", style=0, video="gif").written == [Path("pictures/clip-waves.gif")]


def test_smoothness_takes_flicker_away_and_leaves_cuts(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [*noisy(8), *noisy(4, seed=1, scene=255 - PHOTO)]
    made: dict[float, np.ndarray] = {}
    # Without what GIF's few colours do.
    monkeypatch.setattr(stylizing, "is_video", lambda file: True)
    monkeypatch.setattr(stylizing, "read_video", lambda file: Video(iter(scenes), 10.0))
    for smooth in (0.0, 0.8):
        monkeypatch.setattr(
            stylizing,
            "write_video",
            lambda path, frames, **_: made.update({smooth: np.stack(list(frames))}),  # noqa: B023
        )
        stylize(checkpoint, "clip.gif", style=0, smooth=smooth)
    plain, steady = made[0.0].astype(float), made[0.8].astype(float)
    assert flicker(steady[4:8]) < 0.3 * flicker(plain[4:8])
    np.testing.assert_array_equal(steady[[0, 8]], plain[[0, 8]])
    for index in (0, 8):
        np.testing.assert_array_equal(plain[index], expected(scenes[index], checkpoint))


def test_videos_are_not_held_in_memory(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[tuple[str, int]] = []

    def frames() -> Iterator[np.ndarray]:
        for index, frame in enumerate(noisy(4)):
            reached.append(("read", index))
            yield frame

    def write(path: Path, made: Iterator[np.ndarray], **_: Any) -> None:
        reached.extend(("written", index) for index, _ in enumerate(made))

    monkeypatch.setattr(stylizing, "is_video", lambda file: True)
    monkeypatch.setattr(stylizing, "read_video", lambda file: Video(frames(), 10.0))
    monkeypatch.setattr(stylizing, "write_video", write)
    stylize(checkpoint, "clip.gif", style=0)
    assert reached == [(what, index) for index in range(4) for what in ("read", "written")]


def test_a_video_that_breaks_off_leaves_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video("clip.gif", list(noisy(6)), fps=10)
    whole = Path("clip.gif").read_bytes()
    Path("short.gif").write_bytes(whole[: len(whole) * 2 // 3])
    done = stylize(checkpoint, ["short.gif", "clip.gif"], style=0)
    assert [file.name for file, _ in done.failed] == ["short.gif"] and files() == ["clip-waves.gif"]
    original, calls = stylizing.stylized, iter(range(9))

    def stopped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(stylizing, "stylized", stopped)
    with pytest.raises(KeyboardInterrupt):
        stylize(checkpoint, "clip.gif", "more", style=0)
    assert files("more") == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"style": None}, "2 styles, say which"),
        ({"style": "wave"}, "did you mean 'waves'"),
        ({"strength": 2}, "strength lies"),
        ({"tile": 8}, "tile must be"),
        ({"size": 0}, "size must be"),
        ({"smooth": 1}, "smooth lies"),
        ({"video": "avi"}, "no ending of a video"),
        ({"device": "nowhere"}, "device 'nowhere'"),
        ({"inputs": []}, "give files or folders"),
        ({"inputs": "empty"}, "no picture and no video in the folder empty"),
    ],
)
def test_mistakes_are_told_before_work_is_done(settings: dict[str, Any], words: str, checkpoint: Path) -> None:
    photo()
    Path("empty").mkdir()
    with pytest.raises(UsageError, match=words):
        stylize(checkpoint, **{"inputs": "cup.png", "style": 0, **settings})
    assert not Path("pictures").exists()
