"""Training a network that gives any image a style in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from lit_viz import draw
from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.synthesis import total_variation
from lit_viz.guard import isolated_rng, untouched
from lit_viz.modules.base import ShowingModule, listed
from lit_viz.networks.perceptual import PerceptualNetwork
from lit_viz.networks.style_loss import Equivalent, StyleLoss, StyleTerms, equivalent_iterations
from lit_viz.networks.style_network import read_style_checkpoint
from lit_viz.networks.tiled_style import stylized
from lit_viz.networks.transformer_net import ConditionalInstanceNorm, TransformerNet
from lit_viz.pixels import PixelSpace, find_pixel_space, guess_pixel_space
from lit_viz.probing import split_batch, to_network
from lit_viz.styles import picture_colors, style_picture
from lit_viz.writer import Writer

_THUMBNAIL = 128  # px
_STYLE_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")  # of VGG16, as in the paper


class FastStyleTransfer(ShowingModule):
    r"""Trains a network that gives images a style in one pass, in one style or in many (Johnson et al. 2016).

    The loss is that of optimisation-based transfer, see `StyleLoss`, and a little total variation; a network learns to
    make it small for any content. Several styles share all convolutions and have norms of their own (Dumoulin et al.
    2017); each training image gets one at random. Content images need no labels.

    Logged are `train_loss`, and for the validation images, in all styles, `val_loss` and each layer's part of it as
    `val_content/<layer>` and `val_style/<layer>`; `stylized/<style>` shows the same images each time. At the end
    of `validate`, and of training, where `equivalent_images` is not 0, follow the *Gatys-equivalent iterations*: how
    many iterations of L-BFGS, started from the content image, bring the same loss as low as the network does in one
    pass, on validation images (the comparison in Johnson et al.).

    A checkpoint holds all that is needed to go on or to stylise: the network, the styles' Gram matrices and thumbnails,
    and the settings; the loss network is not in it.

    Attributes:
        net: The image-to-image network.
        loss: What it is trained by; None before `setup`, since only training needs it.
        style_names: A name for each style.
        thumbnails: (styles, 3, 128, 128) uint8.

    Args:
        styles: Image files, or names of pictures that come along (`lit_viz.styles.STYLES`).
        network: Of the loss: name or dotted path for `load_network`.
        weights: Its weights: "DEFAULT", the path of a checkpoint, or None for random ones, seeded and scaled.
        options: More arguments for its constructor.
        content_layers: Dotted names or those of papers (relu2_2), or weights by name.
        style_layers: Likewise.
        pooling: Of the loss network.
        strength: Of the style, the same for every network and size; 1 weighs an image without content as much as one
            without style.
        tv: Weight of the total variation, of the mean over pixels.
        style_size: Shorter side that styles are brought to, px; it sets the size of their strokes.
        width: Of the network; 32 in the paper, and 16 loses little.
        blocks: Residual blocks.
        norm: "instance", or "batch" as in the first paper.
        extend: Checkpoint of another training: its network stays as it is, and only γ and β of the `styles` given here
            are trained, which come behind its own.
        calibration_batches: Over which the loss is brought to units of its own.
        compile: Whether network and loss are compiled: a minute or two at first, and faster steps. Losses by networks
            that are no chain of layers are not.
        optimizer: Makes an optimizer from parameters.
        lr_scheduler: Makes a schedule, advanced each step, from an optimizer; None for a constant rate.
        num_images: How many validation images are shown.
        equivalent_images: On how many images iterations are counted; 0 for none, since that takes time.
        equivalent_limit: After how many iterations counting ends.
        seed: Of the styles that images get, and of random loss networks.

    Raises:
        UsageError: For styles, networks, layers and checkpoints that can't be had.
    """

    def __init__(
        self,
        styles: str | list[str] = "brush strokes",
        network: str = "vgg16",
        weights: str | None = "DEFAULT",
        options: dict[str, Any] | None = None,
        content_layers: str | list[str] | dict[str, float] = "relu2_2",
        style_layers: str | list[str] | dict[str, float] | None = None,
        pooling: Literal["max", "average"] = "max",
        strength: float = 1.0,
        tv: float = 0.1,
        style_size: int = 256,
        width: int = 32,
        blocks: int = 5,
        norm: Literal["instance", "batch"] = "instance",
        extend: str | None = None,
        calibration_batches: int = 4,
        compile: bool = False,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        num_images: int = 6,
        equivalent_images: int = 0,
        equivalent_limit: int = 200,
        seed: int = 0,
    ) -> None:
        super().__init__(num_images)
        # What a checkpoint tells goes before what is typed: not for what is asked anew each time.
        asked = ["compile", "num_images", "equivalent_images", "equivalent_limit"]
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", *asked])
        for name, value, least in (
            ("style_size", style_size, 16),
            ("calibration_batches", calibration_batches, 1),
            ("equivalent_images", equivalent_images, 0),
            ("equivalent_limit", equivalent_limit, 1),
        ):
            check_at_least(name, value, least)
        if not tv >= 0:
            raise UsageError(f"tv is a weight, at least 0; got {tv!r}.")
        given = [styles] if isinstance(styles, str) else list(styles)
        if not given:
            raise UsageError("give at least one style.")
        before = None if extend is None else read_style_checkpoint(extend)
        if before is not None:
            told = before["hyper_parameters"]
            if norm == "batch" or told["norm"] == "batch":
                raise UsageError("a network with batch norm has one style: train another one, with norm='instance'.")
            width, blocks = told["width"], told["blocks"]
            # What is saved from here on stands for itself.
            styles = [*before["styles"], *given]
            self.hparams.update(styles=styles, width=width, blocks=blocks, extend=None)
        self.given = given
        self.style_names = _names([styles] if isinstance(styles, str) else styles)
        self.fresh = len(given)  # styles that are trained, the last ones
        count = len(self.style_names)
        # Convolutions are fastest with the channels last, on processors as well.
        self.net = TransformerNet(width, blocks, styles=count, norm=norm).to(memory_format=torch.channels_last)
        if before is not None:
            self._take_over(before["state_dict"])
        self.register_buffer("thumbnails", torch.zeros(count, 3, _THUMBNAIL, _THUMBNAIL, dtype=torch.uint8))
        if before is not None:
            self.thumbnails[: count - self.fresh] = before["state_dict"]["thumbnails"]
        self.loss: StyleLoss | None = None
        self.compile_steps = compile
        self._compiled: tuple[Any, ...] = ()
        self.space: PixelSpace | None = None
        self.strength, self.tv, self.style_size, self.seed = strength, tv, style_size, seed
        self.calibration_batches = calibration_batches
        self.equivalent_images, self.equivalent_limit = equivalent_images, equivalent_limit
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self._loss_state: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}  # of the training that is extended: what its styles are
        same = ("network", "weights", "options", "content_layers", "style_layers", "pooling", "seed")
        if before is not None and all(before["hyper_parameters"][name] == self.hparams[name] for name in same):
            self._before = {k.removeprefix("loss."): v for k, v in before["state_dict"].items() if "loss." in k}
        self._kept: list[Tensor] = []

    def forward(self, colors: Tensor, style: Tensor | None = None) -> Tensor:
        """Images (N, 3, H, W), colours from 0 to 1, stylised; see `TransformerNet`."""
        return self.net(colors, style)

    def setup(self, stage: str) -> None:
        if stage == "predict" or self.loss is not None:
            return
        told = self.hparams
        style_layers = told["style_layers"] or list(_STYLE_LAYERS)
        layers = [*listed(told["content_layers"]), *listed(style_layers)]
        network = PerceptualNetwork(
            layers, told["network"], told["weights"], options=told["options"], pooling=told["pooling"], seed=self.seed
        )
        if told["weights"] is None:
            rank_zero_warn(f"images are compared by a network that was not trained ({network.told}); give weights.")
        loss = StyleLoss(
            network, told["content_layers"], style_layers, styles=len(self.style_names), strength=self.strength
        )
        loss.network.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = loss.to(self.device)
        if self.compile_steps:
            # Hooks can't be compiled: of networks that are no chain, such as residual ones, the loss is not.
            compared = (self.loss, self.loss.content_of)
            parts = [torch.compile(part) for part in compared] if network.is_chain else compared
            self._compiled = (torch.compile(self.net), *parts)
        if self._loss_state:
            self.loss.load_state_dict(self._loss_state)
            self._loss_state = {}
        if self._before:
            self.loss.take_styles(self._before)

    def _read_styles(self) -> None:
        """Gram matrices and thumbnails of the styles; not where they come from a checkpoint, which needs no files."""
        assert self.loss is not None
        first = len(self.style_names) - self.fresh
        for index, given in enumerate(self.given, start=first):
            if self.loss.known[index]:
                continue
            colors = picture_colors(style_picture(given), self.style_size)
            self.loss.set_style(index, colors)
            small = F.interpolate(colors, (_THUMBNAIL, _THUMBNAIL), mode="bilinear", antialias=True)
            self.thumbnails[index] = (255 * small[0]).round().to(torch.uint8)

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.net.parameters() if p.requires_grad]
        optimizer = self.optimizer(trained)
        if self.lr_scheduler is None:
            return optimizer
        schedule = {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_fit_start(self) -> None:
        self._read_styles()

    def on_train_start(self) -> None:
        assert self.loss is not None
        if not int(self.loss.calibrated):
            with isolated_rng():  # so that training sees the batches that it would see without
                self._calibrate(self.trainer.train_dataloader)

    def on_validation_start(self) -> None:
        assert self.loss is not None
        self._read_styles()
        self._kept = []
        if not int(self.loss.calibrated) and not self.trainer.sanity_checking:
            with isolated_rng(), torch.inference_mode(False):
                self._calibrate(self.trainer.val_dataloaders)

    def _calibrate(self, loaders: Any) -> None:
        assert self.loss is not None
        loader = loaders[0] if isinstance(loaders, (list, tuple)) else loaders
        for batch in islice(loader, self.calibration_batches):
            images, _ = split_batch(batch)
            self.loss.calibrate(self._colors(images.to(self.device)))
        if self.trainer.world_size > 1:
            for scale in (self.loss.content_scale, self.loss.style_scale):
                scale.copy_(self.trainer.strategy.reduce(scale.clone(), reduce_op="mean"))

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        assert self.loss is not None
        colors = self._colors(split_batch(batch)[0])
        made, terms = self._transferred(colors, self._drawn(len(colors)))
        loss = terms.total.mean()
        if self.tv:
            loss = loss + self.tv * variation(made).mean()
        self.log("train_loss", loss, prog_bar=True, batch_size=len(colors))
        return loss

    def validation_step(self, batch: Any, batch_index: int, dataloader_index: int = 0) -> None:
        colors = self._colors(split_batch(batch)[0])
        for style in self._trained:
            _, terms = self._transferred(colors, torch.full((len(colors),), style, device=self.device))
            for name, value in terms.means().items():
                kind, _, layer = name.partition("/")
                self.log(
                    "val_loss" if kind == "total" else f"val_{kind}/{layer}",
                    value,
                    prog_bar=kind == "total",
                    batch_size=len(colors),
                    on_epoch=True,
                    sync_dist=True,
                    add_dataloader_idx=False,
                )
        room = self.equivalent_images - sum(map(len, self._kept))
        if room > 0 and not self.trainer.sanity_checking:
            self._kept.append(colors[:room].detach().clone())
        self.choose(batch, batch_index, dataloader_index)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            self.show({f"stylized/{self.style_names[i]}": partial(self._picture, i) for i in self._trained})
            if not self.trainer.training:
                self._count_iterations()

    def on_train_end(self) -> None:
        if self.trainer.is_global_zero:
            self._count_iterations()

    @property
    def _trained(self) -> range:
        """The styles that are trained, the last ones."""
        return range(len(self.style_names) - self.fresh, len(self.style_names))

    def predict_step(self, batch: Any, batch_index: int, dataloader_index: int = 0) -> Tensor:
        """Images of any size in the first style, colours (N, 3, H, W) from 0 to 1; for files see `lit_viz.stylize`."""
        colors = self._colors(split_batch(batch)[0])
        return stylized(self.net, colors, torch.zeros(len(colors), dtype=torch.int64, device=self.device))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        styles = self.hparams["styles"]
        checkpoint["styles"] = [styles] if isinstance(styles, str) else list(styles)
        checkpoint["rng_state"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "styles" not in checkpoint:
            raise UsageError("the checkpoint holds no style network; give one that FastStyleTransfer left.")
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            torch.set_rng_state(checkpoint["rng_state"].cpu())  # a run that goes on sees what it would have seen
        if self.loss is None:  # to stylise, or not yet
            state = checkpoint["state_dict"]
            names = [name for name in state if name.startswith("loss.")]
            self._loss_state = {name.removeprefix("loss."): state.pop(name) for name in names}

    def _take_over(self, state: Mapping[str, Tensor]) -> None:
        """Weights of another training, which stay as they are; new styles start from the mean of its styles."""
        own = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
        self.net.load_state_dict(own, strict=False)
        self.net.requires_grad_(False)
        for module in self.net.modules():
            if isinstance(module, ConditionalInstanceNorm):
                for shares in (module.gamma, module.beta):
                    known = torch.stack([p.detach() for p in list(shares)[: -self.fresh]]).mean(dim=0)
                    for p in list(shares)[-self.fresh :]:
                        p.data.copy_(known)
                        p.requires_grad_(True)

    def _colors(self, images: Tensor) -> Tensor:
        """Colours of images as the data give them."""
        if self.space is None:
            loaders = [self.trainer.train_dataloader, self.trainer.val_dataloaders, self.trainer.predict_dataloaders]
            sets = [getattr(loader, "dataset", None) for loader in loaders]
            told = find_pixel_space(getattr(self.trainer, "datamodule", None), *sets, channels=3)
            self.space = told or guess_pixel_space(images)
        return self.space.to_color(images)

    def _drawn(self, count: int) -> Tensor:
        """A style for each image of a training step, the same in a run that goes on from a checkpoint."""
        step = self.trainer.global_step * self.trainer.world_size + self.trainer.global_rank
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        styles = torch.randint(self.fresh, (count,), generator=generator) + len(self.style_names) - self.fresh
        return styles.to(self.device)

    def _transferred(self, colors: Tensor, styles: Tensor) -> tuple[Tensor, StyleTerms]:
        assert self.loss is not None
        net, loss, content_of = self._compiled or (self.net, self.loss, self.loss.content_of)
        made = net(colors.contiguous(memory_format=torch.channels_last), styles)
        return made, loss(made, content_of(colors), styles)

    def _picture(self, style: int) -> np.ndarray:
        assert self.probe is not None and self.loss is not None
        colors = self._colors(to_network(self.trainer, self, self.probe.images))
        with torch.no_grad():
            made = self.net(colors, torch.full((len(colors),), style, device=self.device))
        thumbnail = draw.to_uint8(self.thumbnails[style].float() / 255)
        return draw.sheet(
            [draw.Card([*each, thumbnail]) for each in zip(draw.to_uint8(colors), draw.to_uint8(made), strict=True)],
            columns=("content", "in one pass", "style"),
            title=f"In the style of {self.style_names[style]}",
            subtitle=f"Trained by features of {self.loss.network.told}.",
        )

    def _count_iterations(self) -> None:
        """Logs how many iterations of optimisation the network is worth."""
        if not self.equivalent_images or not self._kept or self.loss is None:
            return
        writer, step = Writer(self.trainer.loggers), self.trainer.global_step
        try:
            for style in self._trained:
                name, found = self.style_names[style], self._equivalent(style)
                parts = {"": found.total, "_content": found.content, "_style": found.style}
                writer.scalars({f"gatys_equivalent{part}/{name}": float(n) for part, n in parts.items()}, step)
                rank_zero_info(
                    f"{name}: one pass is worth {found.total} iterations of L-BFGS (of the style alone {found.style}), "
                    f"mean of {sum(map(len, self._kept))} images."
                )
        except Exception as error:
            # A comparison is not worth a run.
            rank_zero_warn(f"iterations could not be counted: {type(error).__name__}: {error}")

    def _equivalent(self, style: int) -> Equivalent:
        assert self.loss is not None
        with untouched(self), torch.autocast(self.device.type, enabled=False):
            colors = torch.cat(self._kept).clone()
            styles = torch.full((len(colors),), style, device=self.device)
            with torch.no_grad():
                made = self.net(colors, styles)
            return equivalent_iterations(self.loss, made, colors, styles, limit=self.equivalent_limit)


def variation(colors: Tensor) -> Tensor:
    """Total variation, mean over pixels and channels: (N,)."""
    return total_variation(colors) / colors[0].numel()


def _names(given: Sequence[str]) -> list[str]:
    """A name for each style: that of its file."""
    names = [Path(style).stem for style in given]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(f"two styles are called {twice[0]!r}; rename a file.")
    return names
