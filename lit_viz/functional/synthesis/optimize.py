"""The one loop behind all methods that make images: freeze the network, and optimise the image."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.batches import fitting, in_batches
from lit_viz.functional.guided import find_activations
from lit_viz.functional.interruption import Interruption, until_interrupted
from lit_viz.functional.scores import Model, Score
from lit_viz.functional.synthesis.objectives import Objective
from lit_viz.functional.synthesis.optimizers import MakeOptimizer
from lit_viz.functional.synthesis.parameterizations import Parameterization, Pixels
from lit_viz.functional.synthesis.reading import Read, Reading, reading, runs_in
from lit_viz.functional.synthesis.regularizers import Constraint, Penalty
from lit_viz.functional.synthesis.transforms import Transform
from lit_viz.guard import untouched

REDIRECTED = 16
"""Steps in which an image without any gradient gets that of a network whose ReLUs let all of it back."""

FAINT = 1e-12
"""A gradient with no entry as large as that is lost: it is nothing next to what optimizers add to a denominator."""

DEAD = (
    "no gradient reaches the image: every way goes through a ReLU that is off (dead); start from noise with another "
    "seed, from an image, or take the layer in front of the ReLU"
)
SATURATED = (
    "no gradient reaches the image: what is asked for is saturated, as probabilities are; give the scores in front of "
    "the softmax or sigmoid, by score=… or by the name of their layer"
)
NOT_FINITE = "the objective is NaN or infinite; take smaller steps"
NOT_RISEN = "the objective did not rise; take another step size, or more steps"
TRAINING = (
    "the network gives the same image other scores beside other images, or at another time, as dropout and batch norm "
    "in training mode do; call eval() on it (a function around a module hides that from us)"
)


@dataclass(frozen=True, eq=False)
class Synthesis:
    """Images that were made, and how it went.

    Attributes:
        images: (N, C, H, W), as the network takes them, on its device.
        values: (N, …), what was optimised: the images, their spectrum, their code.
        objective: (N,), of the images as they are at the end, without changes at random and without penalties; NaN
            where it was stopped by hand before an image was begun.
        history: (steps, N), before each step, of the images as they were changed at random; on the CPU. NaN where a
            step was not made.
        scores: (N, K) at the end; None where the objective reads layers alone.
        notes: For each image what went wrong, in words with the remedy; empty where nothing did.
        snapshots: Steps, and the images (N, C, H, W) after them, on the CPU.
        interrupted: Whether it was stopped by hand, so that this is what had come of it by then.
    """

    images: Tensor
    values: Tensor
    objective: Tensor
    history: Tensor
    scores: Tensor | None
    notes: tuple[str, ...]
    snapshots: tuple[tuple[int, Tensor], ...] = ()
    interrupted: bool = False


def optimize(
    model: Model,
    objective: Objective,
    values: Tensor,
    *,
    make_optimizer: MakeOptimizer,
    steps: int,
    parameterization: Parameterization | None = None,
    transforms: Sequence[Transform] = (),
    settle: int = 0,
    penalties: Sequence[tuple[float, Penalty]] = (),
    constraints: Sequence[Constraint] = (),
    on_step: Callable[[int, Tensor], bool | None] | None = None,
    snapshot_every: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    score: Score | None = None,
    progress: bool = False,
    description: str = "",
    interruptible: bool = True,
) -> Synthesis:
    r"""Makes images for which an objective is large, by gradient ascent on them with the network as it is.

    $$x \leftarrow x + \eta\,\nabla_x \Bigl(f(T(x)) - \sum_i \lambda_i R_i(x)\Bigr)$$

    with changes T at random, penalties R, and constraints applied after each step. Images don't influence each other;
    they are optimised in batches that fit into memory. An image whose gradient is nothing at first, because every ReLU
    on its way is off, is led by a gradient that ReLUs let pass, for at most `REDIRECTED` steps. What went wrong is told
    for each image in `Synthesis.notes`, and in one warning.

    Args:
        model: Maps (N, C, H, W) to (N, K) scores; with `score`, to anything. Left as it was found.
        objective: What is to be made large.
        values: (N, …), where to start; brought to the device of the network.
        make_optimizer: From a list of one tensor to an optimizer of torch's that minimises; L-BFGS takes one image at a
            time (`batch_size=1`), since its line search is one for all that it optimises.
        steps: How many. None at all gives back what went in.
        parameterization: From values to images; the values are the images where it is not given.
        transforms: Changes at random before each step.
        settle: How many of the last steps take the images as they are, without these changes.
        penalties: Weights and functions of the images, taken away from the objective.
        constraints: Changes of the values after each step, in their order.
        on_step: Called after each step of a batch with how many were made, and the images (n, C, H, W); True ends it.
        snapshot_every: Keep the images after every so many steps.
        batch_size: Images in one pass; by default as many as fit 16 of 3×224×224, halved whenever memory runs out.
        seed: For changes at random, by a generator of their own.
        score: See `lit_viz.functional.class_scores`.
        progress: Show a progress bar with the objective, if it takes longer than three seconds.
        description: Of the progress bar.
        interruptible: Whether Ctrl-C ends it with what there is; otherwise it goes on to whoever called.

    Returns:
        The images, and how it went.

    Raises:
        UsageError: For an unknown layer, scores or channels that aren't there, an objective for another number of
            images, or one that doesn't depend on the image; for a line search over several images at once.

    Warns:
        UserWarning: If an image could not be made as it was wanted, with the cause and the remedy.
    """
    check_at_least("steps", steps, 0)
    if batch_size is not None:
        check_at_least("batch_size", batch_size, 1, " or None")
    count = len(values)
    if not count:
        raise UsageError("there are no images to be made: values are empty.")
    if objective.count not in (None, count):
        raise UsageError(f"the objective is for {objective.count} images, but {count} are to be made.")
    if snapshot_every is not None:
        check_at_least("snapshot_every", snapshot_every, 1, " or None")
    parameterization = parameterization or Pixels()
    device, dtype = runs_in(model)
    dtype = dtype or values.dtype
    with torch.inference_mode(False):  # whose tensors could not be changed later
        start = values.detach().to(device or values.device, torch.promote_types(torch.float32, dtype), copy=True)
        course = _Course(count, steps)
    if isinstance(model, nn.Module) and any(parameter.is_inference() for parameter in model.parameters()):
        raise UsageError(
            "the weights were made in torch.inference_mode, and no gradient passes through these; build or load the "
            "network outside of it."
        )
    mixed = torch.is_autocast_enabled(start.device.type)
    with (
        until_interrupted(interruptible) as interrupted,
        untouched(model, seed=seed),
        # Mixed precision is for the network alone: images would be left with the 8 bits of bfloat16.
        torch.autocast(start.device.type, enabled=False) if mixed else nullcontext(),
        reading(model, objective.layers, needs_scores=objective.needs_scores, score=score) as read,
        tqdm(total=steps * count, desc=description, unit="step", delay=3, disable=not progress, leave=False) as bar,
    ):
        if isinstance(model, nn.Module):
            for parameter in model.parameters():
                parameter.requires_grad_(False)  # then layers need not keep their inputs; `untouched` sets it back
        with torch.no_grad():
            image = parameterization.images(start[:1])
            with _precision(start.device, mixed):
                in_training = steps > 0 and _in_training(read, image.to(dtype))
        ascent = _Ascent(
            objective=objective,
            parameterization=parameterization,
            read=read,
            dtype=dtype,
            mixed=mixed,
            steps=steps,
            make_optimizer=make_optimizer,
            transforms=transforms,
            settle=settle,
            penalties=penalties,
            constraints=constraints,
            on_step=on_step,
            snapshot_every=snapshot_every,
            seed=seed,
            interrupted=interrupted,
            course=course,
            bar=bar,
        )
        final = in_batches(
            lambda which: ascent.run(start[which], which), count, batch_size or fitting(image[0]), start.device
        )
        with torch.no_grad():
            images = torch.cat([parameterization.images(one) for one in final.split(fitting(image[0]))])
    notes = tuple(TRAINING if in_training else course.note(i) for i in range(count))
    for note in dict.fromkeys(filter(None, notes)):
        which = [i for i, other in enumerate(notes) if other == note]
        told = "" if len(which) == count else f" image {', '.join(map(str, which[:8]))}{' …' * (len(which) > 8)}:"
        warnings.warn(f"{description or 'optimization'}:{told} {note}.", stacklevel=3)
    return Synthesis(
        images=images,
        values=final,
        objective=course.objective.to(images.device),
        history=course.history,
        scores=torch.stack([course.scores[i] for i in range(count)]) if len(course.scores) == count else None,
        notes=notes,
        snapshots=tuple(
            (step, torch.stack([images[i] for i in range(count)]))
            for step, images in sorted(course.snapshots.items())
            if len(images) == count
        ),
        interrupted=bool(interrupted),
    )


class _Course:
    """What is collected along the way, for all images."""

    def __init__(self, count: int, steps: int) -> None:
        self.history = torch.full((steps, count), torch.nan, dtype=torch.float32)
        self.objective = torch.full((count,), torch.nan, dtype=torch.float32)
        self.before = torch.full((count,), torch.nan, dtype=torch.float32)
        self.made = torch.zeros(count, dtype=torch.int64)  # steps
        self.lost = torch.zeros(count, dtype=torch.int64)  # steps without any gradient
        self.dead = torch.zeros(count, dtype=torch.bool)  # whether ReLUs are why
        self.scores: dict[int, Tensor] = {}
        self.snapshots: dict[int, dict[int, Tensor]] = {}

    def note(self, image: int) -> str:
        """What went wrong with an image."""
        made, lost = int(self.made[image]), int(self.lost[image])
        if made == 0:
            return ""
        history, last, before = self.history[:made, image], self.objective[image], self.before[image]
        if 2 * lost > made and not (lost < made and last > before):
            return DEAD if self.dead[image] else SATURATED
        if not (torch.isfinite(history).all() and torch.isfinite(last)):
            return NOT_FINITE
        return "" if last > before else NOT_RISEN


class _AmidSearch(Exception):
    """Whoever waits for the end does not wait for that of a line search."""


@dataclass(frozen=True, kw_only=True)
class _Ascent:
    """How batches of images are optimised."""

    objective: Objective
    parameterization: Parameterization
    read: Read
    dtype: torch.dtype
    mixed: bool
    steps: int
    make_optimizer: MakeOptimizer
    transforms: Sequence[Transform]
    settle: int
    penalties: Sequence[tuple[float, Penalty]]
    constraints: Sequence[Constraint]
    on_step: Callable[[int, Tensor], bool | None] | None
    snapshot_every: int | None
    seed: int
    interrupted: Interruption
    course: _Course
    bar: tqdm

    def run(self, start: Tensor, which: Tensor) -> Tensor:
        """From where a batch starts to where it ends, (n, …) both."""
        if self.interrupted:
            return start
        shown = self.bar.n
        try:
            return self._run(start.requires_grad_(True), which)
        except RuntimeError:
            self.bar.n = shown  # where memory runs out the batch comes again, in two
            raise

    def _run(self, values: Tensor, which: Tensor) -> Tensor:
        history: list[Tensor] = []
        lost = torch.zeros(len(values), dtype=torch.int64, device=values.device)
        start = values.detach().clone()
        self._climb(values, which, history, lost)
        rows = which.cpu()
        if bool((2 * lost > len(history)).any()):
            generator = torch.Generator().manual_seed(self.seed % 2**63)
            self.course.dead[rows] = (self._gradient(values, which, generator, redirected=True)[3] > FAINT).cpu()
        values = values.detach()
        reading, objective = self._told(values, which)
        self.course.objective[rows] = objective
        if reading.all_scores is not None:
            self.course.scores.update(zip(rows.tolist(), reading.all_scores, strict=True))
        if history:
            self.course.history[: len(history), rows] = torch.stack(history).float().cpu()
            before = self.course.history[0, rows]
            if self.transforms and not bool((objective > before).all()):
                before = self._told(start, which)[1]  # like with like: the first step's images were changed at random
            self.course.before[rows] = before
        self.course.made[rows], self.course.lost[rows] = len(history), lost.cpu()
        return values

    def _told(self, values: Tensor, which: Tensor) -> tuple[Reading, Tensor]:
        """What the network says of images as they are, and the objective (n,) of that, float32 on the CPU."""
        with torch.no_grad():
            images = self.parameterization.images(values).to(self.dtype)
            with _precision(values.device, self.mixed):
                reading = self.read(images, which)
                return reading, self.objective(reading).float().cpu()

    def _climb(self, values: Tensor, which: Tensor, history: list[Tensor], lost: Tensor) -> None:
        """All steps of a batch, in place; tells the objective before each, and counts those without gradient."""
        generator = torch.Generator().manual_seed(self.seed % 2**63)
        optimizer = self.make_optimizer([values])
        searches = isinstance(optimizer, torch.optim.LBFGS)
        if searches and len(values) > 1:
            raise UsageError("L-BFGS has one line search for all that it optimises: take batch_size=1.")
        for step in range(self.steps):
            drawn = generator.get_state()
            kept = values.detach().clone() if searches else None
            first: list[tuple[Tensor, Tensor]] = []  # objective and gradient; a line search asks several times

            def closure(step: int = step, drawn: Tensor = drawn, first: list[Any] = first) -> Tensor:
                if self.interrupted and first:
                    raise _AmidSearch
                generator.set_state(drawn)  # … and compares like with like
                changing = generator if step < self.steps - self.settle else None
                objective, total, gradient, size = self._gradient(values, which, changing)
                if step < REDIRECTED and bool((size == 0).any()):
                    generator.set_state(drawn)
                    gradient = torch.where(
                        (size == 0).reshape(-1, *[1] * (values.dim() - 1)),
                        self._gradient(values, which, changing, redirected=True)[2],
                        gradient,
                    )
                if not first:
                    first.append((objective, gradient))
                    lost.add_(size < FAINT)
                values.grad = -gradient
                return -total

            try:
                optimizer.step(closure)
            except _AmidSearch:
                assert kept is not None
                with torch.no_grad():
                    values.copy_(kept)
                return
            with torch.no_grad():
                for constraint in self.constraints:
                    constraint(values, first[0][1], step)
                self.parameterization.project(values)
            history.append(first[0][0])
            self.bar.update(len(values))
            if not self.bar.disable and step % 10 == 0:
                self.bar.set_postfix(objective=f"{first[0][0].mean().item():.4g}", refresh=False)
            if self._shown(step + 1, values, which) or self.interrupted:
                return

    def _gradient(
        self, values: Tensor, which: Tensor, generator: torch.Generator | None, *, redirected: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Objective (n,), the sum less penalties, its gradient (n, …), and the largest entry of the objective's own."""
        images = self.parameterization.images(values)
        changed = images
        for transform in self.transforms if generator is not None else ():
            changed = transform(changed, generator)
        with _precision(values.device, self.mixed):
            objective = self.objective(self.read(changed.to(self.dtype), which))
        if objective.shape != (len(values),):
            raise UsageError(f"the objective gave {tuple(objective.shape)} for {len(values)} images; (N,) is needed.")
        if not objective.requires_grad:
            raise UsageError("the objective does not depend on the image through differentiable operations.")
        if redirected:
            try:
                found = find_activations(objective).rectifiers
            except UsageError:  # parts compiled by TorchScript show none
                found = []
            for node in found:
                node.register_hook(lambda before, behind: (behind[0], *before[1:]))
        total = objective.sum()
        (gradient,) = torch.autograd.grad(total, images, allow_unused=True)
        if gradient is None:
            raise UsageError("the objective does not depend on the image.")
        if images is not values:
            (gradient,) = torch.autograd.grad(images, values, gradient, retain_graph=bool(self.penalties))
        size = gradient.flatten(1).abs().amax(dim=1)
        if self.penalties:
            penalty = torch.stack([w * p(images) for w, p in self.penalties]).sum()
            (pull,) = torch.autograd.grad(penalty, values)
            gradient, total = gradient - pull, total - penalty
        # A copy: what is kept for the history must not keep the map that it may be a part of.
        return objective.detach().clone(), total.detach(), gradient, size

    def _shown(self, done: int, values: Tensor, which: Tensor) -> bool:
        """Keeps a snapshot where one is due, and tells whoever wants to know; whether that is enough."""
        due = self.snapshot_every is not None and (done % self.snapshot_every == 0 or done == self.steps)
        if not due and self.on_step is None:
            return False
        with torch.no_grad():
            images = self.parameterization.images(values).detach().clone()  # whoever keeps it wants this step's
        if due:
            self.course.snapshots.setdefault(done, {}).update(zip(which.tolist(), images.cpu(), strict=True))
        return self.on_step is not None and bool(self.on_step(done, images))


