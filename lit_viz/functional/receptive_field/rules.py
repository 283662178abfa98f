"""How the reach of a tensor's elements passes through each operator.

A *reach* is a tensor of the shape of an activation that says, for one side of the image, how far the pixels
which an element depends on extend: 0 where it depends on no pixel, and the larger the further. Whatever an
operator combines, the reach of the result is therefore the maximum of the reaches of what went in, and
padding with zeros adds nothing. Operators that only move data can be applied to a reach verbatim.

Reaches repeat themselves: all channels of a convolution see the same pixels. Repeated dimensions are kept
expanded, with stride 0, and all work is done on the one copy that `core` returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

Reach = dict[str, Any]
"""An operator's arguments by name, with a reach in place of each tensor."""

Carry = Callable[[Reach], Tensor | Sequence[Tensor]]
"""Carries one reach through one call: to the first output (and others of its shape), or to each output."""

# What float32 rounds to nothing, as attention does with masked places: exp(-100) is smaller than this.
_UNDERFLOW = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Attributes:
        func: The operator.
        args: Its arguments by name, defaults filled in.
        live: Names of the arguments that depend on the image.
        out: Its first output.
        layout: Shape, strides and offset of the first argument before the call.
    """

    func: OpOverload
    args: dict[str, Any]
    live: frozenset[str]
    out: Tensor
    layout: tuple[torch.Size, tuple[int, ...], int]

    @property
    def name(self) -> str:
        """Name without overload and without the underscore of in-place variants."""
        name = self.func.overloadpacket.__name__
        return name.removesuffix("_") if self.func._schema.is_mutable else name

    @property
    def first(self) -> str:
        """Name of the first argument."""
        return next(iter(self.args))


Rule = Callable[[Call], Carry | None]
"""Reads a call once and returns how to carry reaches through it; None if it doesn't cover this call."""

UnaryRule = Callable[[Call], Callable[[Tensor], Tensor]]
"""Likewise, for the reach of the first argument."""

_RULES: dict[str, Rule] = {}


def is_constant(func: OpOverload) -> bool:
    """Whether the operator reads only the shape of its arguments."""
    name = func.overloadpacket.__name__
    return func.namespace == "aten" and (name.startswith("new_") or name.endswith("_like"))


def find_carry(call: Call) -> Carry | None:
    """How reaches pass through a call, exactly; None if no rule covers it."""
    if call.func.namespace != "aten":
        return None
    rule = _RULES.get(call.name)
    carry = rule(call) if rule is not None else None
    if carry is None and torch.Tag.pointwise in call.func.tags:
        return _pointwise(call)
    return carry


def core(x: Tensor, keep: Iterable[int] = ()) -> Tensor:
    """One copy of each repeated dimension: those of stride 0, except the ones to `keep`, shrink to size 1."""
    kept = {d % x.dim() for d in keep} if x.dim() else set()
    shape = [
        1 if stride == 0 and d not in kept else n for d, (n, stride) in enumerate(zip(x.shape, x.stride(), strict=True))
    ]
    return x if shape == list(x.shape) else x.as_strided(shape, x.stride())


def compress(x: Tensor) -> Tensor:
    """The same values with stride 0 in each dimension along which they repeat."""
    one = core(x)
    for d, n in enumerate(one.shape):
        if n > 1 and bool((one == one.narrow(d, 0, 1)).all()):
            one = one.narrow(d, 0, 1)
    if one.numel() < one.untyped_storage().nbytes() // one.element_size():
        one = one.clone()
    return one.expand(x.shape)


def _rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for the operators of these names, whichever of their arguments depend on the image."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(" ".join(names).split(), rule))
        return rule

    return register


def _unary(*names: str) -> Callable[[UnaryRule], UnaryRule]:
    """Registers a rule that holds where only the first argument depends on the image, no weight or index."""

    def register(rule: UnaryRule) -> UnaryRule:
        @_rule(*names)
        def general(call: Call) -> Carry | None:
            if call.live != {call.first}:
                return None
            carry = rule(call)
            return lambda reach: carry(reach[call.first])

        return rule

    return register


# --- Element by element -------------------------------------------------------------------------------------


# Most operators of this kind are tagged as such, see `find_carry`; these aren't.
@_rule(
    "alias clone contiguous detach lift lift_fresh dropout native_dropout",
    "hardswish log_sigmoid_forward _prelu_kernel rrelu_with_noise",
)
def _pointwise(call: Call) -> Carry:
    names = [name for name in call.args if name in call.live]
    shape = call.out.shape

    def carry(reach: Reach) -> Tensor:
        parts = {id(reach[name]): reach[name] for name in names}.values()
        if len(parts) == 1 and (only := next(iter(parts))).shape == shape:
            return only
        return reduce(torch.maximum, map(core, parts)).expand(shape)

    return carry


