"""The command `stylize`, and `predict` with files, run as a user would."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from lit_viz import stylizing
from lit_viz.cli import main
from lit_viz.commands import command_of
from lit_viz.commands import stylize as command
from lit_viz.networks.style_network import StyleNetwork
from lit_viz.networks.transformer_net import TransformerNet
from lit_viz.video import write_video


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint, a picture and a video in the working folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = TransformerNet(width=4, blocks=1, styles=2)
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    told = {"width": 4, "blocks": 1, "norm": "instance"}
    torch.save({"state_dict": state, "hyper_parameters": told, "styles": ["waves", "my/tissue.png"]}, "net.ckpt")
    Image.fromarray(data.coffee()[100:164, 200:270]).save("cup.png")
    Path("more").mkdir()
    Image.fromarray(data.chelsea()[50:100, 100:180]).save("more/cat.jpg")
    write_video("more/clip.gif", [data.coffee()[i : i + 20, :40] for i in range(3)], fps=8)


NET = ["--checkpoint", "net.ckpt"]


def files(folder: str = "pictures") -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["stylize", "a.jpg"], "stylize"),
        (["predict", "a.jpg", "--ckpt_path", "x"], "stylize"),
        (["predict", "--checkpoint", "x", "a.jpg"], "stylize"),
        (["predict", "--checkpoint=x", "a.jpg"], "stylize"),
        (["predict", "--config", "x.yaml", "--ckpt_path", "x"], None),
        (["predict"], None),
        (["fit", "--config", "x.yaml"], None),
        (["show", "a.jpg"], "show"),
        ([], None),
    ],
)
def test_predict_with_files_is_stylize(arguments: list[str], found: str | None) -> None:
    assert command_of(arguments) == found


def test_files_folders_and_videos(capsys: pytest.CaptureFixture[str]) -> None:
    main(["stylize", "cup.png", "more", *NET, "--style", "tissue", "--smooth", "0.5", "--tile", "32"])
    assert files() == ["cat-tissue.png", "clip-tissue.gif", "cup-tissue.png"]
    assert capsys.readouterr().out.split("\n")[:3] == [
        f"pictures/{name}" for name in ("cup-tissue.png", "cat-tissue.png", "clip-tissue.gif")
    ]
    main(["predict", "cup.png", "--ckpt_path", "net.ckpt", "--style", "1", "--tile", "32", "--out", "again"])
    assert Path("again/cup-tissue.png").read_bytes() == Path("pictures/cup-tissue.png").read_bytes()


def test_all_that_is_typed_gets_there(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def keep(model: StyleNetwork, inputs: list[str], out: str, **settings: Any) -> stylizing.Stylized:
        told.update(settings, inputs=inputs, out=out, names=list(model.style_names))
        return stylizing.Stylized()

    monkeypatch.setattr(command, "stylize", keep)
    blend = ["--style", "waves:0.7,tissue:0.3", "--strength", "0.4", "--keep-colors", "--size", "99", "--tile", "64"]
    main(["stylize", "a", "b", *NET, *blend, "--smooth", "0.7", "--video", "gif", "--out", "there"])
    expected = {
        "inputs": ["a", "b"],
        "out": "there",
        "names": ["waves", "tissue"],
        "style": "waves:0.7,tissue:0.3",
        "strength": 0.4,
        "keep_colors": True,
        "size": 99,
        "tile": 64,
        "smooth": 0.7,
        "video": "gif",
        "device": "cpu",
    }
    assert {name: told[name] for name in expected} == expected


def test_what_fails_is_listed_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    Path("more/broken.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as stopped:
        main(["stylize", "missing.png", "more", *NET, "--style", "waves"])
    assert stopped.value.code == 1 and files() == ["cat-waves.png", "clip-waves.gif"]
    told = capsys.readouterr().err.split("2 of 4 failed:")
    assert all("missing.png" in part and "more/broken.png" in part for part in told)


def test_ctrl_c_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    original = stylizing._Stylist._made

    def stopped(self: Any, picture: Image.Image, *args: Any) -> np.ndarray:
        if picture.size == (80, 50):
            raise KeyboardInterrupt
        return original(self, picture, *args)

    monkeypatch.setattr(stylizing._Stylist, "_made", stopped)
    with pytest.raises(SystemExit) as ended:
        main(["stylize", "cup.png", "more", *NET, "--style", "waves"])
    assert ended.value.code == 130 and files() == ["cup-waves.png"]
    told = capsys.readouterr()
    assert "stopped by hand" in told.err and told.out == "pictures/cup-waves.png\n"


def test_onnx_is_written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def write(net: TransformerNet, path: str) -> Path:
        Path(path).write_text(str(net.styles))
        return Path(path)

    monkeypatch.setattr(command, "export_onnx", write)
    main(["stylize", *NET, "--onnx", "style.onnx"])
    assert Path("style.onnx").read_text() == "2" and not Path("pictures").exists()
    assert capsys.readouterr().out == "style.onnx  styles: waves, tissue\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cup.png"], "--checkpoint"),
        ([*NET], "--onnx"),
        (["cup.png", "--checkpoint", "no.ckpt"], "no checkpoint no.ckpt"),
        (["cup.png", *NET], "2 styles, say which: 0 'waves', 1 'tissue'"),
        (["cup.png", *NET, "--style", "waves", "--strength", "3"], "strength lies"),
        ([*NET, "--onnx", "style.pt"], "style.onnx"),
    ],
)
def test_mistakes_are_told(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["stylize", *arguments])
    assert words in str(stopped.value) + capsys.readouterr().err
    assert not Path("pictures").exists()


def test_without_the_extra_mp4_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(SystemExit, match=r"lit-viz\[video\]"):
        main(["stylize", "more/clip.gif", *NET, "--style", "waves", "--video", "mp4"])
