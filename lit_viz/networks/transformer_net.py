"""Johnson's image-to-image network: stylises an image in one pass, in one style or in many."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError, check_at_least, check_choice
from lit_viz.networks.frozen import must_be_plain
from lit_viz.networks.trained import TrainedConv2d

_EPSILON = 1e-5


class TransformerNet(nn.Module):
    r"""Stylises images: colours in, colours out, of the same size (Johnson, Alahi & Fei-Fei 2016).

    Two convolutions of stride 2 on the way down, residual blocks, and two on the way up. In place of transposed
    convolutions, which draw checkerboards, maps are enlarged by repeating pixels and convolved (Odena, Dumoulin & Olah,
    *Deconvolution and Checkerboard Artifacts*, 2016); images are reflected at their borders, so that these look like
    the rest. Instance norm takes the contrast of the content out of the way (Ulyanov, Vedaldi & Lempitsky 2016). One
    network has many styles where each has a γ and a β of its own,

    $$\gamma_s\,\frac{x - \mu}{\sigma} + \beta_s$$

    (Dumoulin, Shlens & Kudlur, *A Learned Representation for Artistic Style*, 2017); mixing these mixes the styles.

    Args:
        width: Channels of the first convolution; 32 in the paper. Halves take a quarter of the time.
        blocks: Residual blocks, 5 in the paper.
        styles: How many.
        norm: "instance", or "batch" as in the first paper, for comparison; which has one style.
        channels: Of images.

    Raises:
        UsageError: For arguments out of range.

    >>> net = TransformerNet(width=4, blocks=1, styles=2).eval()
    >>> net(torch.rand(2, 3, 17, 30), torch.tensor([0, 1])).shape
    torch.Size([2, 3, 17, 30])
    """

    def __init__(
        self, width: int = 32, blocks: int = 5, *, styles: int = 1, norm: str = "instance", channels: int = 3
    ) -> None:
        super().__init__()
        check_choice("norm", norm, ("instance", "batch"))
        for name, value in (("width", width), ("blocks", blocks), ("styles", styles), ("channels", channels)):
            check_at_least(name, value, 1)
        if norm == "batch" and styles != 1:
            raise UsageError("a network with batch norm has one style; take norm='instance' for several.")
        self.width, self.styles, self.norm, self.channels = width, styles, norm, channels

        def layer(before: int, after: int, kernel: int, stride: int = 1, scale: int = 1) -> Block:
            return Block(before, after, kernel, stride=stride, scale=scale, styles=styles, norm=norm)

        self.down = nn.ModuleList(
            [layer(channels, width, 9), layer(width, 2 * width, 3, 2), layer(2 * width, 4 * width, 3, 2)]
        )
        self.residual = nn.ModuleList(
            [nn.ModuleList([layer(4 * width, 4 * width, 3), layer(4 * width, 4 * width, 3)]) for _ in range(blocks)]
        )
        self.up = nn.ModuleList([layer(4 * width, 2 * width, 3, scale=2), layer(2 * width, width, 3, scale=2)])
        self.last = TrainedConv2d(width, channels, 9)

    def forward(self, colors: Tensor, style: Tensor | None = None) -> Tensor:
        """Stylised images.

        Args:
            colors: (N, C, H, W), from 0 to 1; at least 16 px along each side.
            style: (N,) int64, which style each is to have; or (N, styles), shares of each. None for the only one.

        Returns:
            (N, C, H, W), colours from 0 to 1.
        """
        height, width = colors.shape[2:]
        # To whole multiples of what the way down divides by.
        x = F.pad(colors, (0, -width % 4, 0, -height % 4), mode="reflect") - 0.5
        mix = self.mix(style, x)
        for block in self.down:
            x = F.relu(block(x, mix))
        for one, two in self.residual:
            x = x + two(F.relu(one(x, mix)), mix)
        for block in self.up:
            x = F.relu(block(x, mix))
        x = self.last(F.pad(x, (4, 4, 4, 4), mode="reflect"))
        return torch.sigmoid(x[..., :height, :width].float())

    def mix(self, style: Tensor | None, like: Tensor) -> Tensor | None:
        """Shares (N, styles) of each style, from what `forward` is given, of a tensor's type; None for the only one.

        Raises:
            UsageError: If nothing is given, and there are several.
        """
        if style is None:
            if self.styles != 1:
                raise UsageError(f"the network has {self.styles} styles: say which.")
            return None
        return F.one_hot(style, self.styles).to(like) if style.dim() == 1 else style.to(like)


class Block(nn.Module):
    """Convolution of a reflected map, enlarged before where that is wanted, and a norm."""

    def __init__(
        self, before: int, after: int, kernel: int, *, stride: int, scale: int, styles: int, norm: str
    ) -> None:
        super().__init__()
        self.scale, self.pad = scale, kernel // 2
        # The norm takes away any bias.
        self.conv = TrainedConv2d(before, after, kernel, stride, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(after) if norm == "batch" else ConditionalInstanceNorm(after, styles)

    def forward(self, x: Tensor, mix: Tensor | None) -> Tensor:
        x = self.conv(x, enlarge=True) if self.scale > 1 else self.conv(F.pad(x, (self.pad,) * 4, mode="reflect"))
        return self.norm(x) if isinstance(self.norm, nn.BatchNorm2d) else self.norm(x, mix)

    def affine(self, mean: Tensor, variance: Tensor, mix: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the norm of a network that is not in training multiplies a map with, and then adds to it.

        Args:
            mean: (N, C), of the convolved map; batch norm does not ask for it.
            variance: Likewise.
            mix: Shares (N, styles) of each style, None for the only one.

        Returns:
            Twice (N, C).
        """
        norm = self.norm
        if not isinstance(norm, nn.BatchNorm2d):
            return norm.affine(mean, variance, mix)
        assert norm.running_mean is not None and norm.running_var is not None
        factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return factor.expand_as(mean), (norm.bias - norm.running_mean * factor).expand_as(mean)


