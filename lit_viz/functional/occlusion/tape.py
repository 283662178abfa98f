"""What a network does to a batch of images, written down operation by operation."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten


class Untraceable(Exception):
    """The network can't be written down; the message says why."""


@dataclass(frozen=True)
class Ref:
    """An output of a step."""

    step: int
    output: int = 0


INPUT = Ref(-1)
"""The batch of images."""


@dataclass(frozen=True)
class PerImage:
    """An integer that grows with the number of images: `slope` · N + `offset`."""

    slope: int
    offset: int

    def at(self, images: int) -> int:
        return self.slope * images + self.offset


@dataclass
class Step:
    """One operation.

    Attributes:
        op: What is called.
        args: Its arguments, in which `Ref` stands for the result of an earlier step and `PerImage` for an integer that
            depends on the number of images; tensors are weights and other constants.
        kwargs: Likewise, by name.
        shapes: Of each output, in integers and `PerImage`; None for an output that is no tensor.
        dtype: Of the first output.
        depends: Whether it depends on the images.
    """

    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: tuple[tuple[Any, ...] | None, ...]
    dtype: torch.dtype
    depends: bool

    @property
    def refs(self) -> list[Ref]:
        """The earlier results that it reads."""
        return [leaf for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Ref)]

    @property
    def counts_images(self) -> bool:
        """Whether one of its arguments depends on the number of images."""
        return any(isinstance(leaf, PerImage) for leaf in leaves((self.args, self.kwargs)))


@dataclass
class Tape:
    """The steps of a network, in order, and which result is its output.

    Attributes:
        steps: In order.
        output: What the network returns.
        shape: Of the batch of images, (N, C, H, W).
        dtype: Of the images.
        device: Likewise.
    """

    steps: list[Step]
    output: Ref
    shape: tuple[Any, ...]
    dtype: torch.dtype
    device: torch.device

    def per_image(self, ref: Ref) -> tuple[int, ...] | None:
        """Shape of a result without the batch, or None where its first dimension is not the batch."""
        shape = self.shape if ref == INPUT else self.steps[ref.step].shapes[ref.output]
        if shape is None or not shape or shape[0] != PerImage(1, 0):
            return None
        rest = tuple(shape[1:])
        return rest if all(isinstance(length, int) for length in rest) else None

    def depends(self, ref: Ref) -> bool:
        """Whether a result depends on the images."""
        return ref == INPUT or self.steps[ref.step].depends

    def dtype_of(self, ref: Ref) -> torch.dtype:
        """Number format of a result."""
        return self.dtype if ref == INPUT else self.steps[ref.step].dtype


def trace(run: Callable[[Tensor], Tensor], images: Tensor, others: Tensor) -> Tape:
    """Writes down what a network does to any number of images of one size.

    It runs twice, on three images and on two others: what differs between the two depends on the number of images, or
    on what they show, and then there is no tape that is right for all. The larger number comes first, so that no
    network that counts its calls seems to count its images.

    Args:
        run: From images (N, C, H, W) to scores (N, K). It may not depend on gradients, and is run without.
        images: (1 or 3, C, H, W).
        others: (1 or 2, C, H, W), other images of the same size.

    Raises:
        Untraceable: For a network that draws at random, decides by what it sees, or changes tensors in ways that can't
            be followed.
    """
    with torch.no_grad():
        three = _record(run, images.expand(3, -1, -1, -1).contiguous())
        return _common(_record(run, others.expand(2, -1, -1, -1).contiguous()), three)


def leaves(tree: Any) -> Iterator[Any]:
    """The leaves of nested tuples, lists and dicts, in order."""
    if isinstance(tree, (tuple, list)):
        for item in tree:
            yield from leaves(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from leaves(item)
    else:
        yield tree


def mapped(change: Callable[[Any], Any], tree: Any) -> Any:
    """Nested tuples, lists and dicts with each leaf changed."""
    if isinstance(tree, (tuple, list)):
        return type(tree)([mapped(change, item) for item in tree])
    if isinstance(tree, dict):
        return {key: mapped(change, item) for key, item in tree.items()}
    return change(tree)


def circular_pad(images: Tensor, pad: list[int]) -> Tensor:
    """`F.pad(images, pad, mode="circular")` as one step: torch makes it of copies into slices."""
    return torch.nn.functional.pad(images, pad, mode="circular")


LOOKS = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__}
"""How numbers leave a tensor without an operation that could be written down."""


