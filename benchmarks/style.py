"""What style transfer costs beside the usual recipes, written plainly: ratios of wall time, by turns.

    python benchmarks/style.py                                # all three parts: some 40 minutes on two cores
    python benchmarks/style.py --parts training --compile     # a minute or two more, to compile

* training: a step of the fast network's training at 256 px, batch 4, beside PyTorch's example `fast_neural_style`: the
  same network (width 32) and layers of VGG16, in 32 bits and eagerly, with two passes of all of VGG16's four parts.
* inference: an image of 512 px through that network, beside ours of equal and of half the width.
* optimization: a step of optimisation-based transfer at 256 px beside the plain loop of neural-style: VGG19, content
  relu4_2, style relu1_1 … relu5_1, in 32 bits; both with Adam, one forward and backward pass a step.

Weights are random: what they are changes no time. A ratio above 1 says how many times faster ours is: median of the
repeats, and the smallest and largest of a pair. Both take turns, of seconds each (a step of training, a few images or
steps of optimisation), in two processes that lie idle meanwhile, since what is done with freed memory (kept by
`train.py`, given back to the system by default) is one thing in all of a process. `--memory` compares them with both
the same.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.memory import keep_freed_memory
from lit_viz.networks import PerceptualNetwork, StyleLoss, TransformerNet
from lit_viz.networks.style_target import StyleTarget
from lit_viz.pixels import usual_pixel_space

Run = Callable[[], Any]
MEMORY = ("kept by ours", "kept by both", "given back")
VGG16 = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
VGG19 = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
# Where these lie in torchvision's `features`.
PLAIN16, PLAIN19, CONTENT19 = (3, 8, 15, 22), (1, 6, 11, 20, 29), 22


class PlainNet(nn.Module):
    """The example's network: reflection padding, instance norm, five residual blocks, nearest upsampling."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()

        def conv(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.ReflectionPad2d(kernel // 2), nn.Conv2d(before, after, kernel, stride))

        def block(before: int, after: int, kernel: int, stride: int = 1) -> list[nn.Module]:
            return [conv(before, after, kernel, stride), nn.InstanceNorm2d(after, affine=True), nn.ReLU()]

        w = width
        self.down = nn.Sequential(*block(3, w, 9), *block(w, 2 * w, 3, 2), *block(2 * w, 4 * w, 3, 2))
        self.residual = nn.ModuleList(
            [nn.Sequential(*block(4 * w, 4 * w, 3), *block(4 * w, 4 * w, 3)[:2]) for _ in range(5)]
        )
        up = nn.Upsample(scale_factor=2, mode="nearest")
        self.up = nn.Sequential(up, *block(4 * w, 2 * w, 3), up, *block(2 * w, w, 3), conv(w, 3, 9))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        for block in self.residual:
            x = x + block(x)
        return self.up(x)


def plain_gram(maps: Tensor) -> Tensor:
    n, c, h, w = maps.shape
    flat = maps.view(n, c, h * w)
    return flat.bmm(flat.transpose(1, 2)) / (c * h * w)


def plain_features(network: nn.Sequential, x: Tensor, places: tuple[int, ...]) -> list[Tensor]:
    found = []
    for i, layer in enumerate(network[: max(places) + 1]):
        x = layer(x)
        if i in places:
            found.append(x)
    return found


def normalized(colors: Tensor) -> Tensor:
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return (colors - colors.new_tensor(mean).view(-1, 1, 1)) / colors.new_tensor(std).view(-1, 1, 1)


def plain_training(vgg: nn.Sequential, colors: Tensor, style: Tensor) -> Run:
    net = PlainNet()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    with torch.no_grad():
        grams = [plain_gram(f).expand(len(colors), -1, -1) for f in plain_features(vgg, normalized(style), PLAIN16)]

    def step() -> None:
        optimizer.zero_grad()
        made = net(colors)
        ours = plain_features(vgg, normalized(made), PLAIN16)
        theirs = plain_features(vgg, normalized(colors), PLAIN16)
        loss = 1e5 * F.mse_loss(ours[1], theirs[1])
        loss = loss + 1e10 * sum(F.mse_loss(plain_gram(f), gram) for f, gram in zip(ours, grams, strict=True))
        loss.backward()
        optimizer.step()

    return step


def our_training(vgg: nn.Module, colors: Tensor, style: Tensor, given: argparse.Namespace) -> Run:
    net = TransformerNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    network = PerceptualNetwork(VGG16, vgg, pixel_space=usual_pixel_space(3))
    loss = StyleLoss(network, "relu2_2", VGG16).to(memory_format=torch.channels_last)
    loss.set_style(0, style)
    loss.calibrate(colors)
    run, compare = (torch.compile(net), torch.compile(loss)) if given.compile else (net, loss)
    content_of = torch.compile(loss.content_of) if given.compile else loss.content_of
    images = colors.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad()
        with mixed(given):
            total = compare(run(images), content_of(images)).total.mean()
        total.backward()
        optimizer.step()

    return step


def plain_inference(colors: Tensor) -> Run:
    net = PlainNet().eval()

    def step() -> None:
        with torch.no_grad():
            net(colors)

    return step


def our_inference(colors: Tensor, width: int, given: argparse.Namespace) -> Run:
    net: nn.Module = TransformerNet(width).eval().to(memory_format=torch.channels_last)
    net = torch.compile(net) if given.compile else net  # type: ignore[assignment]
    images = colors.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.no_grad(), mixed(given):
            net(images)

    return step


def plain_optimization(vgg: nn.Sequential, colors: Tensor, style: Tensor) -> Run:
    places = (*PLAIN19, CONTENT19)
    with torch.no_grad():
        grams = [plain_gram(f) for f in plain_features(vgg, normalized(style), PLAIN19)]
        content = plain_features(vgg, normalized(colors), (CONTENT19,))[0]
    image = colors.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([image], 0.02)

    def step() -> None:
        optimizer.zero_grad()
        found = dict(zip(sorted(places), plain_features(vgg, normalized(image), places), strict=True))
        loss = 5 * F.mse_loss(found[CONTENT19], content)
        loss = loss + 100 * sum(F.mse_loss(plain_gram(found[p]), g) for p, g in zip(PLAIN19, grams, strict=True))
        loss = loss + 1e-3 * (image.diff(dim=2).abs().sum() + image.diff(dim=3).abs().sum())
        loss.backward()
        optimizer.step()

    return step


def our_optimization(vgg: nn.Module, colors: Tensor, style: Tensor, given: argparse.Namespace) -> Run:
    network = PerceptualNetwork([*VGG19, "relu4_2"], vgg, pixel_space=usual_pixel_space(3))
    loss = StyleLoss(network, "relu4_2", VGG19)
    loss.set_style(0, style)
    loss.calibrate(colors)
    with mixed(given):
        target = StyleTarget(loss, colors)
    image = colors.clone()
    optimizer = torch.optim.Adam([image], 0.02)

    def step() -> None:
        with mixed(given):
            _, image.grad = target(image)
        optimizer.step()

    return step


def mixed(given: argparse.Namespace) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, enabled=given.precision == "bf16")


def seconds(run: Run, steps: int) -> float:
    """Of a step; the first ones of a turn find caches cold."""
    start = time.perf_counter()
    for _ in range(steps):
        run()
    return (time.perf_counter() - start) / steps


class Runner:
    """A process that makes something and runs it whenever it is told to; idle meanwhile.

    Args:
        part: What is to be run, a name in `PARTS`.
        given: The options.
        keep: Whether freed memory is kept, as `train.py` keeps it, or is given back to the system, as by default.
    """

    def __init__(self, part: str, given: argparse.Namespace, *, keep: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.asks, other = context.Pipe()
        self.process = context.Process(target=_served, args=(other, part, given, keep), daemon=True)
        self.process.start()

    def seconds(self, steps: int) -> float:
        """Of one of so many steps."""
        self.asks.send(steps)
        return self.asks.recv()

    def end(self) -> None:
        self.asks.send(0)
        self.process.join()


def _served(answers: Connection, part: str, given: argparse.Namespace, keep: bool) -> None:
    if keep:
        keep_freed_memory()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    run = PARTS[part](given)
    while steps := answers.recv():
        answers.send(seconds(run, steps))


def vgg(which: str) -> nn.Module:
    return getattr(torchvision.models, which)().eval().requires_grad_(False)


def pictures(count: int, side: int) -> Tensor:
    return torch.rand(count, 3, side, side)


PARTS: dict[str, Callable[[argparse.Namespace], Run]] = {
    "plain training": lambda _: plain_training(not_in_place(vgg("vgg16").features), pictures(4, 256), pictures(1, 256)),
    "training": lambda given: our_training(vgg("vgg16"), pictures(4, 256), pictures(1, 256), given),
    "plain inference": lambda _: plain_inference(pictures(1, 512)),
    "inference": lambda given: our_inference(pictures(1, 512), 32, given),
    "half inference": lambda given: our_inference(pictures(1, 512), 16, given),
    "plain optimization": lambda _: plain_optimization(
        not_in_place(vgg("vgg19").features), pictures(1, 256), pictures(1, 256)
    ),
    "optimization": lambda given: our_optimization(vgg("vgg19"), pictures(1, 256), pictures(1, 256), given),
}
LINES = {
    "training": [("training step, 256 px, batch 4", "plain training", "training", 1)],
    "inference": [
        ("inference, 512 px, equal width", "plain inference", "inference", 4),
        ("inference, 512 px, half width", "plain inference", "half inference", 4),
    ],
    "optimization": [("optimisation step, 256 px", "plain optimization", "optimization", 4)],
}


def compared(name: str, plain: str, ours: str, steps: int, given: argparse.Namespace) -> None:
    """One line: how many times faster ours is, by turns of so many steps."""
    both = [Runner(plain, given, keep=given.memory == MEMORY[1]), Runner(ours, given, keep=given.memory != MEMORY[2])]
    for _ in range(2):
        for runner in both:
            runner.seconds(steps)
    pairs = [[runner.seconds(steps) for runner in both] for _ in range(given.repeats)]
    for runner in both:
        runner.end()
    ratios = [a / b for a, b in pairs]
    a, b = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"| {name} | {a:.3f} s | {b:.3f} s | {a / b:.2f} | {min(ratios):.2f} to {max(ratios):.2f} |", flush=True)


def flags() -> str:
    """What the processor does in 16 bits by itself."""
    try:
        with open("/proc/cpuinfo") as file:
            told = file.read()
    except OSError:
        return "not known"
    return ", ".join(flag for flag in ("avx512_bf16", "amx_bf16") if flag in told) or "not native"


def processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(LINES), choices=list(LINES))
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="of ours (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile")
    parser.add_argument("--memory", choices=MEMORY, default=MEMORY[0], help="freed memory, see `lit_viz.memory`")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    print(f"{processor()}, {given.threads} threads; torch {torch.__version__}; freed memory {given.memory}")
    ours = f"ours: {given.precision}, {'compiled' if given.compile else 'eager'}, bfloat16 {flags()}"
    print(f"\n| {ours} | plain recipe | ours | times as fast | pairs |\n| --- | --- | --- | --- | --- |")
    for part in given.parts:
        for line in LINES[part]:
            compared(*line, given)


def not_in_place(layers: nn.Sequential) -> nn.Sequential:
    """Layers whose outputs stay as they were read."""
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return layers


if __name__ == "__main__":
    main()
