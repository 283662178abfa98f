"""How operations act on windows of maps: which pixels of the result change, and how they are computed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lit_viz.functional import winograd
from lit_viz.functional.occlusion.program import BATCH_NORMS, IN_PLACE, Program
from lit_viz.functional.occlusion.spans import Spans
from lit_viz.functional.occlusion.tape import Ref, Step, aten, circular_pad, leaves
from lit_viz.functional.occlusion.windows import Place, pick

if TYPE_CHECKING:
    from lit_viz.functional.occlusion.incremental import Batch

POINTWISE = {
    *(op.overloadpacket for op in IN_PLACE.values()),
    aten.relu,
    aten.hardtanh,
    aten.clamp,
    aten.clamp_min,
    aten.clamp_max,
    aten.silu,
    aten.sigmoid,
    aten.tanh,
    aten.gelu,
    aten.leaky_relu,
    aten.elu,
    aten.celu,
    aten.hardswish,
    aten.hardsigmoid,
    aten.softplus,
    aten.mish,
    aten._prelu_kernel,
    aten.threshold,
    aten.softshrink,
    aten.hardshrink,
    aten.erf,
    aten.sin,
    aten.cos,
    aten.add,
    aten.sub,
    aten.rsub,
    aten.mul,
    aten.div,
    aten.neg,
    aten.abs,
    aten.exp,
    aten.log,
    aten.log1p,
    aten.sqrt,
    aten.rsqrt,
    aten.reciprocal,
    aten.pow,
    aten.square,
    aten.maximum,
    aten.minimum,
    aten._to_copy,
    aten.clone,
    aten.alias,
    aten.detach,
}
CHANNELWISE = {aten.select, aten.slice, aten.split, aten.split_with_sizes, aten.unsqueeze}
PADS = {
    aten.constant_pad_nd.default: "constant",
    aten.reflection_pad2d.default: "reflect",
    aten.replication_pad2d.default: "replicate",
    circular_pad: "circular",
}
MEANS = (aten.mean.dim, aten._adaptive_avg_pool2d.default, aten.adaptive_avg_pool2d.default)

ELEMENT = 10.0
"""Cost of moving one element, in multiply-adds."""

Extent = tuple[Spans, Spans]


class Rule(ABC):
    """How one step acts on windows.

    Args:
        program: The network.
        number: Of the step.
        extents: Of the results before it that change in windows.
    """

    windowed = True
    """Whether the result changes in a window; else in all places."""

    reads_around = True
    """Whether it reads pixels of the map outside of the window."""

    def __init__(self, program: Program, number: int, extents: dict[Ref, Extent]) -> None:
        self.program, self.number, self.step = program, number, program.steps[number]
        self.extents = extents
        self.inputs = [ref for ref in dict.fromkeys(self.step.refs) if ref in extents]

    @abstractmethod
    def spans(self, axis: int) -> Spans:
        """Which pixels of the result change, along rows (0) or columns (1)."""

    @abstractmethod
    def run(self, batch: Batch, place: Place) -> Any:
        """The result at a place."""

    def cost(self) -> float:
        """Of one pixel of the result, in multiply-adds."""
        return ELEMENT * channels(self.program, Ref(self.number))


class Pointwise(Rule):
    """Activations, sums, batch norms: each pixel from the pixels at the same place."""

    def __init__(self, program: Program, number: int, extents: dict[Ref, Extent]) -> None:
        super().__init__(program, number, extents)
        self.reads_around = len(self.inputs) > 1

    def spans(self, axis: int) -> Spans:
        joined = self.extents[self.inputs[0]][axis]
        for ref in self.inputs[1:]:
            joined = joined.joined(self.extents[ref][axis])
        return joined

    def run(self, batch: Batch, place: Place) -> Any:
        return batch.call(self.step, {ref: batch.window(ref, place) for ref in self.inputs})


class Identity(Pointwise):
    """Pooling to the size that a map has already."""

    def run(self, batch: Batch, place: Place) -> Any:
        return batch.window(self.inputs[0], place)


class Concatenation(Pointwise):
    """Maps side by side, as channels."""

    def run(self, batch: Batch, place: Place) -> Tensor:
        if all(batch.places[ref] == place for ref in self.inputs):
            return batch.call(self.step, {ref: batch.values[ref] for ref in self.inputs})
        parts = [channels(self.program, ref) for ref in self.step.args[0]]
        out = batch.cut(Ref(self.number), place)
        start = 0
        for ref, width in zip(self.step.args[0], parts, strict=True):
            batch.lay(ref, out[..., start : start + width], place)
            start += width
        return batch.image_order(out)


class Sliding(Rule):
    """A kernel that moves over the map, with something around it."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def slide(self) -> None:
        """Settles how the kernel moves over the pixels that are read."""
        self.reads_around = max(*self.kernel, *self.stride) > 1 or max(self.padding) > 0
        # Of a kernel of one pixel, only the pixels that it meets are read.
        self.steps = tuple(s if k == 1 else 1 for s, k in zip(self.stride, self.kernel, strict=True))
        self.strides = [1 if k == 1 else s for s, k in zip(self.stride, self.kernel, strict=True)]

    def spans(self, axis: int) -> Spans:
        return self.extents[self.inputs[0]][axis].through(
            self.kernel[axis], self.stride[axis], self.padding[axis], self.dilation[axis], self.out_size[axis]
        )

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return size_of(self.program, Ref(self.number))

    def region(self, batch: Batch, place: Place, fill: float = 0.0) -> Tensor:
        """The input that a part of the result needs."""
        ref = self.inputs[0]
        return batch.read(ref, self.read_place(place), fill) if self.reads_around else batch.window(ref, place)

    def read_place(self, place: Place) -> Place:
        """The part of the input that a part of the result needs."""
        sizes = [
            n if k == 1 else (n - 1) * s + d * (k - 1) + 1
            for n, k, s, d in zip((place.height, place.width), self.kernel, self.stride, self.dilation, strict=True)
        ]
        return Place(
            place.tops * self.stride[0] - self.padding[0],
            place.lefts * self.stride[1] - self.padding[1],
            *sizes,
            steps=self.steps,
        )