class ConditionalInstanceNorm(nn.Module):
    """Mean 0 and variance 1 for each channel of each image, then γ and β of its style.

    Args:
        channels: Of the maps.
        styles: How many.
    """

    def __init__(self, channels: int, styles: int) -> None:
        super().__init__()
        # One of its own for each style, so that a style can be trained while all others stay as they are.
        self.gamma = nn.ParameterList([nn.Parameter(torch.ones(channels)) for _ in range(styles)])
        self.beta = nn.ParameterList([nn.Parameter(torch.zeros(channels)) for _ in range(styles)])

    def forward(self, x: Tensor, mix: Tensor | None) -> Tensor:
        """(N, C, h, w) and shares (N, styles) of each style, None for the only one."""
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float()
            plain = torch.compiler.is_compiling() or must_be_plain(wide)
            mean, variance = _by_definition(wide) if plain else _MeanAndVariance.apply(wide)
            factor, shift = self.affine(mean, variance, mix)
        return torch.addcmul(shift[:, :, None, None].to(x), x, factor[:, :, None, None].to(x))

    def affine(self, mean: Tensor, variance: Tensor, mix: Tensor | None) -> tuple[Tensor, Tensor]:
        """Factor and shift (N, C) for maps of that mean and variance (N, C), in 32 bits."""
        gamma, beta = (torch.stack(list(p)).float() for p in (self.gamma, self.beta))
        if mix is not None:
            gamma, beta = mix.float() @ gamma, mix.float() @ beta
        factor = gamma * torch.rsqrt(variance + _EPSILON)
        return factor, beta - mean * factor


def mean_and_variance(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Over all places of maps (N, C, h, w), each (N, C): `torch.var_mean`, several times as fast on a processor."""
    by_columns = maps.device.type == "cpu" and maps.shape[0] > 0
    return _by_columns(maps) if by_columns else _by_definition(maps)


def _by_definition(maps: Tensor) -> tuple[Tensor, Tensor]:
    mean = maps.mean(dim=(2, 3))
    return mean, (maps - mean[:, :, None, None]).square().mean(dim=(2, 3))


def _by_columns(maps: Tensor) -> tuple[Tensor, Tensor]:
    """In fewer passes, on a processor: of each column's parts, and then of all these.

    Batch norm's sums are fast, but naive: each part is a channel of its own there, so that they stay short.
    """
    means, variances = [], []
    for pixels in maps.permute(0, 2, 3, 1):
        height, _, channels = pixels.shape
        columns = pixels.reshape(height // math.gcd(height, 4), -1)  # more parts would take longer
        given = columns.T[None, :, :, None], None, None, 0.0
        mean, variance = (x.view(-1, channels) for x in torch.batch_norm_update_stats(*given))
        means.append(mean.mean(dim=0))
        variances.append(variance.mean(dim=0) + (mean - means[-1]).square().mean(dim=0))
    return torch.stack(means), torch.stack(variances)


class _MeanAndVariance(torch.autograd.Function):
    r"""`mean_and_variance`, with one gradient.

    That of both together is $(\bar\mu + 2\,(x - \mu)\,\bar v) / hw$. Taken for each operation apart, that would
    be twice as many ways through the maps, each kept until then.
    """

    @staticmethod
    def forward(maps: Tensor) -> tuple[Tensor, Tensor]:
        return mean_and_variance(maps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[0])

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> Tensor:
        maps, mean = ctx.saved_tensors
        places = maps.shape[2] * maps.shape[3]
        factor = of_variance * (2 / places)
        shift = of_mean / places - factor * mean
        return torch.addcmul(shift[:, :, None, None], maps, factor[:, :, None, None])
