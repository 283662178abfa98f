"""The command `invert`, run as a user would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_viz import draw
from lit_viz.cli import main
from lit_viz.functional import invert_features
from lit_viz.networks import input_facts, load_network, network_inputs

TINY = "tests.conformance.harness.TinyNet"


@pytest.fixture
def network_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Weights of a small network, with two photographs beside them, in the working folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(load_network(TINY).module.state_dict(), "tiny.pt")
    Image.fromarray(data.chelsea()).save("cat.png")
    Image.fromarray(data.coffee()).save("cup.jpg")
    return "tiny.pt"


def invert(*args: str) -> None:
    main(["invert", "--model", TINY, "--size", "16", "--mean", "0.5", "--std", "0.25", *args])


def test_files_entries_and_a_line_for_each_layer(network_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    invert("cat.png", "cup.jpg", "--weights", "tiny.pt", "--layers", "conv1,relu2", "--restarts", "2", "--steps", "3")
    printed = capsys.readouterr().out
    parts = [f"{layer}-{restart}" for layer in ("conv1", "relu2") for restart in (1, 2)]
    for name in ("cat", "cup"):
        assert Image.open(f"pictures/{name}.png").size[0] <= 1000
        assert {p.stem for p in Path("pictures", name).glob("*.png")} == set(parts)
        assert f"pictures/{name}.png" in printed
    network = load_network(TINY, weights=network_file)
    ((image, space, _),) = network_inputs("cat.png", input_facts(network, mean=0.5, std=0.25, size=16))
    found = invert_features(network.module, image, ["conv1", "relu2"], restarts=2, steps=3, pixels=space)
    for layer in ("conv1", "relu2"):
        for restart in (0, 1):
            expected = draw.to_uint8(space.to_color(found.images[layer][restart, 0]))
            np.testing.assert_array_equal(np.asarray(Image.open(f"pictures/cat/{layer}-{restart + 1}.png")), expected)
        assert f"{float(found.psnr[layer].mean()):.1f} dB" in printed
    events = EventAccumulator("pictures/tensorboard")
    events.Reload()
    assert [e.step for e in events.Images("inversion/forming/cat")] == [1, 2, 3]
    (error,) = events.Scalars("inversion/cat/relu2/error")
    assert error.value == pytest.approx(float(found.errors["relu2"].mean()), rel=1e-3)


def test_one_for_all_layers(network_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    invert("cat.png", "--weights", network_file, "--layers", "conv1,relu2", "--jointly", "--steps", "1")
    assert [p.name for p in Path("pictures/cat").glob("*.png")] == ["conv1+relu2.png"]
    printed = capsys.readouterr().out
    assert "conv1 " in printed and "relu2 " in printed


def test_a_file_that_is_broken_is_named_and_the_rest_goes_on(
    network_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as stop:
        invert("broken.png", "cat.png", "--weights", network_file, "--steps", "1", "--out", "made")
    assert stop.value.code == 1 and "broken.png" in capsys.readouterr().err
    assert Path("made/cat.png").exists() and not Path("made/broken.png").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["cat.png", "--layers", "conv9"], "no layer 'conv9'; did you mean"),
        (["cat.png", "--out", "."], "would take the place of the image"),
        (["cat.png", "--steps", "0"], "steps must be"),
        (["cat.png", "--restarts", "0"], "restarts must be"),
    ],
)
def test_mistakes_end_in_one_line(
    network_file: str, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        invert(*arguments, "--weights", network_file)
    assert told in f"{stop.value.code}{capsys.readouterr().err}"
