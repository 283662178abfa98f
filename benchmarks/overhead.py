"""What looking costs: ratios of wall time with callbacks to wall time without, alternating.

    python benchmarks/overhead.py                 # all, about half an hour on two cores
    python benchmarks/overhead.py --only patches  # some minutes; a long pass: --batches 96
    python benchmarks/overhead.py --only writing --epochs 2

Absolute times say little on a shared machine; ratios of alternating runs do. Medians of the repeats are printed, and
the smallest and largest ratio of a pair.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import tempfile
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset
from turns import by_turns, own_folder, ready

from lit_viz.callbacks import MaxActivatingPatches, VisualizationCallback
from lit_viz.cli import LitVizCLI
from lit_viz.layers import convolutions
from lit_viz.modules import ImageClassifier
from lit_viz.write_behind import WriteBehind
from lit_viz.writer import Writer

BUDGET = 0.05
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def row(name: str, with_callbacks: list[float], without: list[float]) -> str:
    """One line of the table."""
    ratios = [a / b for a, b in zip(with_callbacks, without, strict=True)]
    ratio = statistics.median(with_callbacks) / statistics.median(without)
    return (
        f"| {name} | {statistics.median(without):.1f} s | {statistics.median(with_callbacks):.1f} s "
        f"| {ratio:.3f} | {min(ratios):.3f} to {max(ratios):.3f} |"
    )


def quickstart(epochs: int | None, repeats: int) -> list[str]:
    """The quickstart without callbacks, as it is, and with a budget: wall time of `fit`, the last picture written."""
    ways = {
        "without": (False, None),
        "quickstart: five callbacks, training time": (True, None),
        f"the same with budget: {BUDGET}": (True, BUDGET),
    }
    calls = {name: f"one_quickstart({epochs}, {looking}, {budget})" for name, (looking, budget) in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, seconds in by_turns(calls, "overhead").items():
            times[name].append(seconds)
    without = times.pop("without")
    return [row(name, seconds, without) for name, seconds in times.items()]


def one_quickstart(epochs: int | None, looking: bool, budget: float | None) -> None:
    """One run of the quickstart, by turns with others."""
    quiet()
    quickstart_seconds(1, looking, budget)  # the first run of a process is up to a third slower than all others
    quickstart_seconds(epochs, looking, budget, in_turn=True)
    os._exit(0)  # shutting down isn't timed


def quickstart_seconds(
    epochs: int | None, looking: bool = True, budget: float | None = None, *, in_turn: bool = False
) -> float:
    """One run of the quickstart, the last picture written."""
    with tempfile.TemporaryDirectory() as folder:
        args = ["--config", str(QUICKSTART), "--trainer.enable_progress_bar=false"]
        args += [f"--trainer.logger.init_args.save_dir={folder}"]
        args += [] if epochs is None else [f"--trainer.max_epochs={epochs}"]
        args += [] if looking else ["--trainer.callbacks=null"]
        args += [] if budget is None else [f"--budget={budget}"]
        cli = LitVizCLI(args=args, run=False)
        assert looking == any(isinstance(c, VisualizationCallback) for c in cli.trainer.callbacks)
        clock = ready() if in_turn else time.perf_counter
        for callback in cli.trainer.callbacks:
            if isinstance(callback, VisualizationCallback) and callback.budget is not None:
                callback.budget.clock = clock
        started = clock()
        cli.trainer.fit(cli.model, cli.datamodule)
        return clock() - started


def writing(epochs: int | None, repeats: int) -> list[str]:
    """How long the quickstart's thread is busy with writing pictures, beside training and at once."""
    spent = 0.0

    def counted(run: Any) -> Any:
        def wrapped(*args: Any) -> Any:
            nonlocal spent
            started = time.perf_counter()
            try:
                return run(*args)
            finally:
                spent += time.perf_counter() - started

        return wrapped

    def at_once(self: WriteBehind, write: Any, size: int, done: Any) -> None:
        write()
        done(0.0, None)

    places = [(Writer, "picture_behind"), (Writer, "flush_behind"), (WriteBehind, "finish")]
    shares: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    with ExitStack() as stack:
        for owner, name in places:
            stack.enter_context(mock.patch.object(owner, name, counted(getattr(owner, name))))
        for repeat in range(repeats + 1):
            for beside in (False, True):
                with ExitStack() as inner:
                    if not beside:
                        inner.enter_context(mock.patch.object(WriteBehind, "submit", at_once))
                    spent = 0.0
                    seconds = quickstart_seconds(epochs)
                    if repeat:
                        shares[beside].append((spent, seconds))
    lines = ["| quickstart, pictures written | training time | of it writing | share |", "| --- | --- | --- | --- |"]
    for beside, name in ((False, "at once"), (True, "beside training")):
        of_writing, whole = (statistics.median(column) for column in zip(*shares[beside], strict=True))
        lines.append(f"| {name} | {whole:.2f} s | {of_writing:.3f} s | {of_writing / whole:.2%} |")
    return lines


