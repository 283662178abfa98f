"""Convolutions that are trained on a CPU, in less time than PyTorch's take: above all on the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.functional import winograd
from lit_viz.networks.frozen import must_be_plain

TILE = 4
"""Results along a side of what is computed together."""

VECTOR = 8
"""Channels of results that are computed together: with fewer, the rest is computed for nothing."""

PIXELS = 8192
"""That gradients of weights are summed over at once."""


class TrainedConv2d(nn.Conv2d):
    """A convolution without padding, in one group, whose weights are trained.

    On a CPU, in 32 or 64 bits, it is computed so that its gradients take a third to a half of the time that they take
    in PyTorch, whose convolutions of maps with channels last are quick forwards alone. Elsewhere, where its graph is to
    leave PyTorch, and where operations are watched, it is PyTorch's own.

    Args:
        before: Channels of maps.
        after: Channels of results.
        kernel: Side of kernels.
        stride: Between results, along both sides.
        bias: Whether there is one.
    """

    _kept: tuple[Tensor, Tensor] | None = None

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, *, bias: bool = True) -> None:
        super().__init__(before, after, kernel, stride, bias=bias)

    def forward(self, image: Tensor, *, enlarge: bool = False) -> Tensor:
        """Results of maps.

        Args:
            image: (N, I, H, W).
            enlarge: Whether maps are enlarged to twice their size before, by repeating pixels, and reflected at their
                borders, so that results are of that size. For kernels of 3 × 3.
        """
        if not self._serves(image, least=1 if enlarge else self.kernel_size[0]):
            if enlarge:
                image = F.interpolate(image, scale_factor=2.0, mode="nearest")
                image = F.pad(image, (1, 1, 1, 1), mode="reflect")
            return super().forward(image)
        if enlarge:
            made = enlarged_convolution(image, self.weight)
        elif self._transformed_once(image):
            made = winograd.convolution(image, self._filters(), None, (0, 0))
        else:
            made = convolution(image, self.weight, self.stride[0])
        return made if self.bias is None else made + self.bias[:, None, None]

    def _transformed_once(self, image: Tensor) -> bool:
        """Whether weights are to be transformed that are most likely those of the call before: nothing is trained."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        kernel = self.kernel_size[0]
        size = image.shape[2] - kernel + 1, image.shape[3] - kernel + 1
        return _fewer(self.in_channels, self.out_channels, kernel, self.stride[0], size)

    def _filters(self) -> Tensor:
        """Transformed weights: those kept from the call before if weights are the same, number by number."""
        weight, kept = self.weight.detach(), self._kept
        if kept is None or kept[0].dtype != weight.dtype or not torch.equal(kept[0], weight):
            kept = self._kept = weight.clone(), winograd.filters(weight, tile=TILE)
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_kept"}

    def _serves(self, image: Tensor, least: int) -> bool:
        """Whether images, of no fewer pixels a side, are to be computed otherwise than by PyTorch."""
        weight = self.weight
        if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.float64):
            return False
        if image.dtype != weight.dtype or torch.is_autocast_enabled("cpu"):
            return False
        if image.dim() != 4 or image.shape[1] != self.in_channels or min(image.shape[2:]) < least:
            return False
        return not must_be_plain(image, weight)


def enlarged_convolution(image: Tensor, weight: Tensor) -> Tensor:
    """Convolution, by kernels of 3 × 3, of a map that is enlarged to twice its size by repeating pixels, and reflected.

    Of the nine pixels that a result sees no more than 2 × 2 are different. So the results at even and odd rows and
    columns are four convolutions of the map as it is by kernels of 2 × 2, sums of the weights: 4/9 of the products.

    Args:
        image: (N, I, H, W).
        weight: (O, I, 3, 3).

    Returns:
        (N, O, 2H, 2W), channels last in memory.
    """
    count, _, height, width = image.shape
    # To the reflection of the enlarged map.
    if torch.compiler.is_compiling():  # the gradient of `F.pad` is not in the order of memory that it tells beforehand
        image = torch.cat((image[:, :, :1], image, image[:, :, -1:]), dim=2)
        image = torch.cat((image[..., :1], image, image[..., -1:]), dim=3)
    else:
        image = F.pad(image, (1, 1, 1, 1), mode="replicate")
    first, middle, last = weight.unbind(2)
    by_rows = [torch.stack(two, dim=2) for two in ((first, middle + last), (first + middle, last))]
    parts = []
    for row, kernels in enumerate(by_rows):
        first, middle, last = kernels.unbind(3)
        for column, two in enumerate(((first, middle + last), (first + middle, last))):
            seen = image[:, :, row : height + 1 + row, column : width + 1 + column]
            parts.append(convolution(seen, torch.stack(two, dim=3), 1).permute(0, 2, 3, 1))
    if torch.compiler.is_compiling():
        made = torch.stack(parts).unflatten(0, (2, 2)).permute(2, 3, 0, 4, 1, 5)
    else:
        made = _Interleaved.apply(*parts)
    return made.reshape(count, 2 * height, 2 * width, len(weight)).permute(0, 3, 1, 2)