def _precision(device: torch.device, mixed: bool) -> AbstractContextManager[Any]:
    """Mixed precision, where whoever called had it."""
    return torch.autocast(device.type) if mixed else nullcontext()


def _in_training(read: Read, image: Tensor) -> bool:
    """Whether what is read of an image depends on other images beside it, or on the time."""
    which = torch.zeros(1, dtype=torch.int64, device=image.device)
    # No image equals its mirror image taken from an uneven ramp, so that the other one is another one.
    ramp = torch.linspace(0, 1, image.shape[-1], dtype=image.dtype, device=image.device).square()
    one, two = read(image, which), read(torch.cat([image, ramp - image.flip(-1)]), which.expand(2))
    # Outputs for an image alone and in a pair differ by rounding; what dropout and batch norm do is much larger.
    rough = image.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(image.device.type)
    for alone, pair in zip(_outputs(one), _outputs(two), strict=False):
        if pair.shape == (2 * len(alone), *alone.shape[1:]):
            difference = (alone - pair[: len(alone)]).abs().max()
            if bool(difference > (0.1 if rough else 1e-3) * pair.abs().max()):
                return True
    return False


def _outputs(reading: Reading) -> list[Tensor]:
    scores = [] if reading.all_scores is None else [reading.all_scores]
    return [output for calls in reading.calls.values() for output in calls] + scores
