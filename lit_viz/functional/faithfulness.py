"""Faithfulness: whether an attribution map says what the network relies on, in numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lit_viz.errors import UsageError, check_at_least, check_choice
from lit_viz.functional.baselines import Baseline, baseline_images
from lit_viz.functional.batches import fitting, in_batches
from lit_viz.functional.scores import (
    Model,
    Score,
    Target,
    as_float,
    check_images,
    class_scores,
    probabilities,
    resolve_target,
)
from lit_viz.guard import isolated_rng, untouched
from lit_viz.layers import WRAPPER, named_layers


@dataclass(frozen=True)
class Curves:
    """What a network says while pixels come or go in the order of a map.

    Attributes:
        fraction: (steps + 1,), share of the pixels that have come or gone, from 0 to 1.
        insertion: (N, steps + 1), the output as the most important pixels come first.
        deletion: (N, steps + 1), the output as the most important pixels go first.
    """

    fraction: Tensor
    insertion: Tensor
    deletion: Tensor

    @property
    def insertion_area(self) -> Tensor:
        """Area under each insertion curve by the trapezoidal rule, (N,); larger is better."""
        return torch.trapezoid(self.insertion, self.fraction, dim=1)

    @property
    def deletion_area(self) -> Tensor:
        """Area under each deletion curve, (N,); smaller is better."""
        return torch.trapezoid(self.deletion, self.fraction, dim=1)


def insertion_deletion(
    model: Model,
    images: Tensor,
    maps: Tensor,
    target: Target = None,
    *,
    steps: int = 50,
    start: Baseline = "blur",
    end: Baseline = 0.0,
    output: Literal["probability", "score"] = "probability",
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
    score: Score | None = None,
) -> Curves:
    r"""The output of a network as pixels come, or go, the most important ones of a map first.

    From Petsiuk, Das & Saenko, *RISE: Randomized Input Sampling for Explanation of Black-box Models* (2018). With
    $m_k$ the mask of the first $n_k = \lfloor k P / K \rfloor$ of $P$ pixels after $k$ of $K$ steps,

    $$I_k = f\bigl(m_k \odot x + (1 - m_k) \odot x_\text{start}\bigr), \qquad
      D_k = f\bigl((1 - m_k) \odot x + m_k \odot x_\text{end}\bigr)$$

    A faithful map brings $I$ up and $D$ down early. As in that paper insertion starts from a blurred image, where
    pixels that come on a flat one would have sharp edges of their own, and deletion ends in a flat image, since a
    network can still make out what is blurred.

    Pixels of equal value come in a random order that `seed` decides, so that a map without a say (constant, or zero
    over large parts) gets what chance gives, not what the order of rows happens to give. Compare with maps of noise:
    single pixels taken out at random are an unusual texture, and some networks lose the class in it sooner than by
    losing the object, and then a low deletion area says little.

    Args:
        model: Maps (N, C, H, W) to (N, K) scores; with `score`, to anything. Left as it was found.
        images: (N, C, H, W), as the network takes them.
        maps: (N, H, W), larger for more important, in any unit: only the order of its pixels counts.
        target: Class index, N indices, or None for the class predicted for the whole image.
        steps: In how many steps the pixels come, at most H · W.
        start: Where insertion starts, in units of network input: a number, a tensor that broadcasts to `images`, or
            "blur" (Gaussian, σ a tenth of the longer side), "mean" or "noise", of the image itself.
        end: Where deletion ends, likewise; 0 is the mean colour of a normalised data set.
        output: The class probability (softmax), or the raw score.
        batch_size: Copies in one forward pass; by default as many as fit 16 images of 3×224×224, so that memory is
            bounded whatever `steps` is. Halved whenever memory runs out.
        seed: Of the order among equals, the same for all images, and of the noise.
        progress: Show a progress bar when it takes longer than three seconds.
        score: See `lit_viz.functional.class_scores`.

    Returns:
        The curves, on the device of `images`; in [0, 1] for a probability.

    Raises:
        UsageError: For maps of another size than the images or with values that are not finite, fewer steps than one or
            more than pixels, a baseline that doesn't fit, or a bad target.

    >>> total = lambda x: x.flatten(1).sum(1, keepdim=True)      # a model that adds up its pixels
    >>> image = torch.tensor([[[[1.0, 4.0], [3.0, 2.0]]]])
    >>> curves = insertion_deletion(total, image, image[:, 0], 0, steps=4, start=0.0, output="score")
    >>> curves.insertion, curves.deletion
    (tensor([[ 0.,  4.,  7.,  9., 10.]]), tensor([[10.,  6.,  3.,  1.,  0.]]))
    >>> curves.insertion_area, curves.deletion_area
    (tensor([6.2500]), tensor([3.7500]))
    """
    check_images(images)
    check_at_least("steps", steps, 1)
    check_choice("output", output, ("probability", "score"))
    if batch_size is not None:
        check_at_least("batch_size", batch_size, 1)
    size = images.shape[-2:]
    pixels = size[0] * size[1]
    if steps > pixels:
        raise UsageError(f"{steps} steps are more than the {pixels} pixels of an image; take at most {pixels}.")
    maps = _checked(maps, images)
    link = probabilities if output == "probability" else as_float
    with untouched(model), torch.no_grad():
        images = images.detach()
        ends = [baseline_images(images, b, sigma=max(size) / 10, seed=seed) for b in (start, end)]
        batch_size = batch_size or fitting(images[0])

        def whole(which: Tensor) -> Tensor:
            return class_scores(model, images[which], score=score)

        full = in_batches(whole, len(images), batch_size, images.device)
        chosen = resolve_target(full, target)
        places = _places(maps, seed)
        counts = torch.arange(steps + 1, device=images.device) * pixels // steps

        def mixed(copies: Tensor) -> Tensor:
            """The output for some of the copies, numbered by game, image and step."""
            pairs, step = copies // (steps + 1), copies % (steps + 1)
            deletes, which = pairs // len(images) == 1, pairs % len(images)
            come = places[which] < counts[step][:, None, None]
            shown = (come ^ deletes[:, None, None])[:, None]
            other = torch.where(deletes[:, None, None, None], ends[1][which], ends[0][which])
            scores = class_scores(model, torch.where(shown, images[which], other), score=score)
            return link(scores).gather(1, chosen[which][:, None])[:, 0]

        values = in_batches(
            mixed,
            2 * len(images) * (steps + 1),
            batch_size,
            images.device,
            description="insertion and deletion",
            unit="copy",
            progress=progress,
        )
    insertion, deletion = values.reshape(2, len(images), steps + 1)
    return Curves(counts.to(values) / pixels, insertion, deletion)


def _checked(maps: Tensor, images: Tensor) -> Tensor:
    """Maps that can be put in order, on the device of the images."""
    wanted = (len(images), *images.shape[-2:])
    if not isinstance(maps, Tensor) or maps.shape != wanted:
        got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise UsageError(f"maps must be a tensor {wanted}, one map of the images' size for each, got {got}.")
    bad = ~torch.isfinite(maps).flatten(1).all(dim=1)
    if bad.any():
        raise UsageError(f"map {int(bad.nonzero()[0])} holds NaN or infinite values, so its pixels have no order.")
    return maps.detach().to(images.device)


def _places(maps: Tensor, seed: int) -> Tensor:
    """The place of each pixel in the order of its map, (N, H, W) from 0; equals in a random order."""
    flat = maps.flatten(1)
    shuffle = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)).to(flat.device)
    order = shuffle[flat[:, shuffle].argsort(dim=1, descending=True, stable=True)]
    numbers = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, numbers).reshape(maps.shape)


@dataclass(frozen=True)
class Randomization:
    """How much of its maps an attribution keeps while the network forgets, from the output down.

    Attributes:
        layers: Name of the layer that each stage has reached; the ones of the stages before are random as well.
        rank_correlation: (stages, N), Spearman's, of absolute maps with those of the network as it was, −1 to 1.
        ssim: (stages, N), structural similarity of the absolute maps, each scaled to its own range, −1 to 1; NaN for
            maps with fewer than three rows or columns.
    """

    layers: tuple[str, ...]
    rank_correlation: Tensor
    ssim: Tensor


def randomization_check(
    model: nn.Module, attribute: Callable[[nn.Module], Tensor], *, stages: int | None = None, seed: int = 0
) -> Randomization:
    """Makes a copy of a network random, layer by layer from output to input, and sees whether its maps notice.

    The cascading model parameter randomisation test of Adebayo, Gilmer, Muelly, Goodfellow, Hardt & Kim, *Sanity Checks
    for Saliency Maps* (2018). A map of what a network has learned can't survive that the network forgets it:
    similarity should fall. Guided backprop is known to stay alike for long, as an edge detector does for good.

    Layers are those that own parameters, last called first; modules that a forward pass doesn't call, but a called
    one around them holds (the projections inside of attention), go with that one. A layer with a method
    `reset_parameters` is initialised anew by it (a batch norm forgets its statistics, too); parameters of others are
    shuffled, which keeps their distribution.

    Args:
        model: The network. A deep copy is made random; the network itself is not even run.
        attribute: From a network to maps (N, H, W). It must run the network that it is given: the copy, in evaluation
            mode and with gradients on. Global generators start from `seed` at each call.
        stages: Compare maps at so many stages only, evenly spaced from the first layer to the last, all layers
            being made random nevertheless; None for all.
        seed: Of the new weights.

    Returns:
        The similarity to the original maps at each stage. A map that has become constant has none (0), and where the
        original is constant, or a map is not finite, there is nothing to compare (NaN).

    Raises:
        UsageError: If `model` is no module, `attribute` gives no maps, or no layer of the copy takes part in them.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"layers can be made random in an nn.Module, not in {type(model).__name__}.")
    if stages is not None:
        check_at_least("stages", stages, 1, " or None for all")
    with torch.inference_mode(False):
        copied = copy.deepcopy(model)

    def maps() -> NDArray[np.float64]:
        with untouched(copied, seed=seed):
            found = attribute(copied)
        if not isinstance(found, Tensor) or found.dim() != 3:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(f"attribute must return maps (N, H, W), got {got}.")
        return found.detach().cpu().double().abs().numpy()

    originals: list[NDArray[np.float64]] = []
    layers = _cascade(getattr(copied, WRAPPER, copied), lambda: originals.append(maps()))
    if not layers:
        raise UsageError(
            f"no layer of the copy of {type(model).__name__} takes part in the maps; attribute(model) must run the "
            f"model that it is given."
        )
    names, last = list(layers), len(layers) - 1
    shown = {round(i) for i in np.linspace(0, last, min(stages or len(layers), len(layers))).tolist()}
    found = []
    for i, modules in enumerate(layers.values()):
        for j, module in enumerate(modules):
            _forget(module, seed + 1000 * i + j)
        if i in shown:
            found.append(_similarity(originals[0], maps()))
    correlation, ssim = (torch.from_numpy(np.stack(values)) for values in zip(*found, strict=True))
    return Randomization(tuple(names[i] for i in sorted(shown)), correlation, ssim)


