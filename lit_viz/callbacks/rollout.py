"""Attention rollout of the probe images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from torch import Tensor

from lit_viz import draw
from lit_viz.callbacks.attribution import AttributionCallback, attribution_sheet
from lit_viz.callbacks.base import Look
from lit_viz.errors import UsageError, check_at_least, check_choice
from lit_viz.functional.cam import upsampled
from lit_viz.functional.rollout import attention_rollout


class AttentionRollout(AttributionCallback):
    """From which patches a vision transformer gathers its class token (Abnar & Zuidema 2020).

    See `functional.attention_rollout`. The map doesn't depend on the class. Tag: `rollout/probe`.

    Args:
        discard: Share of the smallest attention weights of each layer that are left out, in [0, 1).
        head_fusion: What stands for all heads: "mean", "max" or "min".
        start_layer: Layers before this one are left out.
        token: "class" for the first token, "mean" for all patches; by default those that the head reads.
        **kwargs: See `VisualizationCallback`.
    """

    tag = "rollout"

    def __init__(
        self,
        *,
        discard: float = 0.0,
        head_fusion: Literal["mean", "max", "min"] = "mean",
        start_layer: int = 0,
        token: Literal["class", "mean"] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("head_fusion", head_fusion, ("mean", "max", "min"))
        check_at_least("start_layer", start_layer, 0)
        if not 0 <= discard < 1:
            raise UsageError(f"discard is a share from 0 to below 1, got {discard}.")
        if token is not None:
            check_choice("token", token, ("class", "mean"))
        self.discard, self.head_fusion, self.start_layer, self.token = discard, head_fusion, start_layer, token

    def check(self, look: Look) -> None:
        self._rollout(look, look.images[:1])

    def attribute(self, look: Look) -> Tensor:
        return upsampled(self._rollout(look, look.images), (look.images.shape[2], look.images.shape[3]))

    def visualize(self, look: Look) -> Mapping[str, np.ndarray]:
        maps = self._rollout(look, look.images)
        return {
            "probe": attribution_sheet(
                look,
                maps,
                name="rollout",
                title="Attention rollout",
                subtitle="How much of each patch reaches the last tokens through the attention of all layers: where "
                "the network may look, the same for every class. Captions give each map's range.",
                colorbar=draw.ColorBar("magma", "lowest", "highest", "share"),
                limits="each",
            )
        }

    def _rollout(self, look: Look, images: Tensor) -> Tensor:
        return attention_rollout(
            look.model,
            images,
            discard=self.discard,
            head_fusion=self.head_fusion,
            start_layer=self.start_layer,
            token=self.token,
        )
