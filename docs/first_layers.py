"""First-layer filters of several architectures side by side: the lecture's first picture.

    uv run docs/first_layers.py picture.png [checkpoint of the quickstart]

Takes torchvision's pretrained alexnet, resnet18, resnet101 and densenet121 where their weights can be had (they are
downloaded once, 500 MB), EfficientNet-Lite0, whose weights come as a package, and one that the quickstart trained.
What can't be had is left out, and said.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from lit_viz import draw, functional
from lit_viz.errors import UsageError
from lit_viz.networks import load_network

NETWORKS = ("alexnet", "resnet18", "resnet101", "densenet121", "efficientnet_lite0")
TILE = 24  # px along a side of the largest filter


def mosaic(weight: np.ndarray, across: int = 8) -> np.ndarray:
    """Filters (K, 3, h, w) as one picture with a thin border between them."""
    tiles = np.moveaxis(draw.filter_tiles(weight), 1, -1)
    factor = max(1, TILE // max(tiles.shape[1:3]))
    tiles = tiles.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, _ = tiles.shape
    rows = -(-count // across)
    sheet = np.full((rows * (height + 2) - 2, across * (width + 2) - 2, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // across * (height + 2), i % across * (width + 2)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def main(path: Path, *checkpoints: str) -> None:
    cards, left_out = [], []
    wanted = [(name, "DEFAULT") for name in NETWORKS] + [("small_cnn", checkpoint) for checkpoint in checkpoints]
    for name, weights in wanted:
        try:
            network = load_network(name, weights=weights)
        except UsageError as error:
            left_out.append(name)
            print(f"{name}: {error}", file=sys.stderr)
            continue
        weight = functional.filters(network.module)
        shape = " × ".join(map(str, weight.shape))
        cards.append(draw.Card([mosaic(weight.numpy())], name, shape))
    subtitle = "Each tile is one filter, seen as a colour image: oriented edges, opposing colours, blobs, in every one."
    if left_out:
        subtitle += f" Without weights here: {', '.join(left_out)}."
    Image.fromarray(draw.sheet(cards, title="First-layer filters", subtitle=subtitle)).save(path)
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "first_layers.png"), *sys.argv[2:])
