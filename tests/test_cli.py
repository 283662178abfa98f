"""The command line, run as a user would, on the embedded photographs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from skimage import data

from lit_viz import draw
from lit_viz.callbacks import (
    Embeddings,
    Filters,
    MaxActivatingPatches,
    Occlusion,
    Saliency,
    VisualizationCallback,
)
from lit_viz.cli import LitVizCLI, main

CONFIGS = Path(__file__).parents[1] / "configs"
FEW = ["--trainer.limit_val_batches=2"]
SMALL = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", *FEW]
QUIET = ["--trainer.enable_progress_bar=false"]


def parsed(*args: str) -> LitVizCLI:
    return LitVizCLI(args=list(args), run=False)


def test_quickstart_trains_logs_and_says_how_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", str(CONFIGS / "quickstart.yaml"), *SMALL, *QUIET])
    printed = capsys.readouterr().out
    assert "tensorboard --logdir runs/quickstart/version_0 --samples_per_plugin images=1000" in printed
    for tag in ("filters/network.conv1", "saliency/probe", "occlusion/probe", "embeddings/network.head", "patches/"):
        assert tag in printed
    assert list((tmp_path / "runs/quickstart/version_0").glob("events*"))

    # The checkpoint it left is looked at by the same configuration.
    (checkpoint,) = (tmp_path / "runs").rglob("*.ckpt")
    main(["validate", "--config", str(CONFIGS / "quickstart.yaml"), "--ckpt_path", str(checkpoint), *FEW, *QUIET])
    assert "saliency/probe" in capsys.readouterr().out

    # It tells its network, and the configuration beside it classes, normalisation and size.
    photograph = tmp_path / "cup.png"
    Image.fromarray(data.coffee()).save(photograph)
    told: list[str] = []
    board = draw.board
    monkeypatch.setattr(
        draw, "board", lambda *args, **kwargs: told.append(kwargs["subtitle"]) or board(*args, **kwargs)
    )
    main(["show", str(photograph), "--weights", str(checkpoint), "--target", "coffee", "--pictures", "prediction"])
    assert re.search(r"pictures/cup.png  [a-z ]+ 0\.\d\d", capsys.readouterr().out)
    assert "64 × 64 px" in told[0] and "mean 0.5, std 0.25" in told[0] and "guessed" not in told[0]
    assert Image.open(tmp_path / "pictures" / "cup.png").size[0] <= 1400


@pytest.mark.parametrize("config", sorted(p.name for p in CONFIGS.glob("*.yaml")))
def test_every_configuration_is_whole(config: str) -> None:
    text = (CONFIGS / config).read_text()
    assert text.startswith("#"), "a configuration says what it is for"
    keys = yaml.safe_load(text).keys()
    assert {"trainer", "model", "data"} <= keys


@pytest.mark.parametrize(
    ("name", "callback"),
    [
        ("filters", Filters),
        ("saliency", Saliency),
        ("occlusion", Occlusion),
        ("embeddings", Embeddings),
        ("patches", MaxActivatingPatches),
    ],
)
def test_add_ons_add_one_callback(name: str, callback: Any) -> None:
    cli = parsed("--config", str(CONFIGS / "quickstart.yaml"), "-c", str(CONFIGS / "callbacks" / f"{name}.yaml"))
    found = [type(c) for c in cli.trainer.callbacks if isinstance(c, VisualizationCallback)]
    assert found == [Filters, Saliency, Occlusion, Embeddings, MaxActivatingPatches, callback]


def test_short_names_and_options_on_the_command_line() -> None:
    cli = parsed(
        "--model=ImageClassifier",
        "--model.model=small_cnn",
        "--data=Photographs",
        "--data.size=32",
        "--trainer.callbacks+=Saliency",
        "--trainer.callbacks.target=cat",
        "--trainer.callbacks.every_n_steps=5",
        "--trainer.callbacks+=MaxActivatingPatches",
        "--trainer.callbacks.layers=conv2",
    )
    saliency, patches = (c for c in cli.trainer.callbacks if isinstance(c, (Saliency, MaxActivatingPatches)))
    assert (saliency.target, saliency.every_n_steps, patches.layers) == ("cat", 5, ["conv2"])
    assert cli.model.num_classes == cli.datamodule.num_classes == 10
    assert type(cli.trainer.logger).__name__ == "TensorBoardLogger"
    assert cli.trainer.logger.save_dir == "runs"


def test_layers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["layers", "--config", str(CONFIGS / "quickstart.yaml")])
    printed = capsys.readouterr().out
    assert "network.conv3" in printed and "39×39" in printed and "global" in printed


def test_mistakes_end_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        extra = ["--trainer.callbacks+=Filters", "--trainer.callbacks.layers=conv9"]
        main(["fit", "--config", str(CONFIGS / "quickstart.yaml"), *SMALL, *QUIET, *extra])
    assert "no layer 'conv9'; did you mean" in str(stop.value)


QUICKSTART = ["--config", str(CONFIGS / "quickstart.yaml"), *SMALL, *QUIET]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["fit", "--trainer.callbacks+=Saliency", "--trainer.callbacks.num_images=0"], "num_images must be a whole"),
        (["fit", "--data.batch_size=0"], "batch_size must be at least 1"),
        (["fit", "--budget=5"], "budget is a share of the time"),
        (["fit", "--trainer.callbacks+=Saliency", "--trainer.callbacks.budget=0"], "budget is a share of the time"),
        (["fit", "--model.model=resnet19"], "did you mean 'resnet18'"),
        (["fit", "--data=ImageFolderData", "--data.train_dir=nowhere"], "nowhere"),
        (["fit", "--trainer.callbacks+=Saliency", "--trainer.callbacks.target=dog"], "no class 'dog'"),
        (["validate", "--ckpt_path=nope.ckpt"], "Checkpoint file not found"),
    ],
)
def test_every_mistake_ends_in_one_line(
    command: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([command[0], *(QUICKSTART if command[0] == "fit" else [QUICKSTART[0], QUICKSTART[1]]), *command[1:]])
    assert told in str(stop.value) and str(stop.value).count("\n") == 0


def test_a_word_of_a_class_name_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    csv = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=runs"]
    one = ["--trainer.callbacks=Saliency", "--trainer.callbacks.target=cat"]
    main(["fit", *QUICKSTART, *csv, *one])
    printed = capsys.readouterr().out
    assert "saliency/probe" in printed and "PNG files: " in printed and "tensorboard --logdir" not in printed
    assert len(list((tmp_path / "runs").rglob("pictures/saliency/probe/*.png"))) == 2


def test_without_visualizations_the_summary_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(
        [
            "fit",
            *QUICKSTART,
            "--trainer.callbacks=null",
            "--trainer.logger=false",
            "--trainer.enable_checkpointing=false",
        ]
    )
    assert "No visualization in this run" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_layers_of_a_vision_transformer(capsys: pytest.CaptureFixture[str]) -> None:
    main(["layers", "--model=ImageClassifier", "--model.model=vit_b_16", "--image_size=224"])
    assert "conv_proj" in capsys.readouterr().out


def test_looking_at_photographs_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from skimage.io import imsave

    for kind, picture in (("pets", data.chelsea()), ("drinks", data.coffee())):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        imsave(tmp_path / "photos" / kind / f"{kind}.png", picture)
    monkeypatch.chdir(tmp_path)
    command = ["validate", "--config", str(CONFIGS / "analyze_efficientnet_lite0.yaml"), *QUIET]
    command += ["--data=ImageFolderData", "--data.val_dir=photos", "--trainer.callbacks=Saliency"]
    with pytest.raises(SystemExit, match="head starts anew"), pytest.warns(UserWarning, match="head starts anew"):
        main(command)
    main([*command, "--data.labels=false", "--trainer.callbacks.folder=out"])
    assert "saliency/probe" in capsys.readouterr().out
    assert list((tmp_path / "out").rglob("*.png"))


LITE0 = ["--model", "efficientnet_lite0"]


def test_show_goes_on_past_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.chelsea()).save("cat.png")
    whole = Path("cat.png").read_bytes()
    Path("broken.jpg").write_bytes(whole[:5000])
    Image.fromarray(data.coffee()).save("cup.webp")
    with pytest.raises(SystemExit) as stop:
        main(["show", "cat.png", "broken.jpg", "cup.webp", *LITE0, "--pictures", "prediction,grad_cam", "--out", "out"])
    told = capsys.readouterr()
    assert stop.value.code == 1
    assert [line.split("  ")[0] for line in told.out.splitlines()] == ["out/cat.png", "out/cup.png"]
    assert "cat 0." in told.out.splitlines()[0] and "espresso 0." in told.out.splitlines()[1]
    assert "broken.jpg" in told.err and told.err.count("\n") == 1
    assert sorted(p.name for p in Path("out").iterdir()) == ["cat.png", "cup.png"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["cat.png", "--out", ".", *LITE0], "would take the place of the image"),
        (["cat.png", "--out", "cat.png/in", *LITE0], "the folder cat.png/in can't be made"),
        (["cat.png"], "give --model"),
        (["cat.png", "--weights", "no.ckpt"], "no checkpoint at no.ckpt"),
        (["cat.png", "--weights", "cat.png"], "can't be read as a checkpoint"),
        (["cat.png", "--model", "resnet19"], "did you mean 'resnet18'"),
        (["cat.png", *LITE0, "--device", "gpu9"], "device 'gpu9'"),
    ],
)
def test_mistakes_of_show_end_in_one_line(
    args: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.chelsea()).save("cat.png")
    before = Path("cat.png").read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(["show", *args])
    assert told in str(stop.value) and str(stop.value).count("\n") == 0
    assert Path("cat.png").read_bytes() == before


@pytest.mark.parametrize(("args", "told"), [(["--help"], "`show`"), (["show", "--help"], "--target")])
def test_help_tells_of_show(args: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 0 and told in capsys.readouterr().out


def test_packaged_configurations_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_viz.cli import _with_known_configs

    monkeypatch.chdir(tmp_path)
    found = _with_known_configs(["fit", "--config", "quickstart", "-c", "callbacks/saliency", "--config=nope.yaml"])
    assert Path(found[2]).is_file() and Path(found[4]).is_file() and found[5] == "--config=nope.yaml"


@pytest.mark.slow
def test_a_budget_for_all_that_have_none_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = ["--trainer.callbacks+=Saliency", "--trainer.callbacks.budget=0.2"]
    run = ["fit", *QUICKSTART, "--budget", "0.05", *own]
    main(run)
    saved = tmp_path / "runs" / "quickstart" / "version_0" / "config.yaml"
    assert yaml.safe_load(saved.read_text())["budget"] == 0.05
    again = LitVizCLI(args=["fit", "--config", str(saved), "--trainer.max_epochs=0"])
    for cli in (again, parsed(*QUICKSTART, "--budget=0.05", *own)):
        *others, last = (c.budget for c in cli.trainer.callbacks if isinstance(c, VisualizationCallback))
        assert len(others) == 5 and all(budget is others[0] for budget in others), "one account for all"
        assert (others[0].share, last.share) == (0.05, 0.2)
    cli = parsed(*QUICKSTART)
    assert all(c.budget is None for c in cli.trainer.callbacks if isinstance(c, VisualizationCallback))
