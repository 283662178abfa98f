"""The different kinds of images that excite a class, each with an image of its own: multifaceted visualization."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.batches import fitting
from lit_viz.functional.embedding import check_features, pca
from lit_viz.functional.scores import Model, Score, check_images, class_scores
from lit_viz.functional.synthesis import ClassScore, Objective, Pixels, Synthesis, optimize
from lit_viz.functional.synthesis.parameterizations import color_covariance, per_channel
from lit_viz.functional.tsne import Engine, tsne
from lit_viz.guard import untouched
from lit_viz.layers import as_maps, capture, find_layer, head_of
from lit_viz.pixels import PixelSpace, guess_pixel_space, pixel_space_of

LEAST = 4  # images that make a facet
EMBEDDED = 12  # images from which on t-SNE tells more than the plane of the first two components
SIDE = 224.0  # px, for which the stages are given


@dataclass(frozen=True, eq=False)
class Facets:
    """Kinds of images, the largest first, or in the order of earlier ones, see `match_facets`.

    Attributes:
        means: (K, C, H, W) float32, the mean of the images nearest to the middle of each facet, in the images' units.
        members: For each facet its images, int64 indices, nearest to the middle first.
        points: (N, 2) float32, where the images lie in the plane.
        centroids: (K, 2) float32, the middles of the facets.
        averaged: How many of its images at most a mean is of.
        note: Why there are fewer facets than were asked for; empty where there are as many.
    """

    means: Tensor
    members: tuple[Tensor, ...]
    points: Tensor
    centroids: Tensor
    averaged: int
    note: str = ""

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many images each facet has."""
        return tuple(len(members) for members in self.members)

    @cached_property
    def facet_of(self) -> Tensor:
        """int64 (N,), the facet of each image."""
        facet = torch.empty(len(self.points), dtype=torch.int64)
        for k, members in enumerate(self.members):
            facet[members] = k
        return facet

    def __len__(self) -> int:
        return len(self.members)


