"""Watching an image form that has the content of a photograph and the style of a painting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from skimage import data
from torch import Tensor

from lit_viz import draw
from lit_viz.errors import UsageError, check_at_least, check_choice
from lit_viz.functional.style import luminance, match_colors, with_luminance
from lit_viz.modules.base import listed
from lit_viz.modules.synthesis import StyleSynthesis, numbered, resized, to_size
from lit_viz.networks.perceptual import PerceptualNetwork
from lit_viz.networks.style_loss import StyleLoss
from lit_viz.networks.style_target import StyleTarget
from lit_viz.pictures import eight_bit, read_picture
from lit_viz.styles import picture_colors, style_picture

_STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")  # of VGG19, as in the paper
_NOISE = 0.05  # standard deviation


@dataclass(frozen=True)
class _Wanted:
    """One image that is made."""

    content: int
    blend: tuple[float, ...]
    strength: float
    style_size: int | None


class StyleTransfer(StyleSynthesis):
    r"""Gives photographs the style of paintings (Gatys, Ecker & Bethge, *Image Style Transfer Using CNNs*, 2016).

    An image is changed until its features are those of the photograph, and their Gram matrices those of the paintings;
    see `StyleLoss` for the loss and its units, by which one strength serves all networks and sizes. Several paintings
    are blended, or each has a part of the photograph of its own, with `masks`.

    `strength`, `style_size` and `blend` may each be several; an image is made for every combination, and the sheet
    shows them in a row. These are the lecture's figures.

    Logged are `style/content/<layer>`, `style/style/<layer>` and `style/total` as curves, the images as they form
    (`style/forming/<content>`) and at the end `style/<content>`; PNG files of full size lie in `out`.

    Args:
        content: Image file, or several; by default scikit-image's astronaut.
        styles: Image files, or names of `lit_viz.styles.STYLES`.
        blend: Shares of the styles, one for each, or several such lists; evenly by default.
        strength: Of the style; 1 weighs an image without content as much as one without style.
        size: Longer side of what is made, px; None for that of the content.
        style_size: Shorter side that styles are brought to, px, by default that of what is made: it sets the size of
            strokes.
        colors: "style" takes the style's; "matched" changes the styles' colours to the content's before, and
            "luminance" transfers brightness alone, and takes the hue of each pixel from the content (Gatys, Bethge,
            Hertzmann & Shechtman, *Preserving Color in Neural Artistic Style Transfer*, 2016).
        masks: Image files of the content's proportions, white where each of the styles is wanted.
        style_masks: Likewise of the styles', white where they count; an empty name for the whole.
        network: Name or dotted path for `load_network`.
        weights: "DEFAULT" or another name, the path of a checkpoint, or None for random ones, seeded and scaled.
        options: More arguments for its constructor.
        content_layers: Dotted names or those of papers (relu4_2), or weights by name.
        style_layers: Likewise.
        pooling: "average" gives images with fewer artefacts, as in the paper.
        start: "content", or "noise".
        values: "fourier" or "pixels", see `StyleSynthesis`.
        scales: See `StyleSynthesis`, as are those that follow.
        steps: Of all scales together.
        optimizer: "lbfgs" or "adam".
        lr: Its rate.
        tv: Weight of the total variation, of the mean over pixels.
        tile: Larger images are optimised in tiles of that side, px.
        snapshot_every: Log the images every so many steps; by default ten times.
        out: Folder for PNG files; None for none.
        seed: Of the noise, and of random weights.

    Raises:
        UsageError: For pictures, networks and layers that can't be had, and arguments out of range.
    """

    tag = "style"

    def __init__(
        self,
        content: str | list[str] | None = None,
        styles: str | list[str] = "brush strokes",
        blend: list[float] | list[list[float]] | None = None,
        strength: float | list[float] = 3.0,
        size: int | None = 384,
        style_size: int | list[int] | None = None,
        colors: Literal["style", "matched", "luminance"] = "style",
        masks: str | list[str] | None = None,
        style_masks: str | list[str] | None = None,
        network: str = "vgg19",
        weights: str | None = "DEFAULT",
        options: dict[str, Any] | None = None,
        content_layers: str | list[str] | dict[str, float] = "relu4_2",
        style_layers: str | list[str] | dict[str, float] | None = None,
        pooling: Literal["max", "average"] = "average",
        start: Literal["content", "noise"] = "content",
        values: Literal["fourier", "pixels"] = "fourier",
        scales: int = 1,
        steps: int = 150,
        optimizer: Literal["lbfgs", "adam"] = "lbfgs",
        lr: float | None = None,
        tv: float = 0.0,
        tile: int = 1024,
        snapshot_every: int | None = None,
        out: str | None = "pictures",
        seed: int = 0,
    ) -> None:
        check_choice("colors", colors, ("style", "matched", "luminance"))
        check_choice("start", start, ("content", "noise"))
        if size is not None:
            check_at_least("size", size, 16, " px")
        style_names = listed(styles)
        if not style_names:
            raise UsageError("give at least one style.")
        if masks is not None and blend is not None:
            raise UsageError("with masks each style has a part of its own; leave out blend.")
        blends = _several("blend", _blends(blend, len(style_names)))
        sizes = _several("style_size", style_size if isinstance(style_size, list) else [style_size])
        for side in sizes:
            if side is not None:
                check_at_least("style_size", side, 16, " px")
        strengths = _several("strength", strength if isinstance(strength, list) else [strength])
        files = [] if content is None else listed(content)
        contents = [_content(eight_bit(read_picture(file), 3), size) for file in files]
        contents = contents or [_content(Image.fromarray(data.astronaut()), size)]
        style_layers = list(_STYLE_LAYERS) if style_layers is None else style_layers
        layers = [*listed(content_layers), *listed(style_layers)]
        perceptual = PerceptualNetwork(layers, network, weights, options=options, pooling=pooling, seed=seed)
        wanted = [_Wanted(i, *rest) for i in range(len(contents)) for rest in product(blends, strengths, sizes)]
        super().__init__(
            perceptual,
            [(contents[one.content].shape[2], contents[one.content].shape[3]) for one in wanted],
            channels=1 if colors == "luminance" else 3,
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
            rank_zero_warn(f"images are compared by a network that was not trained ({perceptual.told}); give weights.")
        self.content_layers, self.style_layers = content_layers, style_layers
        self.wanted, self.contents = wanted, contents
        self.content_names = numbered([Path(file).stem for file in files] or ["astronaut"])
        self.style_names = [Path(name).stem for name in style_names]
        self.pictures = [picture_colors(style_picture(name)) for name in style_names]
        self.masks = None if masks is None else _masks("masks", listed(masks), self.style_names)
        self.style_masks = None if style_masks is None else _masks("style_masks", listed(style_masks), self.style_names)
        self.colors, self.start_from, self.tile, self.seed = colors, start, tile, seed
        for one in wanted:  # bad weights and strengths are told now
            StyleLoss(perceptual, content_layers, style_layers, styles=len(self.pictures), strength=one.strength)

    def start(self, index: int, size: tuple[int, int]) -> Tensor:
        content = to_size(self.contents[self.wanted[index].content], size)
        channels = 1 if self.colors == "luminance" else 3
        if self.start_from == "content":
            return luminance(content) if channels == 1 else content
        generator = torch.Generator().manual_seed(self.seed % 2**63)
        return (0.5 + _NOISE * torch.randn((1, channels, *size), generator=generator)).clamp(0, 1)

    def target(self, index: int, size: tuple[int, int]) -> StyleTarget:
        one = self.wanted[index]
        content = to_size(self.contents[one.content], size)
        share = size[0] / self.contents[one.content].shape[2]
        loss = StyleLoss(
            self.network,
            self.content_layers,
            self.style_layers,
            styles=len(self.pictures),
            strength=one.strength,
        ).to(self.device)
        for i, picture in enumerate(self.pictures):
            side = min(self.contents[one.content].shape[2:]) if one.style_size is None else one.style_size
            style = resized(picture, share * side / min(picture.shape[2:]))
            mask = None if self.style_masks is None else self.style_masks[i]
            mask = None if mask is None else to_size(mask, (style.shape[2], style.shape[3])).to(self.device)
            loss.set_style(i, self._recolored(style, content).to(self.device), mask)
        if self.colors == "luminance":
            content = luminance(content).expand(-1, 3, -1, -1)
        content = content.to(self.device)
        loss.calibrate(content)
        if self.masks is None:
            return StyleTarget(loss, content, style=torch.tensor([one.blend], device=self.device), tile=self.tile)
        masks = [torch.ones(1, 1, *size) if mask is None else to_size(mask, size) for mask in self.masks]
        return StyleTarget(loss, content, masks=torch.cat(masks, dim=1).to(self.device), tile=self.tile)

    def _recolored(self, style: Tensor, content: Tensor) -> Tensor:
        """A style with the colours that it is to have."""
        if self.colors == "matched":
            return match_colors(style, content)
        if self.colors == "luminance":
            return match_colors(luminance(style), luminance(content)).expand(-1, 3, -1, -1)
        return style

    def finished(self, index: int, colors: Tensor) -> Tensor:
        if self.colors != "luminance":
            return colors
        content = to_size(self.contents[self.wanted[index].content], (colors.shape[2], colors.shape[3]))
        return with_luminance(content.to(colors.device), colors)

    def name(self, index: int) -> str:
        one = self.wanted[index]
        parts = [self.content_names[one.content], *self.style_names]
        return "_".join([*parts, *self._differs(one)])

    def _differs(self, one: _Wanted) -> list[str]:
        """What sets an image apart from the others of the same content."""
        others = [other for other in self.wanted if other.content == one.content]
        shares = ":".join(f"{100 * share:.3g}" for share in one.blend)
        side = "as large as the content" if one.style_size is None else f"{one.style_size} px"
        told = [(one.blend, "blend", shares), (one.strength, "strength", f"strength {one.strength:.9g}")]
        told.append((one.style_size, "style_size", side))
        return [text for value, name, text in told if len({getattr(o, name) for o in others}) > 1]

    def draw(self, *, final: bool) -> None:
        images = self.images()
        paintings = [draw.to_uint8(picture)[0] for picture in self.pictures]
        for i, name in enumerate(self.content_names):
            mine = [(one, draw.to_uint8(images[j])[0]) for j, one in enumerate(self.wanted) if one.content == i]
            content = draw.to_uint8(self.contents[i])[0]
            pictures = [content, *(image for _, image in mine)]
            pictures += [_cut(painting, content.shape[:2]) for painting in paintings]
            columns = ["content", *(_heading(self._differs(one)) for one, _ in mine), *self.style_names]
            if len(columns) > MOST_BESIDE:
                cards = [draw.Card([picture], told) for picture, told in zip(pictures, columns, strict=True)]
                columns, size, more = [], 1600, self._caption()
            else:
                cards, size, more = [draw.Card(pictures, self._caption())], max(1000, 180 * len(columns)), ""
            picture = draw.sheet(
                cards,
                columns=columns,
                max_size=size,
                title=f"Style transfer · {name} · step {int(self.done)} of {self.steps}",
                subtitle=f"By features of {self.network.told}. {more}".strip(),
            )
            self.write(f"style/{'' if final else 'forming/'}{name}", picture)

    def _caption(self) -> str:
        one, told = self.wanted[0], []
        if len({o.strength for o in self.wanted}) == 1:
            told.append(f"strength {one.strength:g}")
        if self.colors != "style":
            told.append("colours of the content" + (" (brightness alone)" if self.colors == "luminance" else ""))
        return ", ".join(told)


MOST_BESIDE = 8
"""Pictures in one row of a sheet; more stand in several."""


def _heading(differs: Sequence[str]) -> str:
    return ", ".join(differs) or "in its style"


def _blends(given: list[float] | list[list[float]] | None, styles: int) -> list[tuple[float, ...]]:
    """Shares of the styles that sum to 1."""
    if given is None:
        return [(1 / styles,) * styles]
    lists = given if given and isinstance(given[0], list) else [given]
    found = []
    for shares in lists:
        shares = [float(share) for share in shares]  # type: ignore[union-attr]
        if len(shares) != styles or not all(share >= 0 for share in shares) or not 0 < sum(shares) < float("inf"):
            raise UsageError(f"blend has a share for each of the {styles} styles, at least 0; got {shares}.")
        found.append(tuple(share / sum(shares) for share in shares))
    return found


def _content(picture: Image.Image, size: int | None) -> Tensor:
    """Colours (1, 3, H, W) of a picture whose longer side is brought to that size."""
    if size is not None:
        scale = size / max(picture.size)
        sides = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
        picture = picture.resize(sides, Image.Resampling.LANCZOS)
    if min(picture.size) < 16:
        raise UsageError(f"the content is {picture.width}×{picture.height} px; at least 16 are needed: a larger size.")
    return picture_colors(picture)


def _several(argument: str, values: Sequence[Any]) -> list[Any]:
    """Values without those that come twice."""
    if not values:
        raise UsageError(f"{argument} is an empty list; give at least one value.")
    return list(dict.fromkeys(values))


def _masks(argument: str, files: Sequence[str], styles: Sequence[str]) -> list[Tensor | None]:
    """Masks (1, 1, H, W), from 0 to 1; None for an empty name."""
    if len(files) != len(styles):
        raise UsageError(f"{argument} has one picture for each style: {len(styles)}; got {len(files)}.")
    found: list[Tensor | None] = []
    for file in files:
        mask = None
        if file:
            mask = torch.from_numpy(np.array(eight_bit(read_picture(file), 1)))[None, None].float() / 255
            if not mask.any():
                raise UsageError(f"{argument}: {file} is black all over; what is white counts.")
        found.append(mask)
    return found


def _cut(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The middle of a picture, with the proportions of others on its sheet."""
    height, width = picture.shape[:2]
    wanted = (min(height, round(width * shape[0] / shape[1])), min(width, round(height * shape[1] / shape[0])))
    top, left = (height - wanted[0]) // 2, (width - wanted[1]) // 2
    return picture[top : top + wanted[0], left : left + wanted[1]]
