"""A look at a live Lightning run: the guard with the trainer's precision, probe images, and who is who in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    default_collate,
)

from lit_viz.errors import UsageError
from lit_viz.guard import isolated_rng, untouched

IMAGE_KEYS = ("image", "images", "img", "imgs", "pixel_values", "x", "input", "inputs")
LABEL_KEYS = ("label", "labels", "target", "targets", "y", "class", "classes")

BatchToImages = Callable[[Any], Tensor | tuple[Tensor, Tensor | None]]


@contextmanager
def looking(trainer: Trainer, module: LightningModule, *, seed: int = 0) -> Iterator[None]:
    """`untouched`, under the precision that the trainer runs the model in.

    Under 16-bit mixed precision the look is taken in float32: gradients with respect to pixels underflow in float16,
    and the loss scaling that saves training does not reach them.
    """
    plugin = trainer.precision_plugin
    context = nullcontext() if plugin.precision == "16-mixed" else plugin.forward_context()
    with untouched(module, seed=seed), context:
        yield


def to_network(trainer: Trainer, module: LightningModule, images: Tensor) -> Tensor:
    """Images on the module's device, in the trainer's precision, as a normal tensor outside of any graph."""
    images = trainer.precision_plugin.convert_input(images.detach())
    return images.to(module.device, copy=True)


def split_batch(batch: Any, batch_to_images: BatchToImages | None = None) -> tuple[Tensor, Tensor | None]:
    """Finds images and labels in a batch.

    Args:
        batch: A tensor, or tuples, lists and dicts of tensors. Images are the first floating-point tensor with four
            dimensions, in dicts preferably under a usual name ("image", "pixel_values", "x" …); labels are the
            first integer tensor with one entry for each image.
        batch_to_images: Does it instead, and returns images or (images, labels).

    Returns:
        Images (N, C, H, W), labels (N,) int64 or None.

    Raises:
        UsageError: If there are no images, with what was found and how to say it.
    """
    if batch_to_images is not None:
        found = batch_to_images(batch)
        images, labels = found if isinstance(found, tuple) else (found, None)
    else:
        images = _find(batch, IMAGE_KEYS, lambda t: t.dim() == 4 and t.is_floating_point())
        labels = None
        if images is not None:
            count = len(images)
            labels = _find(
                batch,
                LABEL_KEYS,
                lambda t: t.shape in ((count,), (count, 1)) and t.dtype in (torch.int64, torch.int32),
            )
    if not isinstance(images, Tensor) or images.dim() != 4:
        raise UsageError(
            f"found no images (N, C, H, W) in a batch of {_described(batch)}; pass batch_to_images=..., "
            f"for instance `lambda batch: batch['left']`, or return (images, labels) from it."
        )
    return images, None if labels is None else labels.reshape(len(images), -1)[:, 0].long()


@dataclass(frozen=True)
class Probe:
    """The images that are looked at again and again.

    Attributes:
        images: (N, C, H, W) on the CPU, as the network takes them.
        labels: (N,) int64, or None.
        names: What the data set calls the samples, or None.
    """

    images: Tensor
    labels: Tensor | None
    names: list[str] | None = None


def load_probe(
    trainer: Trainer,
    module: LightningModule,
    loader: Any,
    count: int,
    *,
    seed: int = 0,
    batch_to_images: BatchToImages | None = None,
) -> Probe | None:
    """Takes evenly spaced samples of a data set, the same on every rank and in every run.

    Args:
        trainer: Moves the batch to the device, with the hooks that the module and its data have for that.
        module: The module.
        loader: A DataLoader.
        count: How many images.
        seed: For data sets that augment at random.
        batch_to_images: See `split_batch`.

    Returns:
        The probe, or None where samples can't be had by index (iterable data); take the first batch there.

    Raises:
        UsageError: If the data set is empty.
    """
    dataset = getattr(loader, "dataset", None)
    if dataset is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        return None
    try:
        length = len(dataset)
    except TypeError:
        return None
    if length == 0:
        raise UsageError(f"the data set {type(dataset).__name__} is empty, so there is nothing to look at.")
    indices = evenly_spaced(length, min(count, length)).tolist()
    collate = getattr(loader, "collate_fn", None) or default_collate
    with isolated_rng(seed):
        batch = collate([dataset[i] for i in indices])
        batch = trainer.precision_plugin.convert_input(batch)
        batch = trainer.strategy.batch_to_device(batch, module.device, dataloader_idx=0)
    return probe_from_batch(batch, count, batch_to_images=batch_to_images, names=_names(dataset, indices))


def probe_from_batch(
    batch: Any, count: int, *, batch_to_images: BatchToImages | None = None, names: list[str] | None = None
) -> Probe:
    """The first `count` images of a batch as a probe."""
    images, labels = split_batch(batch, batch_to_images)
    with torch.inference_mode(False):
        images = images[:count].detach().to("cpu", copy=True)
        labels = None if labels is None else labels[:count].to("cpu", copy=True)
    return Probe(images, labels, names)


def evenly_spaced(length: int, count: int) -> Tensor:
    """`count` indices spread evenly over 0 … length − 1, int64.

    >>> evenly_spaced(10, 4).tolist()
    [0, 3, 6, 9]
    """
    # In float64 whatever the default is: it is bfloat16 inside a run of that precision.
    return torch.linspace(0, length - 1, count, dtype=torch.float64).round().long()


def dataloader(trainer: Trainer, index: int = 0) -> Any:
    """The loader to take probes from: validation or test data where there are any, else training data."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    found = _nth(loaders, index)
    return found if found is not None else _nth(trainer.train_dataloader, 0)


