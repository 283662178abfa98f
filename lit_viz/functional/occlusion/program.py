"""A network's tape made ready to be run many times: constants computed, batch norms folded, dead steps gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lit_viz.functional import winograd
from lit_viz.functional.occlusion.tape import INPUT, PerImage, Ref, Step, Tape, aten, mapped

BATCH_NORMS = {
    aten.native_batch_norm.default: 7,
    aten.cudnn_batch_norm.default: 7,
    aten.miopen_batch_norm.default: 7,
    aten._native_batch_norm_legit_no_training.default: 6,
}
"""Operations of batch norm, and where their ε stands."""

IN_PLACE = {
    aten.relu.default: aten.relu_.default,
    aten.hardtanh.default: aten.hardtanh_.default,
    aten.silu.default: aten.silu_.default,
    aten.hardswish.default: aten.hardswish_.default,
}
"""Activations, and the same written over what they take."""

PART = 32
"""Channels of weights that are folded at once."""


@dataclass
class Program:
    """What is left to do for each batch.

    Attributes:
        tape: As it was written down; its shapes hold.
        steps: By number, in order; those that no result needs are missing.
        readers: The steps that read each result, in order.
    """

    tape: Tape
    steps: dict[int, Step]
    readers: dict[Ref, list[int]]

    @cached_property
    def last(self) -> dict[Ref, int]:
        """The last step that reads each result."""
        return {ref: numbers[-1] for ref, numbers in self.readers.items()}

    def run(self, images: Tensor) -> Tensor:
        """Scores (N, K) of whole images (N, C, H, W)."""
        values: dict[Ref, Any] = {INPUT: images.contiguous(memory_format=torch.channels_last)}
        with as_written(images.device):
            self.go_on(values, len(images))
        return values[self.tape.output]

    def go_on(
        self,
        values: dict[Ref, Any],
        images: int,
        after: int = -1,
        keep: Callable[[Ref, Any], None] = lambda ref, value: None,
    ) -> None:
        """Runs the steps after one, on whole maps, and lets go of what is no longer read.

        Args:
            values: What is there; results are added.
            images: How many images that is.
            after: The last step that was run.
            keep: Is shown each result.
        """
        for number, step in self.steps.items():
            if number <= after:
                continue
            for i, value in enumerate(outputs(self.call(step, values, images))):
                values[Ref(number, i)] = value
                keep(Ref(number, i), value)
            for ref in step.refs:
                if self.last[ref] == number:
                    values.pop(ref, None)

    def call(self, step: Step, values: dict[Ref, Any], images: int) -> Any:
        """Runs the operation of a step on a number of images."""

        def concrete(leaf: Any) -> Any:
            if isinstance(leaf, Ref):
                return values[leaf]
            return leaf.at(images) if isinstance(leaf, PerImage) else leaf

        return step.op(*mapped(concrete, step.args), **mapped(concrete, step.kwargs))


def as_written(device: torch.device) -> AbstractContextManager[None]:
    """Steps run as they were written down: what autocast converts is among them already."""
    return torch.autocast(device.type, enabled=False)


def outputs(result: Any) -> list[Any]:
    """What an operation returns, as a list."""
    return list(result) if isinstance(result, (tuple, list)) else [result]


@torch.no_grad()
def prepared(tape: Tape) -> Program:
    """Computes what does not depend on the images, folds batch norms into convolutions, and leaves out what is dead.

    Convolutions for which that pays are computed with fewer multiplications.
    """
    steps: dict[int, Step] = {}
    constants: dict[Ref, Tensor] = {}
    for number, step in enumerate(tape.steps):
        step = replace(
            step,
            args=mapped(lambda leaf: constants.get(leaf, leaf) if isinstance(leaf, Ref) else leaf, step.args),
            kwargs=mapped(lambda leaf: constants.get(leaf, leaf) if isinstance(leaf, Ref) else leaf, step.kwargs),
        )
        if step.op in (aten.view.default, aten._unsafe_view.default):
            step = replace(step, op=aten.reshape.default)  # maps come here in another order of memory
        if step.depends or step.refs or step.counts_images:
            steps[number] = step
            continue
        with as_written(tape.device):
            out = step.op(*step.args, **step.kwargs)
        for i, tensor in enumerate(outputs(out)):
            constants[Ref(number, i)] = tensor
    steps = _living(steps, tape.output)
    _fold_batch_norms(steps, tape)
    _fold_batch_norms_ahead(steps, tape)
    _nest_concatenations(steps)
    steps = _living(steps, tape.output)
    _multiply_less(steps, tape)
    _write_in_place(steps, tape.output)
    return Program(tape, steps, _readers(steps))


def _readers(steps: dict[int, Step]) -> dict[Ref, list[int]]:
    """The steps that read each result, in order."""
    readers: dict[Ref, list[int]] = {}
    for number, step in steps.items():
        for ref in dict.fromkeys(step.refs):
            readers.setdefault(ref, []).append(number)
    return readers


def _living(steps: dict[int, Step], output: Ref) -> dict[int, Step]:
    """The steps whose results are used."""
    needed = {output.step}
    for number in reversed(steps):
        if number in needed:
            needed.update(ref.step for ref in steps[number].refs)
    return {number: step for number, step in steps.items() if number in needed}


def _fold_batch_norms(steps: dict[int, Step], tape: Tape) -> None:
    """Puts into the weights of a convolution what the batch norm after it does."""
    uses = Counter(ref.step for step in steps.values() for ref in step.refs)
    for number, step in steps.items():
        if step.op not in BATCH_NORMS or not isinstance(step.args[0], Ref) or step.args[0] == INPUT:
            continue
        before = steps[step.args[0].step]
        if uses[step.args[0].step] > 1 or not _foldable(step, [before], tape):
            continue
        scale, shift = _affine(step)
        steps[number] = replace(before, args=_behind(before, scale, shift))


def _fold_batch_norms_ahead(steps: dict[int, Step], tape: Tape) -> None:
    r"""Puts batch norms before a ReLU into the weights of the convolutions after it, as dense blocks have them.

    Where $s > 0$, $\max(s x + t, 0) = s \max(x, -t/s) + t$; where $s < 0$ a minimum takes the place of the maximum.
    What is left is one pass over the map instead of two.
    """
    readers = _readers(steps)
    for number, norm in list(steps.items()):
        if norm.op not in BATCH_NORMS or not isinstance(norm.args[0], Ref):
            continue
        after = [i for output in range(len(norm.shapes)) for i in readers.get(Ref(number, output), [])]
        if len(after) != 1 or steps[after[0]].op is not aten.relu.default or after[0] == tape.output.step:
            continue
        activation = Ref(after[0])
        ahead = {i: steps[i] for i in readers.get(activation, [])}
        padded = any(any(step.args[4]) for step in ahead.values() if step.op is aten.convolution.default)
        if padded or not ahead or not _foldable(norm, list(ahead.values()), tape):
            continue  # zeros around the map would become −t / s
        scale, shift = _affine(norm)
        bound = (-shift / scale).to(tape.dtype_of(norm.args[0])).reshape(1, -1, 1, 1)
        if not bound.isfinite().all():
            continue
        up = (scale > 0).reshape(bound.shape)
        if up.all():
            op, limits = aten.maximum.default, (bound,)
        else:
            op = aten.clamp.Tensor
            limits = bound.masked_fill(~up, -torch.inf), bound.masked_fill(up, torch.inf)
        steps[after[0]] = replace(steps[after[0]], op=op, args=(norm.args[0], *limits))
        for i, convolution in ahead.items():
            steps[i] = replace(convolution, args=_in_front(convolution, scale, shift))


def _foldable(norm: Step, convolutions: list[Step], tape: Tape) -> bool:
    """Whether a batch norm can become part of convolutions."""
    image, weight, bias, mean, var, *rest = norm.args
    if any(step.op is not aten.convolution.default or step.args[6] for step in convolutions):  # or transposed ones
        return False
    held = [t for step in convolutions for t in step.args[1:3]]
    fixed = [t for t in (*held, weight, bias, mean, var) if t is not None]
    dtype = tape.dtype_of(image)
    return (
        dtype in (torch.float32, torch.float64)  # rounded once more, weights would show it
        and all(isinstance(t, Tensor) and t.dtype == dtype for t in fixed)
        and not (len(rest) == 3 and rest[0])  # in training mode
    )


def _nest_concatenations(steps: dict[int, Step]) -> None:
    """Makes a concatenation that begins as an earlier one did go on from there: in a dense block all but one part."""
    known: dict[tuple[int, tuple[Ref, ...]], Ref] = {}
    for number, step in steps.items():
        if step.op is not aten.cat.default or not all(isinstance(part, Ref) for part in step.args[0]):
            continue
        axis, parts = (*step.args[1:], 0)[0], tuple(step.args[0])
        for length in range(len(parts) - 1, 1, -1):
            earlier = known.get((axis, parts[:length]))
            if earlier is not None:
                steps[number] = replace(step, args=([earlier, *parts[length:]], *step.args[1:]))
                break
        known[axis, parts] = Ref(number)


def _multiply_less(steps: dict[int, Step], tape: Tape) -> None:
    """Gives convolutions by kernels of 3 × 3 fewer multiplications, where they have many channels."""
    for number, step in steps.items():
        if step.op is not aten.convolution.default or not isinstance(step.args[1], Tensor) or step.args[6]:
            continue
        image, weight, bias, stride, padding, dilation, _, _, groups = step.args
        size = tape.per_image(Ref(number))
        if not isinstance(image, Ref) or size is None or not winograd.suits(weight, stride, dilation, groups):
            continue
        out, inner = weight.shape[:2]
        if winograd.pays(inner, out, size[-2:]):
            args = image, winograd.filters(weight), bias, [padding[0], padding[-1]]
            steps[number] = replace(step, op=winograd.convolution, args=args)


def _write_in_place(steps: dict[int, Step], output: Ref) -> None:
    """Lets activations write over results that nothing else reads."""
    uses = Counter(ref for step in steps.values() for ref in step.refs)
    for number, step in steps.items():
        image = step.args[0] if step.args else None
        if step.op not in IN_PLACE or not isinstance(image, Ref) or image == INPUT:
            continue
        fresh = steps[image.step].op in (aten.convolution.default, winograd.convolution, *BATCH_NORMS)
        if fresh and uses[image] == 1 and image != output and step.refs == [image]:
            steps[number] = replace(step, op=IN_PLACE[step.op])


def _affine(norm: Step) -> tuple[Tensor, Tensor]:
    r"""Batch norm as $s x + t$: $s = \gamma / \sqrt{\sigma^2 + \varepsilon}$ and $t = \beta - s \mu$, (C,) float64."""
    gamma, beta, mean, var = norm.args[1:5]
    scale = (var.double() + norm.args[BATCH_NORMS[norm.op]]).rsqrt()
    scale = scale if gamma is None else scale * gamma
    shift = -mean.double() * scale
    return scale, shift if beta is None else shift + beta


def _behind(convolution: Step, scale: Tensor, shift: Tensor) -> tuple[Any, ...]:
    """Arguments of a convolution whose results are scaled and shifted, by channel."""
    image, weight, bias, *rest = convolution.args
    shift = shift if bias is None else shift + scale * bias
    scale = scale.reshape(-1, *[1] * (weight.dim() - 1))
    return image, _scaled(weight, scale), shift.to(weight.dtype), *rest


def _in_front(convolution: Step, scale: Tensor, shift: Tensor) -> tuple[Any, ...]:
    """Arguments of a convolution without padding for which what it takes is scaled and shifted, by channel."""
    image, weight, bias, *rest = convolution.args
    groups = rest[-1]

    def by_output(values: Tensor) -> Tensor:  # those that an output channel's group reads, (O, I / groups, 1, 1)
        values = values.reshape(groups, -1).repeat_interleave(len(weight) // groups, dim=0)
        return values.reshape(*values.shape, *[1] * (weight.dim() - 2))

    added = (weight.double() * by_output(shift)).flatten(1).sum(dim=1)
    added = added if bias is None else added + bias
    return image, _scaled(weight, by_output(scale)), added.to(weight.dtype), *rest


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """Weights times factors in double precision, rounded, in the order of memory that convolutions are quick with."""
    order = torch.channels_last if weight.dim() == 4 else torch.contiguous_format
    out = torch.empty_like(weight, memory_format=order)
    # By parts, since in double precision all of a large layer takes more memory than many a batch.
    for result, part, factors in zip(out.split(PART), weight.split(PART), scale.split(PART), strict=True):
        result.copy_(part.double() * factors)
    return out