class PassAlone(Callback):
    """Times the validation pass from its first batch to its last, and nothing else."""

    def on_validation_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        if batch_idx == 0:
            ready()

    def on_validation_epoch_end(self, *args: Any) -> None:
        os._exit(0)


def patches(size: int, batches: int, batch_size: int, repeats: int) -> list[str]:
    """All channels of all convolutions of resnet18 over a validation pass."""
    ways = {(looking, whole) for looking in (False, True) for whole in (False, True)}
    calls = {way: f"one_validation({size}, {batches}, {batch_size}, *{way})" for way in sorted(ways)}
    times: dict[tuple[bool, bool], list[float]] = {way: [] for way in calls}
    for _ in range(repeats):
        for way, seconds in by_turns(calls, "overhead").items():
            times[way].append(seconds)
    name = f"patches of all convolutions of resnet18, {size} px, {batches * batch_size} images"
    return [
        row(f"{name}: {what}", times[True, whole], times[False, whole])
        for whole, what in ((False, "the pass"), (True, "with set-up and drawing"))
    ]


def one_validation(size: int, batches: int, batch_size: int, looking: bool, whole: bool) -> None:
    """One validation pass, by turns with others."""
    quiet()
    seed_everything(0, verbose=False)
    module = ImageClassifier(model="resnet18", num_classes=10)
    count = batches * batch_size
    data = TensorDataset(torch.randn(count, 3, size, size), torch.zeros(count).long())
    with torch.no_grad():
        for _ in range(3):
            module(data.tensors[0][:batch_size])
    callbacks: list[Callback] = [] if whole else [PassAlone()]
    if looking:
        callbacks.append(MaxActivatingPatches(list(convolutions(module)), on_error="raise"))
    trainer = Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        logger=TensorBoardLogger(str(own_folder())) if looking else False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if whole:
        ready()
    trainer.validate(module, DataLoader(data, batch_size), verbose=False)
    os._exit(0)  # shutting down isn't timed


def quiet() -> None:
    """Nothing but the tables."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["quickstart", "patches", "writing"])
    parser.add_argument("--epochs", type=int, help="shorten the quickstart")
    parser.add_argument(
        "--batches", type=int, default=24, help="of 32 images of 224 px for patches (%(default)s); of 32 px, 5 times 64"
    )
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    quiet()
    lines = []
    if args.only in (None, "patches"):
        lines += patches(224, args.batches, 32, args.repeats) + patches(32, 5 * args.batches, 64, args.repeats)
    if args.only in (None, "quickstart"):
        lines += quickstart(args.epochs, args.repeats)
    print(f"\n{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, ", end="")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}\n")
    if lines:
        print("| what | without | with | ratio of medians | pairs |\n| --- | --- | --- | --- | --- |")
        print("\n".join(lines), end="\n\n")
    if args.only in (None, "writing"):
        print("\n".join(writing(args.epochs, args.repeats)))


if __name__ == "__main__":
    main()