@_rule("where masked_fill")
def _choice(call: Call) -> Carry | None:
    choice = "condition" if call.name == "where" else "mask"
    if choice in call.live:
        return None
    if call.name == "where":
        return lambda reach: torch.where(reach["condition"], reach["self"], reach["other"])
    if "value" in call.live:
        return None
    return lambda reach: reach["self"].masked_fill(reach["mask"], 0)


@_rule("copy")
def _copy(call: Call) -> Carry:
    return lambda reach: reach["src"].to(call.out.device).expand(call.out.shape)


@_unary("to _to_copy")
def _convert(call: Call) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(call.out.device)


@_rule("fill zero")
def _fill(call: Call) -> Carry:
    if "value" in call.live:
        return lambda reach: reach["value"].expand(call.out.shape)
    nothing = torch.zeros((), device=call.out.device).expand(call.out.shape)
    return lambda reach: nothing


# --- Data movement ------------------------------------------------------------------------------------------

_INDICES = ("index", "indices")


@_rule(
    "permute transpose t numpy_T expand squeeze unsqueeze unfold diagonal roll flip rot90 tril triu",
    "slice select narrow split split_with_sizes chunk unbind stack repeat slice_scatter select_scatter",
    "index index_select gather take_along_dim",
    "im2col pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle",
)
def _verbatim(call: Call) -> Carry | None:
    if any(name in call.live for name in _INDICES):
        return None
    func = getattr(torch.ops.aten, call.name) if call.func._schema.is_mutable else call.func
    return lambda reach: func(**reach)


@_rule("index_put _index_put_impl")
def _index_put(call: Call) -> Carry | None:
    if "indices" in call.live or call.args["accumulate"]:
        return None
    return lambda reach: torch.ops.aten.index_put(reach["self"], reach["indices"], reach["values"])


@_unary("view _unsafe_view reshape _reshape_alias")
def _reshape(call: Call) -> Callable[[Tensor], Tensor]:
    # `view` as another type may change the number of elements: the union of all is right then.
    if math.prod(call.layout[0]) != call.out.numel():
        return lambda x: x.amax().expand(call.out.shape)
    return lambda x: x.reshape(call.out.shape)


@_unary("as_strided")
def _as_strided(call: Call) -> Callable[[Tensor], Tensor]:
    shape, stride, offset = call.layout
    length = call.out.untyped_storage().nbytes() // call.out.element_size()

    def carry(x: Tensor) -> Tensor:
        storage = x.new_zeros(length)
        storage.as_strided(shape, stride, offset).copy_(x)
        return storage.as_strided(call.out.shape, call.out.stride(), call.out.storage_offset())

    return carry


@_rule("cat")
def _cat(call: Call) -> Carry:
    # An empty vector may be concatenated with anything.
    used = [i for i, t in enumerate(call.args["tensors"]) if t.shape != (0,)]
    dim = call.args["dim"] % call.out.dim()

    def carry(reach: Reach) -> Tensor:
        parts = [reach["tensors"][i] for i in used]
        varied = [d for d in range(call.out.dim()) if any(p.stride(d) and p.shape[d] > 1 for p in parts)]
        return torch.cat([core(p, keep=[dim, *varied]) for p in parts], dim).expand(call.out.shape)

    return carry


