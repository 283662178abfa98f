"""`fool`: the file that is written fools the network, and what goes wrong is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lit_viz.commands import run_command
from lit_viz.errors import UsageError
from lit_viz.networks import load_network
from lit_viz.pictures import read_picture
from lit_viz.pixels import PixelSpace


def tiny() -> nn.Module:
    """Five classes, always the same; sure of itself."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 5))
        net[4].weight.data *= 30
    return net


NETWORK = [
    "--model",
    "tests.commands.test_fool.tiny",
    "--weights",
    "none",
    "--size",
    "40",
    "--mean",
    "0.5",
    "--std",
    "0.2",
]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = []
    for name, picture in (("cat.png", data.chelsea()), ("coffee.jpg", data.coffee())):
        Image.fromarray(picture).save(tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths


def prediction(path: Path) -> tuple[int, float]:
    """By a way of our own from the file to the network."""
    colors = torch.from_numpy(np.array(read_picture(path))).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        p = tiny()((colors - 0.5) / 0.2).softmax(1)[0]
    return int(p.argmax()), float(p.max())


@pytest.mark.parametrize(
    "way", [[], ["--norm", "linf", "--bound", "30/255"], ["--norm", "l2"]], ids=["plain", "bound", "least"]
)
def test_files_fool_the_network(
    way: list[str], files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run_command("fool", [*files, *NETWORK, "--to", "3,1", "--out", str(out), *way])
    lines = capsys.readouterr().out.splitlines()
    for line, name, target in zip(lines, ("cat", "coffee"), (3, 1), strict=False):
        path = out / f"{name}-fooled.png"
        best, p = prediction(path)
        assert best == target and p >= 0.9
        assert read_picture(path).size == (40, 40)
        assert line.startswith(str(path)) and f"→ class {target} {p:.2f}" in line and "L∞" in line
    assert (out / "fooling.png").is_file()
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {"fooling/cat-fooled", "fooling/coffee-fooled", "fooling/sheet"}
    assert {f"fooling/cat-fooled/{n}" for n in ("l2", "linf", "steps")} <= set(events.Tags()["scalars"])
    if "--bound" in way:
        assert max(events.Scalars(f"fooling/{n}-fooled/linf")[0].value for n in ("cat", "coffee")) <= 30 / 255 + 1e-6


def test_what_can_not_be_read_is_named_and_the_rest_goes_on(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, out = tmp_path / "broken.png", tmp_path / "out"
    broken.write_text("no picture")
    missing = str(tmp_path / "missing.png")
    with pytest.raises(SystemExit) as stopped:
        run_command("fool", [str(broken), files[0], missing, *NETWORK, "--to", "0,3,1", "--out", str(out)])
    assert stopped.value.code == 1
    told = capsys.readouterr()
    assert str(broken) in told.err and missing in told.err
    assert prediction(out / "cat-fooled.png")[0] == 3  # the second of the targets still belongs to the second file
    assert not (out / "broken-fooled.png").exists()
    with pytest.raises(SystemExit):
        run_command("fool", [missing, *NETWORK, "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_images_that_are_not_fooled_are_named(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_command(
            "fool", [files[0], *NETWORK, "--to", "least_likely", "--steps", "1", "--out", str(tmp_path / "out")]
        )
    assert stopped.value.code == 1
    told = capsys.readouterr()
    assert "not fooled" in told.err and "give more steps" in told.err
    assert (tmp_path / "out" / "fooling.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bound", "8/255"], "a bound is one of a norm"),
        (["--confidence", "1"], "below 1"),
        (["--to", "1,2,3"], "3 classes for 2 images"),
        (["--to", "9"], "out of range"),
        (["--to", "toaster"], "toaster"),
    ],
)
def test_mistakes_are_told(arguments: list[str], message: str, files: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        run_command("fool", [*files, *NETWORK, "--out", str(tmp_path / "out"), *arguments])


def test_fractions(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command("fool", [*files, *NETWORK, "--norm", "l2", "--bound", "much"])
    assert "no number such as 8/255" in capsys.readouterr().err


def test_a_cup_of_coffee_becomes_a_toaster(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    way = ["--to", "toaster", "--norm", "linf", "--bound", "8/255", "--out", str(tmp_path / "out")]
    run_command("fool", [files[1], "--model", "efficientnet_lite0", *way])
    assert "espresso" in capsys.readouterr().out
    network = load_network("efficientnet_lite0", weights="DEFAULT")
    space = network.pixel_space or PixelSpace()
    colors = torch.from_numpy(np.array(read_picture(tmp_path / "out" / "coffee-fooled.png"))).permute(2, 0, 1)[None]
    with torch.no_grad():
        p = network.module.eval()(space.from_color(colors / 255)).softmax(1)[0]
    assert network.class_names is not None
    assert network.class_names[int(p.argmax())] == "toaster" and p.max() >= 0.9
