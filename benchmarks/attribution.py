"""What attribution costs beside Captum: ratios of wall time and of peak memory, alternating in one process.

    python benchmarks/attribution.py                    # resnet50, 16 images of 224 px: some 20 minutes on two cores
    python benchmarks/attribution.py --size 96 --batch 8

Each pair does the same work: same model, images, targets, number of samples. A ratio below 1 means that ours took less.
Medians of the repeats, and the smallest and largest ratio of a pair. Peak memory (Linux) is the largest resident
memory of a process that does one thing only, less what it had before.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import captum
import torch
import torchvision
from captum import attr
from memory import peak, print_peak
from torch import Tensor

from lit_viz import functional

Run = Callable[[], Any]
SAMPLES = 4  # copies for SmoothGrad, points for integrated gradients


def pairs(model: torch.nn.Module, images: Tensor, target: Tensor) -> dict[str, tuple[Run, Run]]:
    """Ours and Captum's by method."""
    layer = model.get_submodule("layer4")

    def leaf() -> Tensor:
        return images.clone().requires_grad_()

    ours: dict[str, Run] = {
        name: partial(getattr(functional, name), model, images, target)
        for name in ("saliency", "input_x_gradient", "guided_backprop", "deconvnet")
    }
    ours["grad_cam"] = partial(functional.grad_cam, model, images, target, layer="layer4")
    ours["guided_grad_cam"] = partial(functional.guided_grad_cam, model, images, target, layer="layer4")
    ours["smooth_grad"] = partial(functional.smooth_grad, model, images, target, samples=SAMPLES)
    ours["integrated_gradients"] = partial(functional.integrated_gradients, model, images, target, steps=SAMPLES)
    theirs: dict[str, Run] = {
        "saliency": lambda: attr.Saliency(model).attribute(leaf(), target),
        "input_x_gradient": lambda: attr.InputXGradient(model).attribute(leaf(), target),
        "guided_backprop": lambda: attr.GuidedBackprop(model).attribute(leaf(), target),
        "deconvnet": lambda: attr.Deconvolution(model).attribute(leaf(), target),
        "grad_cam": lambda: attr.LayerGradCam(model, layer).attribute(images, target),
        "guided_grad_cam": lambda: attr.GuidedGradCam(model, layer).attribute(leaf(), target),
        "smooth_grad": lambda: attr.NoiseTunnel(attr.Saliency(model)).attribute(
            leaf(), nt_samples=SAMPLES, stdevs=0.15, target=target, abs=False
        ),
        "integrated_gradients": lambda: attr.IntegratedGradients(model).attribute(
            images, target=target, n_steps=SAMPLES
        ),
    }
    return {name: (ours[name], theirs[name]) for name in ours}


def seconds(run: Run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def setting(size: int, batch: int) -> tuple[torch.nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return torchvision.models.resnet50().eval(), torch.randn(batch, 3, size, size), torch.arange(batch)


def main_peak(method: str, side: int, size: int, batch: int) -> None:
    model, images, target = setting(size, batch)
    model(images[:1])
    print_peak(pairs(model, images, target)[method][side])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="methods")
    parser.add_argument("--no-memory", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    model, images, target = setting(args.size, args.batch)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, ", end="")
    print(f"torch {torch.__version__}, captum {captum.__version__}; resnet50, {args.batch} images of {args.size} px\n")
    print("| method | Captum | ratio of medians | pairs | peak memory, ours : Captum's |")
    print("| --- | --- | --- | --- | --- |")
    for name, (ours, theirs) in pairs(model, images, target).items():
        if args.only and name not in args.only:
            continue
        ours(), theirs()  # warm-up
        times = [(seconds(ours), seconds(theirs)) for _ in range(args.repeats)]
        ratios = sorted(a / b for a, b in times)
        ratio = statistics.median(a for a, _ in times) / statistics.median(b for _, b in times)
        memory = ""
        if not args.no_memory:
            calls = [f"main_peak({name!r}, {side}, {args.size}, {args.batch})" for side in (0, 1)]
            used = [peak(call, "attribution") / 2**30 for call in calls]
            memory = f"{used[0]:.2f} : {used[1]:.2f} GiB"
        typical = statistics.median(b for _, b in times)
        spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
        print(f"| {name} | {typical:.2f} s | {ratio:.3f} | {spread} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
