"""Convolutions whose weights stay, so that work can be done once that serves all passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.functional import winograd

TILE = 4
"""Results along a side of what is computed together: here a little more rounding changes nothing."""


@torch.library.custom_op("lit_viz::frozen_convolution", mutates_args=())
def frozen_convolution(
    image: Tensor, kernels: Tensor, reverse: Tensor, bias: Tensor | None, padding: list[int]
) -> Tensor:
    """Convolution by fixed kernels of 3 × 3, that gradients pass through to the image.

    Args:
        image: (N, I, H, W).
        kernels: (36, I, O), of `winograd.filters`.
        reverse: (36, O, I), those of the way back: kernels turned by 180° from the results to what they are made of.
        bias: (O,).
        padding: At the top and bottom, and at the left and right; up to 2.

    Returns:
        (N, O, H', W').
    """
    return winograd.convolution(image, kernels, bias, padding)


@frozen_convolution.register_fake
def _(image: Tensor, kernels: Tensor, reverse: Tensor, bias: Tensor | None, padding: list[int]) -> Tensor:
    height, width = (n + 2 * p - 2 for n, p in zip(image.shape[2:], padding, strict=True))
    shape = image.shape[0], kernels.shape[2], height, width
    return image.new_empty(shape).contiguous(memory_format=torch.channels_last)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, kernels, reverse, _, ctx.padding = inputs
    ctx.save_for_backward(kernels, reverse)


def _back(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    kernels, reverse = ctx.saved_tensors
    around = [2 - p for p in ctx.padding]
    with torch.autocast("cpu", enabled=False):
        return frozen_convolution(gradient, reverse, kernels, None, around), None, None, None, None


frozen_convolution.register_autograd(_back, setup_context=_keep)


class FrozenConv2d(nn.Conv2d):
    """A convolution that shares another's weights, which are no longer trained.

    Where that pays, on a CPU and in 32 or 64 bits, it takes fewer multiplications, see `functional.winograd`, for the
    image's gradient as well; elsewhere, and where its graph is to leave PyTorch, it is the convolution that it was. It
    sees weights that are replaced or written to, but not through `weight.data`, nor once it is compiled.

    Args:
        layer: The convolution.
    """

    _key: tuple[Any, ...] | None = None
    _filters: tuple[Tensor, Tensor] | None = None

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            layer.bias is not None,
            device="meta",
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.train(layer.training)

    @staticmethod
    def suits(layer: nn.Conv2d) -> bool:
        """Whether a convolution can gain by it, and is nothing but a convolution."""
        hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
        return (
            type(layer) is nn.Conv2d
            and layer.kernel_size == (3, 3)
            and isinstance(layer.padding, tuple)
            and max(layer.padding) <= 2
            and layer.padding_mode == "zeros"
            and winograd.pays(layer.in_channels, layer.out_channels, (64, 64), tile=TILE)
            and not any(hooks)
            and "forward" not in vars(layer)
        )

    def forward(self, image: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self._prepare()
        if self._filters is None or not self._serves(image):
            return F.conv2d(image, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return frozen_convolution(image, *self._filters, self.bias, list(self.padding))

    def _serves(self, image: Tensor) -> bool:
        """Whether an image is one to take fewer multiplications for."""
        if image.dim() != 4 or image.dtype != self.weight.dtype or torch.is_autocast_enabled("cpu"):
            return False
        if self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad):
            return False
        if must_be_plain(image):
            return False
        height = image.shape[2] + 2 * int(self.padding[0]) - 2
        width = image.shape[3] + 2 * int(self.padding[1]) - 2
        return winograd.pays(self.in_channels, self.out_channels, (height, width), tile=TILE)

    def _prepare(self) -> None:
        weight = self.weight
        fixed = not weight.is_inference() and winograd.suits(weight, self.stride, self.dilation, self.groups)
        key = (weight, weight.data_ptr(), weight._version, weight.dtype) if fixed else None
        if key is not None and self._key is not None and key[0] is self._key[0] and key[1:] == self._key[1:]:
            return
        self._key, self._filters = key, None
        if fixed:
            with torch.inference_mode(False), torch.no_grad():  # so that they serve in training as well
                turned = weight.flip(2, 3).transpose(0, 1)
                self._filters = winograd.filters(weight, tile=TILE), winograd.filters(turned, tile=TILE)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_key", "_filters")}


def must_be_plain(*tensors: Tensor) -> bool:
    """Whether no operation of one's own will do.

    There is no rule for one where derivatives are taken forwards or by `torch.func`, where a graph leaves PyTorch, and
    where a mode watches what is computed, to count it or to see what depends on what.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return True
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
        return True
    return any(torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
