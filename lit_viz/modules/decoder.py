"""Training a decoder: from what a layer of a network makes of an image back to the image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from lit_viz import draw
from lit_viz.errors import UsageError
from lit_viz.functional import layer_table
from lit_viz.functional.classes import names_of
from lit_viz.functional.scores import class_scores
from lit_viz.functional.synthesis import Reading, reading
from lit_viz.guard import isolated_rng
from lit_viz.layers import find_layer
from lit_viz.modules.base import ShowingModule
from lit_viz.networks import Decoder, Discriminator, load_network
from lit_viz.networks.decoder import FORMAT
from lit_viz.pixels import PixelSpace, find_pixel_space, given_pixel_space, guess_pixel_space, pixel_space_of
from lit_viz.probing import load_probe, probe_from_batch, split_batch, to_network

_EXAMPLES = 32  # images that are looked at for their size and their range
_WINS = 0.1  # loss of the discriminator relative to the decoder's from it, below which it waits


class FeatureDecoder(ShowingModule):
    r"""Trains a decoder to invert a layer of a classifier on images of yours; labels are not needed.

    $$10\,\overline{(\hat x - x)^2} + \sum_{l \in \{\text{mid},\,\text{code}\}}
      \frac{\lVert \Phi_l(\hat x) - \Phi_l(x) \rVert^2}{\lVert \Phi_l(x) \rVert^2},
      \qquad \hat x = D(\Phi_{\text{code}}(x))$$

    with colours x from 0 to 1 (Dosovitskiy & Brox, *Generating Images with Perceptual Similarity Metrics based on Deep
    Networks*, 2016). Pixels alone would give a blur, the mean of all images with such a code; features ask for an image
    in which the classifier sees the same. The classifier is frozen, stays in evaluation mode, and is no part of
    checkpoints, which only say which one it was.

    With `adversarial_weight` λ above 0 the decoder's loss has the paper's third term, and a discriminator A, which sees
    the code as well, learns beside it:

    $$-\lambda\,\overline{\log A(\hat x, \Phi_{\text{code}})}, \qquad
      -\overline{\log A(x, \Phi_{\text{code}})} - \overline{\log(1 - A(\hat x, \Phi_{\text{code}}))}$$

    Each has gradients of its own loss alone, so that both share one optimizer, one schedule and one step, and norms of
    gradients are clipped over both. While the discriminator's loss is below a tenth of the decoder's from it, it waits.
    It is in checkpoints, since a run that goes on needs it, and nothing else does.

    It is off by default, since it was not found to help. On digits, over three seeds, λ = 0.1 leaves fewer grey pixels
    (the mean of c (1 − c) is 1.05 times that of real digits rather than 1.11), but images made by ascent in the code
    lie no nearer to held-out ones (5.1 rather than 4.9); photographs decoded after 90 steps, with one seed, were no
    better either, and some had a tinge.

    Mean, variance and minimum of each unit of the code over all training images are kept in buffers, exact, also on
    several processes. `lit_viz.networks.load_decoder` makes a space of codes from a checkpoint, for
    `ActivationMaximization(decoder=…)`.

    Logged are `train_loss`, the first formula, and where there is a discriminator `train_adversarial` and
    `train_discriminator`, the two terms of the second, without λ; for the validation images `val_loss`, the first
    formula; `val_pixel_ratio`, the squared error of pixels divided by that of the mean image, so that 1 is a decoder
    that knows nothing of the image; `val_label_kept`, the share of images that the classifier takes for the same class
    as the original; and a picture of originals with what is decoded below them.

    Attributes:
        classifier: The network that is inverted.
        decoder: From codes to colours; None before `setup`.
        discriminator: Tells images from decoded ones; None without an adversarial loss.
        layer: Full name of the layer whose output is the code.
        mid_layer: Full name of the other layer that is compared; None where there is none.
        space: How the classifier's input relates to colours; known from `setup` on.

    Args:
        model: A classifier: a name or dotted path for `load_network`, or a module.
        layer: Its layer to invert, by dotted name; of several calls the last one. Maps, or a vector: the further up,
            the more the decoder has to know of images by itself, and the freer it is of details.
        weights: For a name: the path of a checkpoint, as `ImageClassifier` leaves it, or a name such as "DEFAULT".
        mid_layer: The other layer to compare; by default the last in front of the code whose maps are larger than the
            code's and at least a quarter of the image, along each side.
        num_classes: Of a network without weights.
        in_channels: Likewise.
        options: More arguments for the network's constructor.
        width: Of the decoder, see `Decoder`.
        pixel_weight: Of the pixels in the loss, 10 in the formula.
        adversarial_weight: Of the adversarial loss, λ in the formula; 0 for none, and no discriminator.
        mean: Of the normalisation of the images in colour units, where their data don't tell it.
        std: Likewise.
        optimizer: Makes an optimizer from parameters.
        lr_scheduler: Makes a learning-rate schedule, advanced each epoch, from an optimizer; None for a constant rate.
        num_images: How many validation images are shown.

    Raises:
        UsageError: For networks, weights and layers that can't be had.
    """

    classifier: nn.Module
    code_count: Tensor
    code_mean: Tensor
    code_variance: Tensor
    code_minimum: Tensor

    def __init__(
        self,
        layer: str,
        model: str | nn.Module = "small_cnn",
        weights: str | None = None,
        mid_layer: str | None = None,
        num_classes: int | None = None,
        in_channels: int | None = None,
        options: dict[str, Any] | None = None,
        width: int = 32,
        pixel_weight: float = 10.0,
        adversarial_weight: float = 0.0,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        num_images: int = 8,
    ) -> None:
        super().__init__(num_images)
        if not pixel_weight >= 0:
            raise UsageError(f"pixel_weight must be at least 0, got {pixel_weight}.")
        if not adversarial_weight >= 0:
            raise UsageError(f"adversarial_weight must be at least 0, got {adversarial_weight}.")
        if (mean is None) != (std is None):
            raise UsageError("mean and std belong together: give both, or neither.")
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", *(() if isinstance(model, str) else ["model"])])
        known: PixelSpace | None = None
        if isinstance(model, str):
            # Those of the data are for a network without weights: trained scores stay as they are.
            fresh = {"num_classes": num_classes, "in_channels": in_channels} if weights is None else {}
            loaded = load_network(model, weights=weights, options=options, **fresh)
            model, known = loaded.module, loaded.pixel_space
        self.trained = weights is not None or not isinstance(self.hparams.get("model"), str)
        # No part of this module, so that it is in no checkpoint and no optimizer, and stays in evaluation mode.
        object.__setattr__(self, "classifier", model.eval().requires_grad_(False))
        self.fingerprint = _fingerprint(self.classifier)
        self.layer, self.mid_layer = find_layer(model, layer)[0], mid_layer and find_layer(model, mid_layer)[0]
        self.pixel_weight, self.adversarial_weight = pixel_weight, adversarial_weight
        self.width = width
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.decoder: Decoder | None = None
        self.discriminator: Discriminator | None = None
        self._duels: list[Tensor] = []  # since the last step
        self.space = given_pixel_space(mean, std) if mean is not None else known or pixel_space_of(model)
        self._told = mean is not None
        self.errors = nn.ModuleDict({name: MeanMetric() for name in ("loss", "pixel", "label_kept")})
        self._colors: Moments | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), as the classifier takes them, to what is decoded from their codes, likewise."""
        with torch.no_grad(), reading(self.classifier, [self.layer], needs_scores=False) as read:
            codes = self._code(read(images, _which(images)))
        return self._decoded(codes, images)[1]

    def _apply(self, fn: Any, recurse: bool = True) -> FeatureDecoder:
        self.classifier._apply(fn, recurse)  # goes where this goes
        return super()._apply(fn, recurse)

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        loader = _loader(self.trainer, stage)
        example = load_probe(self.trainer, self, loader, _EXAMPLES)
        if example is None:
            with isolated_rng():
                example = probe_from_batch(next(iter(loader)), _EXAMPLES)
        channels = example.images.shape[1]
        if not self._told:
            told = find_pixel_space(data, getattr(loader, "dataset", None), loader, channels=channels)
            self.space = told or self.space or guess_pixel_space(example.images)
        if stage != "fit":
            return  # a decoder comes from a checkpoint, which is read afterwards
        if not self.trained:
            rank_zero_warn("the decoder inverts a network that was not trained; give weights, such as a checkpoint.")
        if self.decoder is None:
            self._prepare(example.images[:2])

    def configure_optimizers(self) -> Any:
        assert self.decoder is not None
        # One for both: each has gradients of its own loss alone.
        parts = [part for part in (self.decoder, self.discriminator) if part is not None]
        optimizer = self.optimizer([p for part in parts for p in part.parameters()])
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer)}}

    def on_fit_start(self) -> None:
        self._duels.clear()
        # Running means in bfloat16, to which a whole module of that precision is brought, stop moving.
        for name in ("code_mean", "code_variance", "code_minimum"):
            setattr(self, name, getattr(self, name).float())

    def on_validation_start(self) -> None:
        for metric in self.errors.values():
            metric.set_dtype(torch.float32)
        self._colors = None

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        images, _ = split_batch(batch)
        found = self._compared(images)
        self._update_statistics(found.codes)
        self.log("train_loss", found.loss, prog_bar=True, batch_size=len(images))
        if self.discriminator is None:
            return found.loss
        adversarial, discriminator = self._duel(found, images)
        self._duels.append(torch.stack([adversarial, discriminator]).detach())
        losses = {"train_adversarial": adversarial, "train_discriminator": discriminator}
        self.log_dict(losses, prog_bar=True, batch_size=len(images))
        return found.loss + self.adversarial_weight * adversarial + discriminator

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.discriminator is None:
            return
        # Over all batches of the step and all processes, so that these agree.
        losses = self.all_gather(torch.stack(self._duels).sum(dim=0)).reshape(-1, 2).sum(dim=0)
        self._duels.clear()
        if losses[1] < _WINS * losses[0]:
            for parameter in self.discriminator.parameters():
                parameter.grad = None  # a gradient of zero would still move it, by momentum

    def validation_step(self, batch: Any, batch_index: int, dataloader_index: int = 0) -> None:
        images, _ = split_batch(batch)
        found = self._compared(images)
        self.errors["loss"].update(found.loss, len(images))
        self.errors["pixel"].update(found.pixel, len(images))
        before, after = (class_scores(self.classifier, x).argmax(dim=1) for x in (images, found.decoded))
        self.errors["label_kept"].update((before == after).float())
        assert self.space is not None
        seen = Moments.of(self.space.to_color(images))
        self._colors = seen if self._colors is None else self._colors.merged(seen)
        self.choose(batch, batch_index, dataloader_index)

    def on_validation_epoch_end(self) -> None:
        colors = self._everywhere(self._colors)
        values = {name: metric.compute() for name, metric in self.errors.items()}
        for metric in self.errors.values():
            metric.reset()
        values["pixel_ratio"] = values.pop("pixel") / colors.variance.mean()
        for name, value in values.items():
            # Equal on all ranks.
            self.log(f"val_{name}", value, prog_bar=name != "loss", sync_dist=True)
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            self.show({f"reconstructions/{self.layer}": self._picture})

    def predict_step(self, batch: Any, batch_index: int, dataloader_index: int = 0) -> Tensor:
        """Decoded images, as the classifier takes them."""
        return self(split_batch(batch)[0])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.decoder is not None
        checkpoint[FORMAT] = {
            "code_shape": self.decoder.code_shape,
            "image_shape": self.decoder.image_shape,
            "width": self.decoder.width,
        }
        checkpoint["classifier"] = {
            "type": type(self.classifier).__name__,
            "fingerprint": self.fingerprint,
            "mid_layer": self.mid_layer,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if FORMAT not in checkpoint:
            raise UsageError("the checkpoint holds no decoder; give one that FeatureDecoder left.")
        if checkpoint["classifier"]["fingerprint"] != self.fingerprint:
            raise UsageError(
                f"the decoder was trained for another {checkpoint['classifier']['type']} than this "
                f"{type(self.classifier).__name__}: give the model and weights that it inverts."
            )
        built = checkpoint[FORMAT]
        if self.decoder is not None and self.decoder.image_shape != tuple(built["image_shape"]):
            raise UsageError(
                f"the decoder makes images {tuple(built['image_shape'])}, but the data have "
                f"{self.decoder.image_shape}: bring them to that size."
            )
        self.mid_layer = self.mid_layer or checkpoint["classifier"]["mid_layer"]
        own = [name for name in checkpoint["state_dict"] if name.startswith("discriminator.")]
        if bool(own) != (self.adversarial_weight > 0) and self._trainer is not None and self.trainer.training:
            raise UsageError(
                f"the decoder was trained {'with' if own else 'without'} an adversarial loss: to go on, give an "
                f"adversarial_weight {'above 0' if own else 'of 0'}."
            )
        if not self.adversarial_weight:
            for name in own:
                del checkpoint["state_dict"][name]  # needed in training only
        self._build(**built, adversarial=bool(own) and self.adversarial_weight > 0)

    def _prepare(self, images: Tensor) -> None:
        """Builds the decoder for images like these, and chooses the layer in the middle."""
        if self.mid_layer is None:
            self.mid_layer = _middle(self.classifier, self.layer, images)
        with torch.no_grad(), reading(self.classifier, self._layers, needs_scores=False) as read:
            parameter = next(self.classifier.parameters(), images)
            first = read(images.to(parameter), _which(images))
            code = self._code(first)
        if code.dim() not in (2, 4):
            raise UsageError(f"layer '{self.layer}' puts out {tuple(code.shape)}; a code is a vector, or maps.")
        self._build(code.shape[1:], images.shape[1:], self.width, adversarial=self.adversarial_weight > 0)

    def _build(self, code_shape: Sequence[int], image_shape: Sequence[int], width: int, *, adversarial: bool) -> None:
        self.decoder = Decoder(code_shape, image_shape, width=width).to(self.device)
        self.discriminator = Discriminator(code_shape, image_shape, width=width) if adversarial else None
        self.register_buffer("code_count", torch.zeros((), dtype=torch.int64))
        for name in ("mean", "variance", "minimum"):
            self.register_buffer(f"code_{name}", torch.zeros(tuple(code_shape), dtype=torch.float32))
        self.to(self.device)

    @property
    def _layers(self) -> list[str]:
        return [self.layer] if self.mid_layer is None else [self.mid_layer, self.layer]

    def _code(self, found: Reading) -> Tensor:
        values = found.layer(self.layer, -1)
        return values if values.dim() == 2 else found.maps(self.layer, -1)

    def _decoded(self, codes: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Colours, and the same as the classifier takes images."""
        if self.decoder is None or self.space is None:
            raise UsageError("there is no decoder yet: train it with fit, or give its checkpoint, --ckpt_path.")
        colors = self.decoder(codes).float()
        return colors, self.space.from_color(colors).to(images.dtype)

    def _compared(self, images: Tensor) -> _Comparison:
        if self.decoder is not None and images.shape[1:] != self.decoder.image_shape:
            raise UsageError(
                f"the decoder makes images {self.decoder.image_shape}, but these are {tuple(images.shape[1:])}: bring "
                f"all to one size."
            )
        with reading(self.classifier, self._layers, needs_scores=False) as read:
            with torch.no_grad():
                true = read(images, _which(images))
                codes = self._code(true)
            colors, decoded = self._decoded(codes, images)
            made = read(decoded, _which(images))
        assert self.space is not None
        pixel = F.mse_loss(colors, self.space.to_color(images))
        features = [_relative(made.layer(name, -1), true.layer(name, -1)) for name in self._layers]
        loss = self.pixel_weight * pixel + torch.stack(features).sum()
        return _Comparison(codes, colors, decoded, loss, pixel)

    def _duel(self, found: _Comparison, images: Tensor) -> tuple[Tensor, Tensor]:
        """The adversarial loss, with gradients for the decoder alone, and the discriminator's, for itself alone."""
        assert self.discriminator is not None and self.space is not None
        real, made = self.space.to_color(images).to(images.dtype), found.colors.to(images.dtype)
        codes = torch.cat([found.codes, found.codes])
        is_real, is_made = self.discriminator(torch.cat([real, made.detach()]), codes).float().chunk(2)
        fixed = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        passed = torch.func.functional_call(self.discriminator, fixed, (made, found.codes)).float()
        # −log p and −log(1 − p) of p = σ(logit).
        return F.softplus(-passed).mean(), F.softplus(-is_real).mean() + F.softplus(is_made).mean()

    def _update_statistics(self, codes: Tensor) -> None:
        seen = self._everywhere(Moments.of(codes))
        before = Moments(self.code_count, self.code_mean, self.code_variance, self.code_minimum)
        after = before.merged(seen)
        self.code_count.copy_(after.count)
        self.code_mean.copy_(after.mean)
        self.code_variance.copy_(after.variance)
        self.code_minimum.copy_(after.minimum)

    def _everywhere(self, own: Moments) -> Moments:
        """Over all processes, the same on each."""
        if self.trainer.world_size == 1:
            return own
        gathered = [self.all_gather(v) for v in (own.count, own.mean, own.variance, own.minimum)]
        merged, *others = (Moments(*parts) for parts in zip(*gathered, strict=True))
        for other in others:
            merged = merged.merged(other)
        return merged

    def _picture(self) -> np.ndarray:
        assert self.probe is not None and self.space is not None
        with torch.no_grad():
            images = to_network(self.trainer, self, self.probe.images)
            decoded = self(images)
            probabilities = [class_scores(self.classifier, x).float().softmax(dim=1) for x in (images, decoded)]
        rows = [draw.to_uint8(self.space.to_color(x)) for x in (images, decoded)]
        names = names_of(getattr(self.trainer, "datamodule", None)) or []
        cards = []
        for above, below, before, after in zip(*rows, *probabilities, strict=True):
            gap = np.full((max(1, len(above) // 16), above.shape[1], 3), 255, dtype=np.uint8)
            best = int(after.argmax())
            cards.append(
                draw.Card(
                    [np.concatenate([above, gap, below])],
                    names[best] if len(names) == len(after) else f"class {best}",
                    f"p = {float(after[best]):.2f}",
                    best == int(before.argmax()),
                )
            )
        return draw.sheet(
            cards,
            title=f"Decoded from {self.layer}",
            subtitle="Above the image, below what the decoder makes of its code alone, and what the classifier takes "
            "that for; ticked where it takes the image for the same.",
        )


class _Comparison(NamedTuple):
    """What is decoded from codes, as colours and as the classifier takes it; the loss, and the error of pixels."""

    codes: Tensor
    colors: Tensor
    decoded: Tensor
    loss: Tensor
    pixel: Tensor


@dataclass(frozen=True)
class Moments:
    """Count, mean, variance (divided by the count) and minimum of each unit over samples."""

    count: Tensor
    mean: Tensor
    variance: Tensor
    minimum: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Of samples (n, …)."""
        values = values.detach().float()
        count = torch.tensor(len(values), device=values.device)
        return cls(count, values.mean(dim=0), values.var(dim=0, correction=0), values.amin(dim=0))

    def merged(self, other: Moments) -> Moments:
        """Of the samples of both (Chan, Golub & LeVeque, *Algorithms for Computing the Sample Variance*, 1983)."""
        total = self.count + other.count
        share = (other.count / total.clamp(min=1)).float()
        step = other.mean - self.mean
        variance = (1 - share) * self.variance + share * other.variance + share * (1 - share) * step.square()
        lower = torch.minimum(self.minimum, other.minimum)
        minimum = torch.where(self.count == 0, other.minimum, torch.where(other.count == 0, self.minimum, lower))
        return Moments(total, self.mean + share * step, variance, minimum)


def _relative(made: Tensor, true: Tensor) -> Tensor:
    """Squared difference relative to what it should be, over a batch."""
    true = true.float()
    return (made.float() - true).square().sum() / true.square().sum().clamp(min=1e-12)


def _which(images: Tensor) -> Tensor:
    return torch.arange(len(images), device=images.device)


def _middle(classifier: nn.Module, layer: str, images: Tensor) -> str | None:
    """The last layer in front of `layer` with maps larger than its, and at least a quarter of the image."""
    table = {info.name: info.shape for info in layer_table(classifier, images[:1], containers=True)}
    if layer not in table:
        return None  # the reading tells what is wrong
    order, code = list(table), table[layer][1:] if len(table[layer]) == 3 else (0, 0)
    fit = [
        name
        for name in order[: order.index(layer)]
        if len(table[name]) == 3
        and not layer.startswith(f"{name}.")
        and all(4 * s >= i and s > c for s, i, c in zip(table[name][1:], images.shape[2:], code, strict=True))
    ]
    # Rather a whole block than the last layer inside of it.
    return next((name for name in fit if f"{fit[-1]}.".startswith(f"{name}.")), None) if fit else None


def _fingerprint(module: nn.Module) -> str:
    """Tells one set of weights from another."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _loader(trainer: Any, stage: str) -> Any:
    """The data that a stage will read, before the trainer has asked for them."""
    data = getattr(trainer, "datamodule", None)
    names = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}
    if data is not None:
        found = getattr(data, f"{names[stage]}_dataloader")()
    else:
        loop = {"fit": "fit_loop", "validate": "validate_loop", "test": "test_loop", "predict": "predict_loop"}[stage]
        found = getattr(trainer, loop)._data_source.dataloader()
    return found[0] if isinstance(found, (list, tuple)) else found
