"""What modules share that show validation images while they train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from lit_viz.errors import check_at_least
from lit_viz.probing import Probe, load_probe, probe_from_batch
from lit_viz.writer import Writer


class ShowingModule(LightningModule):
    """A module that draws the same validation images each time; a picture that fails does not stop the run.

    Attributes:
        probe: The images; None until the first validation batch.
        written: How many pictures were written, by tag.

    Args:
        num_images: How many images are shown.
    """

    def __init__(self, num_images: int) -> None:
        super().__init__()
        check_at_least("num_images", num_images, 1)
        self.num_images = num_images
        self.probe: Probe | None = None
        self.written: Counter[str] = Counter()

    def choose(self, batch: Any, batch_index: int, dataloader_index: int) -> None:
        """Chooses the images at the first validation batch, from all over the data where that can be."""
        if self.probe is not None or batch_index or dataloader_index:
            return
        loaders = self.trainer.val_dataloaders
        loader = loaders[0] if isinstance(loaders, (list, tuple)) else loaders
        found = load_probe(self.trainer, self, loader, self.num_images)
        self.probe = found or probe_from_batch(batch, self.num_images)

    def show(self, pictures: Mapping[str, Callable[[], np.ndarray]]) -> None:
        """Draws and writes pictures, uint8 (H, W, 3), by tag; on one process only."""
        writer = Writer(self.trainer.loggers)
        if self.probe is None or not writer.active:
            return
        try:
            for tag, draw_picture in pictures.items():
                writer.picture(tag, draw_picture(), self.trainer.global_step)
                self.written[tag] += 1
            writer.flush()
        except Exception as error:
            # A picture is not worth a run.
            rank_zero_warn(f"{tag} could not be drawn: {type(error).__name__}: {error}")


def listed(words: str | Iterable[str]) -> list[str]:
    """One word as a list of it; of a mapping the names."""
    return [words] if isinstance(words, str) else list(words)
