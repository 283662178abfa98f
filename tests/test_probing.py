"""Images out of any batch, the same probe at every look, and which samples a batch holds."""

from __future__ import annotations

import itertools
import random
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lit_viz.errors import UsageError
from lit_viz.probing import (
    SampleIndices,
    dataloader,
    evenly_spaced,
    load_probe,
    looking,
    probe_from_batch,
    scattered,
    split_batch,
    to_network,
)

X = torch.arange(4 * 3 * 2 * 2.0).reshape(4, 3, 2, 2)
Y = torch.tensor([3, 1, 2, 0])
Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Sample:
    picture: Tensor
    kind: Tensor


# --- Batches ---


@pytest.mark.parametrize(
    ("batch", "labelled"),
    [
        (X, False),
        ((X, Y), True),
        ([X, Y], True),
        ((Y, X), True),
        (Pair(X, Y), True),
        ({"image": X, "label": Y}, True),
        ({"pixel_values": X, "labels": Y}, True),
        ({"index": torch.arange(4), "y": Y, "x": X}, True),
        ({"depth": X + 1, "img": X, "target": Y.reshape(4, 1)}, True),
        ({"left": X, "right": X + 1}, False),
        (({"image": X}, {"target": Y.int()}), True),
        ({"inputs": {"image": X}, "meta": {"names": ["a"] * 4, "label": Y}}, True),
        ((X, torch.rand(4)), False),  # regression
        ((X, torch.zeros(4, 5, dtype=torch.int64)), False),  # attributes, not classes
        ((X, torch.zeros(4, 2, 2, dtype=torch.int64), Y), True),  # masks come first
        ((torch.arange(3), X, Y), True),
        ((X.to(torch.uint8), X, Y), True),
        ((X, None, "name"), False),
        ((X, Y.to(torch.int16)), True),
        (Sample(X, Y), True),
        ((X, Y > 0), False),
    ],
)
def test_images_and_labels_in_a_batch(batch: Any, labelled: bool) -> None:
    images, labels = split_batch(batch)
    assert images is X
    assert (labels is not None) == labelled
    if labels is not None:
        assert labels.dtype == torch.int64 and torch.equal(labels, Y)


def test_zeros_and_ones_are_labels_whatever_their_type() -> None:
    for labels in (torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([[0.0], [1.0], [1.0], [0.0]])):
        found = split_batch((X, labels))[1]
        assert found is not None and found.tolist() == [0, 1, 1, 0]


def test_images_of_bytes() -> None:
    images, labels = split_batch({"image": X.to(torch.uint8), "label": Y})
    assert torch.equal(images, X) and images.dtype == torch.float32 and labels is not None


def test_the_users_own_way() -> None:
    batch = {"left": X, "right": X + 1, "id": Y}
    images, labels = split_batch(batch, lambda batch: batch["right"])
    assert torch.equal(images, X + 1) and labels is None
    images, labels = split_batch(batch, lambda batch: (batch["left"], batch["id"]))
    assert images is X and labels is not None and torch.equal(labels, Y)
    assert split_batch(batch, lambda batch: (batch["left"], None))[1] is None


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.zeros(4, 3), ["tensor (4, 3) torch.float32"]),
        ((X.to(torch.int64), Y), ["tensor (4, 3, 2, 2) torch.int64", "tensor (4,) torch.int64"]),
        ({"tokens": Y, "name": "a"}, ["{'tokens': tensor (4,) torch.int64, 'name': str}"]),
        (None, ["NoneType"]),
        ([], ["list ()"]),
    ],
)
def test_batches_without_images_are_described(batch: Any, words: list[str]) -> None:
    with pytest.raises(UsageError, match="found no images") as caught:
        split_batch(batch)
    assert all(word in str(caught.value) for word in [*words, "batch_to_images"])


def test_what_batch_to_images_gives_must_be_images() -> None:
    for wrong in (lambda b: Y, lambda b: None, lambda b: (None, Y)):
        with pytest.raises(UsageError, match="found no images"):
            split_batch((X, Y), wrong)


# --- The probe ---


class Augmented(Dataset[tuple[Tensor, int]]):
    """Every access draws from all three generators."""

    def __init__(self, count: int = 10) -> None:
        self.captions = [f"file {i}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.rand(1) + float(np.random.rand()) + random.random()
        return torch.full((3, 4, 4), float(index)) + noise, index


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.zeros(8, 3, 4, 4))


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean((2, 3))


def trainer(**options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **options)


