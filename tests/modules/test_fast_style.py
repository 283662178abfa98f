"""Training of style networks: what is trained, logged, kept and resumed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader

from lit_viz import draw
from lit_viz.cli import main
from lit_viz.data import Photographs
from lit_viz.errors import UsageError
from lit_viz.modules import FastStyleTransfer
from lit_viz.networks import Muon, TransformerNet, equivalent_iterations, iteration_curves, stylized
from lit_viz.styles import picture_colors, style_picture

CONFIGS = Path(__file__).parents[2] / "configs"
SETTINGS: dict[str, Any] = {
    "network": "tests.tiny_vgg.tiny_vgg",
    "weights": None,
    "content_layers": "relu2_1",
    "style_layers": ["relu1_1", "relu2_1"],
    "style_size": 48,
    "width": 4,
    "blocks": 1,
    "calibration_batches": 1,
    "num_images": 2,
}
pytestmark = pytest.mark.filterwarnings("ignore:images are compared by a network that was not trained")


def module(styles: Any = ("stained glass", "waves"), **changes: Any) -> FastStyleTransfer:
    torch.manual_seed(0)
    return FastStyleTransfer(list(styles), **SETTINGS | changes)


def data(**changes: Any) -> Photographs:
    return Photographs(**{"size": 32, "batch_size": 4, "patches_per_epoch": 12, "val_patches": 10} | changes)


def trainer(**changes: Any) -> Trainer:
    usual = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Trainer(**usual | quiet | changes)


def weights(model: FastStyleTransfer) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_it_trains_and_logs_every_layer(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version=0)
    run = trainer(max_epochs=2, logger=logger, log_every_n_steps=1)
    model = module(equivalent_images=2, equivalent_limit=4)
    before = weights(model)
    run.fit(model, datamodule=data())
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path / "version_0")).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train_loss", "val_loss", "val_content/relu2_1", "val_style/relu1_1", "val_style/relu2_1"} <= scalars
    assert {
        f"gatys_equivalent{k}/{s}" for k in ("", "_content", "_style") for s in ("waves", "stained glass")
    } <= scalars
    assert [e.step for e in events.Images("stylized/waves")] == [3, 6]
    after = weights(model)
    assert all((after[k] != before[k]).any() for k in after if k.startswith("net.") and "norm" not in k)
    assert not any("held" in k or "module" in k for k in after)
    assert model.written == {"stylized/waves": 2, "stylized/stained glass": 2}


def test_the_same_seed_gives_the_same_network_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    def run(epochs: int, checkpoint: str | None = None) -> tuple[Trainer, FastStyleTransfer]:
        seed_everything(3, verbose=False)
        made, one = trainer(max_epochs=epochs), module(optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.fit(one, datamodule=data(), ckpt_path=checkpoint, weights_only=True)
        return made, one

    _, whole = run(2)
    _, again = run(2)
    half, _ = run(1)
    half.save_checkpoint(file := str(tmp_path / "half.ckpt"))
    _, resumed = run(2, file)
    for name, value in weights(whole).items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_holds_all_that_is_needed_to_stylise(tmp_path: Path) -> None:
    picture = tmp_path / "my painting.png"
    style_picture("waves").save(picture)
    run, model = trainer(), module([str(picture)])
    run.fit(model, datamodule=data())
    run.save_checkpoint(file := tmp_path / "style.ckpt")
    picture.unlink()
    held = torch.load(file, weights_only=True)
    assert not any("features" in k or k == "0.weight" for k in held["state_dict"])
    loaded = FastStyleTransfer.load_from_checkpoint(file, weights_only=True)
    image = torch.rand(1, 3, 40, 30)
    assert torch.equal(loaded.eval()(image), model.eval()(image))
    assert loaded.style_names == ["my painting"] and loaded.thumbnails.float().std() > 10
    result = trainer().validate(loaded, datamodule=data(), verbose=False)[0]
    fresh = trainer().validate(
        module([str(picture)]), datamodule=data(), ckpt_path=file, verbose=False, weights_only=True
    )
    assert (
        result["val_loss"] == fresh[0]["val_loss"] == pytest.approx(float(run.callback_metrics["val_loss"]), rel=1e-5)
    )


def test_a_new_style_changes_no_other(tmp_path: Path) -> None:
    run, model = trainer(), module()
    run.fit(model, datamodule=data())
    run.save_checkpoint(file := str(tmp_path / "two.ckpt"))
    more = module(["tissue"], extend=file, optimizer=lambda p: torch.optim.Adam(p, lr=0.1))
    assert more.style_names == ["stained glass", "waves", "tissue"]
    trained = [name for name, p in more.named_parameters() if p.requires_grad]
    assert trained and all(name.endswith(("gamma.2", "beta.2")) for name in trained)
    again = trainer()
    again.fit(more, datamodule=data())
    image = torch.rand(2, 3, 40, 30)
    for style in (0, 1):
        which = torch.tensor([style, style])
        assert torch.equal(model.eval()(image, which), more.eval()(image, which))
    old, new = torch.tensor([1, 1]), torch.tensor([2, 2])
    assert not torch.allclose(more(image, old), more(image, new), atol=1e-3)
    again.save_checkpoint(three := tmp_path / "three.ckpt")
    Path(file).unlink()
    loaded = FastStyleTransfer.load_from_checkpoint(three, weights_only=True)
    assert loaded.style_names == more.style_names
    assert torch.equal(loaded.eval()(image, new), more(image, new))


def test_any_batch_of_images_serves() -> None:
    images = list(torch.rand(8, 3, 32, 32))
    loader = DataLoader(images, batch_size=4)  # type: ignore[arg-type]
    trainer().fit(module(["waves"]), loader, DataLoader(images[:4], batch_size=4))  # type: ignore[arg-type]


def test_the_configuration_trains_counts_and_adds_a_style(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    size = ["--data.size=32", "--data.val_patches=10", "--model.width=4", "--model.blocks=1"]
    brief = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    usual = ["--config", str(CONFIGS / "fast_style.yaml"), "--trainer.enable_progress_bar=false", *size, *brief]
    main(["fit", *usual])
    assert "stylized/waves" in capsys.readouterr().out
    (first,) = (tmp_path / "runs").rglob("*.ckpt")
    counted = ["--model.equivalent_images=2", "--model.equivalent_limit=3"]
    main(["validate", *usual, *counted, f"--ckpt_path={first}"])
    events = EventAccumulator(str(tmp_path / "runs/fast_style/version_1")).Reload()
    (worth,) = events.Scalars("gatys_equivalent/waves")
    assert 0 <= worth.value <= 3
    capsys.readouterr()
    main(["predict", *usual, f"--ckpt_path={first}", "--trainer.limit_predict_batches=3"])
    made = sorted((tmp_path / "runs").rglob("predicted/*.png"))
    assert [path.name for path in made] == [f"{i:05d}.png" for i in range(6)]
    assert f"6 pictures in {made[0].parent.relative_to(tmp_path)}" in capsys.readouterr().out
    net = FastStyleTransfer.load_from_checkpoint(first, weights_only=True)
    photographs = data(batch_size=2, val_fraction=0.4, mean=[0.0] * 3, std=[1.0] * 3)
    photographs.setup("predict")
    expected = draw.to_uint8(stylized(net.net, next(iter(photographs.predict_dataloader()))[0]))
    assert [np.array(Image.open(path)).tolist() for path in made[:2]] == expected.tolist()
    main(["fit", *usual, "--model.styles=tissue", f"--model.extend={first}"])
    (second,) = set((tmp_path / "runs").rglob("*.ckpt")) - {first}
    first.unlink()
    loaded = FastStyleTransfer.load_from_checkpoint(second, weights_only=True)
    assert loaded.style_names == ["waves", "tissue"]
    assert loaded.thumbnails.float().flatten(1).std(dim=1).min() > 10
    # Its styles are all known, so that it is validated without a picture of them.
    capsys.readouterr()
    main(["validate", *usual, f"--ckpt_path={second}"])
    out = capsys.readouterr().out
    assert "stylized/waves" in out and "stylized/tissue" in out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"styles": []}, "at least one style"),
        ({"strength": -1.0}, "strength is the weight"),
        ({"tv": -1.0}, "tv is a weight"),
        ({"styles": ["a/x.png", "b/x.png"]}, "two styles are called 'x'"),
        ({"styles": ["wave"]}, "no style 'wave'.*'waves'"),
        ({"styles": ["no/file.png"]}, "no image file no/file.png"),
        ({"extend": "no.ckpt"}, "no checkpoint no.ckpt"),
        ({"content_layers": {"relu2_1": 0.0}}, "at least 0 and one above it"),
        ({"norm": "batch"}, "has one style"),
    ],
)
def test_bad_input_is_told(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        trainer().fit(module(**{"styles": ("waves", "tissue")} | changes), datamodule=data())


def trained(style: str, steps: int, **changes: Any) -> tuple[FastStyleTransfer, list[float]]:
    """What the configuration trains, in fewer steps."""
    pytest.importorskip("efficientnet_lite_pytorch")
    seed_everything(1, verbose=False)
    precision = changes.pop("precision", "32-true")
    schedule = {"max_lr": 0.004, "total_steps": steps, "pct_start": 0.1}
    layers = ["_bn0", "_blocks.0", "_blocks.2", "_blocks.4", "_blocks.7"]
    told = {"content_layers": "_blocks.4", "style_layers": layers, "strength": 6.0, "width": 16}
    model = FastStyleTransfer(
        style,
        "efficientnet_lite0",
        optimizer=lambda p: Muon(p, lr=0.004),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, **schedule),
        **told | changes,
    )
    losses = Losses()
    trainer(callbacks=[losses], precision=precision).fit(model, datamodule=photographs(steps))
    return model.eval(), losses.values


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"].detach()))


def photographs(steps: int) -> Photographs:
    plain = {"jitter": 0.1, "grey": 0.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return Photographs(128, batch_size=2, patches_per_epoch=2 * steps, val_patches=20, val_fraction=0.4, **plain)


@pytest.mark.slow
def test_compiled_steps_learn_the_same() -> None:
    losses = []
    for compiled in (False, True):
        seed_everything(2, verbose=False)
        # Small steps: at larger ones the loss jumps about, and a network of few channels makes a lot of rounding.
        small = {"compile": compiled, "blocks": 1, "optimizer": lambda p: torch.optim.Adam(p, lr=1e-4)}
        seen = Losses()
        trainer(callbacks=[seen]).fit(module(["waves"], **small), datamodule=data(patches_per_epoch=16))
        losses.append(torch.tensor(seen.values))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)


@pytest.mark.reproduction
def test_one_pass_is_worth_many_iterations_and_no_control_is() -> None:
    """An eighth of the steps of the configuration; `benchmarks/fast_style.py` has the whole."""
    model, _ = trained("waves", 375)
    other, _ = trained("tissue", 60)
    assert model.loss is not None
    held = photographs(10)
    held.setup("validate")
    colors = torch.cat([batch[0] for batch in held.val_dataloader()])[:16:2]
    style = picture_colors(style_picture("waves"), 256)[..., 64:192, 64:192]
    curves = iteration_curves(model.loss, colors, limit=40)
    worth = {}
    with torch.no_grad():
        made = model(colors)
        candidates = {
            "network": made,
            "untrained": TransformerNet(16).eval()(colors),
            "identity": colors,
            "half": (made + colors) / 2,
            "wrong": other(colors),
            "pasted": style.expand_as(colors),
        }
    for name, images in candidates.items():
        worth[name] = equivalent_iterations(model.loss, images, colors, curves=curves).total
    assert worth["network"] >= 18, worth
    assert max(worth[name] for name in ("untrained", "identity", "wrong")) <= 3, worth
    assert worth["half"] < 0.8 * worth["network"], worth
    # The style by itself has the style, and lost the content.
    content = {}
    for name in ("network", "pasted"):
        with torch.no_grad():
            terms = model.loss(candidates[name], model.loss.content_of(colors))
        content[name] = float(terms.content["_blocks.4"].mean())
    assert content["pasted"] > 1.5 * content["network"], content


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor emulates bfloat16: a quarter of an hour"
)
def test_16_bits_learn_the_same() -> None:
    curves = [
        torch.tensor(trained("waves", 500, width=8, blocks=2, precision=precision)[1])
        for precision in ("32-true", "bf16-mixed")
    ]
    assert all(torch.isfinite(curve).all() for curve in curves)
    exact, rounded = (curve[-100:].mean() for curve in curves)
    assert exact < 0.8 * curves[0][:20].mean()
    assert float(rounded) == pytest.approx(float(exact), rel=0.02)
