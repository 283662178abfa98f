"""Fooling images: changes that nobody sees, and the network takes the image for something else."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError, check_at_least, check_choice
from lit_viz.functional.batches import fitting, in_batches
from lit_viz.functional.classes import two_classes
from lit_viz.functional.guided import find_activations
from lit_viz.functional.interruption import Interruption, until_interrupted
from lit_viz.functional.saliency import scores_and_targets
from lit_viz.functional.scores import Model, Score, Target, as_float, check_images, probabilities, resolve_target
from lit_viz.functional.synthesis.optimize import SATURATED, TRAINING
from lit_viz.functional.synthesis.reading import Read, reading, runs_in
from lit_viz.guard import untouched
from lit_viz.pixels import PixelSpace, guess_pixel_space, pixel_space_of

Norm = Literal["l2", "linf"]

LEVELS = 255
"""Steps of colour between black and full intensity in an 8-bit file."""

DEAD = (
    "no gradient reaches the image: every way goes through a ReLU that is off (dead); take another image, or a network "
    "that was trained with a lower learning rate"
)
NOT_FINITE = "the scores are NaN or infinite"
OUT_OF_RANGE = (
    "colours beyond black or full intensity were cut off before it began: the normalisation is not that of the "
    "images; give it as pixels=PixelSpace(mean, std)"
)


@dataclass(frozen=True, eq=False)
class Fooling:
    """Images that were changed until a network took them for something else, and how it went.

    All are of images as 8-bit files hold them, and sizes are in colour units, where 1 is full intensity. Scores are
    those of a pass of its own over these images.

    Attributes:
        images: (N, C, H, W), changed, as the network takes them. What was taken for the target from the start is as
            it came, bit by bit.
        eight_bit: (N, C, H, W) uint8, the same as files hold them.
        perturbation: (N, C, H, W) float32, the change against the 8-bit original; whole multiples of 1/255.
        targets: (N,) int64, what each was to be taken for.
        success: (N,) bool, whether it is, with the confidence that was asked for.
        steps: (N,) int64, after how many steps of the gradient the image was found; of those that failed, all that
            were made.
        l2: (N,) float64, Euclidean norm of the perturbation.
        linf: (N,) float64, its largest change.
        scores_before: (N, K).
        scores_after: (N, K).
        notes: For each image what went wrong, in words with the remedy; empty where nothing did.
        interrupted: Whether it was stopped by hand, so that this is what had come of it by then.
    """

    images: Tensor
    eight_bit: Tensor
    perturbation: Tensor
    targets: Tensor
    success: Tensor
    steps: Tensor
    l2: Tensor
    linf: Tensor
    scores_before: Tensor
    scores_after: Tensor
    notes: tuple[str, ...]
    interrupted: bool = False

    @property
    def confidence_before(self) -> Tensor:
        """Probability of the target in the original, (N,)."""
        return probabilities(self.scores_before).gather(1, self.targets[:, None])[:, 0]

    @property
    def confidence_after(self) -> Tensor:
        """Probability of the target in the changed image, (N,)."""
        return probabilities(self.scores_after).gather(1, self.targets[:, None])[:, 0]


def fooling_image(
    model: Model,
    images: Tensor,
    target: Target | Literal["runner_up", "least_likely"] = None,
    *,
    norm: Norm | None = None,
    bound: float | None = None,
    confidence: float = 0.9,
    steps: int = 100,
    lr: float | None = None,
    pixels: PixelSpace | None = None,
    batch_size: int | None = None,
    score: Score | None = None,
    progress: bool = False,
    interruptible: bool = True,
) -> Fooling:
    r"""Changes images until a network takes them for a class of your choice.

    Without a norm by the recipe of the lecture (CS231n; Szegedy et al., *Intriguing Properties of Neural Networks*,
    2014): gradient ascent on the score of the target, from the image, until the network is fooled,

    $$c \leftarrow c + \eta\, \nabla_c S_t / \lVert \nabla_c S_t \rVert_2$$

    With a norm and a bound by projected gradient ascent (Madry et al., *Towards Deep Learning Models Resistant to
    Adversarial Attacks*, 2018): the change δ stays within $\lVert \delta \rVert \le \varepsilon$, steps go along
    $g / \lVert g \rVert_2$ or, for "linf", along the sign of g. With a norm alone the smallest change is looked for
    after the fast minimum-norm attack (Pintor et al., *Fast Minimum-norm Adversarial Attacks through Adaptive Norm
    Constraints*, 2021): steps that grow little by little until the network is fooled; from then on ε shrinks while it
    is fooled, and grows while it is not. What ascends under a norm is how far the target is ahead: the lesser of
    $S_t - \max_{j \ne t} S_j$ and, with p the confidence, $\log\frac{p_t}{1-p_t} - \log\frac{p}{1-p}$.

    All of it is about images as 8-bit files hold them. The gradient is taken at the rounded image and moves the
    unrounded one, so that what is optimised is what is judged, and changes that rounding would undo don't count. Each
    image stops for itself. Colours stay between black and full intensity; c, δ and ε are in colour units, where 1 is
    full intensity, whatever the normalisation.

    Args:
        model: Maps (N, C, H, W) to (N, K) scores; with `score`, to anything. Left as it was found. One score alone
            counts as two classes.
        images: (N, C, H, W), as the network takes them.
        target: What they are to be taken for: a class index, N indices, "runner_up" (None is the same) for the class
            with the second-best score, or "least_likely" for that with the lowest one.
        norm: None, "l2" or "linf".
        bound: ε in colour units, such as 8/255; None for the smallest that is found. Kept exactly, after rounding too:
            for "linf" at whole 255ths.
        confidence: The probability of the target to be reached, below 1; 0 where it is enough that the network puts
            the target first.
        steps: At most so many, of one pass forth and back each. The search for the smallest change takes all of them.
        lr: Length of a step in colour units, by default 0.225 (1 on images normalised by ImageNet's deviation, as in
            the lecture), or a tenth of the bound. With a norm and no bound that of the first step, by default 0.225 for
            "l2" and 0.8/255 for "linf".
        pixels: How network input relates to colours; by default what the model tells, or a guess from the range.
        batch_size: Images in one pass; by default as many as fit 16 of 3×224×224, halved whenever memory runs out.
        score: See `lit_viz.functional.class_scores`.
        progress: Show a progress bar when it takes longer than three seconds.
        interruptible: Whether Ctrl-C ends it with what there is; otherwise it goes on to whoever called.

    Returns:
        The images, and how it went; that an image could not be fooled is said in its note.

    Raises:
        UsageError: For input of the wrong shape, a class out of range, a bound without a norm, or scores that don't
            depend on the image through differentiable steps.

    Warns:
        UserWarning: If no gradient reaches an image, scores are not finite, colours were out of range, or the network
            is not the same at every pass, with the remedy.

    >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> with torch.no_grad():
    ...     _ = linear[1].weight.copy_(torch.tensor([[3.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]))
    >>> image = torch.tensor([[[[0.6, 0.2], [0.4, 0.8]]]])  # scores 1.8 and 0.6
    >>> found = fooling_image(linear, image, target=1, norm="linf", confidence=0, pixels=PixelSpace())
    >>> bool(found.success), round(float(found.linf * 255))  # 1.2 / 5 = 61.2 / 255 would make them equal
    (True, 62)
    """
    check_images(images)
    check_fooling(norm=norm, bound=bound, confidence=confidence, steps=steps)
    if lr is not None and not 0 < lr < math.inf:
        raise UsageError(f"lr must be positive, got {lr!r}.")
    device, dtype = runs_in(model)
    images = images.detach().to(device or images.device)
    space = pixels or pixel_space_of(model) or guess_pixel_space(images)
    levels = (space.to_color(images) * LEVELS).round()
    beyond = _beyond(images, space)
    inputs = _Inputs(space, dtype or images.dtype)
    before, _ = scores_and_targets(model, inputs(levels), None, score)
    if before.shape[1] == 1:
        score, before = two_classes(score), torch.cat([-before / 2, before / 2], dim=1)
    targets = _targets(before, target)
    with until_interrupted(interruptible) as interrupted, untouched(model), reading(model, score=score) as read:
        search = _Search(
            inputs=inputs,
            targets=targets,
            norm=norm,
            limit=None if bound is None else LEVELS * bound * (1 + _SLACK),
            confidence=confidence,
            steps=steps,
            lr=lr,
            interrupted=interrupted,
            made=torch.zeros(len(images), dtype=torch.int64, device=images.device),
            faults={},
        )
        if isinstance(model, nn.Module):
            for parameter in model.parameters():
                parameter.requires_grad_(False)  # then layers need not keep their inputs; `untouched` sets it back
        change = in_batches(
            lambda which: search.run(read, levels[which], which),
            len(images),
            batch_size or fitting(images[0]),
            images.device,
            description="fooling",
            progress=progress,
        )
    after, _ = scores_and_targets(model, inputs(levels + change), None, score)
    success = _fooled(after, targets, confidence)
    changed = (change.flatten(1).any(dim=1) | beyond).reshape(-1, 1, 1, 1)
    found = Fooling(
        images=torch.where(changed, space.from_color((levels + change) / LEVELS).to(images), images),
        eight_bit=(levels + change).to(torch.uint8),
        perturbation=change / LEVELS,
        targets=targets,
        success=success,
        steps=search.made,
        l2=_size(change, "l2") / LEVELS,
        linf=_size(change, "linf") / LEVELS,
        scores_before=before,
        scores_after=after,
        notes=(),
        interrupted=bool(interrupted),
    )
    notes = []
    for i in range(len(images)):
        fault = OUT_OF_RANGE if beyond[i] else search.faults.get(i, "")
        if not fault and i in search.stopped and not success[i]:
            fault = TRAINING
        notes.append(fault)
    _warn(notes)
    for i, note in enumerate(notes):
        if not note and not success[i]:
            notes[i] = _failed(found, i, confidence, bound)
    return replace(found, notes=tuple(notes))


def check_fooling(*, norm: Norm | None, bound: float | None, confidence: float, steps: int) -> None:
    """Raises `UsageError` for arguments that `fooling_image` doesn't take."""
    check_at_least("steps", steps, 0)
    if norm is not None:
        check_choice("norm", norm, ("l2", "linf"))
    if bound is not None and norm is None:
        raise UsageError("a bound is one of a norm: give norm='linf' (the largest change of a colour) or norm='l2'.")
    if bound is not None and not 1 - _SLACK <= bound * LEVELS < math.inf:
        raise UsageError(
            f"bound is in colour units, where 1 is full intensity, and at least 1/255, the smallest change that 8 bits "
            f"can hold; got {bound:g}."
        )
    if not 0 <= confidence < 1:
        raise UsageError(f"confidence is a probability from 0 to below 1, got {confidence!r}.")


def same_size_noise(found: Fooling, *, seed: int = 0) -> Tensor:
    """The control: images (N, C, H, W) uint8 whose changes are as large as the fooling ones, but go nowhere.

    The changes of each image are dealt out anew to its pixels and channels, with signs at random, so that both norms
    stay what they are. Where a colour would leave its range the sign is turned, and what still doesn't fit is cut off.
    """
    count = found.perturbation[0].numel()
    generator = torch.Generator().manual_seed(seed % 2**63)
    place = torch.randperm(count, generator=generator)
    sign = torch.randint(0, 2, (count,), generator=generator, dtype=torch.int32) * 2 - 1
    change = (found.perturbation * LEVELS).round().to(torch.int32)
    original = found.eight_bit.to(torch.int32) - change
    noise = change.flatten(1)[:, place.to(change.device)].mul(sign.to(change.device)).reshape(change.shape)
    inside = ((original + noise) >= 0) & ((original + noise) <= LEVELS)
    return (original + torch.where(inside, noise, -noise)).clamp(0, LEVELS).to(torch.uint8)


_TINY = torch.finfo(torch.float32).tiny
_SLACK = 1e-9  # of a bound such as 8 / 255, which times 255 need not be 8
_LECTURE = 0.225  # 1 on images normalised by ImageNet's standard deviation
# The search for the smallest change starts with steps of a known size, which fool most networks soon.
_FIRST = {"l2": _LECTURE, "linf": 0.8 / LEVELS}  # in colour units
_GROWTH = 1.03  # of these steps, until the network is fooled: far images are reached, too
_SHRINK = (0.1, 0.001)  # … and changes from then on, at first and at last
_REACH = (0.3, 0.01)  # length of a step at first and at last, in ε
_RELATIVE = 0.1  # length of a step within a bound that is given


@dataclass(frozen=True)
class _Inputs:
    """From levels (n, C, H, W), whole numbers from 0 to 255, to what the network gets from an 8-bit file of these."""

    space: PixelSpace
    dtype: torch.dtype

    def __call__(self, levels: Tensor) -> Tensor:
        return self.space.from_color(levels / LEVELS).to(self.dtype)


@dataclass(frozen=True, kw_only=True)
class _Search:
    """How a batch of images is changed; sizes are in levels of colour.

    Attributes:
        made: (N,), filled in: steps after which each image was found.
        faults: Filled in: what went wrong, by image.
        stopped: Filled in: images that fooled the network.
    """

    inputs: _Inputs
    targets: Tensor
    norm: Norm | None
    limit: float | None
    confidence: float
    steps: int
    lr: float | None
    interrupted: Interruption
    made: Tensor
    faults: dict[int, str]
    stopped: set[int] = field(default_factory=set)

    @property
    def smallest(self) -> bool:
        return self.norm is not None and self.limit is None

    def run(self, read: Read, start: Tensor, which: Tensor) -> Tensor:
        """From originals (n, C, H, W) and which of all images they are to their changes, both in whole levels."""
        best = torch.zeros_like(start)
        size = torch.full((len(start),), torch.inf, dtype=torch.float64, device=start.device)
        at, first = torch.zeros_like(which), torch.zeros_like(which)
        faults: dict[int, str] = {}
        # Of the images that go on: which of the batch, their change, that in whole levels, and its bound.
        alive = torch.arange(len(start), device=start.device)
        delta = torch.zeros_like(start)
        whole = torch.zeros_like(start)
        epsilon = torch.full_like(size, self.limit or torch.inf)
        for step in range(self.steps + 1):
            seen = self._look(read, start[alive] + whole, which[alive])
            fooled, now = seen.fooled, _size(whole, self.norm or "l2")
            better = fooled & (now < size[alive])
            # Until one fools, the last one is what there is.
            taken = better | torch.isinf(size[alive])
            best[alive[taken]], at[alive[taken]] = whole[taken], step
            first[alive[better & torch.isinf(size[alive])]] = step
            size[alive[better]] = now[better]
            for i in (seen.silent | ~seen.finite).nonzero()[:, 0].tolist():
                if math.isinf(size[alive[i]]):
                    faults[int(which[alive[i]])] = seen.cause if seen.finite[i] else NOT_FINITE
            ever = torch.isfinite(size[alive])
            least = 1.0 if self.norm == "linf" else 0.0  # no change that fools is smaller
            enough = size[alive] <= least if self.smallest else ever
            going = ~enough & seen.finite & (ever | ~seen.silent)
            if step == self.steps or not going.any() or self.interrupted:
                break
            keep = going.nonzero()[:, 0]
            alive, delta, whole, epsilon = alive[keep], delta[keep], whole[keep], epsilon[keep]
            gradient = seen.gradient[keep]
            if self.smallest:
                share = (step - first[alive]).double() / (self.steps - first[alive])
                change = _annealed(_SHRINK, share)
                shorter, longer = torch.minimum(epsilon, size[alive]) * (1 - change), epsilon * (1 + change)
                epsilon = torch.where(seen.fooled[keep], shorter, longer)
                free = torch.isinf(epsilon)  # until the network is fooled
                length = torch.where(free, self._length() * _GROWTH**step, _annealed(_REACH, share) * epsilon)
            else:
                length = torch.full_like(epsilon, self._length())
            delta = delta + length.reshape(-1, 1, 1, 1).to(delta) * _direction(gradient, self.norm)
            delta = _in_range(_within(delta, epsilon, self.norm), start[alive])
            whole = _whole(delta, start[alive], epsilon, self.norm)
        # At the end: where memory runs out the batch comes again.
        self.made[which] = at
        self.faults.update(faults)
        self.stopped.update(which[torch.isfinite(size)].tolist())
        return best

    def _look(self, read: Read, levels: Tensor, which: Tensor) -> _Seen:
        """Whether images fool the network, and where to go."""
        levels = levels.detach().requires_grad_(True)
        with torch.enable_grad():
            raw = read(self.inputs(levels), which).scores
            scores = as_float(raw)
            saturating = torch.equal(probabilities(scores), scores)
            if saturating:
                scores = scores.clamp(min=torch.finfo(scores.dtype).tiny).log()  # what the softmax was made of
            targets = self.targets[which]
            own = scores.gather(1, targets[:, None])[:, 0]
            objective = own if self.norm is None else _lead(scores, targets, self.confidence)
            if not objective.requires_grad:
                raise UsageError("the scores do not depend on the image through differentiable operations.")
            (gradient,) = torch.autograd.grad(objective.sum(), levels, allow_unused=True, retain_graph=True)
            if gradient is None:
                raise UsageError("the scores do not depend on the image.")
            silent = gradient.flatten(1).abs().amax(dim=1) == 0
            cause = SATURATED
            if not saturating and silent.any() and find_activations(objective).rectifiers:
                cause = DEAD
        finite = torch.isfinite(scores).all(dim=1) & torch.isfinite(gradient).flatten(1).all(dim=1)
        return _Seen(_fooled(raw.detach(), targets, self.confidence), gradient, silent, finite, cause)

    def _length(self) -> float:
        """Of the first step, in levels."""
        if self.lr is not None:
            return LEVELS * self.lr
        if self.limit is not None:
            return _RELATIVE * self.limit
        return LEVELS * (_FIRST[self.norm] if self.norm else _LECTURE)


@dataclass(frozen=True)
class _Seen:
    """What a network says of n images."""

    fooled: Tensor
    gradient: Tensor
    silent: Tensor
    finite: Tensor
    cause: str


def _lead(scores: Tensor, targets: Tensor, confidence: float) -> Tensor:
    """How far the target is ahead, (n,): not negative where it is first, and as probable as asked for."""
    own = scores.gather(1, targets[:, None])[:, 0]
    others = scores.scatter(1, targets[:, None], -torch.inf)
    ahead = own - others.amax(dim=1)
    if confidence == 0:
        return ahead
    return torch.minimum(ahead, own - others.logsumexp(dim=1) - math.log(confidence / (1 - confidence)))


def _fooled(scores: Tensor, targets: Tensor, confidence: float) -> Tensor:
    """Whether the target is predicted with the confidence that is asked for, (n,)."""
    p = probabilities(scores).gather(1, targets[:, None])[:, 0]
    return (scores.argmax(dim=1) == targets) & (p >= confidence)


def _targets(scores: Tensor, target: Target | str) -> Tensor:
    if isinstance(target, str):
        check_choice("target", target, ("runner_up", "least_likely", "a class index"))
    if target == "least_likely":
        return scores.argmin(dim=1)
    if target is None or isinstance(target, str):
        return scores.topk(2, dim=1).indices[:, 1]
    return resolve_target(scores, target)


def _direction(gradient: Tensor, norm: Norm | None) -> Tensor:
    """Where changes of norm 1 lead furthest up."""
    if norm == "linf":
        return gradient.sign()
    # Divided by its largest value first: squares of tiny gradients would vanish.
    direction = gradient / gradient.flatten(1).abs().amax(dim=1).clamp(min=_TINY).reshape(-1, 1, 1, 1)
    return direction / _size(direction, "l2").clamp(min=_TINY).to(gradient).reshape(-1, 1, 1, 1)


def _size(change: Tensor, norm: Norm) -> Tensor:
    """Norm of each change (n, C, H, W), (n,) float64."""
    flat = change.double().flatten(1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().amax(dim=1)


def _within(delta: Tensor, epsilon: Tensor, norm: Norm | None) -> Tensor:
    """The nearest changes whose norm is at most ε."""
    if norm is None:
        return delta
    bound = epsilon.reshape(-1, 1, 1, 1).to(delta)
    if norm == "linf":
        return torch.minimum(torch.maximum(delta, -bound), bound)
    return delta * (epsilon / _size(delta, "l2").clamp(min=1e-30)).clamp(max=1.0).to(delta).reshape(-1, 1, 1, 1)


def _in_range(delta: Tensor, start: Tensor) -> Tensor:
    """Changes that leave colours between black and full intensity."""
    return torch.minimum(torch.maximum(delta, -start), LEVELS - start)


def _whole(delta: Tensor, start: Tensor, epsilon: Tensor, norm: Norm | None) -> Tensor:
    """Changes in whole levels: the nearest that stay in range and within ε."""

    def rounded(scale: Tensor) -> Tensor:
        scaled = (delta * scale.reshape(-1, 1, 1, 1).to(delta)).round()
        return _in_range(scaled, start)

    whole = rounded(torch.ones_like(epsilon))
    if norm == "linf":
        return _within(whole, epsilon.floor(), norm)
    if norm is None:
        return whole
    # Rounding can make a change longer; then it is shortened, as little as will do, before it is rounded.
    low, high = torch.zeros_like(epsilon), torch.ones_like(epsilon)
    fits = _size(whole, "l2") <= epsilon
    for _ in range(12):
        if fits.all():
            break
        middle = (low + high) / 2
        short = _size(rounded(middle), "l2") <= epsilon
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return torch.where(fits.reshape(-1, 1, 1, 1), whole, rounded(low))


def _annealed(ends: tuple[float, float], share: Tensor) -> Tensor:
    """From the first value to the last one, along half a cosine."""
    first, last = ends
    return last + (first - last) * (1 + torch.cos(math.pi * share)) / 2


def _beyond(images: Tensor, space: PixelSpace) -> Tensor:
    """Images (N,) that hold colours out of range, by more than rounding would, or no numbers."""
    inside = (space.from_color(space.to_color(images)) - images).abs()
    std = space.from_color(torch.ones_like(images[:1])) - space.from_color(torch.zeros_like(images[:1]))
    return ~(inside <= std / LEVELS / 2).flatten(1).all(dim=1)


def _failed(found: Fooling, image: int, confidence: float, bound: float | None) -> str:
    """Why an image, for which nothing went wrong, did not fool the network."""
    reached, asked = float(found.confidence_after[image]), f" of the {confidence:g}" if confidence else ""
    if found.interrupted:
        return f"stopped by hand: the target has {reached:.2g}{asked} after {int(found.steps[image])} steps"
    more = "more steps" if bound is None else "more steps, a larger bound"
    return (
        f"not fooled: the target has {reached:.2g}{asked} after {int(found.steps[image])} steps; give {more}, another "
        f"target{' or less confidence' if confidence else ''}"
    )


def _warn(notes: list[str]) -> None:
    for note in dict.fromkeys(filter(None, notes)):
        which = [i for i, other in enumerate(notes) if other == note]
        told = "" if len(which) == len(notes) else f" image {', '.join(map(str, which[:8]))}{' …' * (len(which) > 8)}:"
        warnings.warn(f"fooling images:{told} {note}.", stacklevel=3)
