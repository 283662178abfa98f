"""From what a network made of an image back to the image: a decoder, and its code space to make images in."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError
from lit_viz.functional.synthesis.codes import Code
from lit_viz.pixels import PixelSpace

FORMAT = "lit_viz.FeatureDecoder"
"""Entry of a checkpoint under which lies how its decoder is built."""

_FIRST = 4  # px, about the side of the map that a vector is spread on


class Decoder(nn.Module):
    """A code to colours, by blocks that double the resolution: nearest neighbour, convolution, norm, leaky ReLU.

    Resizing and convolving has no checkerboard, which transposed convolutions have (Odena, Dumoulin & Olah,
    *Deconvolution and Checkerboard Artifacts*, 2016), and borders that are continued leave no frame. Maps are decoded
    place by place; vectors, and maps of a few places, are spread by a linear layer first.

    Args:
        code_shape: (D,), or (C, h, w).
        image_shape: (C, H, W), any size.
        width: Channels at full resolution; twice as many at half of it, and so on up to eight times.

    Raises:
        UsageError: For shapes that are none.

    >>> Decoder((10,), (1, 28, 20), width=4)(torch.zeros(2, 10)).shape
    torch.Size([2, 1, 28, 20])
    """

    def __init__(self, code_shape: Sequence[int], image_shape: Sequence[int], *, width: int = 32) -> None:
        super().__init__()
        self.code_shape, self.image_shape, self.width = tuple(code_shape), tuple(image_shape), width
        if len(self.code_shape) not in (1, 3) or min(self.code_shape) < 1:
            raise UsageError(f"a code is a vector (D,) or maps (C, h, w), not of shape {self.code_shape}.")
        if len(self.image_shape) != 3 or min(self.image_shape) < 1 or width < 1:
            raise UsageError(f"images are (C, H, W) and width is at least 1; got {self.image_shape} and {width}.")
        channels, height, width_px = self.image_shape
        places = self.code_shape[1:] if len(self.code_shape) == 3 else (1, 1)
        self.spreads = min(places) < 3 and max(places) < max(height, width_px)
        first = tuple(_halved(side, _FIRST) for side in (height, width_px)) if self.spreads else places
        self.sizes = _sizes(first, (height, width_px))
        widths = [width * min(8, 2**i) for i in reversed(range(len(self.sizes)))]
        self.start: nn.Module = (
            nn.Sequential(
                nn.Flatten(),
                nn.Linear(math.prod(self.code_shape), widths[0] * math.prod(first)),
                nn.Unflatten(1, (widths[0], *first)),
                _finish(widths[0]),
            )
            if self.spreads
            else _convolution(self.code_shape[0], widths[0])
        )
        self.blocks = nn.ModuleList(
            _convolution(before, after) for before, after in zip([widths[0], *widths[:-1]], widths, strict=True)
        )
        self.last = nn.Conv2d(widths[-1], channels, 3, padding=1, padding_mode="replicate")

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (n, *code_shape) to colours (n, C, H, W) in [0, 1]."""
        if codes.shape[1:] != self.code_shape:
            raise UsageError(f"the decoder takes codes {self.code_shape}, but got {tuple(codes.shape[1:])}.")
        x = self.start(codes if len(self.code_shape) == 3 else codes[:, :, None, None])
        for size, block in zip(self.sizes, self.blocks, strict=True):
            # Its steps are where a faint grid in textures comes from. Bilinear has hardly any, but takes twice as long
            # to learn detail, and what it has in place of textures it does not know are veins.
            x = block(F.interpolate(x, size, mode="nearest") if x.shape[2:] != size else x)
        return self.last(x).sigmoid()

    def extra_repr(self) -> str:
        return f"{self.code_shape} to {self.image_shape}"


