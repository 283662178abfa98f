"""What a network for fast style transfer learns in minutes, and whether the figures could be had for less.

    python benchmarks/fast_style.py                      # all parts: more than an hour on two cores
    python benchmarks/fast_style.py --parts config       # the configuration as it is, its worth and its controls

* config: trains `configs/fast_style.yaml`. How many iterations of L-BFGS one pass is worth on 16 held-out images, and
  by what factor the distance of Gram matrices falls, for features of a network that it was not trained by. Controls
  that must fall short: the network untrained, the content as it is, half of each, another style, the style pasted.
* styles: four styles in one network beside four networks, with as many steps for each style; then a fifth style by its
  γ and β alone, in a fifth of the steps, and whether the others are as they were.
* norms: instance norm beside batch norm, as in the lecture.
* precision: the loss over 500 steps in bfloat16 beside 32 bits.
"""

from __future__ import annotations

import argparse
import logging
import platform
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.nn import functional as F

from lit_viz.cli import LitVizCLI
from lit_viz.data import Photographs
from lit_viz.functional.style import gram_matrix
from lit_viz.modules import FastStyleTransfer
from lit_viz.networks import Muon, PerceptualNetwork, equivalent_iterations, iteration_curves
from lit_viz.styles import picture_colors, style_picture

ROOT = Path(__file__).parents[1]
LAYERS = {"content_layers": "_blocks.4", "style_layers": ["_bn0", "_blocks.0", "_blocks.2", "_blocks.4", "_blocks.7"]}
STYLES = ["waves", "brush strokes", "stained glass", "tissue"]
IMAGES, LIMIT = 16, 120


class Losses(Callback):
    """The training loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


def photographs(steps: int, batch: int = 2) -> Photographs:
    return Photographs(
        size=128,
        batch_size=batch,
        patches_per_epoch=batch * steps,
        val_patches=20,
        val_fraction=0.4,
        jitter=0.1,
        grey=0.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def trained(
    styles: list[str], steps: int, *, precision: str = "32-true", given: argparse.Namespace, **changes: Any
) -> tuple[FastStyleTransfer, dict[str, float], list[float]]:
    """A network, its validation losses by name, and its training losses."""
    seed_everything(1, verbose=False)
    module = FastStyleTransfer(
        styles,
        "efficientnet_lite0",
        width=16,
        optimizer=partial(Muon, lr=given.lr),
        lr_scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=given.lr, total_steps=steps, pct_start=0.1),
        **LAYERS | {"strength": given.strength} | changes,
    )
    losses = Losses()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        callbacks=[losses],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=photographs(steps))
    return module, {k: float(v) for k, v in trainer.callback_metrics.items()}, losses.values


def held_out() -> Tensor:
    """Images (16, 3, 128, 128) that no training has seen, colours from 0 to 1."""
    data = photographs(10)
    data.setup("validate")
    return torch.cat([batch[0] for batch in data.val_dataloader()])[:IMAGES]


@torch.no_grad()
def per_style(module: FastStyleTransfer, colors: Tensor) -> list[float]:
    """The loss in each style of a network, mean over images."""
    assert module.loss is not None
    found = []
    for style in range(len(module.style_names)):
        which = torch.full((len(colors),), style)
        made = module.net(colors, which)
        found.append(float(module.loss(made, module.loss.content_of(colors), which).total.mean()))
    return found


def config(given: argparse.Namespace) -> None:
    cli = LitVizCLI(args=["--config", str(ROOT / "configs" / "fast_style.yaml"), "--trainer.logger=false"], run=False)
    module = cli.model
    assert isinstance(module, FastStyleTransfer)
    start = time.perf_counter()
    if given.checkpoint:
        cli.trainer.validate(module, datamodule=cli.datamodule, ckpt_path=given.checkpoint, verbose=False)
    else:
        cli.trainer.fit(module, datamodule=cli.datamodule)
        print(f"trained in {(time.perf_counter() - start) / 60:.1f} min", flush=True)
    module.eval()
    colors, loss = held_out(), module.loss
    assert loss is not None
    other = next(name for name in STYLES if name != module.style_names[0])
    wrong, _, _ = trained([other], 150, given=given, **{k: module.hparams[k] for k in (*LAYERS, "strength")})
    style = picture_colors(style_picture(module.given[0]), module.hparams["style_size"])
    top, left = ((side - 128) // 2 for side in style.shape[2:])
    seed_everything(2, verbose=False)
    with torch.no_grad():
        made = module.net(colors)
        candidates = {
            "the network": made,
            "untrained": type(module.net)(16).eval()(colors),
            "content as it is": colors,
            "half of each": (made + colors) / 2,
            f"another style ({other})": wrong.eval().net(colors),
            "style pasted": style[..., top : top + 128, left : left + 128].expand_as(colors),
        }
    curves = iteration_curves(loss, colors, limit=LIMIT)
    print("L-BFGS: " + ", ".join(f"{i}: {float(curves[i, 0]):.3f}" for i in (0, 10, 25, 50, 75, 100)))
    judges = {
        "random vgg16": PerceptualNetwork(["relu1_2", "relu2_2", "relu3_3"], "vgg16", None, seed=7),
        "random resnet18": PerceptualNetwork(["relu", "layer1", "layer2"], "resnet18", None, seed=7),
    }
    print(f"{'':<28}{'total':>8}{'content':>9}{'style':>8}{'iterations':>12}{'style alone':>13}  Gram distance ÷ by")
    for name, images in candidates.items():
        found = equivalent_iterations(loss, images, colors, curves=curves)
        with torch.no_grad():
            terms = loss(images, loss.content_of(colors))
        content = sum(share * terms.content[n].mean() for n, share in loss.content_layers.items())
        styled = sum(share * terms.style[n].mean() for n, share in loss.style_layers.items())
        falls = ", ".join(
            f"{key.split(',')[0]} {fall(judge, images, colors, style):.1f}" for key, judge in judges.items()
        )
        numbers = f"{float(terms.total.mean()):8.3f}{float(content):9.3f}{float(styled):8.4f}"
        print(f"{name:<28}{numbers}{found.total:>12}{found.style:>13}  {falls}", flush=True)


@torch.no_grad()
def fall(judge: PerceptualNetwork, images: Tensor, colors: Tensor, style: Tensor) -> float:
    """How often the distance of Gram matrices to the style's is in that of the content, mean over layers."""
    grams = [{name: gram_matrix(f) for name, f in judge(x).items()} for x in (images, colors, style)]
    ratios = [
        (before - wanted).square().sum(dim=(1, 2)).mean() / (now - wanted).square().sum(dim=(1, 2)).mean()
        for now, before, wanted in zip(*(gram.values() for gram in grams), strict=True)
    ]
    return float(torch.stack(ratios).mean())