def _cascade(model: nn.Module, run: Callable[[], None]) -> dict[str, list[nn.Module]]:
    """Layers with parameters, the last called first, with the modules that own these parameters."""
    layers = {"": model, **named_layers(model)}
    called: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            called.setdefault(name, len(called))

        return hook

    handles: list[RemovableHandle] = []
    try:
        for name, layer in layers.items():
            if not isinstance(layer, torch.jit.ScriptModule):  # goes with the layer around it
                handles.append(layer.register_forward_pre_hook(note(name)))
        run()
    finally:
        for handle in handles:
            handle.remove()
    owners: dict[str, list[nn.Module]] = {}
    for name, layer in layers.items():
        owner = name
        while owner and owner not in called:
            owner = owner.rpartition(".")[0]
        # What only the whole network holds and nobody calls, such as a head for training, takes no part.
        if owner in called and (owner or not name) and any(p is not None for p in layer._parameters.values()):
            owners.setdefault(owner, []).append(layer)
    order = sorted(owners, key=lambda name: called[name], reverse=True)
    return {name or type(model).__name__: owners[name] for name in order}


def _forget(layer: nn.Module, seed: int) -> None:
    """Makes the parameters that a layer owns random."""
    reset = getattr(layer, "reset_parameters", None)
    with isolated_rng(seed), torch.inference_mode(False), torch.no_grad():
        if callable(reset):
            reset()
            return
        for parameter in layer._parameters.values():
            if parameter is not None:
                shuffle = torch.randperm(parameter.numel()).to(parameter.device)
                parameter.copy_(parameter.flatten()[shuffle].reshape(parameter.shape))