class Discriminator(nn.Module):
    """Tells images from what a decoder makes of their codes, given the codes: one logit an image, high for images.

    Convolutions of stride 2 halve the image until its shorter side is below 8 px; there the code joins, maps place by
    place and vectors everywhere. No layer looks at other images of the batch, or draws at random.

    Args:
        code_shape: (D,), or (C, h, w).
        image_shape: (C, H, W), any size.
        width: Channels after the first convolution; twice as many after the second, and so on up to eight times.

    >>> Discriminator((10,), (1, 28, 20), width=4)(torch.zeros(2, 1, 28, 20), torch.zeros(2, 10)).shape
    torch.Size([2])
    """

    def __init__(self, code_shape: Sequence[int], image_shape: Sequence[int], *, width: int = 32) -> None:
        super().__init__()
        channels, *sides = image_shape
        widths, sizes = [channels], [tuple(sides)]
        while min(sizes[-1]) >= 2 * _FIRST:
            sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
            widths.append(width * min(8, 2 ** (len(sizes) - 2)))
        self.size, last = sizes[-1], max(width, widths[-1])
        # The kernel is a multiple of the stride, or its gradient would put a checkerboard into the images.
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
                for before, after in pairwise(widths)
            )
        )
        # Codes come at any scale.
        self.code = nn.Sequential(nn.Conv2d(code_shape[0], last, 1), nn.GroupNorm(1, last))
        self.joined = nn.Sequential(
            nn.Conv2d(widths[-1] + last, last, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(last * math.prod(self.size), 1),
        )

    def forward(self, colors: Tensor, codes: Tensor) -> Tensor:
        """Colours (n, C, H, W) in [0, 1] and codes (n, *code_shape) to logits (n,)."""
        code = F.adaptive_avg_pool2d(self.code(codes if codes.dim() == 4 else codes[:, :, None, None]), self.size)
        return self.joined(torch.cat([self.blocks(2 * colors - 1), code], dim=1)).squeeze(1)


def load_decoder(path: str | Path, space: PixelSpace) -> Code:
    """The code space of a decoder that was trained by `lit_viz.modules.FeatureDecoder`.

    Args:
        path: Its checkpoint.
        space: How the input of the network that is asked relates to colours.

    Returns:
        The decoder with the bounds of the codes it was trained on, float32 on the CPU.

    Raises:
        UsageError: If there is no such file, or something else in it.
    """
    file = Path(path)
    remedy = "give a checkpoint of FeatureDecoder, from `train.py fit --config configs/decoder.yaml`."
    if not file.is_file():
        raise UsageError(f"there is no decoder at {file}; {remedy}")
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UsageError(f"{file} can't be read safely ({str(error).splitlines()[0]}); {remedy}") from error
    built = found.get(FORMAT) if isinstance(found, dict) else None
    if not isinstance(built, dict):
        raise UsageError(f"{file} holds no decoder; {remedy}")
    try:
        decoder, state = Decoder(**built).float(), found["state_dict"]
        decoder.load_state_dict({k.removeprefix("decoder."): v for k, v in state.items() if k.startswith("decoder.")})
        seen = int(state["code_count"])
        mean, variance, minimum = (state[f"code_{name}"].float() for name in ("mean", "variance", "minimum"))
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UsageError(f"the decoder in {file} is damaged ({str(error).splitlines()[0]}); {remedy}") from error
    if seen == 0:
        raise UsageError(f"the decoder in {file} has seen no images yet; train it for an epoch at least.")
    return Code(decoder, mean=mean, std=variance.sqrt(), nonnegative=bool((minimum >= 0).all()), space=space)


def _sizes(first: tuple[int, int], last: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes of maps from the first to the last, each at most twice the one before.

    >>> _sizes((4, 3), (28, 20))
    [(4, 3), (7, 5), (14, 10), (28, 20)]
    """
    sizes, size = [], last
    while size[0] > first[0] or size[1] > first[1]:
        sizes.insert(0, size)
        size = (max(first[0], -(-size[0] // 2)), max(first[1], -(-size[1] // 2)))
    return [size, *sizes] if size == first or not sizes else sizes


def _halved(side: int, least: int) -> int:
    while side > least:
        side = -(-side // 2)
    return side


def _convolution(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, padding_mode="replicate", bias=False), _finish(after))


def _finish(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.LeakyReLU(0.2))
