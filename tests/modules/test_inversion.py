"""FeatureInversion: the same images as the function makes, one entry a step, and a run that can be resumed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision.models._api as hub
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from skimage import data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_viz.cli import main
from lit_viz.errors import UsageError
from lit_viz.functional import invert_features
from lit_viz.modules import FeatureInversion
from lit_viz.networks.vgg_names import dotted_name
from tests.conformance.harness import Recorder, trainer

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = "tests.conformance.harness.TinyNet"
LAYERS = ["conv1", "relu2"]


def module(**arguments: Any) -> FeatureInversion:
    seed_everything(3, verbose=False)
    given = {"network": TINY, "weights": None, "layers": LAYERS, "size": 16, "steps": 4, "mean": 0.5, "std": 0.25}
    return FeatureInversion(**{**given, **arguments})


def fit(inversion: FeatureInversion, **arguments: Any) -> Recorder:
    recorder = Recorder()
    ckpt_path = arguments.pop("ckpt_path", None)
    trainer(logger=recorder, **{"max_epochs": 1, **arguments}).fit(inversion, ckpt_path=ckpt_path)
    return recorder


def made(inversion: FeatureInversion) -> torch.Tensor:
    return torch.cat(inversion._made())


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("jointly", [False, True])
def test_the_same_images_as_the_function(optimizer: Any, jointly: bool, tmp_path: Path) -> None:
    paths = []
    for name in ("coffee", "rocket"):
        paths.append(str(tmp_path / f"{name}.png"))
        Image.fromarray(getattr(data, name)()).save(paths[-1])
    # A line search makes much of roundings: after many iterations images are alike, but no longer the same.
    steps = 4 if optimizer == "adam" else 1
    inversion = module(image=paths, optimizer=optimizer, jointly=jointly, restarts=2, steps=steps, seed=5)
    recorder = fit(inversion)
    found = invert_features(
        inversion.network,
        inversion.images,
        LAYERS,
        optimizer=optimizer,
        jointly=jointly,
        restarts=2,
        steps=steps,
        pixels=inversion.pixel_space,
        seed=5,
    )
    images = list(found.images.values())[: 1 if jointly else 2]
    torch.testing.assert_close(made(inversion), torch.cat([i.flatten(0, 1) for i in images]), atol=5e-3, rtol=5e-3)
    numbers = {(tag, step): value for tag, step, value in recorder.metrics if step is not None}
    for name in LAYERS:
        assert numbers[f"inversion/{name}/error", steps] == pytest.approx(float(found.errors[name].mean()), rel=0.05)
        column = " + ".join(LAYERS) if jointly else name
        assert numbers[f"inversion/{column}/psnr", steps] == pytest.approx(float(found.psnr[name].mean()), rel=0.02)
    assert {"inversion/coffee", "inversion/rocket", "inversion/forming/rocket"} <= recorder.tags


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_one_entry_a_step(optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """L-BFGS asks for the error many times in each step."""
    inversion, asked = module(optimizer=optimizer, layers="conv1", snapshot_every=2), []
    original = inversion._errors
    monkeypatch.setattr(inversion, "_errors", lambda *a: asked.append(1) or original(*a))
    runner = trainer(logger=(recorder := Recorder()), max_epochs=1)
    runner.fit(inversion)
    assert runner.global_step == 4
    assert len(asked) > 20 if optimizer == "lbfgs" else len(asked) == 5
    errors = [(step, value) for tag, step, value in recorder.metrics if tag == "inversion/conv1/error"]
    assert [step for step, _ in errors] == [0, 1, 2, 3, 4]
    if optimizer == "lbfgs":
        assert all(a > b for (_, a), (_, b) in pairwise(errors))
    assert [step for tag, step, _ in recorder.images if tag.startswith("inversion/forming/")] == [2, 4]
    assert [step for tag, step, _ in recorder.images if tag == "inversion/chelsea"] == [4]
    assert inversion.written == {"inversion/forming/chelsea": 2, "inversion/chelsea": 1}


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_resumed_run_ends_in_the_same_bits(optimizer: Any, tmp_path: Path) -> None:
    whole = module(optimizer=optimizer, restarts=2)
    fit(whole)
    begun = module(optimizer=optimizer, restarts=2)
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    runner = trainer([keep], max_epochs=1, enable_checkpointing=True)
    runner.fit(begun)
    # In the middle of an epoch, and after one that max_steps ended early.
    stopped = trainer(max_steps=2, max_epochs=None)
    stopped.fit(module(optimizer=optimizer, restarts=2))
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    for name, epochs in (("step=2.ckpt", 1), ("stopped.ckpt", 2)):
        rest = module(optimizer=optimizer, restarts=2, seed=9)  # from other noise, if it were not for the checkpoint
        recorder = fit(rest, ckpt_path=tmp_path / name, max_epochs=epochs)
        assert int(rest.done) == 4 and torch.equal(made(rest), made(whole)), name
        assert [s for tag, s, _ in recorder.metrics if tag == "inversion/conv1/error"] == [2, 3, 4]
    assert torch.load(tmp_path / "step=4.ckpt", weights_only=True)["optimizer_states"] == []


def test_weights_of_the_network_stay_out_of_checkpoints_and_as_they_are(tmp_path: Path) -> None:
    inversion = module()
    before = {k: v.clone() for k, v in inversion.network.state_dict().items()}
    runner = trainer(max_epochs=1)
    runner.fit(inversion)
    runner.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(kept["state_dict"]) == {"made.0", "made.1", "done"}
    assert all(torch.equal(v, before[k]) for k, v in inversion.network.state_dict().items())
    assert not inversion.network.training and not any(m._forward_hooks for m in inversion.network.modules())
    again = FeatureInversion.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(made(again), made(inversion))
    assert inversion(inversion.images).shape == (1, 3)


def test_without_a_logger_and_in_mixed_precision() -> None:
    inversion = module()
    trainer(max_epochs=1, logger=False, precision="bf16-mixed").fit(inversion)
    assert int(inversion.done) == 4 and inversion.written == {}
    with pytest.raises(UsageError, match="16 bits"):
        trainer(max_epochs=1, precision="bf16-true").fit(module())


def test_vgg16_by_the_names_of_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    inversion = FeatureInversion(weights=None, size=32)
    names = ("relu2_2", "relu3_3", "relu4_3", "relu5_1", "relu5_3")
    assert inversion.layers == [dotted_name(inversion.network, name) for name in names]
    assert inversion._layers(["pool3", "classifier.0"]) == ["features.16", "classifier.0"]
    with pytest.raises(UsageError, match="no layer 'relu3_4'"):
        inversion._layers(["relu3_4"])

    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no connection")

    monkeypatch.setattr(hub, "load_state_dict_from_url", offline)
    with pytest.raises(UsageError, match="could not be had"):
        FeatureInversion()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image": "nowhere.png"}, "no image file nowhere.png"),
        ({"restarts": 0}, "restarts"),
        ({"steps": 0}, "steps"),
        ({"snapshot_every": 0}, "snapshot_every"),
        ({"optimizer": "sgd"}, "optimizer is"),
        ({"tv": -1.0}, "the weight tv"),
        ({"layers": "conv9"}, "no layer 'conv9'; did you mean"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        module(**arguments)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.coffee()).save("cup.jpg")
    small = [f"--model.network={TINY}", "--model.weights=null", "--model.size=16", "--model.steps=2"]
    small += ["--model.image=cup.jpg", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    main(["fit", "--config", str(CONFIGS / "invert.yaml"), *small, "--model.mean=0.5", "--model.std=0.25"])
    events = EventAccumulator(str(tmp_path / "runs/invert/version_0"))
    events.Reload()
    assert set(events.Tags()["images"]) == {"inversion/cup", "inversion/forming/cup"}
    assert [e.step for e in events.Images("inversion/forming/cup")] == [1, 2]
    errors = [tag for tag in events.Tags()["scalars"] if tag.endswith("/error")]
    assert errors and all([e.step for e in events.Scalars(tag)] == [0, 1, 2] for tag in errors)
    (checkpoint,) = Path("runs").rglob("*.ckpt")
    assert all(torch.isfinite(v).all() for v in torch.load(checkpoint, weights_only=True)["state_dict"].values())
