"""Which way of computing an occlusion map is right for a network, and pays."""

from __future__ import annotations

import logging
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lit_viz.errors import UsageError
from lit_viz.functional.batches import in_batches, out_of_memory, release_memory
from lit_viz.functional.occlusion.grid import Grid
from lit_viz.functional.occlusion.incremental import MOST_TOGETHER, Bases, Incremental
from lit_viz.functional.occlusion.program import prepared
from lit_viz.functional.occlusion.tape import Untraceable, trace

log = logging.getLogger(__name__)

Engine = Literal["auto", "incremental", "full"]

MEMORY = 2048
"""MiB that maps may take."""

LEAST_GAIN = 1.2
"""How many times as fast windows should be at least, since that is an estimate, and they cost some copying."""

FEW = 32
"""So few covered copies are not worth a plan, which takes as much as a dozen passes."""

ROUNDINGS = 8
"""By how many times what the network rounds by itself its steps may differ from it …"""

MOST_ROUNDING = 50
"""… and by how many times what sums in another order usually come to, at most."""

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Occluded:
    """The output at each position.

    Attributes:
        values: (N, P).
        engine: How it was computed.
        note: Why so, and what it saved.
    """

    values: Tensor
    engine: Literal["incremental", "full"]
    note: str


def occluded_scores(
    run: Run,
    images: Tensor,
    whole: Tensor,
    cover: Tensor,
    grid: Grid,
    numbers: Callable[[Tensor, Tensor], Tensor],
    *,
    engine: Engine,
    batch_size: int,
    together: int | None,
    memory: int,
    progress: bool,
) -> Occluded:
    """The output of a network for images covered at each position of a grid.

    Args:
        run: From images to scores (B, K).
        images: (N, C, H, W).
        whole: (N, K), scores of the images as they are.
        cover: (N, C, H, W), what the patch shows.
        grid: Positions of the patch.
        numbers: From scores (B, K) and numbers of images (B,) to the output (B,).
        engine: See `lit_viz.functional.occlusion`.
        batch_size: Whole copies at once, to start with.
        together: Most windows at once; None for 128.
        memory: Bytes that windows, and the maps that they are cut from, may take.
        progress: Show a bar if it takes longer than three seconds.
    """
    count = len(images) * len(grid.boxes)
    if engine == "full" or (engine == "auto" and count < FEW):
        note = "as asked" if engine == "full" else f"{count} covered copies are too few for a plan"
    else:
        try:
            copies = grid.covered(images[:1].repeat(3, 1, 1, 1), cover[:1].repeat(3, 1, 1, 1), _some(grid))
            asked = _Asked(run, copies)
            program = prepared(trace(asked, copies, 0.9 * images[:1].flip((2, 3))))
            windows = Incremental(
                program, grid.rows, grid.columns, memory=memory / 2, together=together or MOST_TOGETHER
            )
            note = _reason_against(windows, memory, engine) or _measured(
                windows, images, cover, grid, batch_size, engine
            )
            if not note:
                values = _by_windows(asked, windows, images, whole, cover, grid, numbers, progress)
                return _told(Occluded(values, "incremental", f"{windows.plan.saved:.1f} times less to compute"))
            asked.compare(whole[:1], program.run(images[:1]))
            asked.compare(asked.scores, program.run(copies))
            if engine == "auto":
                values = _by_passes(program.run, images, cover, grid, numbers, batch_size, progress)
                return _told(Occluded(values, "full", note))
        except Untraceable as error:
            note = f"the network can't be followed: {error}"
        except Exception as error:  # whatever it is, full passes are there
            log.debug("occlusion: windows failed", exc_info=True)
            note = f"{type(error).__name__}: {textwrap.shorten(str(error), 120, placeholder='…')}"
        if engine == "incremental":
            raise UsageError(
                f"engine='incremental' is not possible here: {note}; engine='auto' takes full passes then."
            )
    values = _by_passes(run, images, cover, grid, numbers, batch_size, progress)
    return _told(Occluded(values, "full", note))


def _by_windows(
    asked: _Asked,
    windows: Incremental,
    images: Tensor,
    whole: Tensor,
    cover: Tensor,
    grid: Grid,
    numbers: Callable[[Tensor, Tensor], Tensor],
    progress: bool,
) -> Tensor:
    total, rows = len(images) * len(grid.boxes), []
    with tqdm(total=total, desc="occlusion", unit="patch", delay=3, disable=not progress, leave=False) as bar:
        for i in range(len(images)):
            bases = windows.bases(images[i : i + 1])
            asked.compare(whole[i : i + 1], bases.scores)
            scores = _halving(windows, bases, cover[i : i + 1], bar.update)
            if i == 0:
                asked.compare(asked.scores, scores[_some(grid)])
            rows.append(numbers(scores, torch.full((len(scores),), i, device=images.device)))
    return torch.stack(rows)


