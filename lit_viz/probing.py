"""A look at a live Lightning run: the guard with the trainer's precision, probe images, and who is who in a batch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    default_collate,
)

from lit_viz.errors import UsageError
from lit_viz.guard import isolated_rng, untouched

IMAGE_KEYS = ("image", "images", "img", "imgs", "pixel_values", "x", "input", "inputs")
LABEL_KEYS = ("label", "labels", "target", "targets", "y", "class", "classes")

LARGE = 2**20  # bytes of an array that is not copied

BatchToImages = Callable[[Any], Tensor | tuple[Tensor, Tensor | None]]
Forward = Callable[[LightningModule, Tensor], Any]


@contextmanager
def looking(
    trainer: Trainer, module: LightningModule, *, seed: int = 0, forward: Forward | None = None
) -> Iterator[None]:
    """`untouched`, under the precision that the trainer runs the model in.

    Under 16-bit mixed precision the look is taken in float32: gradients with respect to pixels underflow in float16,
    and the loss scaling that saves training does not reach them. What `forward` logs inside is not logged: it would
    mix with the metrics of the run.

    Args:
        trainer: The trainer.
        module: Its module.
        seed: For the generators, see `untouched`.
        forward: What `module(images)` does inside, instead of the module's own `forward`.
    """
    plugin = trainer.precision_plugin
    context = nullcontext() if plugin.precision == "16-mixed" else plugin.forward_context()
    silent = {name: lambda *_, **__: None for name in ("log", "log_dict")}
    with ExitStack() as stack:
        stack.enter_context(untouched(module, seed=seed))
        stack.enter_context(context)
        for part in module.modules():
            if isinstance(part, LightningModule):
                stack.enter_context(_attributes(part, silent))
        if forward is not None:
            stack.enter_context(_called_with(module, forward))
        yield


@contextmanager
def _attributes(module: LightningModule, values: Mapping[str, Any]) -> Iterator[None]:
    """Attributes of this object alone, over those of its class."""
    own = {name: module.__dict__[name] for name in values if name in module.__dict__}
    module.__dict__.update(values)
    try:
        yield
    finally:
        for name in values:
            del module.__dict__[name]
        module.__dict__.update(own)


@contextmanager
def _called_with(module: LightningModule, forward: Forward) -> Iterator[None]:
    def run(images: Tensor) -> Any:
        # Inside, `module(...)` means the module's own way again.
        with _attributes(module, {"forward": own}):
            return forward(module, images)

    own = module.forward
    with _attributes(module, {"forward": run}):
        yield


def to_network(trainer: Trainer, module: LightningModule, images: Tensor) -> Tensor:
    """Images on the module's device, in the trainer's precision, as a normal tensor outside of any graph."""
    images = trainer.precision_plugin.convert_input(images.detach())
    return images.to(module.device, copy=True)


def split_batch(batch: Any, batch_to_images: BatchToImages | None = None) -> tuple[Tensor, Tensor | None]:
    """Finds images and labels in a batch.

    Args:
        batch: A tensor, or tuples, lists, dicts and dataclasses of tensors. Images are the first floating-point tensor
            with four dimensions (where there is none, of bytes), in dicts preferably under a usual name ("image",
            "pixel_values", "x" …); labels are the first tensor with one integer for each image, or with zeros and
            ones.
        batch_to_images: Does it instead, and returns images or (images, labels).

    Returns:
        Images (N, C, H, W), floating point, and labels (N,) int64 or None.

    Raises:
        UsageError: If there are no images, with what was found and how to say it.
    """
    if batch_to_images is not None:
        found = batch_to_images(batch)
        images, labels = found if isinstance(found, tuple) else (found, None)
    else:
        images = _find(batch, IMAGE_KEYS, lambda t: t.dim() == 4 and t.is_floating_point())
        if images is None:
            images = _find(batch, IMAGE_KEYS, lambda t: t.dim() == 4 and t.dtype == torch.uint8)
        labels = None if images is None else _find(batch, LABEL_KEYS, lambda t: _are_labels(t, len(images)))
    if not isinstance(images, Tensor) or images.dim() != 4:
        raise UsageError(
            f"found no images (N, C, H, W) in a batch of {_described(batch)}; pass batch_to_images=..., "
            f"for instance `lambda batch: batch[0]`, or return (images, labels) from it."
        )
    # Gradients need real numbers; a network that takes bytes divides them itself.
    images = images if images.is_floating_point() else images.float()
    return images, None if labels is None else labels.reshape(len(images), -1)[:, 0].long()


@dataclass(frozen=True)
class Probe:
    """The images that are looked at again and again.

    Attributes:
        images: (N, C, H, W) on the CPU, as the network takes them.
        labels: (N,) int64, or None.
        names: What the data set calls the samples, or None.
        samples: (N,) int64, their indices in the data set, or None where these are unknown.
    """

    images: Tensor
    labels: Tensor | None
    names: list[str] | None = None
    samples: Tensor | None = None


def load_probe(
    trainer: Trainer,
    module: LightningModule,
    loader: Any,
    count: int,
    *,
    seed: int = 0,
    batch_to_images: BatchToImages | None = None,
) -> Probe | None:
    """Takes samples from all over a data set, the same on every rank and in every run.

    They are read from a copy of the data set (large arrays shared), since reading may change it: a generator of its
    own that goes on, a file opened at the first access and then inherited by workers.

    Args:
        trainer: The trainer.
        module: The module.
        loader: A DataLoader.
        count: How many images.
        seed: For data sets that augment at random.
        batch_to_images: See `split_batch`.

    Returns:
        The probe, or None where samples can't be had so: iterable data, samplers of unknown order, data that can't be
        copied or collated, batches that hooks of the module or the data module change. Take the first batch there.

    Raises:
        UsageError: If the data set is empty, or there are no images in its batches.
    """
    indices = _indices(loader)
    if indices is not None and len(indices) == 0:
        raise UsageError(f"the data set {type(loader.dataset).__name__} is empty, so there is nothing to look at.")
    if indices is None or _batches_are_changed(trainer, module):
        return None
    chosen = [indices[i] for i in scattered(len(indices), min(count, len(indices))).tolist()]
    try:
        with isolated_rng(seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset, collate = copied((loader.dataset, loader.collate_fn or default_collate))
            batch = collate([dataset[i] for i in chosen])
    except Exception:
        return None
    probe = probe_from_batch(batch, count, batch_to_images=batch_to_images, names=_names(dataset, chosen))
    numbered = len(probe.images) == len(chosen) and all(isinstance(i, int) for i in chosen)
    return replace(probe, samples=torch.tensor(chosen) if numbered else None)


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


def scattered(length: int, count: int) -> Tensor:
    """`count` increasing indices from all over 0 … length − 1, int64, one from each of as many equal parts.

    Steps differ by the golden ratio: with equal ones, data whose classes come in turn would show one class again and
    again.

    >>> scattered(1000, 5).tolist()
    [0, 323, 447, 770, 894]
    """
    if length < 2 * count:
        return evenly_spaced(length, count)
    parts = torch.arange(count, dtype=torch.float64)
    golden = (5**0.5 - 1) / 2
    return ((parts + (parts * golden) % 1) * (length / count)).long()


def dataloader(trainer: Trainer, index: int = 0) -> Any:
    """The loader to take probes from: validation or test data where there are any, else training data.

    Raises:
        UsageError: If there are loaders, but none of this index.
    """
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    if loaders is None:
        return _nth(trainer.train_dataloader, 0)
    found = _nth(loaders, index)
    if found is None:
        raise UsageError(f"dataloader_idx is {index}, but there is no such loader; they count from 0.")
    return found


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

    def __getstate__(self) -> dict[str, Any]:
        # An iterator can't be pickled, and none goes on in another process.
        return {**self.__dict__, "_batches": None}

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


def _indices(loader: Any) -> Sequence[Any] | None:
    """What a loader may ask its data set for, or None where that can't be known without drawing samples."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    if type(loader.batch_sampler) is not BatchSampler:
        return None
    sampler = loader.batch_sampler.sampler
    # Lightning's own wrapper for other samplers on several ranks hides them.
    if isinstance(sampler, (SequentialSampler, RandomSampler)) or type(sampler) is DistributedSampler:
        try:
            return range(len(loader.dataset))
        except TypeError:
            return None
    return list(sampler.indices) if isinstance(sampler, SubsetRandomSampler) else None


