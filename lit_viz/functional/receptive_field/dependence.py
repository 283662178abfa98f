"""Follows a forward pass: which part of the image does each element of each activation depend on?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from lit_viz.functional.receptive_field.rules import Call, compress, core, find_carry, is_constant

SIDES = 4
"""Top, bottom, left, right."""


@dataclass(frozen=True, eq=False)
class Shadow:
    """What each element of a tensor depends on: the bounding box of image pixels.

    Attributes:
        reach: Four tensors of the shape of the shadowed one, for top, bottom, left and right, counted from
            the opposite side of the image: H − first row, last row + 1, W − first column, last column + 1;
            all 0 where an element depends on no pixel. Never changed in place, so that tensors can share
            them.
        inexact: Names of the operators on the way whose dependence isn't known: each of their outputs was
            taken to depend on all of their inputs.
    """

    reach: tuple[Tensor, ...]
    inexact: tuple[str, ...] = ()

    @classmethod
    def of_image(cls, image: Tensor) -> Shadow:
        """Each pixel of `image`, (N, C, H, W), depends on itself."""
        height, width = image.shape[-2:]
        row = torch.arange(height, dtype=torch.float32, device=image.device)[:, None]
        column = torch.arange(width, dtype=torch.float32, device=image.device)
        reach = (height - row, row + 1, width - column, column + 1)
        return cls(tuple(r.expand(image.shape) for r in reach))

    @classmethod
    def nothing(cls, like: Tensor) -> Shadow:
        """A constant."""
        zero = torch.zeros((), device=like.device).expand(like.shape)
        return cls((zero,) * SIDES)

    def union(self, other: Shadow) -> Shadow:
        """The bounding boxes of both, element by element."""
        shape = self.reach[0].shape
        reach = (torch.maximum(core(a), core(b)).expand(shape) for a, b in zip(self.reach, other.reach, strict=True))
        return Shadow(tuple(reach), tuple(dict.fromkeys(self.inexact + other.inexact)))


class Dependence(TorchDispatchMode):
    """While this mode is active, every tensor computed from the image gets a `Shadow`.

    Args:
        image: (N, C, H, W).
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self._shadows = _Shadows()
        self._shadows.put(image, Shadow.of_image(image))

    def shadow(self, tensor: Tensor) -> Shadow:
        """What the elements of a tensor depend on, as it stands now."""
        return self._shadows.get(tensor) or Shadow.nothing(tensor)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operator, then carries the shadows of its arguments over to what it returns."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        shadows = {id(tensor): self._shadows.get(tensor) for tensor in tensors}
        known = [s for s in shadows.values() if s is not None]
        if not known or is_constant(func):
            return func(*args, **kwargs)
        named = _bind(func, args, kwargs)
        layout = tensors[0].shape, tensors[0].stride(), tensors[0].storage_offset()
        result = func(*args, **kwargs)
        # Operators on lists return nothing, but write to what they got.
        outs = tensors if result is None else [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if outs:
            live = frozenset(name for name, value in named.items() if any(map(shadows.get, _ids(value))))
            call = Call(func, named, live, outs[0], layout)
            for out, shadow in zip(outs, _propagate(call, outs, shadows), strict=True):
                in_place = id(out) in shadows and torch.Tag.inplace_view not in func.tags
                if not in_place:
                    self._shadows.put(out, shadow)
                elif shadow is not shadows[id(out)]:
                    self._shadows.write(out, shadow)
        return result


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention is computed step by step: fused kernels hide their softmax, and with it their masks."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Shadows:
    """Shadows of tensors, as long as these live.

    Most tensors have one of their own. A storage that was written to through one of several tensors that
    share it gets flat reaches, one number for each of its elements, and all tensors on it read these.
    """

    def __init__(self) -> None:
        self._own = WeakTensorKeyDictionary()
        self._flat: dict[int, tuple[StorageWeakRef, Shadow]] = {}

    def get(self, tensor: Tensor) -> Shadow | None:
        flat = self._flat_of(tensor)
        if flat is None:
            return self._own.get(tensor)
        layout = tensor.shape, tensor.stride(), tensor.storage_offset()
        return Shadow(tuple(compress(r.as_strided(*layout)) for r in flat.reach), flat.inexact)

    def put(self, tensor: Tensor, shadow: Shadow) -> None:
        """For a tensor just made."""
        if self._flat_of(tensor) is None:
            self._own[tensor] = shadow

    def write(self, tensor: Tensor, shadow: Shadow) -> None:
        """For a tensor changed in place, and with it all that share its storage."""
        flat = self._flat_of(tensor)
        key = tensor.untyped_storage()._cdata
        if flat is None:
            sharing = [t for t in self._own if t.untyped_storage()._cdata == key]
            # A view of a tensor that has a shadow has one itself, so nobody else can share the storage.
            if len(sharing) == 1 and sharing[0] is tensor:
                self._own[tensor] = shadow
                return
            length = tensor.untyped_storage().nbytes() // tensor.element_size()
            flat = Shadow(tuple(torch.zeros(length, device=tensor.device) for _ in range(SIDES)))
            for other in sharing:
                flat = _written(flat, other, self._own.pop(other))
        self._flat[key] = StorageWeakRef(tensor.untyped_storage()), _written(flat, tensor, shadow)

    def _flat_of(self, tensor: Tensor) -> Shadow | None:
        if not self._flat:
            return None
        self._flat = {key: entry for key, entry in self._flat.items() if not entry[0].expired()}
        entry = self._flat.get(tensor.untyped_storage()._cdata)
        return entry[1] if entry else None


def _written(flat: Shadow, tensor: Tensor, shadow: Shadow) -> Shadow:
    """Flat reaches with those of one tensor written to its places."""
    for whole, reach in zip(flat.reach, shadow.reach, strict=True):
        whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(reach)
    return Shadow(flat.reach, tuple(dict.fromkeys(flat.inexact + shadow.inexact)))


def _propagate(call: Call, outs: list[Tensor], shadows: dict[int, Shadow | None]) -> list[Shadow]:
    """Shadows of the outputs of a call."""
    known = [s for s in shadows.values() if s is not None]
    inexact = tuple(dict.fromkeys(name for s in known for name in s.inexact))
    carry = find_carry(call)
    if carry is None:
        # Where all inputs see the same already, there is nothing that could be lost.
        if not all(_agree([s.reach[side] for s in known]) for side in range(SIDES)):
            inexact = tuple(dict.fromkeys((*inexact, str(call.func.overloadpacket))))
        unions = [_union([s.reach[side] for s in known]) for side in range(SIDES)]
        return [Shadow(tuple(u.expand(out.shape) for u in unions), inexact) for out in outs]
    sides = []
    for side in range(SIDES):
        reaches = carry({name: _reach(value, shadows, side, name) for name, value in call.args.items()})
        if isinstance(reaches, Tensor):
            fits = [out.shape == call.out.shape for out in outs]
            reaches = [reaches if fit else _union([reaches]).expand(o.shape) for o, fit in zip(outs, fits, strict=True)]
        sides.append(reaches)
    return [_tidy(reach, inexact, known) for reach in zip(*sides, strict=True)]


def _tidy(reach: tuple[Tensor, ...], inexact: tuple[str, ...], known: list[Shadow]) -> Shadow:
    """A shadow of these reaches; the very same as before where an operator passed it through."""
    for shadow in known:
        if shadow.inexact == inexact and all(a is b for a, b in zip(shadow.reach, reach, strict=True)):
            return shadow
    return Shadow(tuple(map(compress, reach)), inexact)


def _reach(value: Any, shadows: dict[int, Shadow | None], side: int, name: str) -> Any:
    """An argument with reaches in place of tensors; indices and masks stay what they are."""
    if isinstance(value, (list, tuple)):
        return [_reach(item, shadows, side, name) for item in value]
    if not isinstance(value, Tensor):
        return value
    shadow = shadows[id(value)]
    if shadow is not None:
        return shadow.reach[side]
    if name in ("index", "indices", "mask", "condition"):
        return value
    return torch.zeros((), device=value.device).expand(value.shape)


def _union(reaches: list[Tensor]) -> Tensor:
    return torch.stack([core(r).amax() for r in reaches if r.numel()] or [torch.zeros(())]).amax()


def _agree(reaches: list[Tensor]) -> bool:
    return all(core(r).numel() == 1 for r in reaches) and len({float(core(r)) for r in reaches}) == 1


def _bind(func: OpOverload, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, defaults filled in."""
    named = {}
    for position, argument in enumerate(func._schema.arguments):
        if position < len(args):
            named[argument.name] = args[position]
        elif argument.name in kwargs:
            named[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            named[argument.name] = argument.default_value
    return named


def _ids(value: Any) -> Iterator[int]:
    return (id(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
