"""Visualizations that need a pass over the validation data: they share its forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_viz.callbacks.base import VisualizationCallback
from lit_viz.errors import UsageError
from lit_viz.layers import find_layer, keep_calls
from lit_viz.probing import SampleIndices, dataloader, split_batch, to_network
from lit_viz.state import Accumulator

FEW = 2  # images that it takes to find out whether validation's passes may be read


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
    compiled model, whose hooks don't fire; a layer that is not called exactly once per batch; a validation step that
    gives the network something else than the images of the batch, which is tried out on the first one), the first of
    them runs passes of its own for all, inside the guard.

    A subclass says what to read (`taps`), keeps it (`begin`, `update`, `end`, in the accumulators of `metrics`), takes
    the result of all ranks (`finish`), and draws it (`visualize`). Collectives happen in this class and its base
    alone, at the end of the pass, after the ranks agreed that none of them failed.

    Args:
        at_start: Off: there is no validation pass before the first step.
        at_end: Also collect in the last validation of the run, where it can be told to be the last.
        **kwargs: See `VisualizationCallback`. With `every_n_steps`, the next validation after so many steps collects.
    """

    needs = "images"

    def __init__(self, *, at_start: bool = False, at_end: bool = True, **kwargs: Any) -> None:
        super().__init__(at_start=at_start, at_end=at_end, **kwargs)
        self.collecting = False
        self.indices: SampleIndices | None = None
        self._begun = False
        self._broken = False
        self._failure: Exception | None = None
        self._taps: list[Tap] = []
        self._batch: Batch | None = None
        self._shared: _SharedPass | None = None
        self.shareable: bool | None = None  # whether validation's passes may be read; None until tried

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.shareable = None

    # What a subclass says.

    def taps(self) -> Sequence[Tap]:
        """What to read off each forward pass; asked for once, after `begin`. `self.current` is the batch under way."""
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
        if self._state != "failed" and self._last is None and trainer.logger is not None:
            rank_zero_warn(
                f"{self.name}: {type(self).__name__} looks at validation passes, and none came when it was due: "
                f"nothing was drawn."
            )

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
        if self.at_end and _last_validation(trainer):
            return True
        if self.every_n_steps:
            return step - (self._last[0] if self._last else 0) >= self.every_n_steps
        return self.epoch_due(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        due = self._state in ("ready", "waiting") and self.collection_due(trainer)
        self.collecting = due and self.granted(trainer)
        if due and not self.collecting:
            self._last = (trainer.global_step, trainer.current_epoch)
        self._broken = self._begun = False
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
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        self.collecting = self.collecting and self._state == "ready"
        peers = [c for c in trainer.callbacks if isinstance(c, CollectingCallback)]
        peers = [p for p in peers if p.dataloader_idx == dataloader_idx]
        if not peers or peers[-1] is not self:  # the last one: all of them are prepared by then
            return
        peers = [p for p in peers if p.collecting]
        for peer in peers:
            peer.attempt_collecting(lambda peer=peer: peer._begin_batch(trainer, pl_module, batch))
        self._shared = _SharedPass(pl_module, peers)
        self._shared.listen_in()

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
        shared, self._shared = self._shared, None
        if shared is None:
            return
        with (shared.peers[0] if shared.peers else self).timed():
            shared.finish(trainer)
        with torch.inference_mode(False), torch.no_grad():
            for peer in shared.peers:
                peer.attempt_collecting(lambda peer=peer: peer.update(peer.current, shared.values(peer)))
        shared.forget()

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.collecting:
            return
        self.collecting = False
        self._last = (trainer.global_step, trainer.current_epoch)
        if self._begun:
            with torch.inference_mode(False), torch.no_grad():
                self.attempt_collecting(self.end)
        well = self._begun and not self._broken
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
        self.let_go()
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.let_go()
        super().teardown(trainer, pl_module, stage)

    def let_go(self) -> None:
        """Of the pass that is under way, its hooks and tensors."""
        if self._shared is not None:
            self._shared.close()
        self._shared = self._batch = None
        self._taps, self.collecting = [], False

    # How.

    def attempt_collecting(self, run: Callable[[], None]) -> None:
        """Like `attempt`, between collectives: a failure ends this pass for this callback, on this rank for now."""
        if self._broken:
            return
        with self.timed():
            try:
                run()
            except Exception as error:
                self._broken = True
                if self.on_error == "warn":
                    self._warn(error, "collect")
                else:
                    self._failure = error

    def _begin_batch(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        if not self._begun:
            self.indices = SampleIndices(
                dataloader(trainer, self.dataloader_idx),
                rank=trainer.global_rank,
                world_size=trainer.world_size,
            )
            with self.looking(trainer, pl_module):
                self.begin(trainer, pl_module)
            self._taps = list(self.taps())
            self._begun = True
        images, labels = split_batch(batch, self.batch_to_images)
        assert self.indices is not None
        # A copy: the validation step may write to its batch.
        images = images.detach().clone()
        self._batch = Batch(images, labels, self.indices.next(len(images)).to(images.device))


class _SharedPass:
    """One forward pass, read by all callbacks that collect."""

    def __init__(self, module: LightningModule, peers: Sequence[CollectingCallback]) -> None:
        self.module = module
        self.peers = [p for p in peers if not p._broken]
        self._stack = ExitStack()
        self._found: dict[CollectingCallback, list[tuple[Tap, list[Any]]]] = {}
        self._samples: list[Tensor] = []
        self._failure: Exception | None = None

    def listen_in(self) -> None:
        """Installs hooks for the pass that validation makes, where that may do; `finish` sees to the rest."""
        if any(p.shareable is None for p in self.peers) and is_compiled(self.module):
            for peer in self.peers:
                peer.shareable = False
        if any(p.shareable is False for p in self.peers):
            return
        try:
            self._listen()
            if any(p.shareable is None for p in self.peers):
                self._sample(self._samples, len(self.peers[0].current.images))
        except Exception:
            self.close()
            self._found.clear()

    def finish(self, trainer: Trainer) -> None:
        """Removes the hooks, and runs a pass of our own where the one that was listened to won't do."""
        self.close()
        if self.peers and not (self._complete and self._of_these_images(trainer)):
            self._run(trainer, lambda: self._listen(own=True))

    def close(self) -> None:
        """Removes the hooks."""
        self._stack.close()

    def forget(self) -> None:
        """Lets go of a failure, whose traceback holds tensors and this object."""
        self._failure = None

    def _listen(self, own: bool = False) -> None:
        """Installs hooks; in a pass of our own its time counts already."""
        for peer in self.peers:
            self._found[peer] = []
            timed = nullcontext if own else peer.timed
            for tap in peer._taps:
                calls: list[Any] = []
                self._hook(tap, calls, _safe(tap.reduce, len(peer.current.images), timed))
                self._found[peer].append((tap, calls))

    @property
    def _complete(self) -> bool:
        """Whether each tap saw the whole batch exactly once."""
        if any(p not in self._found for p in self.peers):
            return False
        return all(
            len(calls) == 1 and not isinstance(calls[0], _Misfit) for f in self._found.values() for _, calls in f
        )

    def _of_these_images(self, trainer: Trainer) -> bool:
        """Whether the validation step gave the network the images of its batch, tried once, with two of them.

        A step that augments, resizes or pairs images would have us show the wrong places of the wrong pictures.
        """
        if not self._samples:
            return True
        again: list[Tensor] = []
        count = min(FEW, len(self.peers[0].current.images))
        self._run(trainer, lambda: self._sample(again, count), count)
        # Where only the step knows how to run the network there is nothing to compare with.
        alike = self._failure is not None or all(map(_alike, self._samples, again))
        self._failure = None
        for peer in self.peers:
            peer.shareable = alike
        return alike

    def _sample(self, into: list[Tensor], count: int) -> None:
        """Keeps some of what the tapped layers give for the first few images."""

        def some(values: Tensor) -> None:
            flat = values[:FEW].detach().flatten(1)
            into.append(flat[:, :: -(-flat.shape[1] // 4096)].float().clone())

        for tap in (tap for peer in self.peers for tap in peer._taps):
            self._hook(tap, [], _safe(some, count, nullcontext))

    def _hook(self, tap: Tap, calls: list[Any], reduce: Callable[[Tensor], Any]) -> None:
        layer = find_layer(self.module, tap.layer)[1]
        self._stack.callback(keep_calls(layer, calls, tap.where, reduce).remove)

    def _run(self, trainer: Trainer, install: Callable[[], None], most: int | None = None) -> None:
        """A pass of our own, inside the guard, with hooks that read it."""
        first = self.peers[0]
        try:
            with first.looking(trainer, self.module), torch.no_grad(), self._stack:
                install()
                self.module(to_network(trainer, self.module, first.current.images[:most]))
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


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether two readings of a layer are of the same images; batch sizes and precision make small differences."""
    if first.shape != second.shape:
        return False
    known = torch.isfinite(first) & torch.isfinite(second)
    a, b = first[known], second[known]
    return len(a) == 0 or bool((a - b).abs().mean() <= 0.1 * (a - a.mean()).abs().mean() + 1e-6 * a.abs().mean())


@dataclass(frozen=True)
class _Misfit:
    why: str


def _safe(
    reduce: Callable[[Tensor], Any], count: int, timed: Callable[[], AbstractContextManager[None]]
) -> Callable[[Tensor], Any]:
    """Nothing that goes wrong in here may reach the user's forward pass."""

    def run(tensor: Tensor) -> Any:
        if len(tensor) != count:
            return _Misfit(f"its output has {len(tensor)} entries for {count} images.")
        try:
            with timed():
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


def _last_validation(trainer: Trainer) -> bool:
    """Whether no further validation follows in this run, as far as its bounds on epochs and steps tell."""
    if 0 <= trainer.max_steps <= trainer.global_step:
        return True
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        return False
    epochs, batches = trainer.max_epochs - trainer.current_epoch, trainer.num_training_batches
    every = trainer.check_val_every_n_epoch
    if every is None:  # counted in batches of the whole run
        return epochs * batches - trainer.fit_loop.batch_idx - 1 < trainer.val_check_batch
    return epochs <= every and batches - trainer.fit_loop.batch_idx - 1 < trainer.val_check_batch