class _Functions(TorchFunctionMode):
    """Sees what doesn't show among torch's operations."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in LOOKS and self.recorder.depends(args[0]):
            self.recorder.fault = f"it takes numbers out of torch ({func.__name__})"
        mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
        if func is not torch.nn.functional.pad or mode != "circular":
            return func(*args, **kwargs)
        images, pad = args[0], list(args[1] if len(args) > 1 else kwargs["pad"])
        self.recorder.paused = True
        try:
            padded = func(*args, **kwargs)
        finally:
            self.recorder.paused = False
        self.recorder.write_down(circular_pad, (images, pad), {}, padded)
        return padded


class _Recorder(TorchDispatchMode):
    """Writes down each operation on its way to torch's kernels.

    What it can't write down it names in `fault`, and lets the network go on: one that is broken off halfway might be
    left in a state that its next call doesn't expect.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.paused = False
        self.fault = ""
        # By identity, and weakly, so that the maps of a large network needn't all be kept.
        self.known: Any = WeakIdKeyDictionary()
        self.known[images] = INPUT
        self.storages: dict[int, list[weakref.ref[Tensor]]] = {_storage(images): [weakref.ref(images)]}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.fault = self.fault or self._unseen(func, args, kwargs)
        if self.paused or self.fault:
            return func(*args, **kwargs)
        depends = any(self.depends(t) for t in _tensors((args, kwargs)))
        written = [
            (i, argument)
            for i, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if written:
            return self._in_place(func, written, args, kwargs, depends)
        out = func(*args, **kwargs)
        if depends and (not list(_tensors(out)) or _sized_by_values(func, args)):
            self.fault = f"it decides by what it sees ({_name(func)})"
        elif any(t.layout is not torch.strided for t in _tensors(out)):
            self.fault = f"{_name(func)} gives a tensor that is not dense"
        else:
            self.write_down(func, args, kwargs, out)
        return out

    def _unseen(self, func: Any, args: Any, kwargs: Any) -> str:
        """Why an operation can't be written down, before it is run."""
        if any(type(leaf) not in (Tensor, torch.nn.Parameter) for leaf in _tensors((args, kwargs))):
            return "it computes with tensors of a class of their own"
        if torch.Tag.nondeterministic_seeded in func.tags and _draws(func, args, kwargs):
            return f"{_name(func)} draws at random"
        return ""

    def _in_place(self, func: Any, written: Any, args: Any, kwargs: Any, depends: bool) -> Any:
        """As the operation that returns its result, where nothing else sees the tensor that is written to."""
        position, argument = written[0]
        target = args[position] if position < len(args) else kwargs.get(argument.name)
        depends = depends or self.depends(target)
        seen = [t for t in self._sharing(target) if t is not target]
        functional = _functional(func)
        if not depends:
            # A constant in the making: what comes out is read as a weight would be.
            out = func(*args, **kwargs)
            for tensor in [target, *seen]:
                self.known.pop(tensor, None)
            return out
        if len(written) > 1 or position != 0 or functional is None or target not in self.known or seen:
            self.fault = f"{_name(func)} changes a tensor that is used elsewhere"
            return func(*args, **kwargs)
        result = functional(*args, **kwargs)
        self.steps.append(_step(functional, self._ref(args), self._ref(kwargs), result, depends=True))
        if result.dtype != target.dtype:
            # Written into the target, a result takes on its number format.
            before = Ref(len(self.steps) - 1)
            self.steps.append(_step(aten._to_copy.default, (before,), {"dtype": target.dtype}, target, depends=True))
        self.known[target] = Ref(len(self.steps) - 1)
        return func(*args, **kwargs)

    def write_down(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        depends = not _only_looks_at_shapes(func) and any(self.depends(t) for t in _tensors((args, kwargs)))
        self.steps.append(_step(func, self._ref(args), self._ref(kwargs), out, depends=depends))
        for i, tensor in enumerate(out if isinstance(out, (tuple, list)) else [out]):
            if isinstance(tensor, Tensor) and not any(tensor is t for t in _tensors((args, kwargs))):
                self.known[tensor] = Ref(len(self.steps) - 1, i)
                self.storages.setdefault(_storage(tensor), []).append(weakref.ref(tensor))

    def depends(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the images."""
        ref = self.known.get(tensor)
        return ref is not None and (ref == INPUT or self.steps[ref.step].depends)

    def _ref(self, tree: Any) -> Any:
        return mapped(lambda leaf: self.known.get(leaf, leaf) if isinstance(leaf, Tensor) else leaf, tree)

    def _sharing(self, tensor: Tensor) -> list[Tensor]:
        """The living results in the same memory."""
        found = (reference() for reference in self.storages.get(_storage(tensor), ()))
        return [t for t in found if t is not None and t in self.known]


def _record(run: Callable[[Tensor], Tensor], images: Tensor) -> Tape:
    images = images.clone()
    recorder = _Recorder(images)
    with _Functions(recorder), recorder:
        output = run(images)
    if recorder.fault:
        raise Untraceable(recorder.fault)
    ref = recorder.known.get(output)
    if ref is None:
        raise Untraceable("what it returns does not come from operations of torch that can be followed")
    return Tape(recorder.steps, ref, tuple(images.shape), images.dtype, images.device)


def _common(two: Tape, three: Tape) -> Tape:
    """One tape from those of two and of three images."""
    if len(two.steps) != len(three.steps) or two.output != three.output:
        raise Untraceable("it takes other steps for other images")
    steps = []
    for a, b in zip(two.steps, three.steps, strict=True):
        if a.op != b.op or a.dtype != b.dtype:
            raise Untraceable("it takes other steps for other images")
        args, kwargs, shapes = (
            _merged(*both) for both in ((a.args, b.args), (a.kwargs, b.kwargs), (a.shapes, b.shapes))
        )
        steps.append(Step(a.op, args, kwargs, shapes, a.dtype, a.depends))
    return Tape(steps, two.output, _merged(two.shape, three.shape), two.dtype, two.device)


def _merged(a: Any, b: Any) -> Any:
    """What holds for any number of images, from what was seen with two and with three."""
    if isinstance(a, (tuple, list)) and type(a) is type(b) and len(a) == len(b):
        return type(a)([_merged(x, y) for x, y in zip(a, b, strict=True)])
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {key: _merged(a[key], b[key]) for key in a}
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)):
            return a
        raise Untraceable("a tensor depends on the images in a way that can't be followed")
    if type(a) is int and type(b) is int and a != b:
        return PerImage(b - a, 3 * a - 2 * b)
    if type(a) is not type(b) or a != b:
        raise Untraceable(f"a number depends on what the images show ({a!r}, {b!r})")
    return a


def _step(op: Any, args: Any, kwargs: Any, out: Any, *, depends: bool) -> Step:
    outputs = out if isinstance(out, (tuple, list)) else [out]
    tensors = [t for t in outputs if isinstance(t, Tensor)]
    shapes = tuple(tuple(t.shape) if isinstance(t, Tensor) else None for t in outputs)
    dtype = tensors[0].dtype if tensors else torch.float32
    return Step(op, tuple(args), dict(kwargs), shapes, dtype, depends)


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in leaves(tree) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _name(func: Any) -> str:
    return str(getattr(func, "overloadpacket", func.__name__)).rpartition(".")[2]


def _functional(func: Any) -> Any:
    """The operation that returns what this one writes: `relu` for `relu_`."""
    packet = getattr(aten, _name(func).removesuffix("_"), None)
    return getattr(packet, func._overloadname, None) if _name(func).endswith("_") else None


def _draws(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation that may draw at random does: attention takes a rate of dropout, mostly 0."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "p"):
            return bool(args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value))
    return True


def _sized_by_values(func: Any, args: Any) -> bool:
    """Whether the shape of what an operation returns depends on the values that it takes, as of `nonzero`."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    return func is not aten.index.Tensor or any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1]))


def _only_looks_at_shapes(func: Any) -> bool:
    """Whether an operation takes a tensor for its shape and number format alone, as `new_zeros` and `zeros_like`."""
    return _name(func).startswith("new_") or _name(func).endswith("_like")
