"""What looking costs: ratios of wall time with callbacks to wall time without, alternating in one process.

    python benchmarks/overhead.py                 # all, about a quarter of an hour on two cores
    python benchmarks/overhead.py --only patches  # a minute
    python benchmarks/overhead.py --only writing --epochs 2

Absolute times say little on a shared machine; ratios of alternating runs do. Medians of the repeats are printed, and
the smallest and largest ratio of a pair.
"""

from __future__ import annotations

import argparse
import logging
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
    ways: dict[str, tuple[bool, float | None]] = {
        "without": (False, None),
        "quickstart: five callbacks, training time": (True, None),
        f"the same with budget: {BUDGET}": (True, BUDGET),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, (looking, budget) in ways.items():
            # The first round warms the process up: its first run is up to a third slower than all others.
            seconds = quickstart_seconds(epochs if repeat else 1, looking, budget)
            if repeat:
                times[name].append(seconds)
    without = times.pop("without")
    return [row(name, seconds, without) for name, seconds in times.items()]


def quickstart_seconds(epochs: int | None, looking: bool = True, budget: float | None = None) -> float:
    """One run of the quickstart, the last picture written."""
    with tempfile.TemporaryDirectory() as folder:
        args = ["--config", str(QUICKSTART), "--trainer.enable_progress_bar=false"]
        args += [f"--trainer.logger.init_args.save_dir={folder}"]
        args += [] if epochs is None else [f"--trainer.max_epochs={epochs}"]
        args += [] if looking else ["--trainer.callbacks=null"]
        args += [] if budget is None else [f"--budget={budget}"]
        cli = LitVizCLI(args=args, run=False)
        assert looking == any(isinstance(c, VisualizationCallback) for c in cli.trainer.callbacks)
        started = time.perf_counter()
        cli.trainer.fit(cli.model, cli.datamodule)
        return time.perf_counter() - started


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


class Stopwatch(Callback):
    """Time of the validation pass alone, from its first batch to the last."""

    def on_validation_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        if batch_idx == 0:
            self.started = time.perf_counter()

    def on_validation_epoch_end(self, *args: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def patches(size: int, batches: int, batch_size: int, repeats: int) -> list[str]:
    """All channels of all convolutions of resnet18 over a validation pass."""
    seed_everything(0, verbose=False)
    module = ImageClassifier(model="resnet18", num_classes=10)
    layers = list(convolutions(module))
    data = TensorDataset(torch.randn(batches * batch_size, 3, size, size), torch.zeros(batches * batch_size).long())
    times: dict[bool, list[float]] = {True: [], False: []}
    whole: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(repeats):
        for looking in (False, True):
            watch = Stopwatch()
            callbacks = [watch, MaxActivatingPatches(layers, on_error="raise")] if looking else [watch]
            with tempfile.TemporaryDirectory() as folder:
                trainer = Trainer(
                    accelerator="cpu",
                    callbacks=callbacks,
                    logger=TensorBoardLogger(folder) if looking else False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                )
                started = time.perf_counter()
                trainer.validate(module, DataLoader(data, batch_size), verbose=False)
                whole[looking].append(time.perf_counter() - started)
            times[looking].append(watch.seconds)
    name = f"patches of all {len(layers)} convolutions of resnet18, {size} px, {len(data)} images"
    return [
        row(f"{name}: the pass", times[True], times[False]),
        row(f"{name}: with set-up and drawing", whole[True], whole[False]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["quickstart", "patches", "writing"])
    parser.add_argument("--epochs", type=int, help="shorten the quickstart")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lines = []
    if args.only in (None, "patches"):
        patches(32, 2, 64, 1)  # warm-up
        lines += patches(224, 8, 32, args.repeats) + patches(32, 40, 64, args.repeats)
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
