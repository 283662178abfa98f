"""What making images costs: ratios of wall time and of peak memory, alternating in one process.

    python benchmarks/synthesis.py                               # all three parts: some 40 minutes on two cores
    python benchmarks/synthesis.py --parts steps --networks resnet50 --batches 4

Three parts:

* steps: a step of ascent beside the bare forward and backward pass of the same batch (`torch.autograd.grad` of the same
  scores to the pixels, weights frozen). What exceeds 1 is for transforms, penalties, the optimizer, bookkeeping.
* layers: an objective that reads one layer, with the pass ending there, beside the same loop with the whole network.
* units: several channels of a layer in one batch beside one after the other.

Medians of the repeats, and the smallest and largest ratio of a pair. Peak memory (Linux) is the largest resident
memory of a process that does one thing only, less what it had before.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from memory import peak, print_peak
from torch import Tensor, nn

from lit_viz.functional.synthesis import (
    Blur,
    Channel,
    ClassScore,
    Fourier,
    Jitter,
    NormalizedSGD,
    Objective,
    Pixels,
    RandomAffine,
    normal,
    optimize,
    total_variation,
)
from lit_viz.networks import load_network
from lit_viz.pixels import usual_pixel_space

Run = Callable[[], Any]

# Layers from shallow to deep.
LAYERS = {
    "resnet50": ("layer1", "layer2", "layer3", "layer4"),
    "efficientnet_lite0": ("_blocks.2", "_blocks.4", "_blocks.10", "_blocks.15"),
}
WAYS = ("pixels", "fourier")


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "efficientnet_lite0":
        return load_network(name, weights="DEFAULT").module.eval()
    return torchvision.models.get_model(name).eval()


def ascent(model: nn.Module, objective: Objective, way: str, size: int, batch: int, steps: int) -> Run:
    """Several steps of a usual recipe."""
    space = usual_pixel_space(3)
    if way == "pixels":
        return partial(
            optimize,
            model,
            objective,
            0.1 * normal((3, size, size), 0).expand(batch, -1, -1, -1),
            parameterization=Pixels(space),
            make_optimizer=partial(NormalizedSGD, lr=4.0),
            transforms=[Jitter(16)],
            penalties=[(1e-4, total_variation)],
            constraints=[Blur(0.5, every=4)],
            steps=steps,
            batch_size=batch,
        )
    fourier = Fourier((size, size), space)
    return partial(
        optimize,
        model,
        objective,
        fourier.noise(batch, 3, std=0.01, seed=0),
        parameterization=fourier,
        make_optimizer=partial(torch.optim.Adam, lr=0.05),
        transforms=[RandomAffine(scales=(0.9, 0.95, 1.0, 1.05, 1.1), degrees=8.0), Jitter(16)],
        steps=steps,
        batch_size=batch,
    )


def bare(model: nn.Module, size: int, batch: int, steps: int) -> Run:
    """The same scores, and their gradients to the pixels, without anything around."""
    images, target = normal((batch, 3, size, size), 0), torch.arange(batch)

    def run() -> None:
        flags = [parameter.requires_grad for parameter in model.parameters()]
        model.requires_grad_(False)
        for _ in range(steps):
            leaf = images.clone().requires_grad_()
            torch.autograd.grad(model(leaf).gather(1, target[:, None]).sum(), leaf)
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)

    return run


class Whole(Objective):
    """An objective that has the network run to its end."""

    needs_scores = True

    def __init__(self, objective: Objective) -> None:
        self.objective, self.layers, self.count = objective, objective.layers, objective.count

    def __call__(self, reading: Any) -> Tensor:
        return self.objective(reading)


def seconds(run: Run, clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    run()
    return clock() - started


def compare(first: Run, second: Run, args: argparse.Namespace, *, once: Run | None = None) -> tuple[str, str, float]:
    """Ratio of medians, range of the ratios of pairs, and the median of the second; the first less `once`."""
    clock = time.process_time if args.cpu_time else time.perf_counter
    runs = [first, second] if once is None else [first, second, once]
    for run in runs:  # warm-up
        run()
    times: list[tuple[float, float]] = []
    for i in range(args.repeats):
        # Whoever comes second finds the caches as the other left them: take turns.
        order = range(len(runs)) if i % 2 == 0 else reversed(range(len(runs)))
        took = {which: seconds(runs[which], clock) for which in order}
        times.append((took[0] - took.get(2, 0.0), took[1]))
        print(f"\r{i + 1}/{args.repeats}: {times[-1][0] / times[-1][1]:.3f} ", end="", file=sys.stderr, flush=True)
    print("\r" + " " * 20 + "\r", end="", file=sys.stderr, flush=True)
    ratios = sorted(a / b for a, b in times)
    ours, other = (statistics.median(t[i] for t in times) for i in (0, 1))
    return f"{ours / other:.3f}", f"{ratios[0]:.3f} to {ratios[-1]:.3f}", other


def steps(args: argparse.Namespace) -> None:
    print("\n| a step of ascent | images | bare pass | ratio of medians | pairs |")
    print("| --- | --- | --- | --- | --- |")
    for name in args.networks:
        model = network(name)
        for batch, way in ((batch, way) for batch in args.batches for way in WAYS):
            make = partial(ascent, model, ClassScore(list(range(batch))), way, args.size, batch)
            # What a call does once, before its steps and after them, is taken away: one step more, less a single one.
            ratio, spread, other = compare(
                make(args.steps + 1), bare(model, args.size, batch, args.steps), args, once=make(1)
            )
            print(f"| {name}, {way} | {batch} | {other / args.steps:.2f} s | {ratio} | {spread} |", flush=True)


def layer_runs(name: str, layer: str, args: argparse.Namespace) -> tuple[Run, Run]:
    """The pass ended behind a layer, and run to its end."""
    model = network(name)
    batch = min(args.batches)
    made = [
        ascent(model, objective, "pixels", args.size, batch, args.steps)
        for objective in (Channel(layer, 3), Whole(Channel(layer, 3)))
    ]
    return made[0], made[1]


def layers(args: argparse.Namespace) -> None:
    print("\n| a layer | whole network | ratio of medians | pairs | peak memory, to the layer : whole |")
    print("| --- | --- | --- | --- | --- |")
    for name in args.networks:
        for layer in LAYERS[name]:
            ratio, spread, other = compare(*layer_runs(name, layer, args), args)
            memory = ""
            if not args.no_memory:
                calls = [f"main_peak({name!r}, {layer!r}, {side}, {args.size}, {min(args.batches)})" for side in (0, 1)]
                used = [peak(call, "synthesis") / 2**20 for call in calls]
                memory = f"{used[0]:.0f} : {used[1]:.0f} MiB"
            print(f"| {name}, {layer} | {other / args.steps:.2f} s | {ratio} | {spread} | {memory} |", flush=True)


def units(args: argparse.Namespace) -> None:
    print("\n| 8 units of a layer | one by one | together, ratio of medians | pairs |")
    print("| --- | --- | --- | --- |")
    for name in args.networks:
        model, layer = network(name), LAYERS[name][2]
        together = ascent(model, Channel(layer, list(range(8))), "fourier", args.size, 8, args.steps)
        alone = [ascent(model, Channel(layer, unit), "fourier", args.size, 1, args.steps) for unit in range(8)]
        ratio, spread, other = compare(together, lambda alone=alone: [run() for run in alone], args)
        print(f"| {name}, {layer} | {other / args.steps:.2f} s a step | {ratio} | {spread} |", flush=True)


def main_peak(name: str, layer: str, side: int, size: int, batch: int) -> None:
    args = argparse.Namespace(size=size, batches=[batch], steps=3)
    print_peak(layer_runs(name, layer, args)[side])


PARTS = {"steps": steps, "layers": layers, "units": units}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--networks", nargs="*", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="*", default=[4, 16])
    parser.add_argument("--steps", type=int, default=3, help="in each run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument(
        "--cpu-time", action="store_true", help="time of the processor, for a machine that does other things as well"
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    clock = "processor time" if args.cpu_time else "wall time"
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {clock}, ", end="")
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}; images of {args.size} px")
    for part in args.parts:
        PARTS[part](args)


if __name__ == "__main__":
    main()
