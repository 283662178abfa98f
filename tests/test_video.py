"""Videos read and written."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from lit_viz.errors import UsageError
from lit_viz.video import is_video, read_video, write_video

FRAMES = [np.full((20, 32, 3), value, np.uint8) for value in (0, 80, 160, 240)]


def test_gifs_come_back_as_they_were(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.gif", FRAMES, fps=5)
    video = read_video(path)
    assert (video.fps, video.durations, video.count, video.sound) == (5.0, None, 4, False)
    np.testing.assert_array_equal(np.stack(list(video.frames)), np.stack(FRAMES))
    video = read_video(write_video(path, FRAMES, durations=[100, 100, 300, 100]))
    assert video.durations == [100, 100, 300, 100] and video.fps == pytest.approx(4 / 0.6)


def test_films_come_back_nearly(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    video = read_video(write_video(tmp_path / "a.mp4", FRAMES, fps=24))
    made = np.stack(list(video.frames)).astype(int)
    assert (video.fps, video.sound) == (24.0, False) and abs(made - np.stack(FRAMES)).max() < 8


def test_sound_is_taken_over(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    tone = np.sin(np.arange(8000) / 4) * 20000
    wavfile.write(tmp_path / "tone.wav", 8000, tone.astype(np.int16))
    path = write_video(tmp_path / "a.mp4", FRAMES, fps=4, sound=tmp_path / "tone.wav")
    assert read_video(path).sound and len(list(read_video(path).frames)) == 4


def test_what_moves_is_a_video(tmp_path: Path) -> None:
    Image.fromarray(FRAMES[0]).save(tmp_path / "still.gif")
    pictures = [Image.fromarray(frame) for frame in FRAMES]
    for name in ("moving.gif", "moving.webp", "moving.png"):
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=50)
        assert is_video(tmp_path / name)
        made = np.stack(list(read_video(tmp_path / name).frames)).astype(int)
        assert abs(made - np.stack(FRAMES)).max() < 4
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    assert not any(is_video(tmp_path / name) for name in ("still.gif", "broken.gif", "no.gif", "a.jpg"))
    assert is_video("a.MOV")


def test_a_film_that_is_not_written_to_its_end_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setattr(imageio_ffmpeg, "count_frames_and_secs", lambda path: (3, 0.3))
    with pytest.raises(OSError, match="disk full"):
        write_video(tmp_path / "a.mp4", FRAMES)
    assert not list(tmp_path.iterdir())


def test_what_is_no_video_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(UsageError, match=r"no video file .*b\.mp4"):
        read_video(tmp_path / "b.mp4")
    for name in ("a.gif", "a.mp4"):
        with pytest.raises(UsageError, match=rf"broken video file .*{name}"):
            read_video(tmp_path / name)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UsageError, match=r"lit-viz\[video\]"):
        read_video(tmp_path / "a.mp4")