def find_facets(
    features: Tensor,
    images: Tensor,
    *,
    count: int = 10,
    nearest: int = 15,
    perplexity: float = 30.0,
    engine: Engine = "auto",
    seed: int = 0,
) -> Facets:
    """The facets of a class: what kinds of images there are among those that belong to it.

    After Nguyen, Yosinski & Clune, *Multifaceted Feature Visualization* (2016), algorithm 1: features are reduced to 50
    principal components, embedded in the plane by t-SNE, and clustered there by k-means; the images nearest to the
    middle of each cluster are averaged. A facet has at least four images on average: where there are too few there are
    fewer facets, and of fewer than twelve images the plane is that of the first two components.

    Args:
        features: (N, D), finite; mostly what goes into the last layer, see `head_features`.
        images: (N, C, H, W), the images that they are of, in any units.
        count: How many facets.
        nearest: How many images at most to average, all of them of the facet.
        perplexity: Of t-SNE, see `tsne`.
        engine: Likewise.
        seed: Of t-SNE and k-means. The same seed gives the same facets.

    Returns:
        The facets.

    Raises:
        UsageError: If there are no images, or not as many as features, or values that are not finite.

    >>> features = torch.tensor([[0.0], [0.1], [0.2], [0.3], [9.0], [9.1], [9.2], [9.3]])
    >>> find_facets(features, features[:, :, None, None], count=2).means.flatten()
    tensor([0.1500, 9.1500])
    """
    check_at_least("count", count, 1)
    check_at_least("nearest", nearest, 1)
    if images.dim() != 4 or features.dim() != 2 or len(images) != len(features):
        raise UsageError(
            f"features (N, D) and images (N, C, H, W) of the same N are needed, got {tuple(features.shape)} and "
            f"{tuple(images.shape)}."
        )
    if not len(images):
        raise UsageError("there is no image to find facets in.")
    points = _plane(features, perplexity, engine, seed)
    most = min(count, max(1, len(points) // LEAST))
    # Images that are all alike make one facet.
    most = min(most, len(np.unique(points, axis=0)))
    note = f"{len(points)} images are enough for {most} of {count} facets" if most < count else ""
    centroids, label = _k_means(points, most, seed)
    members = []
    for k in range(most):
        own = np.flatnonzero(label == k)
        distance = np.linalg.norm(points[own] - centroids[k], axis=1)
        members.append(torch.from_numpy(own[np.argsort(distance, kind="stable")]))
    order = sorted(range(most), key=lambda k: (-len(members[k]), int(members[k].min())))
    members = [members[k] for k in order]
    means = [images[own[:nearest].to(images.device)].float().mean(dim=0) for own in members]
    return Facets(
        means=torch.stack(means),
        members=tuple(members),
        points=torch.from_numpy(points).float(),
        centroids=torch.from_numpy(centroids[order]).float(),
        averaged=nearest,
        note=note,
    )


def match_facets(facets: Facets, samples: Tensor, before: Sequence[Tensor]) -> Facets:
    """The same facets in the order of earlier ones of the same data, so that each kind keeps its number.

    Pairs are those that have most images in common, over all of them (the assignment of Kuhn's Hungarian method, 1955).
    Facets without a partner come last.

    Args:
        facets: From `find_facets`.
        samples: (N,) int64, which samples of the data the images are.
        before: For each earlier facet its samples, int64; none at all change nothing.

    >>> features = torch.tensor([[0.0], [0.1], [0.2], [0.3], [9.0], [9.1], [9.2], [9.3]])
    >>> facets = find_facets(features, features[:, :, None, None], count=2)
    >>> match_facets(facets, torch.arange(8), [torch.tensor([6, 7]), torch.tensor([0, 1, 2])]).means.flatten()
    tensor([9.1500, 0.1500])
    """
    from scipy.optimize import linear_sum_assignment  # takes half a second to import

    shared = np.zeros((len(facets), len(before)))
    for k, members in enumerate(facets.members):
        shared[k] = [int(torch.isin(samples[members], earlier).sum()) for earlier in before]
    place = dict(zip(*(found.tolist() for found in linear_sum_assignment(shared, maximize=True)), strict=True))
    order = sorted(range(len(facets)), key=lambda k: place.get(k, len(before)))
    return replace(
        facets,
        means=facets.means[order],
        members=tuple(facets.members[k] for k in order),
        centroids=facets.centroids[order],
    )


def _plane(features: Tensor, perplexity: float, engine: Engine, seed: int) -> np.ndarray:
    """Places of images in the plane, float64 (N, 2)."""
    if len(features) < 2:
        return np.zeros((len(features), 2))
    values = check_features(features.detach().cpu())
    if len(values) < EMBEDDED:
        return pca(values).points.double().numpy()
    return tsne(values.numpy(), perplexity=perplexity, engine=engine, seed=seed).astype(np.float64)


def _k_means(points: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Middles (count, 2) of clusters, and the cluster of each point (N,)."""
    from sklearn.cluster import KMeans  # takes a second to import

    found = KMeans(count, n_init=10, random_state=seed % 2**32).fit(points)
    return found.cluster_centers_, found.labels_


def head_features(
    model: nn.Module,
    images: Tensor,
    *,
    layer: str | None = None,
    score: Score | None = None,
    batch_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """What goes into the last layer of a network, "the features", and the scores that come out.

    Args:
        model: A module that maps (N, C, H, W) to (N, K) scores; with `score`, to anything. Left as it was found.
        images: (N, C, H, W), as the network takes them.
        layer: Dotted name of a layer whose output to take instead. Maps are averaged over places, tokens over tokens.
        score: See `lit_viz.functional.class_scores`.
        batch_size: Images in one pass; by default as many as fit 16 of 3×224×224.

    Returns:
        Features (N, D) and scores (N, K), both float32 on the CPU.

    Raises:
        UsageError: For an unknown layer, or a network whose last layer can't be found.
    """
    images = check_images(images)
    found: list[tuple[Tensor, Tensor]] = []
    like = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), images)
    with untouched(model), torch.no_grad():
        where: Any = "output"
        if layer is None:
            one = images[:1].to(like)
            classes = class_scores(model, one, score=score).shape[1]
            layer, where = head_of(model, lambda: model(one), classes), "input"
        name = find_layer(model, layer)[0]
        for batch in images.split(batch_size or fitting(images[0])):
            size = (batch.shape[-2], batch.shape[-1])
            with capture(model, [name], where=where, reduce=lambda v, size=size: _vectors(v, size)) as values:
                scores = class_scores(model, batch.to(like), score=score)
            if not values[name]:
                raise UsageError(f"layer '{name}' takes no part in the forward pass, so it has no features.")
            found.append((values[name][0].cpu(), scores.float().cpu()))
    features, scores = zip(*found, strict=True)
    return torch.cat(features), torch.cat(scores)


def _vectors(values: Tensor, size: tuple[int, int]) -> Tensor:
    """One vector (N, D) for each image."""
    return values.float().clone() if values.dim() == 2 else as_maps(values, image_size=size).float().mean(dim=(2, 3))


@dataclass(frozen=True)
class _Stage:
    """A part of the ascent; each pair holds its value at the beginning and at the end.

    Attributes:
        steps: How many of all.
        lr: Mean of |step| over the image, in colours.
        tv: Weight λ of the total variation, in colours times pixels at a side of 224.
        zoom: How much the image is enlarged at most.
        margin: Share of the side, at each border, where nothing is drawn.
    """

    steps: int
    lr: tuple[float, float]
    tv: tuple[float, float]
    zoom: float = 1.0
    margin: float = 0.0


# Those of the paper, whose images of 224 px grow to 269 px in the second, where the network looks at them through a
# window.
_STAGES = (
    _Stage(190, (1.25 / 255, 2.5 / 255), (0.006, 0.006)),
    _Stage(150, (1.25 / 255, 1.25 / 255), (0.015, 0.001), zoom=1.2),
    _Stage(20, (2.5 / 255, 2.5 / 255), (0.005, 0.001), zoom=1.2, margin=0.25),
    _Stage(10, (2.5 / 255, 2.5 / 255), (0.005, 0.001)),
)
STEPS = sum(stage.steps for stage in _STAGES)
JITTER = 1 / 16  # of the side, by which images are shifted at most
SCALING, DEGREES = 1.1, 8.0  # at most, before a step
FALLOFF = 1.5  # power of the frequency by which a step is weaker
SETTLING = 0.1  # share of the steps, the last ones, that see the image as it is
RADIUS = (0.2, 0.6)  # standard deviation of the drawing's weight, as a share of half the side, growing
BIASED = 1.6  # how much longer steps are where only the middle is drawn
ITERATIONS = 10  # of the denoising after each step


def facet_images(
    model: Model,
    facets: Facets | Tensor,
    target: int | Objective,
    *,
    steps: int = STEPS,
    center_biased: bool = False,
    seed: int = 0,
    pixels: PixelSpace | None = None,
    score: Score | None = None,
    on_step: Callable[[int, Tensor], bool | None] | None = None,
    snapshot_every: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    interruptible: bool = True,
) -> Synthesis:
    r"""An image that excites the target for each facet, by gradient ascent from the facet's mean image.

    $$x \leftarrow \operatorname{prox}_{\lambda \mathrm{TV}}\!\left(x + \eta\, m \odot g / \overline{|g|}\right),
    \quad g = S\,\nabla_x \Bigl(s_t + \log \tfrac{p_t}{1 - p_t}\Bigr)(T(x))$$

    After Nguyen, Yosinski & Clune, *Multifaceted Feature Visualization* (2016). Each step is followed by a denoising,
    see `tv_denoised`. There are four stages, in the paper's shares of the steps: 190 on the whole image; 150 on the
    image enlarged by up to 1.2, through a window that wanders about, at first with much smoothing and then with
    little; 20 that draw in the middle half alone; and 10 everywhere. With `center_biased` the weight m falls off from
    the middle like a Gaussian that grows over the steps, so that one object forms there instead of several all over
    the image; without it m is 1.

    For networks that came after the paper, to which pixels alone are noise, T also turns and scales the image a little,
    up to the last tenth of the steps, and S gives the gradient the spectrum and the colours of photographs: hues change
    as much less than brightness as they do there, or the image would turn red and green. Lengths and smoothing are
    relative to the shorter side, so that the same settings suit images of any size. Fewer steps than the paper's 370
    are longer ones.

    Args:
        model: Maps (N, C, H, W) to (N, K) scores; with `score`, to anything. Left as it was found.
        facets: From `find_facets`, with means as the network takes images; or such images, (N, C, H, W).
        target: A class index, or an objective such as `Unit("layer4", 17)`.
        steps: How many in all.
        center_biased: Whether to draw one object in the middle.
        seed: Of shifts and windows. Same seed, same images.
        pixels: How network input relates to colours; by default as the network tells, or guessed from the facets.
        score: See `lit_viz.functional.class_scores`.
        on_step: See `synthesis.optimize`.
        snapshot_every: Keep the images after every so many steps.
        batch_size: Images in one pass; by default as many as fit.
        progress: Show a progress bar, if it takes longer than three seconds.
        interruptible: Whether Ctrl-C ends it with what there is; otherwise it goes on to whoever called.

    Returns:
        The images, one for each facet, and how it went.

    Raises:
        UsageError: For starts that are no images, an unknown class, or an unknown layer.

    Warns:
        UserWarning: If an image could not be made as it was wanted, see `synthesis.optimize`.
    """
    start = check_images(facets.means if isinstance(facets, Facets) else facets)
    pixels = pixels or pixel_space_of(model) or guess_pixel_space(start)
    # The score alone may fall behind that of another class.
    objective = target if isinstance(target, Objective) else ClassScore(target) + ClassScore(target, of="log_odds")
    drawing = _Drawing(start, pixels, steps, center_biased)
    return optimize(
        model,
        objective,
        start,
        parameterization=Pixels(pixels),
        make_optimizer=drawing.optimizer,
        transforms=[drawing.look],
        settle=round(SETTLING * steps),
        constraints=[drawing.denoise],
        steps=steps,
        on_step=on_step,
        snapshot_every=snapshot_every,
        batch_size=batch_size,
        seed=seed,
        score=score,
        progress=progress,
        description="facets",
        interruptible=interruptible,
    )


class _Drawing:
    """The stages of an ascent, as the parts that the loop asks for: how to look, to step and to smooth.

    Args:
        images: (N, C, H, W), only their shape matters.
        pixels: How they relate to colours.
        steps: How many steps there will be.
        center_biased: Whether to draw in the middle at first.
    """

    def __init__(self, images: Tensor, pixels: PixelSpace, steps: int, center_biased: bool) -> None:
        self.steps, self.center_biased = steps, center_biased
        self.std = per_channel(pixels.std, images.shape[1], torch.zeros((), dtype=torch.float32))
        self.size = images.shape[-2], images.shape[-1]
        self.step = 0
        # Fewer steps are longer. In small images they are shorter: steps there agree with each other, and add up.
        self.scale = min(1.0, min(self.size) / SIDE)
        self.length = self.scale * max(1.0, STEPS / max(1, steps)) ** 0.5 * (BIASED if center_biased else 1.0)

    def stage(self, step: int) -> tuple[_Stage, float]:
        """The stage of a step, and how far it has come, from 0 to 1."""
        at = (step + 0.5) * STEPS / self.steps
        for stage in _STAGES:
            if at < stage.steps or stage is _STAGES[-1]:
                break
            at -= stage.steps
        return stage, min(1.0, at / stage.steps)

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """A new one for each batch, which counts from the start."""
        self.step = 0
        return _Steps(parameters, self)

    def look(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """What the network sees in this step: the image shifted, turned and scaled a little, or a part enlarged."""
        stage, _ = self.stage(self.step)
        draws = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        # The whole image is seen now and then, too, or it would fall to pieces.
        window = stage.zoom ** draws[4]
        zoom = window * SCALING ** (2 * draws[0] - 1)
        angle = math.radians(DEGREES) * (2 * draws[1] - 1)
        # Coordinates run from -1 to 1 along both axes whatever their length.
        reach = 2 * JITTER + 1 - 1 / window
        height, width = self.size
        right, down = (reach * (2 * draw - 1) for draw in draws[2:4])
        cosine, sine = math.cos(angle) / zoom, math.sin(angle) / zoom
        theta = [[cosine, -sine * height / width, right], [sine * width / height, cosine, down]]
        matrix = torch.tensor([theta], dtype=images.dtype, device=images.device)
        grid = F.affine_grid(matrix, [1, 1, height, width], align_corners=False).expand(len(images), -1, -1, -1)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def weight(self, step: int, like: Tensor) -> Tensor:
        """Where a step draws, (H, W), from 0 to 1."""
        rows, columns = (((torch.arange(n, device=like.device) + 0.5) * 2 / n - 1).to(like) for n in self.size)
        stage, _ = self.stage(step)
        inside = torch.maximum(rows.abs()[:, None], columns.abs()[None]) <= 1 - 2 * stage.margin
        if not self.center_biased:
            return inside.to(like)
        radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * step / max(1, self.steps - 1)
        distance = rows.square()[:, None] + columns.square()[None]
        return inside * torch.exp(-distance / (2 * radius**2))

    def shaped(self, gradient: Tensor) -> Tensor:
        """A gradient with the spectrum and the colours of photographs: large structures before fine ones."""
        rows = torch.fft.fftfreq(self.size[0], dtype=torch.float64)[:, None]
        columns = torch.fft.rfftfreq(self.size[1], dtype=torch.float64)[None]
        frequency = (rows.square() + columns.square()).sqrt().clamp(min=1 / max(self.size))
        spectrum = torch.fft.rfft2(gradient) * (frequency**-FALLOFF).to(gradient)
        shaped = torch.fft.irfft2(spectrum, s=self.size)
        if shaped.shape[1] != 3:
            return shaped
        return torch.einsum("dc,nchw->ndhw", color_covariance().to(shaped), shaped)

    def denoise(self, images: Tensor, gradient: Tensor, step: int) -> None:
        """A constraint: smooths the image where it is being drawn."""
        stage, share = self.stage(step)
        std = self.std.to(images)
        # Geometric: most of the smoothing comes early.
        strength = stage.tv[0] ** (1 - share) * stage.tv[1] ** share * self.length * min(self.size) / SIDE
        smooth = tv_denoised(images * std, strength, iterations=ITERATIONS) / std
        images.lerp_(smooth, self.weight(step, images))


class _Steps(torch.optim.Optimizer):
    """Steps along the gradient of each image divided by its mean size, where there is drawing."""

    def __init__(self, parameters: list[Tensor], drawing: _Drawing) -> None:
        super().__init__(parameters, {})
        self.drawing = drawing

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; `closure` computes the gradient."""
        loss = None if closure is None else closure()
        drawing = self.drawing
        stage, share = drawing.stage(drawing.step)
        rate = (stage.lr[0] + (stage.lr[1] - stage.lr[0]) * share) * drawing.length
        with torch.no_grad():
            for values in (v for group in self.param_groups for v in group["params"] if v.grad is not None):
                std = drawing.std.to(values)
                gradient = drawing.shaped(values.grad)
                size = gradient.abs().mean(dim=(1, 2, 3), keepdim=True) * std.mean()
                # A gradient of nothing moves nothing.
                size = torch.where(size > 0, size, 1.0)
                values.sub_(rate * drawing.weight(drawing.step, values) * gradient / size)
        drawing.step += 1
        return loss


def tv_denoised(images: Tensor, weight: float, *, iterations: int = 50) -> Tensor:
    r"""Images without what is small: the proximal step of the total variation, which keeps edges sharp.

    $$\arg\min_u \tfrac12 \lVert u - x \rVert^2 + \lambda \sum_{c,i,j} \lVert (\nabla u)_{cij} \rVert$$

    (Rudin, Osher & Fatemi 1992), by the projections of Chambolle, *An Algorithm for Total Variation Minimization and
    Applications* (2004).

    Args:
        images: (n, C, H, W).
        weight: λ, in units of the images; a disc of radius r loses 2λ/r of its contrast.
        iterations: How many projections; the more, the larger the structures that are smoothed.

    Returns:
        Same shape.
    """
    if not weight >= 0:
        raise UsageError(f"weight must be at least 0, got {weight}.")
    check_at_least("iterations", iterations, 0)
    if weight == 0:
        return images.clone()
    down, across = torch.zeros_like(images), torch.zeros_like(images)
    smooth = images
    for _ in range(iterations):
        dy = F.pad(smooth.diff(dim=-2), (0, 0, 0, 1))
        dx = F.pad(smooth.diff(dim=-1), (0, 1))
        norm = 1 + 0.25 / weight * (dy.square() + dx.square()).sqrt()
        down = (down - 0.25 / weight * dy) / norm
        across = (across - 0.25 / weight * dx) / norm
        smooth = images - weight * (_backward(down, -2) + _backward(across, -1))
    return smooth


def _backward(values: Tensor, dim: int) -> Tensor:
    """Differences to the one before; the last one counts as zero, as there is nothing behind it."""
    size = values.shape[dim]
    inner = values.narrow(dim, 0, size - 1)
    pad = (0, 1) if dim == -1 else (0, 0, 0, 1)
    before = (1, 0) if dim == -1 else (0, 0, 1, 0)
    return F.pad(inner, pad) - F.pad(inner, before)
