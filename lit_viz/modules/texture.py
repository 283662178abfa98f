"""Watching a texture form that has the Gram matrices of a given one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_viz import draw
from lit_viz.errors import UsageError, check_at_least
from lit_viz.modules.base import listed
from lit_viz.modules.synthesis import StyleSynthesis, resized
from lit_viz.networks.perceptual import PerceptualNetwork
from lit_viz.networks.style_loss import StyleLoss
from lit_viz.networks.style_target import StyleTarget
from lit_viz.styles import picture_colors, style_picture

_NOISE = 0.05  # standard deviation
_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")  # of VGG19, and pool4 of the paper is left out


class TextureSynthesis(StyleSynthesis):
    r"""Makes more of a texture from noise (Gatys, Ecker & Bethge, *Texture Synthesis Using CNNs*, 2015).

    An image is changed until the Gram matrices of its features are those of the source: which features come together
    stays, where they are does not. Distances are relative to those of the noise that it starts from, 1 for each layer.

    With `cumulative`, the lecture's figure: one image for the first of the layers, one for the first two, and so on.
    What is kept of the texture grows with depth.

    Logged are `texture/style/<layer>` and `texture/total` as curves, the image as it forms (`texture/forming`) and at
    the end `texture/<source>`; PNG files of full size lie in `out`.

    Args:
        source: Image file, or a name of `lit_viz.styles.STYLES`.
        source_size: Shorter side that it is brought to, px.
        size: Side, or height and width, of what is made, px; by default that of the source.
        network: Name or dotted path for `load_network`.
        weights: "DEFAULT" or another name, the path of a checkpoint, or None for random ones, seeded and scaled.
        options: More arguments for its constructor.
        layers: Dotted names or those of papers (relu1_1), shallow to deep, or weights by name.
        cumulative: See above.
        pooling: "average" gives textures with fewer artefacts, as in the paper.
        values: "fourier" or "pixels", see `StyleSynthesis`.
        scales: Likewise.
        steps: Of all scales together.
        optimizer: "lbfgs" or "adam".
        lr: Its rate.
        tv: Weight of the total variation, of the mean over pixels.
        tile: Larger images are optimised in tiles of that side, px.
        snapshot_every: Log the image every so many steps; by default ten times.
        out: Folder for PNG files; None for none.
        seed: Of the noise, and of random weights.

    Raises:
        UsageError: For pictures, networks and layers that can't be had, and arguments out of range.
    """

    tag = "texture"

    def __init__(
        self,
        source: str = "tissue",
        source_size: int = 256,
        size: int | list[int] | None = None,
        network: str = "vgg19",
        weights: str | None = "DEFAULT",
        options: dict[str, Any] | None = None,
        layers: str | list[str] | dict[str, float] | None = None,
        cumulative: bool = False,
        pooling: Literal["max", "average"] = "average",
        values: Literal["fourier", "pixels"] = "fourier",
        scales: int = 1,
        steps: int = 200,
        optimizer: Literal["lbfgs", "adam"] = "lbfgs",
        lr: float | None = None,
        tv: float = 0.0,
        tile: int = 1024,
        snapshot_every: int | None = None,
        out: str | None = "pictures",
        seed: int = 0,
    ) -> None:
        check_at_least("source_size", source_size, 16, " px")
        colors = picture_colors(style_picture(source), source_size)
        wanted = tuple(colors.shape[2:]) if size is None else (size, size) if isinstance(size, int) else tuple(size)
        if len(wanted) != 2:
            raise UsageError(f"size is one number, or height and width; got {list(wanted)}.")
        for length in wanted:
            check_at_least("size", length, 16, " px")
        chosen = list(_LAYERS) if layers is None else layers
        shares = dict(chosen) if isinstance(chosen, dict) else dict.fromkeys(listed(chosen), 1.0)
        perceptual = PerceptualNetwork(list(shares), network, weights, options=options, pooling=pooling, seed=seed)
        names = list(shares)
        sets = [names[: i + 1] for i in range(len(names))] if cumulative else [names]
        super().__init__(
            perceptual,
            [(wanted[0], wanted[1])] * len(sets),
            values=values,
            scales=scales,
            steps=steps,
            optimizer=optimizer,
            lr=lr,
            tv=tv,
            snapshot_every=snapshot_every,
            out=out,
        )
        # What a checkpoint tells goes before what is typed: not for what is asked anew each time.
        self.save_hyperparameters(ignore=["out", "snapshot_every", "tile"])
        if weights is None:
            rank_zero_warn(
                f"textures are compared by a network that was not trained ({perceptual.told}); give weights."
            )
        self.layers = [{name: shares[name] for name in of_one} for of_one in sets]
        self.source, self.stem, self.tile, self.seed = colors, Path(source).stem, tile, seed

    def start(self, index: int, size: tuple[int, int]) -> Tensor:
        """Faint noise about the source's mean colour, the same for all images."""
        generator = torch.Generator().manual_seed(self.seed % 2**63)
        noise = torch.randn((1, 3, *size), generator=generator)
        return (self.source.mean(dim=(2, 3), keepdim=True) + _NOISE * noise).clamp(0, 1)

    def target(self, index: int, size: tuple[int, int]) -> StyleTarget:
        loss = StyleLoss(self.network, None, self.layers[index]).to(self.device)
        share = size[0] / self.sizes[-1][index][0]
        loss.set_style(0, resized(self.source, share).to(self.device))
        noise = self.start(index, size).to(self.device)
        loss.calibrate(noise)
        return StyleTarget(loss, noise, tile=self.tile)

    def name(self, index: int) -> str:
        return f"{self.stem}_texture" + (f"_{index + 1}_layers" if len(self.layers) > 1 else "")

    def draw(self, *, final: bool) -> None:
        images = [draw.to_uint8(image)[0] for image in self.images()]
        source = draw.to_uint8(self.source)[0]
        if len(images) > 1:
            first, *others = self.layers[-1]
            columns = ["source", first, *(f"+ {name}" for name in others)]
        else:
            columns = ["source", "texture"]
        nearer = [1 / max(1e-9, float(torch.stack(list(terms.style.values())).mean())) for terms in self.told()]
        told = f"Gram matrices {', '.join(f'{factor:.3g}' for factor in nearer)} times as near as those of the noise"
        picture = draw.sheet(
            [draw.Card([source, *images], self.stem, told)],
            columns=columns,
            title=f"Texture · {self.stem} · step {int(self.done)} of {self.steps}",
            subtitle=f"From noise, by features of {self.network.told}.",
        )
        self.write(f"texture/{self.stem if final else 'forming'}", picture)
