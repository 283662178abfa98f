"""Visualizations that need a pass over the validation data: they share its forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lit_viz.callbacks.base import VisualizationCallback
from lit_viz.errors import UsageError
from lit_viz.layers import capture
from lit_viz.probing import SampleIndices, dataloader, looking, split_batch, to_network
from lit_viz.state import Accumulator


@dataclass(frozen=True)
class Tap:
    """Something to read off a forward pass.

    Attributes:
        layer: Dotted name.
        where: The layer's output or its input.
        reduce: From the tensor found there to what is kept of it. It runs inside the user's own forward pass, so it
            only reads, and it keeps no large tensor.
    """

    layer: str
    where: Literal["output", "input"]
    reduce: Callable[[Tensor], Any]


@dataclass(frozen=True)
class Batch:
    """One batch of the pass.

    Attributes:
        images: (N, C, H, W) on the module's device.
        labels: (N,) int64, or None.
        samples: (N,) int64, identity of each sample in the data set.
    """

    images: Tensor
    labels: Tensor | None
    samples: Tensor


class CollectingCallback(VisualizationCallback):
    """A visualization of what a whole data set does in a network.

    While validation runs, hooks on the tapped layers read the forward passes that happen anyway; all collecting
    callbacks of a trainer share them, so that three cost no more passes than none. Where that can't be right (a
    compiled model, whose hooks don't fire; a layer that is not called exactly once per batch), the first of them runs
    one pass of its own for all, inside the guard.

    A subclass says what to read (`taps`), keeps it (`begin`, `update`, `end`, in the accumulators of `metrics`), takes
    the result of all ranks (`finish`), and draws it (`visualize`). Collectives happen in this class alone, at the end
    of the pass, after the ranks agreed that none of them failed.

    Args:
        at_start: Off: there is no validation pass before the first step.
        **kwargs: See `VisualizationCallback`. With `every_n_steps`, the next validation after so many steps collects.
    """

    def __init__(self, *, at_start: bool = False, **kwargs: Any) -> None:
        super().__init__(at_start=at_start, **kwargs)
        self.collecting = False
        self.indices: SampleIndices | None = None
        self._ready = False
        self._broken = False
        self._failure: Exception | None = None
        self._taps: list[Tap] = []
        self._batch: Batch | None = None
        self._shared: _SharedPass | None = None

    # What a subclass says.

    def taps(self) -> Sequence[Tap]:
        """What to read off each forward pass; asked for at each batch, when `self.current` is known."""
        raise NotImplementedError(f"{type(self).__name__} must override taps().")

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A pass begins: forget the last one. Every rank must end up with states of the same shape."""
        raise NotImplementedError(f"{type(self).__name__} must override begin().")

    def update(self, batch: Batch, values: Sequence[Any]) -> None:
        """Takes in one batch: what the taps kept, in their order."""
        raise NotImplementedError(f"{type(self).__name__} must override update().")

    def end(self) -> None:
        """The pass is over on this rank; the last thing before results are gathered that may fail on one rank alone."""

    def metrics(self) -> dict[str, Accumulator]:
        """The states that `finish` wants the results of."""
        raise NotImplementedError(f"{type(self).__name__} must override metrics().")

    def finish(self, results: dict[str, Any]) -> None:
        """Takes the results over all ranks."""
        raise NotImplementedError(f"{type(self).__name__} must override finish().")

    @property
    def current(self) -> Batch:
        """The batch that is under way."""
        assert self._batch is not None
        return self._batch

    # When.

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: without validation there is no pass to share."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the last validation collected already."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Nothing, likewise."""

    def collection_due(self, trainer: Trainer) -> bool:
        """Whether the validation that begins is one to look at."""
        if trainer.sanity_checking:
            return False
        if trainer.state.fn != "fit":
            return True
        step = trainer.global_step
        if self._drawn(step):
            return False
        if self.at_end and _last_epoch(trainer):
            return True
        if self.every_n_steps:
            return step - (self._last[0] if self._last else 0) >= self.every_n_steps
        return self.epoch_due(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self.collecting = self._checked and self.collection_due(trainer)
        self._broken = self._ready = False
        self._failure = None

    on_test_start = on_validation_start

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        peers = _peers(trainer, dataloader_idx)
        if not peers or peers[0] is not self:
            return
        for peer in peers:
            peer.attempt_collecting(trainer, lambda peer=peer: peer._begin_batch(trainer, pl_module, batch))
        self._shared = _SharedPass(pl_module, peers)
        if not is_compiled(pl_module):
            self._shared.try_listening()

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0 and dataloader_idx == self.dataloader_idx and not self._checked:
            self.prepare(trainer, pl_module, batch)
        shared, self._shared = self._shared, None
        if shared is None:
            return
        shared.close()
        if not shared.complete:
            shared.run(trainer)
        with torch.inference_mode(False), torch.no_grad():
            for peer in shared.peers:
                peer.attempt_collecting(trainer, lambda peer=peer: peer.update(peer.current, shared.values(peer)))

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.collecting:
            return
        self.collecting = False
        self._last = (trainer.global_step, trainer.current_epoch)
        if self._ready:
            with torch.inference_mode(False), torch.no_grad():
                self.attempt_collecting(trainer, self.end)
        well = self._ready and not self._broken
        if trainer.world_size > 1:
            well = trainer.strategy.reduce_boolean_decision(well, all=True)
        if not well:
            if self.on_error == "raise":
                raise self._failure or RuntimeError(f"{type(self).__name__} failed on another rank.")
            return

        def gather() -> None:
            with torch.inference_mode(False), torch.no_grad():
                self.finish({name: metric.result() for name, metric in self.metrics().items()})

        if self.attempt(trainer, gather, "gather"):
            self.draw(trainer, pl_module)

    on_test_epoch_end = on_validation_epoch_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        self.collecting = False

    # How.

    def attempt_collecting(self, trainer: Trainer, run: Callable[[], None]) -> None:
        """Like `attempt`, between collectives: a failure ends this pass for this callback, on this rank for now."""
        if self._broken:
            return
        try:
            run()
        except Exception as error:
            self._broken, self._failure = True, error
            if self.on_error == "warn":
                self._warn(error, "collect")

    def _begin_batch(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        if not self._ready:
            self.indices = SampleIndices(
                dataloader(trainer, self.dataloader_idx),
                rank=trainer.global_rank,
                world_size=trainer.world_size,
            )
            with looking(trainer, pl_module, seed=self.seed):
                self.begin(trainer, pl_module)
            self._ready = True
        images, labels = split_batch(batch, self.batch_to_images)
        assert self.indices is not None
        self._batch = Batch(images, labels, self.indices.next(len(images)).to(images.device))
        self._taps = list(self.taps())


class _SharedPass:
    """One forward pass, read by all callbacks that collect."""

    def __init__(self, module: LightningModule, peers: Sequence[CollectingCallback]) -> None:
        self.module = module
        self.peers = [p for p in peers if not p._broken]
        self._stack = ExitStack()
        self._found: dict[CollectingCallback, list[tuple[Tap, list[Any]]]] = {}
        self._failure: Exception | None = None

    def listen(self) -> None:
        """Installs the hooks."""
        for peer in self.peers:
            self._found[peer] = []
            for tap in peer._taps:
                reduce = _safe(tap.reduce, len(peer.current.images))
                calls = self._stack.enter_context(capture(self.module, [tap.layer], where=tap.where, reduce=reduce))
                self._found[peer].append((tap, *calls.values()))

    def try_listening(self) -> None:
        """Installs the hooks; what goes wrong is met again, and told, in `run`."""
        try:
            self.listen()
        except Exception:
            self.close()

    def close(self) -> None:
        """Removes the hooks."""
        self._stack.close()

    @property
    def complete(self) -> bool:
        """Whether each tap saw the whole batch exactly once."""
        if any(p not in self._found for p in self.peers):
            return False
        return all(
            len(calls) == 1 and not isinstance(calls[0], _Misfit) for f in self._found.values() for _, calls in f
        )

    def run(self, trainer: Trainer) -> None:
        """Runs a pass of our own, inside the guard."""
        if not self.peers:
            return
        first = self.peers[0]
        try:
            with looking(trainer, self.module, seed=first.seed), torch.no_grad(), self._stack:
                images = to_network(trainer, self.module, first.current.images)
                self.listen()
                self.module(images)
        except Exception as error:
            self._failure = error

    def values(self, peer: CollectingCallback) -> list[Any]:
        """What the taps of a callback kept, in their order.

        Raises:
            UsageError: If a layer was not called exactly once on the whole batch.
            Exception: Whatever a reduction or the pass of our own raised.
        """
        if self._failure is not None:
            raise self._failure
        for tap, calls in self._found[peer]:
            if len(calls) != 1:
                raise UsageError(f"layer '{tap.layer}' is called {len(calls)} times in a forward pass, not once.")
            if isinstance(calls[0], _Misfit):
                raise UsageError(f"layer '{tap.layer}': {calls[0].why}")
            if isinstance(calls[0], Exception):
                raise calls[0]
        return [calls[0] for _, calls in self._found[peer]]


@dataclass(frozen=True)
class _Misfit:
    why: str


def _safe(reduce: Callable[[Tensor], Any], count: int) -> Callable[[Tensor], Any]:
    """Nothing that goes wrong in here may reach the user's forward pass."""

    def run(tensor: Tensor) -> Any:
        if len(tensor) != count:
            return _Misfit(f"its output has {len(tensor)} entries for {count} images.")
        try:
            with torch.no_grad():
                return reduce(tensor.detach())
        except Exception as error:
            return error

    return run


def is_compiled(module: nn.Module) -> bool:
    """Whether any part of a module is compiled: hooks added now would not fire there, or would recompile it."""
    if getattr(module, "_compiler_ctx", None) is not None:
        return True
    return any(
        type(m).__name__ == "OptimizedModule" or getattr(m, "_compiled_call_impl", None) is not None
        for m in module.modules()
    )


def _peers(trainer: Trainer, dataloader_idx: int) -> list[CollectingCallback]:
    return [
        c
        for c in trainer.callbacks
        if isinstance(c, CollectingCallback) and c.collecting and c.dataloader_idx == dataloader_idx
    ]


def _last_epoch(trainer: Trainer) -> bool:
    by_epoch = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
    return by_epoch or 0 <= trainer.max_steps <= trainer.global_step
