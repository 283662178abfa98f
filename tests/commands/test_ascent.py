"""`train.py ascent`: files, what is told of them, and TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_viz import functional
from lit_viz.cli import main
from lit_viz.functional.synthesis import eight_bit_rounded
from lit_viz.networks import SmallCNN, load_network
from lit_viz.pixels import PixelSpace
from tests import digits

SPACE = PixelSpace((0.5,), (0.25,))
SMALL = ["--size", "32", "--mean", "0.5", "--std", "0.25"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    file = tmp_path / "net.pt"
    torch.save(SmallCNN(4, 3, width=4, kernel_size=5).eval().state_dict(), file)
    return file


def small(checkpoint: Path, out: Path, *more: str) -> None:
    options = ["--model", "tests.commands.test_ascent.Net", "--weights", str(checkpoint), "--out", str(out)]
    main(["ascent", *options, *SMALL, *more])


class Net(SmallCNN):
    def __init__(self, num_classes: int = 4) -> None:
        super().__init__(num_classes, 3, width=4, kernel_size=5)


class Seen(Net):
    """One that names its classes, two of them alike."""

    class_names = ("crane", "crane", "red fox", "tabby, cat")


class One(Net):
    def __init__(self) -> None:
        super().__init__(1)


def read(path: Path) -> torch.Tensor:
    return SPACE.from_color(torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255)


def test_files_hold_what_the_function_makes(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    small(checkpoint, out, "--classes", "2,0", "--steps", "8", "--snapshots", "4", "--seed", "5")
    told = capsys.readouterr().out.splitlines()
    model = load_network("tests.commands.test_ascent.Net", weights=checkpoint).module.eval()
    made = functional.activation_maximization(model, [2, 0], shape=(3, 32, 32), steps=8, seed=5, pixels=SPACE)
    rounded = eight_bit_rounded(made.images, SPACE)
    for i, (index, line) in enumerate(zip((2, 0), told, strict=False)):
        image = read(out / f"class-{index}.png")
        torch.testing.assert_close(image, rounded[i], atol=1e-5, rtol=0)
        with torch.no_grad():
            p = float(model(image[None]).softmax(dim=1)[0, index])
        note = f"  ({made.notes[i]})" if made.notes[i] else ""
        assert line == f"{out / f'class-{index}.png'}  probability {p:.3f}{note}"
    assert told[2] == str(out / "ascent.png") and "tensorboard --logdir" in told[4]
    assert np.array(Image.open(out / "ascent.png")).ndim == 3
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [e.step for e in events.Images("ascent/class-2")] == [2, 4, 6, 8]
    objective = events.Scalars("ascent/class-2/objective")
    assert [e.step for e in objective] == [2, 4, 6, 8]
    assert objective[-1].value == pytest.approx(float(made.history[7, 0]), rel=1e-4)


def test_names_of_classes_and_files(checkpoint: Path, tmp_path: Path) -> None:
    options = ["--model", "tests.commands.test_ascent.Seen", "--weights", str(checkpoint), *SMALL, "--steps", "1"]
    main(["ascent", *options, "--classes", "0,1,fox,cat,fox", "--out", str(tmp_path / "out")])
    names = sorted(p.name for p in (tmp_path / "out").glob("*.png"))
    assert names == ["0-crane.png", "1-crane.png", "2-red-fox.png", "3-tabby-cat.png", "ascent.png"]


@pytest.mark.parametrize(
    ("channels", "wanted"), [("3,5", [3, 5]), ("6,", [6]), ("3", [0, 4, 7]), ("99", list(range(8)))]
)
def test_channels_of_a_layer(checkpoint: Path, tmp_path: Path, capsys: Any, channels: str, wanted: list[int]) -> None:
    small(checkpoint, tmp_path / "out", "--layer", "conv2", "--channels", channels, "--steps", "1", "--unit")
    assert {p.name for p in (tmp_path / "out").glob("conv2-*.png")} == {f"conv2-{c}.png" for c in wanted}
    assert capsys.readouterr().out.count("response") == len(wanted)


def test_tokens_of_a_transformer(tmp_path: Path, capsys: Any) -> None:
    options = ["--model", "tests.commands.test_ascent.tiny_vit", "--weights", "none", "--size", "32", "--steps", "2"]
    layer = ["--layer", "encoder.layers.encoder_layer_1", "--channels", "2"]
    main(["ascent", *options, *layer, "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "encoder.layers.encoder_layer_1-23.png").is_file()
    assert "response" in capsys.readouterr().out


def tiny_vit() -> torch.nn.Module:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=3)


def test_starts_from_an_image_file(checkpoint: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.png"
    picture = np.random.default_rng(0).integers(60, 200, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(picture).save(start)
    more = ["--classes", "1", "--recipe", "plain", "--steps", "1", "--start", str(start)]
    small(checkpoint, tmp_path / "out", *more)
    # One step of 0.01 in colours, root mean square.
    change = np.array(Image.open(tmp_path / "out" / "class-1.png")).astype(float) - picture
    assert 1.0 < np.sqrt((change**2).mean()) < 4.0
    with pytest.raises(SystemExit, match="would take the place of the image"):
        start.rename(tmp_path / "class-1.png")
        small(checkpoint, tmp_path, *more[:-1], str(tmp_path / "class-1.png"))


def test_one_logit_has_two_classes(tmp_path: Path, capsys: Any) -> None:
    options = ["--model", "tests.commands.test_ascent.One", "--weights", "none", *SMALL]
    main(["ascent", *options, "--classes", "0,1", "--steps", "20", "--out", str(tmp_path / "out")])
    told = [float(line.split("probability ")[1][:5]) for line in capsys.readouterr().out.splitlines()[:2]]
    assert min(told) > 0.45


def test_digits_from_a_checkpoint(tmp_path: Path, capsys: Any) -> None:
    torch.save(digits.classifier().state_dict(), tmp_path / "digits.pt")
    options = ["--model", "tests.digits.Convolutional", "--weights", str(tmp_path / "digits.pt"), *SMALL]
    main(["ascent", *options, "--classes", "0,1,2,3,4,5,6,7,8,9", "--out", str(tmp_path / "out")])
    told = [float(line.split("probability ")[1][:5]) for line in capsys.readouterr().out.splitlines()[:10]]
    assert min(told) >= 0.99


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "give --classes"),
        (["--classes", "1", "--layer", "conv2"], "one of the two"),
        (["--classes", "9"], "out of range"),
        (["--classes", "crane"], "no names|no class"),
        (["--layer", "conv7"], "no layer 'conv7'"),
        (["--layer", "conv2", "--channels", "8,"], "channels 0 to 7"),
        (["--layer", "conv2", "--channels", "a"], "channels are numbers"),
        (["--classes", "1", "--recipe", "natural!"], "no recipe"),
        (["--classes", "1", "--decoder", "none.ckpt"], "no decoder at"),
        (["--classes", "1", "--steps", "0"], "steps must be"),
        (["--classes", "1", "--start", "nowhere.png"], "nowhere.png"),
    ],
)
def test_what_is_wrong_is_told(checkpoint: Path, tmp_path: Path, more: list[str], told: str) -> None:
    with pytest.raises(SystemExit, match=told):
        small(checkpoint, tmp_path / "out", *more)
