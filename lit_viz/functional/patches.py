"""Maximally activating patches: the strongest responses of each channel, kept while data stream by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_viz.errors import UsageError


@dataclass(frozen=True)
class TopResponses:
    """The k strongest responses of each channel, at most one per sample, strongest first.

    Attributes:
        values: float32 (channels, k); −inf where fewer than k samples were seen.
        samples: int64 (channels, k), which sample; −1 where none.
        places: int64 (channels, k), place of the response in the map, row × width + column.
    """

    values: Tensor
    samples: Tensor
    places: Tensor

    @staticmethod
    def empty(channels: int, k: int, *, device: torch.device | str = "cpu") -> TopResponses:
        """No responses yet."""
        if k < 1:
            raise UsageError(f"k must be at least 1, got {k}.")
        return TopResponses(
            torch.full((channels, k), -torch.inf, device=device, dtype=torch.float32),
            torch.full((channels, k), -1, device=device),
            torch.zeros((channels, k), dtype=torch.int64, device=device),
        )


def strongest(maps: Tensor, samples: Tensor, floor: Tensor | None = None, *, k: int = 9) -> TopResponses:
    """The k strongest responses in one batch.

    Args:
        maps: (N, C, H, W) activations. NaN counts as −inf.
        samples: (N,) int64, identity of each sample, increasing.
        floor: (C,) value that a response must pass to be of interest, for instance the weakest one kept so far;
            where no channel passes it, the places are not looked for.
        k: How many to keep.

    Returns:
        As many as the batch gives, at most k, for each channel. Ties go to the earlier sample.
    """
    # The largest value first, its place only for the few that stay: a max over places with indices costs more than
    # the layer itself where maps are large.
    peaks = maps.amax(dim=(2, 3)).float()
    peaks = torch.where(peaks.isnan(), -torch.inf, peaks).T
    k = min(k, peaks.shape[1])
    if floor is not None:
        # Few channels see something new in a batch: sort only those.
        hot = (peaks.amax(dim=1) > floor).nonzero()[:, 0]
    else:
        hot = torch.arange(len(peaks), device=peaks.device)
    out = TopResponses.empty(len(peaks), k, device=maps.device)
    if len(hot) == 0:
        return out
    values, order = peaks[hot].sort(dim=1, descending=True, stable=True)
    values, order = values[:, :k], order[:, :k]
    wanted = values > (floor[hot, None] if floor is not None else -torch.inf)
    row, column = wanted.nonzero(as_tuple=True)
    channel, sample = hot[row], order[row, column]
    out.values[channel, column] = values[row, column]
    out.samples[channel, column] = samples.to(maps.device)[sample]
    out.places[channel, column] = maps[sample, channel].flatten(1).nan_to_num(nan=-torch.inf).argmax(dim=1)
    return out


def merge(first: TopResponses, second: TopResponses, *, k: int) -> tuple[TopResponses, Tensor]:
    """The k strongest of both, each sample once.

    Args:
        first: Goes first in a tie.
        second: Same channels.
        k: How many to keep.

    Returns:
        The merged responses and, (channels, k) int64, where each came from: column of `first` followed by `second`.
    """
    values = torch.cat([first.values, second.values], dim=1)
    samples = torch.cat([first.samples, second.samples], dim=1)
    places = torch.cat([first.places, second.places], dim=1)
    # In the order of samples first, empty columns last: a stable sort by value then leaves ties with the earlier
    # sample, and a sample that comes twice (samplers repeat some to even out ranks) stands beside itself.
    by_sample = samples.masked_fill(samples < 0, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)
    ordered = samples.gather(1, by_sample)
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    strength = values.gather(1, by_sample).masked_fill(repeated, -torch.inf)
    strength, by_value = strength.sort(dim=1, descending=True, stable=True)
    by_value, strength = by_value[:, :k], strength[:, :k]
    order = by_sample.gather(1, by_value)
    gone = repeated.gather(1, by_value)
    merged = TopResponses(strength, samples.gather(1, order).masked_fill(gone, -1), places.gather(1, order))
    return merged, order


def cut(images: Tensor, which: Tensor, origins: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Cuts boxes of one size out of images; what lies outside of the image is filled with zeros.

    Args:
        images: (N, C, H, W).
        which: (M,) image of each box.
        origins: (M, 2) top and left of each box; may be negative or reach beyond the image.
        size: Height and width of the boxes.

    Returns:
        The boxes (M, C, h, w), and (M, h, w) bool, true inside the image.
    """
    height, width = images.shape[-2:]
    rows = origins[:, 0, None] + torch.arange(size[0], device=origins.device)
    columns = origins[:, 1, None] + torch.arange(size[1], device=origins.device)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    boxes = images[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    return boxes.masked_fill(~inside[:, None], 0), inside