def attached(**options: Any) -> tuple[L.Trainer, Module]:
    run, module = trainer(**options), Module()
    run.strategy.connect(module)
    run._data_connector.attach_data(module)
    return run, module


def draws() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def seed() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)


def test_the_probe_is_the_same_each_time_and_draws_nothing() -> None:
    run, module = attached()
    seed()
    expected = draws()
    seed()
    first = load_probe(run, module, DataLoader(Augmented(), shuffle=True, batch_size=3), 4)
    assert draws() == expected
    second = load_probe(run, module, DataLoader(Augmented(), batch_size=10), 4)
    assert first is not None and second is not None
    assert torch.equal(first.images, second.images)
    assert first.labels is not None and first.labels.tolist() == [0, 4, 5, 9]
    assert first.names == ["file 0", "file 4", "file 5", "file 9"]
    assert first.samples is not None and first.samples.tolist() == [0, 4, 5, 9]
    other = load_probe(run, module, DataLoader(Augmented()), 4, seed=1)
    assert other is not None and not torch.equal(other.images, first.images)


def test_no_more_images_than_there_are() -> None:
    run, module = attached()
    probe = load_probe(run, module, DataLoader(Augmented(3)), 8)
    assert probe is not None and probe.labels is not None and probe.labels.tolist() == [0, 1, 2]


def test_the_loaders_own_collate_function_and_batch_to_images() -> None:
    def collate(samples: list[tuple[Tensor, int]]) -> dict[str, Any]:
        images = torch.stack([image for image, _ in samples])
        return {"left": images, "right": -images}

    run, module = attached()
    loader = DataLoader(Augmented(), collate_fn=collate)
    probe = load_probe(run, module, loader, 2, batch_to_images=lambda batch: batch["right"])
    assert probe is not None and (probe.images < 0).all() and probe.labels is None


@pytest.mark.parametrize("hook", ["on_before_batch_transfer", "on_after_batch_transfer", "transfer_batch_to_device"])
@pytest.mark.parametrize("where", ["module", "datamodule"])
def test_where_hooks_change_batches_there_is_no_probe_but_a_passing_one(hook: str, where: str) -> None:
    """What they would do to a batch of ours is unknown, and they may draw random numbers."""
    run, module = attached()
    owner = {"module": module, "datamodule": L.LightningDataModule()}[where]
    setattr(owner, hook, lambda *args: args[0])
    run.datamodule = owner if where == "datamodule" else None  # type: ignore[attr-defined]
    assert load_probe(run, module, DataLoader(Augmented()), 2) is None


def test_reading_the_probe_leaves_the_data_set_as_it_was(tmp_path: Any) -> None:
    file = tmp_path / "numbers"
    file.write_bytes(bytes(range(10)))

    class Stateful(Augmented):
        def __init__(self) -> None:
            super().__init__()
            self.random, self.count, self.file = np.random.RandomState(0), np.zeros(1), None

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            self.file = self.file or file.open("rb")  # as files are kept that workers must not share
            self.file.seek(index)
            self.count += 1
            return torch.full((3, 4, 4), float(self.file.read(1)[0] + self.random.rand())), index

    data = Stateful()
    run, module = attached()
    probe = load_probe(run, module, DataLoader(Subset(data, range(2, 10))), 3)
    assert probe is not None and probe.labels is not None and probe.labels.tolist() == [2, 6, 7]
    assert data.file is None and data.count == 0 and data.random.rand() == np.random.RandomState(0).rand()


def test_data_that_cannot_be_copied_or_collated_give_no_probe() -> None:
    class Locked(Augmented):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    class Ragged(Augmented):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.zeros(3, 4 + index, 4), index

    run, module = attached()
    assert load_probe(run, module, DataLoader(Locked()), 2) is None
    assert load_probe(run, module, DataLoader(Ragged()), 2) is None


def test_large_arrays_are_not_copied() -> None:
    class Heavy(Augmented):
        def __init__(self) -> None:
            super().__init__()
            self.images = torch.zeros(10, 3, 200, 200)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            seen.append(self.images.data_ptr())
            return self.images[index], index

    seen: list[int] = []
    run, module = attached()
    data = Heavy()
    assert load_probe(run, module, DataLoader(data), 2) is not None
    assert set(seen) == {data.images.data_ptr()}


