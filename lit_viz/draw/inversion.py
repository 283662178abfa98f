"""An image beside what layers have kept of it, shallow to deep."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lit_viz.draw.sheet import Card, sheet


def inversion_card(
    image: NDArray[np.uint8],
    made: Sequence[NDArray[np.uint8]],
    layers: Sequence[str],
    *,
    psnr: Sequence[float],
    errors: Sequence[float] | None = None,
    notes: Sequence[str] = (),
    caption: str = "",
) -> Card:
    """A row of the figure.

    Args:
        image: uint8 (H, W, 3).
        made: A reconstruction from each layer.
        layers: Their names.
        psnr: Of each reconstruction, dB; NaN where there is none.
        errors: Of its features, relative; likewise.
        notes: What went wrong with each; empty where nothing did.
        caption: What the image is called.
    """
    told = [f"PSNR {_in_order(psnr)} dB"]
    if errors is not None:
        told.append(f"feature error {_in_order([100 * error for error in errors])} %")
    told += [f"{name}: {note}" for name, note in zip(layers, notes, strict=False) if note]
    return Card([image, *made], caption, " · ".join(told))


def inversion_sheet(
    cards: Sequence[Card], layers: Sequence[str], *, title: str = "Inversion", restarts: int = 1
) -> NDArray[np.uint8]:
    """The lecture's figure: an image, then its reconstruction from each layer, in a row.

    Args:
        cards: A row for each image and restart.
        layers: Names of the layers, for headings.
        title: One line.
        restarts: How many rows an image has.

    Returns:
        (H, W, 3).
    """
    again = " Rows start from different noise." if restarts > 1 else ""
    return sheet(
        cards,
        columns=("image", *layers),
        title=title,
        subtitle="Images that a layer takes for the one on the left: what differs is what the layer has thrown away."
        + again,
    )


def _in_order(values: Sequence[float]) -> str:
    """Numbers in the order of the columns; a dash for what there is not."""
    return ", ".join("–" if math.isnan(value) else f"{value:.1f}" for value in values)