class _Interleaved(torch.autograd.Function):
    """Four tensors (N, H, W, O) as one, (N, H, 2, W, 2, O), each copied once."""

    @staticmethod
    def forward(*parts: Tensor) -> Tensor:
        count, height, width, out = parts[0].shape
        made = parts[0].new_empty(count, height, 2, width, 2, out)
        for number, part in enumerate(parts):
            made[:, :, number // 2, :, number % 2] = part
        return made

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient[:, :, number // 2, :, number % 2] for number in range(4))


@torch.library.custom_op("lit_viz::convolution", mutates_args=())
def convolution(image: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolution without padding.

    Args:
        image: (N, I, H, W).
        weight: (O, I, K, K).
        stride: Between results, along both sides.

    Returns:
        (N, O, H', W'), channels last in memory.
    """
    image = image.contiguous(memory_format=torch.channels_last)
    out, inner, kernel = weight.shape[:3]
    size = image.shape[2] - kernel + 1, image.shape[3] - kernel + 1
    if _fewer(inner, out, kernel, stride, size):
        return winograd.convolution(image, winograd.filters(weight, tile=TILE), None, (0, 0))
    if out < VECTOR and stride == 1:
        return _by_rows(image, weight)
    made = F.conv2d(image, weight.contiguous(memory_format=torch.channels_last), None, stride)
    return made.contiguous(memory_format=torch.channels_last)


@convolution.register_fake
def _(image: Tensor, weight: Tensor, stride: int) -> Tensor:
    size = ((n - k) // stride + 1 for n, k in zip(image.shape[2:], weight.shape[2:], strict=True))
    return image.new_empty(image.shape[0], weight.shape[0], *size).contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("lit_viz::convolution_image", mutates_args=())
def image_gradient(gradient: Tensor, image: Tensor, weight: Tensor, stride: int) -> Tensor:
    """What a loss's gradient (N, O, H', W') with respect to results is with respect to the image, (N, I, H, W)."""
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    around = weight.shape[2] - 1
    if _fewer(len(weight), weight.shape[1], weight.shape[2], stride, (image.shape[2], image.shape[3])):
        turned = winograd.filters(weight.flip(2, 3).transpose(0, 1), tile=TILE)
        return winograd.convolution(gradient, turned, None, (around, around))
    of_image = _backward(gradient, image, weight.contiguous(memory_format=torch.channels_last), stride, wanted=0)
    return of_image.contiguous(memory_format=torch.channels_last)


@image_gradient.register_fake
def _(gradient: Tensor, image: Tensor, weight: Tensor, stride: int) -> Tensor:
    return image.new_empty(image.shape).contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("lit_viz::convolution_weight", mutates_args=())
def weight_gradient(gradient: Tensor, image: Tensor, kernel: int, stride: int) -> Tensor:
    r"""What a loss's gradient with respect to results is with respect to the weights.

    $$\frac{\partial L}{\partial w_{oirc}} = \sum_{n, y, x} g_{noyx}\, d_{n, i, sy + r, sx + c}$$

    Places are counted through all rows and images, those of results in rows as long as the image's. Then what a weight
    multiplies is the image, shifted by as many places for all results, and the sum is a product of matrices; one for
    each row of a kernel, where what has fewer channels is laid beside itself, shifted by a column each.

    Args:
        gradient: (N, O, H', W').
        image: (N, I, H, W).
        kernel: Side of kernels, K.
        stride: Between results.

    Returns:
        (O, I, K, K).
    """
    if _fewer(image.shape[1], gradient.shape[1], kernel, stride, (gradient.shape[2], gradient.shape[3])):
        return winograd.weight_gradient(gradient, image).contiguous(memory_format=torch.channels_last)
    pixels, slopes = (x.permute(0, 2, 3, 1) for x in (image, gradient))
    height, width = (-(-n // stride) for n in pixels.shape[1:3])
    slopes = _extended(slopes, height, width).view(-1, slopes.shape[3])
    inner, out = pixels.shape[3], slopes.shape[1]
    found = pixels.new_zeros(kernel, kernel, inner, out)
    for row in range(min(stride, kernel)):
        for column in range(min(stride, kernel)):
            plane = _extended(pixels[:, row::stride, column::stride], height, width).view(-1, inner)
            taps = found[row::stride, column::stride]
            sums = _image_shifted if inner <= out else _slopes_shifted
            sums(plane, slopes, width, taps)
    return found.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


@weight_gradient.register_fake
def _(gradient: Tensor, image: Tensor, kernel: int, stride: int) -> Tensor:
    shape = gradient.shape[1], image.shape[1], kernel, kernel
    return gradient.new_empty(shape).contiguous(memory_format=torch.channels_last)


def _by_rows(image: Tensor, weight: Tensor) -> Tensor:
    """Convolution to few channels: to those of all rows of a kernel apart, which are then summed, a row apart each."""
    out, inner, side = weight.shape[:3]
    rows = weight.permute(2, 0, 1, 3).reshape(side * out, inner, 1, side)
    rows = F.pad(rows, (0, 0, 0, 0, 0, 0, 0, -len(rows) % VECTOR)).contiguous(memory_format=torch.channels_last)
    apart = F.conv2d(image, rows).permute(0, 2, 3, 1).contiguous()
    count, height, width, _ = apart.shape
    one, line, pixel, _ = apart.stride()
    size = count, height - side + 1, width, side, out
    return apart.as_strided(size, (one, line, pixel, line + out, 1)).sum(dim=3).permute(0, 3, 1, 2)


def _image_shifted(plane: Tensor, slopes: Tensor, width: int, taps: Tensor) -> None:
    """Adds, to weights (R, C, I, O), products of an image (P, I) and slopes (P, O) in rows of a width."""
    rows, columns, inner, out = taps.shape
    sums = taps.new_zeros(rows, columns * inner, out)
    for start in range(0, len(slopes), PIXELS):
        part = slopes[start : start + PIXELS]
        stop = min(len(plane) - columns + 1, start + len(part) + (rows - 1) * width)
        if stop <= start:  # no more than what slopes were extended by
            break
        beside = plane[start:].as_strided((stop - start, columns * inner), (inner, 1)).contiguous()
        for row in range(rows):
            shifted = beside[row * width : row * width + len(part)]
            sums[row].addmm_(shifted.mT, part[: len(shifted)])
    taps += sums.view_as(taps)


def _slopes_shifted(plane: Tensor, slopes: Tensor, width: int, taps: Tensor) -> None:
    """The same where there are fewer slopes."""
    rows, columns, inner, out = taps.shape
    sums = taps.new_zeros(rows, inner, columns * out)
    # So that what is shifted to the right begins in front of the first.
    led = F.pad(slopes, (0, 0, columns - 1, 0))
    for start in range(0, len(plane), PIXELS):
        stop = min(len(plane), start + PIXELS)
        first = max(0, start - (rows - 1) * width)
        beside = led[first:].as_strided((stop - first, columns * out), (out, 1)).contiguous()
        for row in range(rows):
            begin = max(start, row * width)
            if begin < stop:
                shifted = beside[begin - row * width - first : stop - row * width - first]
                sums[row].addmm_(plane[begin:stop].mT, shifted)
    # Those that were shifted furthest lie first.
    taps += sums.view(rows, inner, columns, out).flip(2).transpose(1, 2)


def _extended(pixels: Tensor, height: int, width: int) -> Tensor:
    """Maps (N, h, w, C) with zeros below and at the right, contiguous."""
    return F.pad(pixels, (0, 0, 0, width - pixels.shape[2], 0, height - pixels.shape[1])).contiguous()


def _fewer(inner: int, out: int, kernel: int, stride: int, size: tuple[int, int]) -> bool:
    """Whether a convolution to maps of that size is one to take fewer multiplications for."""
    return kernel == 3 and stride == 1 and winograd.pays(inner, out, size, tile=TILE)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    image, weight, ctx.stride = inputs
    ctx.save_for_backward(image, weight)


def _back(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    image, weight = ctx.saved_tensors
    of_image = of_weight = None
    own = torch.is_grad_enabled()  # derivatives of derivatives are asked for, which PyTorch's own have
    with torch.autocast("cpu", enabled=False):
        if ctx.needs_input_grad[0]:
            given = gradient, image, weight, ctx.stride
            of_image = _backward(*given, wanted=0) if own else image_gradient(*given)
        if ctx.needs_input_grad[1]:
            if own:
                of_weight = _backward(gradient, image, weight, ctx.stride, wanted=1)
            else:
                of_weight = weight_gradient(gradient, image, weight.shape[2], ctx.stride)
    return of_image, of_weight, None


def _backward(gradient: Tensor, image: Tensor, weight: Tensor, stride: int, *, wanted: int) -> Tensor:
    """PyTorch's own gradient of the image (0) or of the weights (1)."""
    mask = [wanted == 0, wanted == 1, False]
    nothing, one = [0, 0], [1, 1]
    return torch.ops.aten.convolution_backward(
        gradient, image, weight, None, [stride] * 2, nothing, one, False, nothing, 1, mask
    )[wanted]


convolution.register_autograd(_back, setup_context=_keep)