def test_the_samplers_own_part_of_the_data() -> None:
    run, module = attached()
    probe = load_probe(run, module, DataLoader(Augmented(), sampler=SubsetRandomSampler([7, 8, 9])), 2)
    assert probe is not None and probe.labels is not None and probe.labels.tolist() == [7, 9]


def test_where_samples_have_no_index_there_is_no_probe() -> None:
    run, module = attached()
    assert load_probe(run, module, DataLoader(Stream()), 4) is None
    assert load_probe(run, module, [X], 4) is None
    assert load_probe(run, module, None, 4) is None

    class Endless(Dataset[Tensor]):
        def __getitem__(self, index: int) -> Tensor:
            return X[0]

    assert load_probe(run, module, DataLoader(Endless(), sampler=[0, 1]), 4) is None


def test_an_empty_data_set() -> None:
    run, module = attached()
    with pytest.raises(UsageError, match="TensorDataset is empty"):
        load_probe(run, module, DataLoader(TensorDataset(X[:0])), 4)


def test_a_probe_from_a_batch_is_a_copy() -> None:
    x = X.clone()
    probe = probe_from_batch((x, Y), 2)
    x.zero_()
    assert torch.equal(probe.images, X[:2]) and probe.labels is not None and probe.labels.tolist() == [3, 1]
    with torch.inference_mode():
        inner = probe_from_batch((X * 1, Y * 1), 2)
    assert not inner.images.is_inference()  # gradients can be taken through it
    assert probe_from_batch(X, 9).labels is None


@pytest.mark.parametrize(("length", "count"), [(10, 1), (10, 4), (10, 10), (1, 1), (50_000, 8), (2**26, 5)])
def test_evenly_spaced(length: int, count: int) -> None:
    found = evenly_spaced(length, count).tolist()
    assert len(set(found)) == count and found[0] == 0 and found[-1] == (length - 1 if count > 1 else 0)
    gaps = {b - a for a, b in itertools.pairwise(found)}
    assert len(gaps) <= 2 and max(gaps, default=0) - min(gaps, default=0) <= 1


@pytest.mark.parametrize("period", [2, 3, 5, 7, 10, 13])
@pytest.mark.parametrize("count", [4, 5, 6, 8, 10])
def test_scattered_samples_are_of_many_classes(count: int, period: int) -> None:
    """Where classes come in turn, or one after the other."""
    length = 100 * period
    found = scattered(length, count)
    assert (found.diff() > 0).all() and found[0] >= 0 and found[-1] < length
    assert len((found % period).unique()) >= min(count, period) / 2
    assert len((found // 100).unique()) >= min(count, period) - 2


@pytest.mark.parametrize("count", range(1, 12))
def test_scattered_samples_of_small_data_differ(count: int) -> None:
    for length in range(count, 60):
        found = scattered(length, count)
        assert len(found.unique()) == count and int(found.min()) >= 0 and int(found.max()) < length


def test_evenly_spaced_whatever_the_default_dtype() -> None:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        assert evenly_spaced(1000, 4).tolist() == [0, 333, 666, 999]
    finally:
        torch.set_default_dtype(before)


# --- The look ---


@pytest.mark.parametrize(
    ("precision", "inside"),
    [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("bf16-true", torch.bfloat16)],
)
def test_a_look_is_taken_in_the_trainers_precision(precision: Any, inside: torch.dtype) -> None:
    run, module = attached(precision=precision)
    module = run.precision_plugin.convert_module(module)  # type: ignore[assignment]
    module.train()
    with torch.inference_mode(), looking(run, module, seed=3):
        assert not module.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        images = to_network(run, module, X * 1).requires_grad_()
        scores = module(images.repeat(1, 1, 2, 2))
        assert scores.dtype == inside and images.dtype == (inside if "true" in precision else torch.float32)
        torch.autograd.grad(scores.sum(), images)
        found = torch.rand(3, dtype=torch.float32)
    torch.manual_seed(3)
    assert torch.equal(found, torch.rand(3, dtype=torch.float32))
    assert module.training and not torch.is_autocast_enabled("cpu")


def test_images_for_the_network_are_a_copy() -> None:
    run, module = attached()
    x = X.clone()
    found = to_network(run, module, x.requires_grad_())
    assert not found.requires_grad and found.data_ptr() != x.data_ptr() and torch.equal(found, X)


def test_where_probes_come_from() -> None:
    run: Any = SimpleNamespace(
        testing=False,
        val_dataloaders=["val 0", "val 1"],
        test_dataloaders={"a": "test a", "b": "test b"},
        train_dataloader="train",
    )
    assert [dataloader(run), dataloader(run, 1)] == ["val 0", "val 1"]
    for wrong in (2, -1):
        with pytest.raises(UsageError, match="no such loader"):
            dataloader(run, wrong)
    run.testing = True
    assert [dataloader(run), dataloader(run, 1)] == ["test a", "test b"]
    run.testing, run.val_dataloaders = False, "only"
    assert dataloader(run) == "only"
    run.val_dataloaders, run.train_dataloader = None, {"x": "train x"}
    assert dataloader(run) == "train x"


# --- Which samples ---


class Numbers(Dataset[int]):
    def __init__(self, count: int = 11) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


def agree(loader: DataLoader[int], **ranks: int) -> bool:
    """Whether the indices are what the loader really gives: samples of `Numbers` are their own indices."""
    indices = SampleIndices(loader, **ranks)
    found = [indices.next(len(batch)) for batch in loader]
    assert all(i.dtype == torch.int64 for i in found)
    return indices.exact and all(torch.equal(i, batch) for i, batch in zip(found, loader, strict=True))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_in_order(batch_size: int, drop_last: bool) -> None:
    loader = DataLoader(Numbers(), batch_size, drop_last=drop_last)
    assert len(list(loader)) == {1: 11, 4: 3 - drop_last, 20: 1 - drop_last}[batch_size]
    assert agree(loader)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_split_over_ranks(rank: int, drop_last: bool) -> None:
    sampler = DistributedSampler(Numbers(), 3, rank, shuffle=False, drop_last=drop_last)
    loader = DataLoader(Numbers(), 2, sampler=sampler)
    assert sum(map(len, loader)) == 4 - drop_last
    assert agree(loader, rank=rank, world_size=3)


class Backwards(SequentialSampler):
    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self) - 1, -1, -1))