@_unary("constant_pad_nd")
def _pad(call: Call) -> Callable[[Tensor], Tensor]:
    pad = call.args["pad"]
    keep = range(-len(pad) // 2, 0)
    return lambda x: F.pad(core(x, keep), pad).expand(call.out.shape)


@_unary("reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d")
def _mirror(call: Call) -> Callable[[Tensor], Tensor]:
    keep = range(-len(call.args["padding"]) // 2, 0)
    return lambda x: call.func(core(x, keep), call.args["padding"]).expand(call.out.shape)


# --- Windows ------------------------------------------------------------------------------------------------


@_unary("convolution _convolution convolution_overrideable")
def _convolution(call: Call) -> Callable[[Tensor], Tensor]:
    args = call.args
    inputs, outputs, kernel = args["input"].shape[2:], call.out.shape[2:], args["weight"].shape[2:]
    # A single number stands for all axes.
    stride, padding, dilation = (
        list(args[name]) * (len(kernel) // len(args[name])) for name in ("stride", "padding", "dilation")
    )
    taps = [
        _convolution_taps(*axis, transposed=args["transposed"], device=call.out.device)
        for axis in zip(inputs, outputs, kernel, stride, padding, dilation, strict=True)
    ]

    def carry(x: Tensor) -> Tensor:
        x = _over_groups(x, args["groups"])
        for axis, (size, table) in enumerate(zip(inputs, taps, strict=True), start=2):
            x = _windows(x, axis, size, table)
        return _to_channels(x, call.out.shape[1]).expand(call.out.shape)

    return carry


@_unary("max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices avg_pool2d avg_pool3d")
def _pool(call: Call) -> Callable[[Tensor], Tensor]:
    # Averages read the same windows as maxima.
    a = call.args
    rank = len(a["kernel_size"])
    pool = {2: F.max_pool2d, 3: F.max_pool3d}[rank]
    geometry = a["kernel_size"], a["stride"] or None, a["padding"], a.get("dilation", 1), a["ceil_mode"]
    return lambda x: pool(core(x, range(-rank, 0)), *geometry).expand(call.out.shape)


@_unary("_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d")
def _adaptive_pool(call: Call) -> Callable[[Tensor], Tensor]:
    size = call.args["output_size"]
    pool = {2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}[len(size)]
    return lambda x: pool(core(x, range(-len(size), 0)), size).expand(call.out.shape)


@_unary(
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d",
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d",
    "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d",
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa",
)
def _resample(call: Call) -> Callable[[Tensor], Tensor]:
    inputs = call.args[call.first].shape[2:]
    taps = [_resampling_taps(call, axis) for axis in range(len(inputs))]

    def carry(x: Tensor) -> Tensor:
        x = core(x)
        for axis, (size, table) in enumerate(zip(inputs, taps, strict=True), start=2):
            x = _windows(x, axis, size, table)
        return x.expand(call.out.shape)

    return carry


def _convolution_taps(
    size: int,
    out: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    *,
    transposed: bool,
    device: torch.device,
) -> Tensor:
    """What each output of a 1-d convolution reads.

    Output o reads input i = o·stride − padding + k·dilation; transposed, those with o = i·stride − padding +
    k·dilation.

    Returns:
        (out, kernel), input indices; `size` stands for nothing.
    """
    o, k = torch.arange(out, device=device)[:, None], torch.arange(kernel, device=device) * dilation
    if transposed:
        position = o + padding - k
        i, fits = position // stride, position % stride == 0
    else:
        i = o * stride - padding + k
        fits = torch.ones_like(i, dtype=torch.bool)
    return torch.where(fits & (i >= 0) & (i < size), i, size)


def _resampling_taps(call: Call, axis: int) -> Tensor:
    """What each output of a separable linear resampling reads along one axis, asked of the operator itself.

    Returns:
        (out, most taps), input indices; the input's size stands for nothing.
    """
    size, out = call.args[call.first].shape[2 + axis], call.out.shape[2 + axis]
    # The other axes are repeated, to two places: antialiasing is wrong on images that are one pixel wide.
    others = [2] * (call.out.dim() - 2)
    shape = [size, 1, *others]
    shape[2 + axis] = size
    basis = torch.eye(size, device=call.out.device)
    basis = basis.reshape([n if d in (0, 2 + axis) else 1 for d, n in enumerate(shape)]).expand(shape)
    args = {call.first: basis.contiguous(), "output_size": [*others[:axis], out, *others[axis + 1 :]]}
    response = call.func(**call.args | args).movedim(2 + axis, 1).reshape(size, out, -1)[..., 0]
    reads = response.T != 0
    indices = torch.where(reads, torch.arange(size, device=reads.device), size).sort(1).values
    return indices[:, : int(reads.sum(1).max())]


def _windows(x: Tensor, axis: int, size: int, taps: Tensor) -> Tensor:
    """The maximum over what each output reads along one axis.

    Args:
        x: A core: the axis has its full `size`, or 1 where all its places agree.
        axis: The axis.
        size: Its full size.
        taps: (out, k), indices along the axis; `size` stands for nothing.

    Returns:
        Like `x` with `out` places along the axis, or 1 where all agree.
    """
    if x.shape[axis] == 1 < size:
        if bool((taps < size).any(1).all()):
            return x
        x = x.expand([size if d == axis else n for d, n in enumerate(x.shape)])
    padded = torch.cat([x, torch.zeros_like(x.narrow(axis, 0, 1))], axis)
    return padded.index_select(axis, taps.flatten()).unflatten(axis, taps.shape).amax(axis + 1)


def _over_groups(x: Tensor, groups: int) -> Tensor:
    """(N, C, ...) to the core of the maximum over the channels of each group, (N, groups or 1, ...)."""
    x = core(x)
    return x if x.shape[1] == 1 else x.unflatten(1, (groups, -1)).amax(2)


def _to_channels(x: Tensor, channels: int) -> Tensor:
    """(N, groups or 1, ...) to (N, channels or 1, ...): the channels of each group get its value."""
    return x if x.shape[1] == 1 else x.repeat_interleave(channels // x.shape[1], 1)


# --- Sums over dimensions -----------------------------------------------------------------------------------


@_unary(
    "mean nanmean sum nansum prod var var_mean std std_mean norm linalg_vector_norm logsumexp",
    "amax amin aminmax max min argmax argmin kthvalue median nanmedian any all count_nonzero",
)
def _reduction(call: Call) -> Callable[[Tensor], Tensor]:
    # Overloads over all dimensions lack these arguments.
    dims, keepdim = _dims(call), call.args.get("keepdim", False)
    kept = [1 if d in dims else n for d, n in enumerate(call.layout[0])]

    def carry(x: Tensor) -> Tensor:
        x = core(x).amax(dims, keepdim=True).expand(kept)
        return x if keepdim else x.squeeze(tuple(dims))

    return carry


@_unary("_log_softmax sort topk")
def _whole_dimension(call: Call) -> Callable[[Tensor], Tensor]:
    (dim,) = _dims(call)
    return lambda x: core(x).amax(dim, keepdim=True).expand(call.out.shape)


@_unary("cumsum cumprod logcumsumexp cummax cummin")
def _cumulative(call: Call) -> Callable[[Tensor], Tensor]:
    (dim,) = _dims(call)
    return lambda x: x.cummax(dim).values


@_unary("_softmax _safe_softmax")
def _softmax(call: Call) -> Callable[[Tensor], Tensor]:
    # A constant added to the logits, -100 or -inf, is how attention is confined to windows or to the past.
    (dim,) = _dims(call)
    logits = call.args["self"].double()
    seen = logits - logits.amax(dim, keepdim=True) > math.log(_UNDERFLOW)
    if bool(seen.all()):
        return lambda x: x.amax(dim, keepdim=True).expand(call.out.shape)
    return lambda x: torch.where(seen, torch.where(seen, x, 0).amax(dim, keepdim=True), 0)


@_unary("native_layer_norm rms_norm _fused_rms_norm")
def _layer_norm(call: Call) -> Callable[[Tensor], Tensor]:
    dims = list(range(-len(call.args["normalized_shape"]), 0))
    return lambda x: core(x).amax(dims, keepdim=True).expand(call.out.shape)


@_unary("native_group_norm")
def _group_norm(call: Call) -> Callable[[Tensor], Tensor]:
    def carry(x: Tensor) -> Tensor:
        x = _over_groups(x, call.args["group"])
        x = x.amax(list(range(2, x.dim())), keepdim=True)
        return _to_channels(x, call.out.shape[1]).expand(call.out.shape)

    return carry


@_unary(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training",
    "_batch_norm_no_update _batch_norm_with_update cudnn_batch_norm miopen_batch_norm",
)
def _batch_norm(call: Call) -> Callable[[Tensor], Tensor]:
    # With the batch's own statistics it mixes all places, as instance norm does, which is made of it.
    if not call.args.get("training", call.name == "_batch_norm_with_update"):
        return lambda x: x
    dims = [d for d in range(call.out.dim()) if d != 1]
    return lambda x: core(x).amax(dims, keepdim=True).expand(call.out.shape)


@_unary("glu")
def _glu(call: Call) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.maximum(*x.chunk(2, call.args["dim"]))


def _dims(call: Call) -> list[int]:
    """The dimensions an operator works along; all of them where it isn't told."""
    rank = len(call.layout[0])
    dim = call.args.get("dim")
    if dim is None or dim == []:
        return list(range(rank))
    return [d % rank if rank else 0 for d in ([dim] if isinstance(dim, int) else dim)]


# --- Products -----------------------------------------------------------------------------------------------

_FACTORS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "_addmm_activation": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
}


@_rule(*_FACTORS)
def _product(call: Call) -> Carry:
    """Σ_k a[i, k]·b[k, j] depends on what a[i, ·] and b[·, j] depend on, but for constant factors 0."""
    left, right = _FACTORS[call.name]
    both = left in call.live and right in call.live
    zeros = [call.args[name].abs() <= _UNDERFLOW if both else None for name in (left, right)]
    zeros = [zero if both and bool(zero.any()) else None for zero in zeros]

    def carry(reach: Reach) -> Tensor:
        a, b = reach[left], reach[right]
        no_a, no_b = (z & (x == 0) if z is not None else None for z, x in zip(zeros, (a, b), strict=True))
        rows, columns = core(a).amax(-1, keepdim=True), core(b).amax(-2, keepdim=True)
        if no_a is not None and bool(no_a.any()):
            columns = torch.where(no_a[..., None], 0, core(b)[..., None, :, :]).amax(-2)
        if no_b is not None and bool(no_b.any()):
            rows = torch.where(no_b[..., None, :, :], 0, core(a)[..., None]).amax(-2)
        out = torch.maximum(rows, columns)
        if left != "self" and "self" in call.live:
            out = torch.maximum(out, reach["self"])
        return out.expand(call.out.shape)

    return carry
