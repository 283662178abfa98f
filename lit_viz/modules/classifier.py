"""Training, validating and asking an image classifier."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from lit_viz.errors import UsageError
from lit_viz.networks import load_network
from lit_viz.pixels import PixelSpace, find_pixel_space

_AUX_WEIGHT = 0.3  # Szegedy et al., "Going deeper with convolutions", 2015, section 5.
_IGNORED = -1
_TOP = {"acc": 1, "acc_top5": 5}


class ImageClassifier(LightningModule):
    """Any network of `load_network` with cross-entropy, accuracy and an optimizer.

    Batches are pairs of images (N, C, H, W), normalised, and labels (N,). A label below 0 means "unlabelled":
    such an image counts neither in the loss nor in the accuracy. Where labels can't mean this network's
    classes, because the data module has another number of classes or a label is too high, training is an
    error; validation and test warn and report nothing rather than a meaningless number.

    Logged are `train_loss` per step, and per epoch `val_loss`, `val_acc` and, with more than five classes,
    `val_acc_top5`; likewise for `test`.

    Checkpoints hold the arguments except the optimizer and the scheduler, which are code. To load one without
    looking for its pretrained weights again, give `load_from_checkpoint(path, weights=None)`.

    Attributes:
        network: The network alone, a plain module.
        class_names: One name per score, where the weights tell; else None.
        pixel_space: How the pretrained network's images were normalised, where the weights tell; else None.
        num_classes: Number of scores.

    Args:
        model: "small_cnn", a torchvision classification network, "efficientnet_lite0", or a dotted path; see
            `load_network`.
        num_classes: Number of scores; None keeps that of the weights or the network's default.
        in_channels: Channels of the images.
        weights: None for a random start, a name such as "DEFAULT", or the path of a checkpoint.
        options: More arguments for the network's constructor.
        optimizer: Makes an optimizer from parameters.
        lr_scheduler: Makes a learning-rate schedule from an optimizer; None keeps the rate constant.
        lr_interval: Whether the schedule advances each "epoch" or each "step".
        label_smoothing: Share of the target that is spread over all classes in training, from 0 up to,
            but not including, 1.

    Raises:
        UsageError: For arguments out of range, and networks or weights that can't be had.
    """

    def __init__(
        self,
        model: str = "small_cnn",
        num_classes: int | None = None,
        in_channels: int = 3,
        weights: str | None = None,
        options: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}.")
        if lr_interval not in ("epoch", "step"):
            raise UsageError(f"lr_interval must be 'epoch' or 'step', got {lr_interval!r}.")
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        loaded = load_network(model, num_classes=num_classes, in_channels=in_channels, weights=weights, options=options)
        self.network: nn.Module = loaded.module
        convolves = any(isinstance(m, nn.Conv2d) for m in self.network.modules())
        self.in_channels = in_channels if convolves else None
        self.class_names: list[str] | None = None if loaded.class_names is None else list(loaded.class_names)
        self.pixel_space: PixelSpace | None = loaded.pixel_space
        known = None if self.class_names is None else len(self.class_names)
        self.num_classes: int | None = known if num_classes is None else num_classes
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.label_smoothing = label_smoothing
        self.means = nn.ModuleDict(
            {f"{stage}_{name}": MeanMetric() for stage in ("val", "test") for name in ("loss", *_TOP)}
        )
        self._head_is_new = loaded.new_head
        self._data_classes: int | None = None
        self._labels_count = True

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), normalised, to scores (N, num_classes) before softmax."""
        return self._scores(images)[0]

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        self._data_classes = getattr(data, "num_classes", None)
        self._labels_count = True
        space = find_pixel_space(data)
        if self.pixel_space is not None and space is not None and not _alike(self.pixel_space, space):
            rank_zero_warn(
                f"the images are normalised with mean {space.mean} and std {space.std}, but the network "
                f"expects mean {self.pixel_space.mean} and std {self.pixel_space.std}; give the data these."
            )

    def _check_trained(self) -> None:
        # Not in `setup`: Lightning knows of the checkpoint only when it has read it.
        stage = self.trainer.state.fn
        if stage == "fit" or self.trainer.ckpt_path is not None:
            return
        if self.hparams.weights is None:
            rank_zero_warn(f"{stage.value} of a network that was not trained: give weights, or --ckpt_path.")
        elif self._head_is_new:
            raise UsageError(
                f"{stage.value} of a network whose head starts anew, for the {self.num_classes} classes of the data, "
                f"and was never trained: give --ckpt_path, or leave the data's labels out to see the network's own "
                f"classes, with --data.labels=false for a folder of images."
            )

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        images, labels = _unpack(batch)
        logits, auxiliary = self._scores(images)
        labels = self._targets(labels, logits, "fit")
        loss = self._loss(logits, labels)
        for other in auxiliary:
            loss = loss + _AUX_WEIGHT * self._loss(other, labels)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def on_validation_start(self) -> None:
        self._check_trained()
        # Sums in bfloat16, to which a whole module of that precision is brought, stop growing.
        for mean in self.means.values():
            mean.set_dtype(torch.float32)

    on_test_start = on_validation_start

    def on_predict_start(self) -> None:
        self._check_trained()

    def validation_step(self, batch: Any, batch_index: int, dataloader_index: int = 0) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_index: int, dataloader_index: int = 0) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_index: int, dataloader_index: int = 0) -> Tensor:
        """Class probabilities, (N, num_classes)."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return self(images).float().softmax(dim=1)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        schedule = {
            "scheduler": self.lr_scheduler(optimizer),
            "interval": self.lr_interval,
            "monitor": "val_loss",  # Only ReduceLROnPlateau looks at it.
        }
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _scores(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores, and those of auxiliary heads, which Inception and GoogLeNet have in training mode."""
        if self.in_channels not in (None, images.shape[1]):
            raise UsageError(
                f"the images have {images.shape[1]} channel(s), but the network takes {self.in_channels}: give the "
                f"model in_channels={images.shape[1]}, or convert the images."
            )
        output = self.network(images)
        if isinstance(output, Tensor):
            return output, []
        return output[0], [other for other in output[1:] if other is not None]

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, ignore_index=_IGNORED, label_smoothing=self.label_smoothing)

    def _targets(self, labels: Tensor, logits: Tensor, stage: str) -> Tensor:
        """Labels with `_IGNORED` in place of all that don't say one of the network's classes."""
        self.num_classes = logits.shape[1]
        highest = int(labels.max())
        fault = None
        if self._data_classes not in (None, self.num_classes):
            fault = f"the data have {self._data_classes} classes and the network {self.num_classes}"
        elif highest >= self.num_classes:
            fault = f"there is a label {highest}, but the network has {self.num_classes} classes"
        if stage == "fit":
            if fault is not None:
                raise UsageError(f"{fault}; give the model the data's num_classes, to train a new head.")
            if highest < 0:
                raise UsageError("a training batch without any label: such images serve for validation only.")
        elif fault is not None and self._labels_count:
            rank_zero_warn(f"{fault}: the labels don't mean the network's classes, so they are left out.")
            self._labels_count = False
        return labels.clamp(min=_IGNORED) if self._labels_count else torch.full_like(labels, _IGNORED)

    def _evaluate(self, batch: Any, stage: str) -> None:
        images, labels = _unpack(batch)
        logits = self(images).float()
        labels = self._targets(labels, logits, stage)
        counted = (labels >= 0).float()
        losses = F.cross_entropy(logits, labels, ignore_index=_IGNORED, reduction="none")
        self.means[f"{stage}_loss"].update(losses, counted)
        for name, k in _TOP.items():
            best = logits.topk(min(k, logits.shape[1]), dim=1).indices
            self.means[f"{stage}_{name}"].update((best == labels[:, None]).any(dim=1).float(), counted)

    def _report(self, stage: str) -> None:
        """Logs what was counted; computed on every rank, as that is where ranks meet."""
        for name in ("loss", *_TOP):
            mean = self.means[f"{stage}_{name}"]
            value = mean.compute()
            mean.reset()
            trivial = self.num_classes is not None and _TOP.get(name, 0) >= self.num_classes
            if torch.isfinite(value) and not trivial:
                self.log(f"{stage}_{name}", value, prog_bar=name != "acc_top5", sync_dist=True)  # equal on all ranks


def _unpack(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (list, tuple)) or len(batch) < 2:
        raise UsageError(f"ImageClassifier wants batches of (images, labels), got a {type(batch).__name__}.")
    return batch[0], batch[1]


def _alike(a: PixelSpace, b: PixelSpace) -> bool:
    pairs = zip((*a.mean, *a.std), (*b.mean, *b.std), strict=False)
    return len(a.mean) == len(b.mean) and all(abs(x - y) < 0.02 for x, y in pairs)