def wrapped(sampler: Any) -> DistributedSamplerWrapper:
    return DistributedSamplerWrapper(sampler, num_replicas=1, rank=0, shuffle=False)


UNKNOWN: list[Callable[[], Any]] = [
    lambda: DataLoader(Numbers(), 4, shuffle=True),
    lambda: DataLoader(Numbers(), 4, sampler=DistributedSampler(Numbers(), 1, 0, shuffle=True)),
    lambda: DataLoader(Numbers(), 4, sampler=WeightedRandomSampler([1.0] * 11, 11)),
    lambda: DataLoader(Numbers(), 4, sampler=wrapped(RandomSampler(Numbers()))),
    lambda: DataLoader(Numbers(), 4, sampler=Backwards(Numbers())),
    lambda: DataLoader(Numbers(), batch_sampler=[[5, 6], [0, 1]]),
    lambda: DataLoader(Numbers(), batch_size=None),
    lambda: DataLoader(Stream(), 4),
    lambda: [X, X],
]


@pytest.mark.parametrize("make", UNKNOWN)
def test_anywhere_else_samples_are_counted(make: Callable[[], Any]) -> None:
    seed()
    expected = draws()
    loader = make()
    seed()
    indices = SampleIndices(loader, rank=1, world_size=2)
    assert not indices.exact
    assert indices.next(3).tolist() == [1, 3, 5] and indices.next(2).tolist() == [7, 9]
    assert draws() == expected


def test_counts_of_ranks_do_not_collide() -> None:
    ranks = [SampleIndices(None, rank=rank, world_size=3) for rank in range(3)]
    counted = torch.cat([indices.next(count) for count in (4, 2, 5) for indices in ranks])
    assert len(set(counted.tolist())) == len(counted) and counted.dtype == torch.int64


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_batch_of_another_size_is_counted_beside_those_known(world_size: int) -> None:
    """A collate function may leave broken samples out."""
    sampler = DistributedSampler(Numbers(), world_size, 0, shuffle=False)
    indices = SampleIndices(DataLoader(Numbers(), 3, sampler=sampler), world_size=world_size)
    known = indices.next(3).tolist()
    assert indices.exact and known == [0, world_size, 2 * world_size]
    counted = [*indices.next(2).tolist(), *indices.next(3).tolist(), *indices.next(9).tolist()]
    assert not indices.exact and len({*known, *counted}) == 17


def test_more_batches_than_the_loader_has() -> None:
    indices = SampleIndices(DataLoader(Numbers(4), 2))
    found = torch.cat([indices.next(2) for _ in range(4)]).tolist()
    assert found[:4] == [0, 1, 2, 3] and len(set(found)) == 8