class Convolution(Sliding):
    """Convolution of any stride, dilation and number of groups, with zeros around."""

    def __init__(self, program: Program, number: int, extents: dict[Ref, Extent]) -> None:
        super().__init__(program, number, extents)
        _, self.weight, self.bias, stride, padding, dilation, _, _, self.groups = self.step.args
        self.kernel = tuple(self.weight.shape[2:])
        self.stride, self.padding, self.dilation = (_pair(v) for v in (stride, padding, dilation))
        self.slide()
        # For each size of windows oneDNN makes a kernel and keeps it: 100 MiB of them in a ResNet-50, that products of
        # matrices take as long without.
        self.is_product = self.kernel == (1, 1) and self.groups == 1 and self.weight.device.type == "cpu"

    def run(self, batch: Batch, place: Place) -> Tensor:
        region = self.region(batch, place)
        if self.is_product:
            pixels = torch.nn.functional.linear(region.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
            return pixels.permute(0, 3, 1, 2)
        return torch.convolution(
            region, self.weight, self.bias, self.strides, [0, 0], self.dilation, False, [0, 0], self.groups
        )

    def cost(self) -> float:
        out, inner = self.weight.shape[:2]
        around = math.prod(self.steps if max(self.kernel) == 1 else self.strides) * int(self.reads_around)
        moved = out + around * channels(self.program, self.inputs[0])
        return out * inner * math.prod(self.kernel) + ELEMENT * moved


class FewerProducts(Sliding):
    """Convolution by a kernel of 3 × 3, in tiles of 2 × 2 results."""

    def __init__(self, program: Program, number: int, extents: dict[Ref, Extent]) -> None:
        super().__init__(program, number, extents)
        _, self.kernels, self.bias, padding = self.step.args
        self.kernel, self.stride, self.padding, self.dilation = (3, 3), (1, 1), _pair(padding), (1, 1)
        self.slide()

    def run(self, batch: Batch, place: Place) -> Tensor:
        size = place.height, place.width
        tiled = replace(place, height=size[0] + size[0] % 2, width=size[1] + size[1] % 2)
        return winograd.convolve(self.region(batch, tiled), self.kernels, self.bias, size)

    def cost(self) -> float:
        return winograd.cost(*self.kernels.shape[1:]) + ELEMENT * channels(self.program, self.inputs[0])


class Pooling(Sliding):
    """Maxima or means in sliding windows, also of incomplete ones (`ceil_mode`) and without the zeros around."""

    def __init__(self, program: Program, number: int, extents: dict[Ref, Extent]) -> None:
        super().__init__(program, number, extents)
        self.maximum = self.step.op is aten.max_pool2d_with_indices.default
        defaults = ([], [0, 0], [1, 1], False) if self.maximum else ([], [0, 0], False, True, None)
        _, kernel, *given = self.step.args
        stride, padding, *rest = [*given, *defaults[len(given) :]]
        self.kernel, self.padding = _pair(kernel), _pair(padding)
        self.stride = _pair(stride) if stride else self.kernel
        self.dilation = _pair(rest[0]) if self.maximum else (1, 1)
        self.slide()
        self.share = None if self.maximum else self._shares(*rest)

    def _shares(self, ceil_mode: bool, count_padding: bool, divisor: int | None) -> Tensor | None:
        """What the sum at each place of the result is multiplied by, (H', W'); None where it is 1 / kernel."""
        if divisor:
            return torch.full(self.out_size, 1 / divisor, dtype=torch.float64)
        if not ceil_mode and (count_padding or not any(self.padding)):
            return None
        ones = torch.ones(1, 1, *size_of(self.program, self.inputs[0]), dtype=torch.float64)
        given = self.kernel, self.stride, self.padding, ceil_mode
        means = torch.nn.functional.avg_pool2d(ones, *given, count_include_pad=count_padding)
        sums = torch.nn.functional.avg_pool2d(ones, *given, divisor_override=1)
        return (means / sums)[0, 0]

    def run(self, batch: Batch, place: Place) -> Any:
        region = self.region(batch, place, fill=-math.inf if self.maximum else 0.0)
        if self.maximum:
            pooled = torch.nn.functional.max_pool2d(region, self.kernel, self.strides, dilation=self.dilation)
            return [pooled, None]
        if self.share is None:
            return torch.nn.functional.avg_pool2d(region, self.kernel, self.strides)
        sums = torch.nn.functional.avg_pool2d(region, self.kernel, self.strides, divisor_override=1)
        share = self.share.to(sums)[..., None]
        rows = place.tops[:, None] + np.arange(place.height)
        columns = place.lefts[:, None] + np.arange(place.width)
        return sums * batch.image_order(pick(share, None, place, rows, columns))

    def cost(self) -> float:
        return channels(self.program, self.inputs[0]) * (math.prod(self.kernel) + ELEMENT * math.prod(self.stride))


class Padding(Rule):
    """Zeros, or copies, around a map."""

    def __init__(self, program: Program, number: int, extents: dict[Ref, Extent]) -> None:
        super().__init__(program, number, extents)
        left, right, top, bottom = (*self.step.args[1], 0, 0)[:4]
        self.pads = (top, bottom), (left, right)
        self.mode = PADS[self.step.op]
        self.fill = float(self.step.args[2]) if self.mode == "constant" and len(self.step.args) > 2 else 0.0

    def spans(self, axis: int) -> Spans:
        return self.extents[self.inputs[0]][axis].padded(*self.pads[axis], self.mode)

    def run(self, batch: Batch, place: Place) -> Tensor:
        ref, (top, left) = self.inputs[0], (self.pads[0][0], self.pads[1][0])
        if self.mode == "constant":
            inner = Place(place.tops - top, place.lefts - left, place.height, place.width)
            return batch.window(ref, inner, fill=self.fill)
        rows = self._source(place.tops[:, None] + np.arange(place.height) - top, 0)
        columns = self._source(place.lefts[:, None] + np.arange(place.width) - left, 1)
        windows = batch.map_order(batch.values[ref], ref)
        return batch.image_order(pick(batch.bases.map(ref), windows, batch.places[ref], rows, columns))

    def _source(self, at: np.ndarray, axis: int) -> np.ndarray:
        """Which row or column of the map a padded one is."""
        length = self.extents[self.inputs[0]][axis].length
        if self.mode == "reflect":
            return length - 1 - np.abs(length - 1 - np.abs(at))
        return at.clip(0, length - 1) if self.mode == "replicate" else at % length


class Mean(Rule):
    r"""The mean over the map, by what the window adds to the uncovered image's: $m + \sum_w (x - x_0) / (H W)$."""

    windowed = False

    def spans(self, axis: int) -> Spans:
        return self.extents[self.inputs[0]][axis]

    def run(self, batch: Batch, place: Place) -> Tensor:
        ref, out = self.inputs[0], Ref(self.number)
        if not batch.bases.finite(out):
            return batch.call(self.step, {ref: batch.whole(ref)})  # what the patch covers may be what is not finite
        windows = batch.values[ref]
        change = windows - batch.image_order(batch.cut(ref, batch.places[ref]))
        shape = self.program.tape.per_image(out)
        height, width = size_of(self.program, ref)
        total = change.sum((2, 3), dtype=None if change.dtype == torch.float64 else torch.float32)
        shift = (total / (height * width)).reshape(-1, *shape)
        return (batch.bases.whole(out) + shift).to(windows.dtype)


def rule_for(program: Program, number: int, extents: dict[Ref, Extent]) -> Rule | None:
    """The rule of a step; None for one that must see whole maps."""
    step = program.steps[number]
    inputs = [ref for ref in dict.fromkeys(step.refs) if program.tape.depends(ref)]
    if not inputs or not all(ref in extents for ref in inputs) or len(inputs) < len(set(step.refs)):
        return None
    shape, packet = program.tape.per_image(Ref(number)), getattr(step.op, "overloadpacket", None)
    if shape is None:
        return None
    first = inputs[0]
    before = program.tape.per_image(first)
    if step.op is aten.convolution.default and not step.args[6] and step.args[0] == first and len(before) == 3:
        return Convolution(program, number, extents) if isinstance(step.args[1], Tensor) else None
    if step.op is winograd.convolution:
        return FewerProducts(program, number, extents)
    if step.op in (aten.max_pool2d_with_indices.default, aten.avg_pool2d.default) and len(before) == 3:
        indices_read = Ref(number, 1) in program.readers
        return None if indices_read else Pooling(program, number, extents)
    if step.op in PADS:
        few = len(before) == 3 and len(step.args[1]) <= 4
        return Padding(program, number, extents) if few else None
    if step.op in MEANS and len(before) == 3:
        if step.op is not aten.mean.dim and list(step.args[1]) == list(before[1:]):
            return Identity(program, number, extents)
        axes = sorted(axis % 4 for axis in step.args[1]) if step.op is aten.mean.dim else []
        whole = axes == [2, 3] or (step.op is not aten.mean.dim and list(step.args[1]) == [1, 1])
        return Mean(program, number, extents) if whole and _keeps_dtype(step) else None
    if packet is aten.cat:
        axis = step.args[1] if len(step.args) > 1 else 0
        same = all(isinstance(part, Ref) for part in step.args[0]) and len(before) == 3
        return Concatenation(program, number, extents) if same and axis % 4 == 1 else None
    if len(shape) < 2 or len(before) < 2 or any(program.tape.per_image(r)[-2:] != shape[-2:] for r in inputs):
        return None
    if step.op in BATCH_NORMS:
        return Pointwise(program, number, extents) if len(before) == 3 and not _trains(step) else None
    if packet in CHANNELWISE:
        dims = len(before) + 1
        position = 2 if packet in (aten.split, aten.split_with_sizes) else 1
        axis = step.args[position] if len(step.args) > position else 0
        axis = axis % (dims + (packet is aten.unsqueeze))
        return Pointwise(program, number, extents) if 1 <= axis <= dims - 3 + (packet is aten.unsqueeze) else None
    if packet in POINTWISE:
        same_rank = all(len(program.tape.per_image(r)) == len(shape) for r in inputs)
        flat = all(_flat(leaf, len(shape) + 1) for leaf in leaves(step.args) if isinstance(leaf, Tensor))
        return Pointwise(program, number, extents) if same_rank and flat else None
    return None


def channels(program: Program, ref: Ref) -> int:
    """Numbers at each pixel of a map."""
    shape = program.tape.per_image(ref)
    return 1 if shape is None else math.prod(shape[:-2])


def size_of(program: Program, ref: Ref) -> tuple[int, int]:
    """Height and width of a map."""
    shape = program.tape.per_image(ref)
    assert shape is not None
    return shape[-2], shape[-1]


def _flat(constant: Tensor, dims: int) -> bool:
    """Whether a constant is the same at all pixels and for all images."""
    shape = (1,) * (dims - constant.dim()) + tuple(constant.shape)
    return len(shape) == dims and shape[0] == 1 and shape[-2:] == (1, 1)


def _trains(step: Step) -> bool:
    return BATCH_NORMS[step.op] == 7 and bool(step.args[5])


def _keeps_dtype(step: Step) -> bool:
    return step.kwargs.get("dtype") is None


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])
