"""Maximally activating patches: the strongest responses of each channel, kept while data stream by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_viz.errors import UsageError

LAST = torch.iinfo(torch.int64).max  # comes after every sample


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

    def map(self, change: Callable[[Tensor], Tensor]) -> TopResponses:
        """The same change to all three tables, for instance a choice of rows."""
        return TopResponses(change(self.values), change(self.samples), change(self.places))


@dataclass(frozen=True)
class Responses:
    """Some responses of some channels, in the order of channels and, within one, of samples.

    Attributes:
        channels: int64 (M,).
        values: float32 (M,).
        samples: int64 (M,).
        places: int64 (M,), row × width + column.
    """

    channels: Tensor
    values: Tensor
    samples: Tensor
    places: Tensor

    def rows(self) -> tuple[Tensor, TopResponses]:
        """The channels that occur, int64 (R,), and their responses side by side, (R, most of a channel)."""
        channels, row, counts = self.channels.unique_consecutive(return_inverse=True, return_counts=True)
        width = int(counts.max()) if len(counts) else 1
        column = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        out = TopResponses.empty(len(channels), width, device=row.device)
        place = row * width + column
        for table, values in ((out.values, self.values), (out.samples, self.samples), (out.places, self.places)):
            table.view(-1)[place] = values
        return channels, out


def strongest(maps: Tensor, samples: Tensor, floor: Tensor | None = None, *, k: int = 9) -> Responses:
    """The responses in one batch that may be among the k strongest.

    Args:
        maps: (N, C, H, W) activations. A sample with NaN in a channel has no response there.
        samples: (N,) int64, identity of each sample, increasing.
        floor: (C,) value that a response must pass to be of interest, for instance the weakest one kept so far.
        k: How many are wanted of each channel: weaker ones are left out where there are many more.

    Returns:
        The strongest response of each sample that passes, at most one per channel and sample.
    """
    # The largest value first, its place only for the few that pass: a max over places with indices costs more than
    # the layer itself where maps are large.
    single = maps.shape[2] * maps.shape[3] == 1
    peaks = maps[:, :, 0, 0] if single else maps.amax(dim=(2, 3))
    hits = peaks > (-torch.inf if floor is None else floor)  # false for NaN
    channel, row = hits.T.nonzero(as_tuple=True)
    if len(channel) > k * peaks.shape[1] and len(peaks) > k:
        weakest = peaks.masked_fill(~hits, -torch.inf).topk(k, dim=0).values[-1]
        channel, row = (hits & (peaks >= weakest)).T.nonzero(as_tuple=True)
    places = torch.zeros_like(row) if single else maps[row, channel].flatten(1).argmax(dim=1)
    return Responses(channel, peaks[row, channel].float(), samples.to(maps.device)[row], places)


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
    if not first.samples.numel() or first.samples.max() < torch.where(second.samples < 0, LAST, second.samples).min():
        # As data stream by: no sample comes twice, and a stable sort leaves ties with the earlier one.
        strength, order = values.sort(dim=1, descending=True, stable=True)
        strength, order = strength[:, :k], order[:, :k]
        return TopResponses(strength, samples.gather(1, order), places.gather(1, order)), order
    # In the order of samples first, empty columns last: a stable sort by value then leaves ties with the earlier
    # sample, and a sample that comes twice (samplers repeat some to even out ranks) stands beside itself.
    by_sample = samples.masked_fill(samples < 0, LAST).argsort(dim=1, stable=True)
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
