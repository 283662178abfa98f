"""The command from a folder of images to pictures on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lit_viz.commands import run_command
from lit_viz.errors import UsageError


class Colors(nn.Module):
    """Three classes: red, green and blue."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3, bias=False)
        self.head.weight.data = 8 * torch.eye(3)
        self.class_names = ["red", "green", "blue"]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.mean(dim=(2, 3)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight reds, bright and dark, five greens, and a file that is no image."""
    random = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(13):
        picture = random.integers(0, 30, (20, 20, 3))
        picture[..., 0 if i < 8 else 1] += 200 if i % 2 else 110
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "in" / f"{i:02}.png")
    (tmp_path / "in" / "broken.png").write_text("no image")
    return tmp_path / "in"


def command(folder: Path, *extra: str) -> None:
    name = f"{__name__}.Colors"
    base = [str(folder), "--model", name, "--weights", "none", "--size", "16", "--mean", "0", "--std", "1"]
    run_command("facets", [*base, "--facets", "2", "--steps", "6", "--out", str(folder.parent / "out"), *extra])


def test_the_class_that_is_predicted_most(folder: Path, capsys: Any) -> None:
    command(folder)
    told = capsys.readouterr()
    assert "8 of 13 images are taken for red" in told.out
    assert "broken.png" in told.err
    out = folder.parent / "out"
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {"facets.png", "facet-1.png", "facet-2.png", "mean-1.png", "mean-2.png"}
    assert list((out / "tensorboard").glob("events*"))
    means = [np.asarray(Image.open(out / f"mean-{k}.png")).astype(float) for k in (1, 2)]
    made = [np.asarray(Image.open(out / f"facet-{k}.png")).astype(float) for k in (1, 2)]
    assert all(picture.shape == (16, 16, 3) for picture in [*means, *made])
    # Bright reds and dark ones, four of each; the ascent makes both redder.
    assert sorted(round(m[..., 0].mean(), -1) for m in means) == [120, 210]
    for mean, image in zip(means, made, strict=True):
        excess = [(p[..., 0] - p[..., 1:].mean(axis=-1)).mean() for p in (mean, image)]
        assert excess[1] > excess[0]


def test_a_class_that_is_named_takes_all_images_or_those_taken_for_it(folder: Path, capsys: Any) -> None:
    command(folder, "--target", "green")
    assert "5 of the 13 images are taken for green; all are used." in capsys.readouterr().out
    command(folder, "--target", "green", "--predicted")
    assert "5 of 13 images are taken for green." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--target", "blue", "--predicted"], "none of the 13 images"),
        (["--target", "red,green"], "one class"),
        (["--facets", "0"], "--facets"),
    ],
)
def test_what_can_t_work_is_told(folder: Path, extra: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        command(folder, *extra)


def test_a_folder_without_images_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no image"):
        command(tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        command(tmp_path / "nowhere")