def _batches_are_changed(trainer: Trainer, module: LightningModule) -> bool:
    """Whether the user's hooks have a say in what reaches the network: they may draw random numbers or count."""
    hooks = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
    datamodule = getattr(trainer, "datamodule", None)
    return any(is_overridden(hook, module) or (datamodule and is_overridden(hook, datamodule)) for hook in hooks)


def copied(value: Any) -> Any:
    """A deep copy that shares networks and large arrays, which are only read."""
    memo: dict[int, Any] = {}
    stack, seen = [value], set()
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, (str, bytes, int, float, type, ModuleType, FunctionType)):
            continue
        seen.add(id(item))
        if isinstance(item, (nn.Module, Trainer)) or (isinstance(item, (Tensor, np.ndarray)) and item.nbytes > LARGE):
            memo[id(item)] = item
        elif isinstance(item, Mapping):
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
        elif isinstance(item, MethodType):
            stack.append(item.__self__)
        else:
            stack.extend(getattr(item, "__dict__", {}).values())
    return copy.deepcopy(value, memo)


def _nth(loaders: Any, index: int) -> Any:
    if loaders is None:
        return None
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        return loaders[index] if 0 <= index < len(loaders) else None
    return loaders if index == 0 else None


def _names(dataset: Any, indices: Sequence[Any]) -> list[str] | None:
    captions = getattr(dataset, "captions", None)
    if isinstance(captions, Sequence) and not isinstance(captions, str) and len(captions) == len(dataset):
        return [str(captions[i]) for i in indices]
    return None


def _are_labels(tensor: Tensor, count: int) -> bool:
    if tensor.shape not in ((count,), (count, 1)) or tensor.dtype == torch.bool:
        return False
    # Binary classifiers take theirs as 0.0 and 1.0; other real numbers are no classes.
    return not tensor.is_floating_point() or bool(((tensor == 0) | (tensor == 1)).all())


def _find(value: Any, keys: Sequence[str], fits: Callable[[Tensor], bool]) -> Tensor | None:
    if isinstance(value, Tensor):
        return value if fits(value) else None
    if isinstance(value, Mapping):
        items = [value[k] for k in keys if k in value] + [v for k, v in value.items() if k not in keys]
    elif isinstance(value, (list, tuple)):
        items = list(value)
    elif is_dataclass(value) and not isinstance(value, type):
        return _find({f.name: getattr(value, f.name) for f in fields(value)}, keys, fits)
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
