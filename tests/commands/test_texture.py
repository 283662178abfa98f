"""The command `texture`, run as a user would."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lit_viz import functional
from lit_viz.cli import main
from lit_viz.commands.texture import place_colors


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grey and a coloured photograph in the working folder."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.brick()[100:140, 100:150]).save("brick.png")
    Image.fromarray(data.coffee()[100:130, 300:340]).save("cup.png")


def tensor(file: str) -> Tensor:
    pixels = np.array(Image.open(file))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def written(file: str = "pictures/texture.png") -> np.ndarray:
    return np.array(Image.open(file))


def shown(made: functional.Texture) -> np.ndarray:
    return made.image.expand(3, -1, -1).permute(1, 2, 0).numpy()


def test_quilts_are_the_functions(capsys: pytest.CaptureFixture[str]) -> None:
    main(["texture", "brick.png"])
    printed = capsys.readouterr().out
    assert "pictures/texture.png  quilting, 100×80 px" in printed and "tensorboard --logdir" in printed
    np.testing.assert_array_equal(written(), shown(functional.image_quilting(tensor("brick.png"), size=(80, 100))))
    assert Image.open("pictures/texture-sheet.png").size[0] <= 1000
    events = EventAccumulator("pictures/tensorboard").Reload()
    assert set(events.Tags()["images"]) == {"texture/made", "texture/sheet"}
    main(
        ["texture", "cup.png", "--size", "33x21", "--block", "9", "--overlap", "3", "--tolerance", "0.3", "--seed", "2"]
    )
    made = functional.image_quilting(tensor("cup.png"), size=(21, 33), block=9, overlap=3, tolerance=0.3, seed=2)
    np.testing.assert_array_equal(written(), shown(made))


def test_efros_leung_is_the_functions() -> None:
    way = ["--method", "efros-leung", "--window", "5", "--out", "out"]
    main(["texture", "cup.png", *way, "--size", "20", "--seed", "3", "--no-copies"])
    made = functional.efros_leung(tensor("cup.png"), size=20, window=5, seed=3, copies=False)
    np.testing.assert_array_equal(written("out/texture.png"), shown(made))
    main(["texture", "cup.png", *way, "--size", "44x32", "--keep-source"])
    np.testing.assert_array_equal(written("out/texture.png")[1:31, 2:42], written("cup.png"))


def test_a_hole_is_filled() -> None:
    mask = np.zeros((40, 50), np.uint8)
    mask[10:16, 20:27] = 255
    Image.fromarray(mask).save("hole.png")
    main(["texture", "brick.png", "--hole", "hole.png", "--window", "7"])
    made = functional.efros_leung(tensor("brick.png"), hole=torch.from_numpy(mask > 0), window=7)
    np.testing.assert_array_equal(written(), shown(made))
    main(["texture", "brick.png", "--hole", "hole.png", "--window", "7", "--side", "20"])
    assert written().shape == (20, 25, 3)


def test_large_photographs_are_made_smaller_and_that_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(data.gravel()[:200, :300]).save("gravel.png")
    main(["texture", "gravel.png", "--method", "efros-leung", "--window", "3", "--size", "12"])
    assert "gravel.png is brought to 96 px; --side" in capsys.readouterr().out
    main(["texture", "gravel.png", "--size", "30"])
    assert "brought" not in capsys.readouterr().out


def test_what_was_there_at_ctrl_c_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = functional.image_quilting

    def stopped(*args: Any, **kwargs: Any) -> functional.Texture:
        made = original(*args, **kwargs)
        made.positions[:, 20:] = -1
        return dataclasses.replace(made, interrupted=True)

    monkeypatch.setattr(functional, "image_quilting", stopped)
    main(["texture", "brick.png", "--size", "30"])
    assert "stopped by hand" in capsys.readouterr().out and written().shape == (30, 30, 3)


def test_places_have_colours_of_their_own() -> None:
    colors = place_colors(np.stack(np.mgrid[:6, :9]), (6, 9))
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == 54
    missing = place_colors(np.full((2, 1, 1), -1), (6, 9))[0, 0]
    assert len(set(missing.tolist())) == 1
    assert place_colors(np.zeros((2, 2, 3), int), (1, 1)).shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "20x"], "320x200"),
        (["--size", "0"], "at least 1"),
        (["--hole", "cup.png"], "same size"),
        (["--hole", "nothing.png"], "nothing.png"),
        (["--hole", "brick.png", "--size", "9"], "not both"),
        (["--hole", "brick.png", "--method", "quilting"], "square blocks"),
        (["--method", "efros-leung", "--window", "8"], "odd"),
        (["--block", "99"], "don't fit"),
        (["--side", "0"], "at least 1 pixel"),
    ],
)
def test_mistakes_are_told(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["texture", "brick.png", *arguments])
    assert words in str(stopped.value) + capsys.readouterr().err
    assert not Path("pictures").exists() or not list(Path("pictures").glob("*.png"))


def test_the_photograph_is_not_written_over() -> None:
    Path("brick.png").rename("texture.png")
    with pytest.raises(SystemExit, match="take the place"):
        main(["texture", "texture.png", "--out", "."])
