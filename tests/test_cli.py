"""The command line, run as a user would, on the embedded photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_viz.callbacks import Embeddings, Filters, MaxActivatingPatches, Occlusion, Saliency
from lit_viz.cli import LitVizCLI, main

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2"]
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
    main(["validate", "--config", str(CONFIGS / "quickstart.yaml"), "--ckpt_path", str(checkpoint), *QUIET])
    assert "saliency/probe" in capsys.readouterr().out


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
    found = [type(c) for c in cli.trainer.callbacks if c.__module__.startswith("lit_viz")]
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


def test_packaged_configurations_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_viz.cli import _with_known_configs

    monkeypatch.chdir(tmp_path)
    found = _with_known_configs(["fit", "--config", "quickstart", "-c", "callbacks/saliency", "--config=nope.yaml"])
    assert Path(found[2]).is_file() and Path(found[4]).is_file() and found[5] == "--config=nope.yaml"
