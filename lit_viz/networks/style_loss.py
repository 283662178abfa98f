"""The loss of style transfer: like one image in content and others in style, in units that mean the same anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError
from lit_viz.functional.style import gram_matrix
from lit_viz.functional.synthesis.optimizers import quasi_newton
from lit_viz.networks.perceptual import PerceptualNetwork

_ROUNDING = 1e-9  # of squares in 32 bits

Layers = str | Sequence[str] | Mapping[str, float]


@dataclass(frozen=True)
class StyleSums:
    """What the loss is reckoned from: sums over places, so that those of the parts of an image add up to its own.

    Attributes:
        grams: (N, R, C, C) by layer, Gram matrices times how many places count; R is 1, or one for each mask.
        places: (N, R) by layer, how many count.
        content: (N,) by layer, squared differences.
        numbers: By layer, of how many numbers.
    """

    grams: dict[str, Tensor]
    places: dict[str, Tensor]
    content: dict[str, Tensor]
    numbers: dict[str, int]

    def __add__(self, other: StyleSums) -> StyleSums:
        def added(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
            return {name: value + two[name] for name, value in one.items()}

        return StyleSums(
            added(self.grams, other.grams),
            added(self.places, other.places),
            added(self.content, other.content),
            added(self.numbers, other.numbers),
        )


@dataclass(frozen=True)
class StyleTerms:
    """What the loss is made of, for each image.

    Attributes:
        content: (N,) by layer, before weights.
        style: (N,) by layer, likewise.
        total: (N,), the weighted sum.
    """

    content: dict[str, Tensor]
    style: dict[str, Tensor]
    total: Tensor

    def means(self) -> dict[str, Tensor]:
        """Means over the images, by "content/<layer>", "style/<layer>" and "total"."""
        parts = {f"content/{name}": value for name, value in self.content.items()}
        parts |= {f"style/{name}": value for name, value in self.style.items()} | {"total": self.total}
        return {name: value.detach().mean() for name, value in parts.items()}


class StyleLoss(nn.Module):
    r"""Distance in content and in style (Gatys, Ecker & Bethge 2016), in units of its own.

    $$L(x) = \sum_l u_l\, \frac{\overline{(F_l(x) - F_l(c))^2}}{\overline{\operatorname{var} F_l(c')}}
      + \alpha \sum_l v_l\, \frac{\lVert G_l(x) - G_l(s)\rVert^2}{\overline{\lVert G_l(c') - G_l(s)\rVert^2}}$$

    with weights u and v that sum to 1 each, and means over photographs c' below, see `calibrate`. A content term is 1
    for an image that tells as little of its content as a plain area; a style term is 1 for photographs as they are, and
    0 for the style. So the strength α means the same for every network, size of images and number of layers; without
    it, weights have to make up for orders of magnitude. As long as nothing is calibrated what is below is 1.

    Gram matrices of the styles and what is below are buffers: whoever has a checkpoint needs no style image.

    Attributes:
        network: Tells the features.
        strength: α.
        styles: How many styles there are.
        known: (styles,) bool, which of them have been told.

    Args:
        network: Of the layers below.
        content_layers: Names; or weights by name. None for textures, which have no content.
        style_layers: Names, or weights by name.
        styles: How many there will be.
        strength: α.

    Raises:
        UsageError: For weights that are negative or all 0.
    """

    known: Tensor
    calibrated: Tensor
    content_scale: Tensor
    style_scale: Tensor

    def __init__(
        self,
        network: PerceptualNetwork,
        content_layers: Layers | None,
        style_layers: Layers,
        *,
        styles: int = 1,
        strength: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= strength < float("inf"):
            raise UsageError(f"strength is the weight of the style, at least 0; got {strength!r}.")
        self.network, self.strength, self.styles = network, strength, styles
        self.content_layers = {} if content_layers is None else layer_shares("content_layers", content_layers)
        self.style_layers = layer_shares("style_layers", style_layers)
        self.register_buffer("known", torch.zeros(styles, dtype=torch.bool))
        self.register_buffer("calibrated", torch.zeros((), dtype=torch.int64))
        self.register_buffer("content_scale", torch.ones(len(self.content_layers)))
        self.register_buffer("style_scale", torch.ones(styles, len(self.style_layers)))
        probe = torch.zeros(1, network.channels, 64, 64, device=self.calibrated.device)
        with torch.no_grad():
            sizes = {name: values.shape[1] for name, values in network(probe, list(self.style_layers)).items()}
        for i, size in enumerate(sizes.values()):
            self.register_buffer(f"gram_{i}", torch.zeros(styles, size, size))

    @torch.no_grad()
    def set_style(self, index: int, colors: Tensor, mask: Tensor | None = None) -> None:
        """Tells what a style is.

        Args:
            index: Which of the styles.
            colors: (1, C, H, W), from 0 to 1, of any size: structures are taken at the size that they have in it.
            mask: (1, 1, H, W), from 0 to 1: which part of it counts.
        """
        features = self.network(colors.to(self.content_scale.device), list(self.style_layers))
        for target, values in zip(self._grams(), features.values(), strict=True):
            where = None if mask is None else masks_at(mask.to(values), (values.shape[2], values.shape[3]))
            target[index] = gram_matrix(values, weights=where)[0]
        self.known[index] = True

    @torch.no_grad()
    def take_styles(self, state: Mapping[str, Tensor]) -> None:
        """Takes the first styles from the state of another loss, with the same network and layers but fewer styles."""
        count = len(state["known"])
        for name in ("known", "style_scale", *(f"gram_{i}" for i in range(len(self.style_layers)))):
            getattr(self, name)[:count] = state[name]

    @torch.no_grad()
    def calibrate(self, colors: Tensor) -> None:
        """Measures how far photographs are from a plain area, and from the styles; of several calls the mean counts.

        Args:
            colors: (N, C, H, W), from 0 to 1, photographs as they will be transferred.

        Raises:
            UsageError: For images without any content, or that have the style already.
        """
        features = self.network(colors.to(self.content_scale.device))
        content = [features[name].float().flatten(2) for name in self.content_layers]
        variance = torch.tensor([values.var(dim=2, correction=0).mean() for values in content]).to(self.content_scale)
        power = torch.tensor([values.square().mean() for values in content]).to(self.content_scale)
        grams = [gram_matrix(features[name]) for name in self.style_layers]
        far = [
            torch.stack([(gram - style).square().sum(dim=(1, 2)).mean() for style in target])
            for gram, target in zip(grams, self._grams(), strict=True)
        ]
        distance = torch.stack(far, dim=1)
        sizes = torch.stack([target.square().sum(dim=(1, 2)) for target in self._grams()], dim=1)
        # More than what rounding leaves.
        if not (variance > _ROUNDING * power).all() or not (distance > _ROUNDING * sizes).all():
            raise UsageError(
                "the images to measure content and style by are plain areas, or the style itself; give photographs."
            )
        before, count = int(self.calibrated), len(colors)
        share = count / (before + count)
        for scale, seen in ((self.content_scale, variance), (self.style_scale, distance)):
            scale.copy_(seen if before == 0 else (1 - share) * scale + share * seen)
        self.calibrated += count

    def content_of(self, colors: Tensor) -> dict[str, Tensor]:
        """What an image has to keep: its features at the content layers, without a gradient."""
        with torch.no_grad():
            return self.network(colors, list(self.content_layers))

    def forward(
        self,
        colors: Tensor,
        content: Mapping[str, Tensor],
        style: Tensor | None = None,
        *,
        masks: Tensor | None = None,
    ) -> StyleTerms:
        """The loss of images.

        Args:
            colors: (N, C, H, W), from 0 to 1.
            content: What `content_of` told of the content images.
            style: (N,) int64, which style each is to have; or (N, styles), shares of each, whose Gram matrices are
                mixed. None for the only one.
            masks: (N or 1, styles, H, W), from 0 to 1: where each style is wanted. Each is compared with the Gram
                matrix of its own places, and counts by how many these are. Instead of `style`.
        """
        return self.terms(self.sums(self.network(colors), content, masks=masks), style)

    def sums(
        self, features: Mapping[str, Tensor], content: Mapping[str, Tensor], *, masks: Tensor | None = None
    ) -> StyleSums:
        """What the loss is reckoned from; the masks are brought to the size of the features."""
        grams, places, kept = {}, {}, {}
        for name in self.style_layers:
            maps = features[name]
            if masks is None:
                grams[name] = gram_matrix(maps)[:, None] * maps[0, 0].numel()
                places[name] = torch.full(grams[name].shape[:2], float(maps[0, 0].numel()), device=maps.device)
            else:
                where = masks_at(masks, (maps.shape[2], maps.shape[3])).expand(len(maps), -1, -1, -1)
                counts = where.flatten(2).sum(dim=2)
                each = [gram_matrix(maps, weights=one) for one in where.split(1, dim=1)]
                grams[name], places[name] = torch.stack(each, dim=1) * counts[:, :, None, None], counts
        for name in self.content_layers:
            with torch.autocast(features[name].device.type, enabled=False):
                apart = features[name].float() - content[name].float()
                kept[name] = apart.square().sum(dim=tuple(range(1, apart.dim())))
        numbers = {name: features[name][0].numel() for name in self.content_layers}
        return StyleSums(grams, places, kept, numbers)

    def terms(self, sums: StyleSums, style: Tensor | None = None) -> StyleTerms:
        """The loss from its sums."""
        styles, contents = {}, {}
        total = torch.zeros((), device=self.style_scale.device)
        for i, (name, share) in enumerate(self.style_layers.items()):
            grams, places = sums.grams[name], sums.places[name]
            own, target, scale = (
                grams / places.clamp(min=1e-6)[:, :, None, None],
                self._grams()[i],
                self.style_scale[:, i],
            )
            if grams.shape[1] == 1:
                mix = self._mix(style, len(grams))
                target, scale = torch.einsum("ns,sij->nij", mix, target)[:, None], (mix @ scale)[:, None]
            else:
                target = target[None]
            far = (own - target).square().sum(dim=(2, 3)) / scale
            styles[name] = (far * places).sum(dim=1) / places.sum(dim=1).clamp(min=1e-6)
            total = total + self.strength * share * styles[name]
        for i, (name, share) in enumerate(self.content_layers.items()):
            contents[name] = sums.content[name] / sums.numbers[name] / self.content_scale[i]
            total = total + share * contents[name]
        return StyleTerms(contents, styles, total)

    def _mix(self, style: Tensor | None, count: int) -> Tensor:
        if style is None:
            if self.styles != 1:
                raise UsageError(f"there are {self.styles} styles: say which.")
            return self.style_scale.new_ones(count, 1)
        if style.dim() == 1:
            return nn.functional.one_hot(style, self.styles).to(self.style_scale)
        return style.to(self.style_scale)

    def _grams(self) -> list[Tensor]:
        return [getattr(self, f"gram_{i}") for i in range(len(self.style_layers))]


def masks_at(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (n, k, H, W) for maps of a layer, (n, k, *size): means over the pixels of each place.

    Places count from the upper left, so that masks of a part of an image are parts of its masks.
    """
    strides = [max(1, round(length / count)) for length, count in zip(masks.shape[2:], size, strict=True)]
    means = F.avg_pool2d(masks.float(), strides, ceil_mode=True)
    missing = [max(0, count - length) for count, length in zip(size, means.shape[2:], strict=True)]
    return F.pad(means, (0, missing[1], 0, missing[0]), mode="replicate")[..., : size[0], : size[1]]


def layer_shares(name: str, layers: Layers) -> dict[str, float]:
    """Weights of layers by name, divided by their sum.

    Raises:
        UsageError: For weights that are negative or all 0.
    """
    if isinstance(layers, str):
        layers = [layers]
    weights = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(layers, 1.0)
    total = sum(weights.values())
    if not all(weight >= 0 for weight in weights.values()) or not 0 < total < float("inf"):
        raise UsageError(f"{name} are weights by name, at least 0 and one above it; got {weights}.")
    return {layer: weight / total for layer, weight in weights.items() if weight}


@dataclass(frozen=True)
class Equivalent:
    """How many iterations of optimisation images made otherwise are worth.

    Attributes:
        total: After how many the loss is as low, mean over the images; the limit, where it never is.
        content: After how many the content part first is as high as theirs: it starts at nothing.
        style: After how many the style part is as low.
        curves: (limit + 1, 3), mean over the images of the total, content and style before each iteration.
    """

    total: int
    content: int
    style: int
    curves: Tensor


def equivalent_iterations(
    loss: StyleLoss,
    made: Tensor,
    colors: Tensor,
    style: Tensor | None = None,
    *,
    limit: int = 200,
    curves: Tensor | None = None,
) -> Equivalent:
    """Iterations of L-BFGS, started from the content, after which its loss is as low as that of other images.

    The comparison of Johnson, Alahi & Fei-Fei (2016), for feed-forward networks: same loss, same weights, same size.
    Both are means over the images.

    Args:
        loss: The loss of both.
        made: (N, C, H, W), colours from 0 to 1: what the network made.
        colors: (N, C, H, W), the content.
        style: See `StyleLoss.forward`.
        limit: The last iteration.
        curves: What `iteration_curves` told for the same content, so that several can be compared with it.
    """
    parts = []
    with torch.no_grad():
        for i in range(len(colors)):
            one = slice(i, i + 1)
            terms = loss(made[one], loss.content_of(colors[one]), None if style is None else style[one])
            parts.append(_parts(loss, terms)[0])
    mean = torch.stack(parts).mean(dim=0)
    curve = iteration_curves(loss, colors, style, limit=limit) if curves is None else curves

    def first(reached: Tensor) -> int:
        found = reached.nonzero()
        return int(found[0]) if len(found) else len(curve) - 1

    return Equivalent(
        total=first(curve[:, 0] <= mean[0]),
        content=first(curve[:, 1] >= mean[1]),
        style=first(curve[:, 2] <= mean[2]),
        curves=curve,
    )


def iteration_curves(loss: StyleLoss, colors: Tensor, style: Tensor | None = None, *, limit: int = 200) -> Tensor:
    """How the loss falls in L-BFGS on pixels, each image by itself, started from the content.

    Each iteration has a line search for the strong Wolfe conditions: with steps of a fixed length, as in the paper, the
    loss may jump up by orders of magnitude, and a network that is compared with it would seem better.

    Args:
        loss: The loss.
        colors: (N, C, H, W), from 0 to 1.
        style: See `StyleLoss.forward`.
        limit: The last iteration.

    Returns:
        (limit + 1, 3), mean over the images of the total, content and style before each iteration.
    """
    curves, search = [], quasi_newton(history=100)
    for i in range(len(colors)):
        one = slice(i, i + 1)
        content, of = loss.content_of(colors[one]), None if style is None else style[one]
        # L-BFGS takes no other order of pixels.
        image = colors[one].detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        course = list[Tensor]()
        optimizer = search([image])
        with torch.enable_grad():
            for iteration in range(limit + 1):

                def closure(
                    iteration: int = iteration,
                    image: Tensor = image,
                    content: Mapping[str, Tensor] = content,
                    of: Tensor | None = of,
                    course: list[Tensor] = course,
                ) -> Tensor:
                    terms = loss(image, content, of)
                    image.grad = torch.autograd.grad(terms.total.sum(), image)[0].contiguous()
                    if len(course) == iteration:  # a line search asks several times
                        course.append(_parts(loss, terms)[0])
                    return terms.total.detach().sum()

                if iteration < limit:
                    optimizer.step(closure)
                else:
                    closure()
        curves.append(torch.stack(course))
    return torch.stack(curves).mean(dim=0)


def _parts(loss: StyleLoss, terms: StyleTerms) -> Tensor:
    """Total, content and style, with the weights of layers, (N, 3)."""
    kept = sum(share * terms.content[name] for name, share in loss.content_layers.items())
    styled = sum(share * terms.style[name] for name, share in loss.style_layers.items())
    return torch.stack([terms.total, torch.zeros_like(terms.total) + kept, styled], dim=-1).detach()