def styles(given: argparse.Namespace) -> None:
    colors, steps = held_out(), given.steps
    singles = {}
    for name in [*STYLES, "fifth"]:
        module, _, _ = trained([fifth() if name == "fifth" else name], steps, given=given)
        singles[name] = per_style(module.eval(), colors)[0]
        print(f"alone, {steps} steps: {name} {singles[name]:.3f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        together, _, _ = trained(STYLES, len(STYLES) * steps, given=given)
        found = per_style(together.eval(), colors)
        for name, value in zip(STYLES, found, strict=True):
            print(f"together: {name} {value:.3f}, {value / singles[name]:.3f} of alone", flush=True)
        print(f"mean of the four {sum(v / singles[n] for n, v in zip(STYLES, found, strict=True)) / 4:.3f} of alone")
        trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
        trainer.strategy.connect(together)
        checkpoint = str(Path(folder) / "four.ckpt")
        trainer.save_checkpoint(checkpoint)
        before = [together.net(colors, torch.full((IMAGES,), i)) for i in range(4)]
        few = len(STYLES) * steps // 5
        more, _, _ = trained([fifth()], few, given=given, extend=checkpoint)
        after = [more.eval().net(colors, torch.full((IMAGES,), i)) for i in range(4)]
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        value = per_style(more, colors)[4]
        ratio = value / singles["fifth"]
        print(f"fifth by γ and β, {few} steps: {value:.3f}, {ratio:.3f} of alone; others bit-identical: {same}")


def fifth() -> str:
    """A picture that none of the four styles is like: grass, in its own greys."""
    from PIL import Image
    from skimage import data

    path = Path(tempfile.gettempdir()) / "grass.png"
    Image.fromarray(data.grass()).convert("RGB").save(path)
    return str(path)


def norms(given: argparse.Namespace) -> None:
    colors = held_out()
    for norm in ("instance", "batch"):
        module, _, losses = trained(["waves"], given.steps, given=given, norm=norm)
        last = sum(losses[-50:]) / 50
        print(
            f"{norm} norm, {given.steps} steps: held-out {per_style(module.eval(), colors)[0]:.3f}, training {last:.3f}"
        )


def precision(given: argparse.Namespace) -> None:
    curves = {}
    for kind in ("32-true", "bf16-mixed"):
        _, _, losses = trained(["waves"], 500, precision=kind, given=given)
        curves[kind] = smoothed(losses)
        print(f"{kind}: " + ", ".join(f"{i + 1}: {curves[kind][i]:.3f}" for i in (99, 199, 299, 399, 499)), flush=True)
    one, two = curves.values()
    print(f"at the end {two[-1] / one[-1]:.4f} of 32 bits; largest difference {float((two / one - 1).abs().max()):.4f}")


def smoothed(losses: list[float], window: int = 100) -> Tensor:
    """Means over the last steps."""
    values = F.pad(torch.tensor(losses)[None, None], (window - 1, 0), mode="replicate")
    return F.avg_pool1d(values, window, 1)[0, 0]


PARTS = {"config": config, "styles": styles, "norms": norms, "precision": precision}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--checkpoint", help="config: of a run of the configuration, instead of one here")
    parser.add_argument("--steps", type=int, default=500, help="for each style (%(default)s)")
    parser.add_argument("--strength", type=float, default=6.0)
    parser.add_argument("--lr", type=float, default=0.004)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"{platform.processor() or platform.machine()}, {given.threads} threads, torch {torch.__version__}")
    for part in given.parts:
        print(f"\n{part}", flush=True)
        PARTS[part](given)


if __name__ == "__main__":
    main()