class SampleIndices:
    """Which samples of the data set a batch holds.

    Known where the loader goes through the data in a fixed order (sequential, or split over ranks in order); anywhere
    else samples are counted as seen.

    Args:
        loader: The loader that is being iterated.
        rank: This process.
        world_size: Number of processes.

    Attributes:
        exact: Whether indices are those of the data set.
    """

    def __init__(self, loader: Any, *, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.seen = 0
        self._batches = _batches(loader)
        self.exact = self._batches is not None

    def next(self, count: int) -> Tensor:
        """Indices of the next `count` samples, int64 (count,)."""
        if self._batches is not None:
            indices = next(self._batches, None)
            if indices is not None and len(indices) == count:
                self.seen += count
                return torch.tensor(indices)
            self._batches, self.exact = None, False
        first = self.seen
        self.seen += count
        return (first + torch.arange(count)) * self.world_size + self.rank


def _batches(loader: Any) -> Iterator[Sequence[int]] | None:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    batch_sampler = loader.batch_sampler
    if type(batch_sampler) is not BatchSampler:
        return None
    sampler = batch_sampler.sampler
    # Exact types: Lightning's wrapper of another sampler is a DistributedSampler, yet draws anew at each iteration.
    in_order = type(sampler) is SequentialSampler or (type(sampler) is DistributedSampler and not sampler.shuffle)
    return iter(batch_sampler) if in_order else None


def _nth(loaders: Any, index: int) -> Any:
    if loaders is None:
        return None
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        return loaders[index] if index < len(loaders) else None
    return loaders if index == 0 else None


def _names(dataset: Any, indices: list[int]) -> list[str] | None:
    names = getattr(dataset, "names", None)
    if isinstance(names, Sequence) and not isinstance(names, str) and len(names) == len(dataset):
        return [str(names[i]) for i in indices]
    return None


def _find(value: Any, keys: Sequence[str], fits: Callable[[Tensor], bool]) -> Tensor | None:
    if isinstance(value, Tensor):
        return value if fits(value) else None
    if isinstance(value, Mapping):
        items = [value[k] for k in keys if k in value] + [v for k, v in value.items() if k not in keys]
    elif isinstance(value, (list, tuple)):
        items = list(value)
    else:
        return None
    for item in items:
        found = _find(item, keys, fits)
        if found is not None:
            return found
    return None


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {value.dtype}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_described(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return type(value).__name__ + " (" + ", ".join(_described(v) for v in list(value)[:4]) + ")"
    return type(value).__name__
