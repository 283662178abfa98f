"""`dream` on files: what it writes, and that it is the function's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_viz import draw, functional
from lit_viz.cli import main
from lit_viz.networks import load_network
from lit_viz.pixels import PixelSpace
from lit_viz.video import write_video

NET = ["--model", "small_cnn", "--mean", "0.5", "--std", "0.25"]
QUICK = ["--octaves", "2", "--steps", "2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photograph, and a checkpoint of a network."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.chelsea()[::6, ::6]).save("cat.png")
    torch.manual_seed(0)
    torch.save(load_network("small_cnn", num_classes=3).module.state_dict(), "net.pt")
    return tmp_path


def tensorboard(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "pictures" / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


def test_a_photograph_of_its_own_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["dream", "cat.png", *NET, "--weights", "net.pt", "--layer", "relu3", *QUICK])
    said = capsys.readouterr().out
    assert "pictures/cat-dream.png  objective" in said and "tensorboard --logdir" in said
    module, space = load_network("small_cnn", num_classes=3, weights="net.pt").module, PixelSpace(0.5, 0.25)
    picture = np.asarray(Image.open("cat.png"))
    image = space.from_color(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255)
    dream = functional.deep_dream(module, image, "relu3", octaves=2, steps=2, pixels=space)
    written = np.asarray(Image.open("pictures/cat-dream.png"))
    np.testing.assert_array_equal(written, draw.to_uint8(space.to_color(dream.images))[0])
    assert written.shape == picture.shape
    events = tensorboard(folder)
    assert [e.step for e in events.Images("dream/cat/octaves")] == [0, 1]
    assert len(events.Images("dream/cat")) == 1
    history = torch.cat([octave.history[:, 0] for octave in dream.octaves])
    np.testing.assert_allclose([e.value for e in events.Scalars("dream/cat/objective")], history, rtol=1e-5)


def test_all_that_can_be_said(folder: Path) -> None:
    Image.fromarray(data.coffee()[::8, ::8]).save("cup.jpg")
    more = ["--channels", "1,5", "--guide", "cup.jpg", "--size", "40", "--tile", "32", "--seed", "3"]
    main(["dream", "cat.png", *NET, "--weights", "net.pt", "--layer", "relu3", *more, *QUICK, "--out", "out"])
    assert Image.open("out/cat-dream.png").size == (60, 40)


def test_without_a_layer_one_is_chosen_and_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["dream", "cat.png", *NET, "--weights", "net.pt", *QUICK])
    assert "layer pool2; --layer names another one" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_a_video_that_falls_into_the_dream(folder: Path, kind: str) -> None:
    if kind == "mp4":
        pytest.importorskip("imageio_ffmpeg")
    video = ["--zoom", "3", "--video", kind, "--zoom-factor", "1.1"]
    main(["dream", "cat.png", *NET, "--weights", "net.pt", "--layer", "relu3", *QUICK, *video])
    path = folder / "pictures" / f"cat-dream.{kind}"
    assert _frames(path) == 3
    assert [e.step for e in tensorboard(folder).Images("dream/cat/zoom")] == [0, 1, 2]
    assert not list((folder / "pictures").glob("*partial*"))


def _frames(path: Path) -> int:
    if path.suffix == ".gif":
        return int(getattr(Image.open(path), "n_frames", 0))
    import imageio_ffmpeg

    return int(imageio_ffmpeg.count_frames_and_secs(str(path))[0])


def test_ctrl_c_keeps_the_frames_there_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, frames = functional.dream_zoom, 0

    def stopped(*args: Any, **kwargs: Any) -> Any:
        for dream in original(*args, **kwargs):
            nonlocal frames
            frames += 1
            yield dream if frames < 3 else type(dream)(dream.images, dream.octaves, dream.notes, None, True)
            if frames == 3:
                return

    monkeypatch.setattr(functional, "dream_zoom", stopped)
    main(["dream", "cat.png", *NET, "--weights", "net.pt", "--layer", "relu3", *QUICK, "--zoom", "9"])
    assert _frames(folder / "pictures" / "cat-dream.gif") == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layer", "relu9"], "no layer 'relu9'"),
        (["--layer", "relu3", "--channels", "x"], "whole numbers"),
        (["--layer", "relu3", "--octaves", "0"], "octaves"),
        (["--zoom", "0"], "zoom"),
        (["--guide", "nothing.jpg"], "nothing.jpg"),
    ],
)
def test_mistakes_are_told(folder: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["dream", "cat.png", *NET, "--weights", "net.pt", *QUICK, *arguments])
    assert words in str(stopped.value) + capsys.readouterr().err


def test_a_broken_file_does_not_stop_the_rest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match="1"):
        main(["dream", "broken.png", "cat.png", *NET, "--weights", "net.pt", "--layer", "relu3", *QUICK])
    assert "broken.png" in capsys.readouterr().err and Path("pictures/cat-dream.png").is_file()


def test_without_the_extra_mp4_is_refused_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(SystemExit, match=r"lit-viz\[video\]"):
        main(["dream", "cat.png", *NET, "--weights", "net.pt", "--zoom", "2", "--video", "mp4"])


def test_videos(tmp_path: Path) -> None:
    from lit_viz.errors import UsageError

    frames = [np.full((9, 12, 3), v, np.uint8) for v in (0, 90, 200)]
    path = write_video(tmp_path / "a.gif", iter(frames), fps=5)
    gif = Image.open(path)
    assert (gif.n_frames, gif.size, gif.info["duration"]) == (3, (12, 9), 200)
    gif.seek(2)
    np.testing.assert_array_equal(np.asarray(gif.convert("RGB")), frames[2])
    for name, given, words in (("a.avi", frames, "no ending of a video"), ("b.gif", [], "at least one frame")):
        with pytest.raises(UsageError, match=words):
            write_video(tmp_path / name, given)

    def fails() -> Any:
        yield frames[0]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_video(tmp_path / "c.gif", fails())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gif"]