def _halving(windows: Incremental, bases: Bases, cover: Tensor, advance: Callable[[int], Any]) -> Tensor:
    """Scores by windows, with batches of half the size whenever memory runs out."""
    while True:
        try:
            return windows.run(bases, cover, advance)
        except RuntimeError as error:
            if not out_of_memory(error) or windows.together == 1:
                raise
            windows.together = max(1, windows.together // 2)
        # Outside the handler, so that the failed batch no longer holds its tensors.
        release_memory(cover.device)


def _by_passes(
    run: Run,
    images: Tensor,
    cover: Tensor,
    grid: Grid,
    numbers: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
    progress: bool,
) -> Tensor:
    count = len(grid.boxes)

    def covered(pairs: Tensor) -> Tensor:
        """The output for some of the pairs (image, position)."""
        which, where = pairs // count, (pairs % count).tolist()
        return numbers(run(grid.covered(images[which], cover[which], where)), which)

    values = in_batches(
        covered,
        len(images) * count,
        batch_size,
        images.device,
        description="occlusion",
        unit="patch",
        progress=progress,
    )
    return values.unflatten(0, (len(images), count))


def _reason_against(windows: Incremental, memory: int, engine: Engine) -> str:
    """Why windows don't pay, in words, or nothing."""
    if windows.base_bytes > memory / 2:
        return f"its maps take {windows.base_bytes / 2**20:.0f} MiB, more than half of memory={memory // 2**20}"
    if engine == "auto" and windows.gain < LEAST_GAIN:
        return f"windows would save too little ({windows.plan.saved:.2f} times less to compute)"
    return ""


def _measured(windows: Incremental, images: Tensor, cover: Tensor, grid: Grid, batch_size: int, engine: Engine) -> str:
    """On an accelerator, where launching a kernel may cost more than what it computes: which of the two is faster."""
    if engine != "auto" or images.device.type == "cpu":
        return ""
    image, source = images[:1], cover[:1]
    count = min(batch_size, len(grid.boxes))
    copies = grid.covered(image.expand(count, -1, -1, -1), source.expand(count, -1, -1, -1), list(range(count)))

    def seconds(work: Callable[[], object]) -> float:
        work()  # the first time, kernels are chosen
        torch.accelerator.synchronize()
        started = time.perf_counter()
        work()
        torch.accelerator.synchronize()
        return time.perf_counter() - started

    by_windows = seconds(lambda: windows.run(windows.bases(image), source)) / len(grid.boxes)
    by_passes = seconds(lambda: windows.program.run(copies)) / count
    if by_windows < by_passes:
        return ""
    return "full passes are faster on this device"


def _some(grid: Grid) -> list[int]:
    """A few positions to try: at a corner, in the middle, at the last one."""
    last = len(grid.boxes) - 1
    return [0, (grid.shape[0] // 2) * grid.shape[1] + grid.shape[1] // 2, last]


class _Asked:
    """The network itself, to hold against it what was written down.

    Args:
        run: The network.
        copies: (3, C, H, W), some covered copies.

    Attributes:
        scores: (3, K) of the copies, which `trace` asks for.
    """

    def __init__(self, run: Run, copies: Tensor) -> None:
        self.run, self.copies = run, copies
        self.scores = torch.empty(0)
        self._apart: float | None = None

    def __call__(self, images: Tensor) -> Tensor:
        scores = self.run(images)
        if len(images) == len(self.copies):
            self.scores = scores
        return scores

    def compare(self, expected: Tensor, got: Tensor) -> None:
        """Holds scores against those of the network.

        Args:
            expected: (n, K), of the network.
            got: (n, K).

        Raises:
            Untraceable: If they differ by more than rounding.
        """
        if expected.shape != got.shape or not torch.isfinite(expected).equal(torch.isfinite(got)):
            raise Untraceable("its steps give other scores than itself")
        allowed = _rounding_share(expected) * float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
        apart = _apart(expected, got)
        # Deep networks round more than others; one that gives quite other scores when asked twice does not round.
        if apart > allowed and apart > min(ROUNDINGS * self._rounded, MOST_ROUNDING * allowed):
            raise Untraceable(f"its steps give other scores than itself (by {apart:.2g})")

    @property
    def _rounded(self) -> float:
        """By how much scores differ if sums go in another order; asked once, only where there is a difference."""
        if self._apart is None:
            reordered = self.copies.clone(memory_format=torch.channels_last)
            self._apart = _apart(self.scores, self.run(reordered))
        return self._apart


def _apart(expected: Tensor, got: Tensor) -> float:
    # Classes that are masked out have infinite scores, the same in both.
    return float((expected - got).nan_to_num(0.0, 0.0, 0.0).abs().max())


def _rounding_share(scores: Tensor) -> float:
    """What sums in another order may differ by at least, as a share of the largest score."""
    if scores.dtype == torch.float64:
        return 1e-9
    if scores.dtype != torch.float32 or torch.is_autocast_enabled(scores.device.type):
        return 2e-2
    return 2e-5 if scores.device.type == "cpu" else 2e-3  # accelerators multiply with fewer bits (TF32)


def _told(occluded: Occluded) -> Occluded:
    log.debug("occlusion: %s (%s)", occluded.engine, occluded.note)
    return occluded