def _similarity(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Spearman's rank correlation and structural similarity of maps (N, H, W), (N,) each."""
    # Imported where needed: the rest of the package does without.
    from scipy.stats import rankdata
    from skimage.metrics import structural_similarity

    side = min(7, min(first.shape[1:]) - (min(first.shape[1:]) + 1) % 2)
    correlation, ssim = np.full(len(first), np.nan), np.full(len(first), np.nan)
    for i, pair in enumerate(zip(first, second, strict=True)):
        if not np.isfinite(pair).all() or np.ptp(pair[0]) == 0:
            continue
        if np.ptp(pair[1]) == 0:
            correlation[i] = 0.0
        else:
            correlation[i] = np.corrcoef(rankdata(pair[0]), rankdata(pair[1]))[0, 1]
        if side >= 3:
            unit = [(m - m.min()) / (np.ptp(m) or 1.0) for m in pair]
            ssim[i] = structural_similarity(*unit, win_size=side, data_range=1.0)
    return correlation, ssim


def pointing_score(maps: Tensor, masks: Tensor, *, tolerance: float = 0.0) -> Tensor:
    """Whether the maximum of each map lies on the object: the pointing game.

    From Zhang, Lin, Brandt, Shen & Sclaroff, *Top-down Neural Attention by Excitation Backprop* (2016), where a
    maximum up to 15 px beside the object counts, too.

    Args:
        maps: (N, H, W).
        masks: (N, H, W), true (or above 0) on the object; `boxes_to_masks` makes them from boxes.
        tolerance: How far beside the object counts, px.

    Returns:
        (N,) bool. Of several equal maxima all must lie there, so that a constant map has no luck; false for a map that
        is NaN somewhere, or an object without pixels.

    Raises:
        UsageError: If the shapes differ, or for a negative tolerance.

    >>> corner = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 9.0]]])
    >>> mask = torch.tensor([[[True, False, False], [False, False, False]]])
    >>> pointing_score(corner, mask), pointing_score(corner, mask, tolerance=2.3)
    (tensor([False]), tensor([True]))
    """
    masks = _masks_of(masks, maps)
    if not tolerance >= 0:
        raise UsageError(f"tolerance is a distance in px, at least 0; got {tolerance}.")
    inside = masks
    if tolerance > 0:
        from scipy.ndimage import distance_transform_edt

        # Without an object everything is far from it.
        far = [distance_transform_edt(~m) if m.any() else np.full(m.shape, np.inf) for m in masks.cpu().numpy()]
        inside = torch.from_numpy(np.stack(far) <= tolerance).to(maps.device)
    highest = maps == maps.amax(dim=(1, 2), keepdim=True)
    return highest.any(dim=(1, 2)) & (~highest | inside).all(dim=(1, 2)) & masks.any(dim=(1, 2))


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    r"""Share of a map's positive values that lies on the object: the energy-based pointing game.

    $$\frac{\sum_{p \in B} \max(M_p, 0)}{\sum_p \max(M_p, 0)}$$

    from Wang et al., *Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks* (2020). A map
    that knows nothing of the object has the share that the object has of the image.

    Args:
        maps: (N, H, W).
        masks: As for `pointing_score`.

    Returns:
        (N,) in [0, 1]; NaN for a map without positive values.

    Raises:
        UsageError: If the shapes differ.

    >>> energy_inside(torch.tensor([[[3.0, 1.0], [-5.0, 0.0]]]), torch.tensor([[[1, 0], [1, 0]]]))
    tensor([0.7500])
    """
    masks = _masks_of(masks, maps)
    energy = as_float(maps).clamp(min=0)
    return (energy * masks).sum(dim=(1, 2)) / energy.sum(dim=(1, 2))


def boxes_to_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks of boxes: a pixel belongs to a box if its centre does.

    Args:
        boxes: (N, 4) with left, top, right and bottom edge in px from the upper left corner of the image.
        size: Height and width of the images.

    Returns:
        (N, H, W) bool.

    Raises:
        UsageError: For another shape, or edges in another order.

    >>> boxes_to_masks(torch.tensor([[1, 0, 3, 1]]), (2, 4)).int()
    tensor([[[0, 1, 1, 0],
             [0, 0, 0, 0]]], dtype=torch.int32)
    """
    boxes = torch.as_tensor(boxes)
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise UsageError(f"boxes must be (N, 4), left, top, right, bottom, got {tuple(boxes.shape)}.")
    if bool((boxes[:, :2] > boxes[:, 2:]).any()):
        raise UsageError("boxes are left, top, right, bottom, but some have the right edge left of the left one.")
    left, top, right, bottom = boxes.float().T[..., None]
    rows, columns = (torch.arange(length, device=boxes.device) + 0.5 for length in size)
    vertical = (top <= rows) & (rows < bottom)
    return vertical[:, :, None] & ((left <= columns) & (columns < right))[:, None, :]


def _masks_of(masks: Tensor, maps: Tensor) -> Tensor:
    if maps.dim() != 3 or masks.shape != maps.shape:
        raise UsageError(f"maps and masks must both be (N, H, W), got {tuple(maps.shape)} and {tuple(masks.shape)}.")
    return masks.to(maps.device) > 0
