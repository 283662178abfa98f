"""How little it takes to fool the network, on the probe images, over the run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_viz import draw, functional
from lit_viz.callbacks.base import Look, VisualizationCallback
from lit_viz.errors import UsageError
from lit_viz.functional.classes import class_index
from lit_viz.functional.fooling import check_fooling
from lit_viz.functional.scores import Model, Score

_FACTORS = (1, 2, 5, 10, 20, 50, 100)


class FoolingImages(VisualizationCallback):
    """Probe images, changed until the network takes them for another class, see `functional.fooling_image`.

    It is for watching robustness while a network trains: what it takes to fool it, beside how often it is right. A
    change that nobody sees has little to do with what the class looks like; adversarial training makes it larger, as
    `fooling/l2` and `fooling/linf` tell over the run. A network whose output is saturated hides its gradient and only
    looks robust: notes below the images say so. As a control, noise made of the very same changes, dealt out at
    random, is shown to the network as well; it should change little.

    Tag: `fooling/probe`. Numbers, judged on images as 8-bit files hold them, in colour units, where 1 is full
    intensity: `fooling/success`, the share that was fooled of those images that were not taken for the target with
    the confidence from the start; of those that were fooled `fooling/l2` and `fooling/linf`, mean norms of the change,
    and `fooling/steps`, the median number of steps.

    Args:
        to: What images are to be taken for: "other", for each image a class at random that is not its own, the same
            one over the run where labels are known; "runner_up" or "least_likely", as the network ranks them at the
            time; a class index or name, or a list of these, one for each image. An image's own class is its label, or
            what `target` says.
        norm: "l2" or "linf" to look for the smallest change, or to bound it; None for the lecture's plain gradient
            ascent on the score of the target, beside which another class may rise even faster.
        bound: Of the norm, in colour units, such as 0.0314 (8/255); None for the smallest change.
        confidence: Probability to be reached, below 1; by default none, so that an image counts as fooled once the
            network takes it for the target. A network early in training is sure of nothing: with a bar its curves would
            tell of that rather than of how much it takes to fool it.
        steps: At most so many, of one pass forth and back each.
        **kwargs: See `VisualizationCallback`.
    """

    tag = "fooling"

    def __init__(
        self,
        *,
        to: int | str | Sequence[int | str] = "other",
        norm: Literal["l2", "linf"] | None = "l2",
        bound: float | None = None,
        confidence: float = 0.0,
        steps: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_fooling(norm=norm, bound=bound, confidence=confidence, steps=steps)
        self.to, self.norm, self.bound = to, norm, bound
        self.confidence, self.steps = confidence, steps

    def check(self, look: Look) -> None:
        self._fooled(look, steps=0)

    def visualize(self, look: Look) -> Mapping[str, np.ndarray | float]:
        found = self._fooled(look, steps=self.steps)
        noise = look.pixels.from_color(functional.same_size_noise(found, seed=self.seed) / 255).to(look.images)
        control = two_scores(look.model, noise, score=look.score)
        drawn: dict[str, np.ndarray | float] = {
            "probe": fooling_sheet(
                found,
                control,
                class_name=look.class_name,
                names=look.names,
                title=f"Fooling images · {look.when}",
                subtitle=how_it_was_fooled(self.norm, self.bound, self.confidence),
            )
        }
        challenged = ~(found.success & (found.steps == 0))
        won = found.success & challenged
        if challenged.any():
            drawn["success"] = float(won.sum() / challenged.sum())
        if won.any():
            drawn |= {
                "l2": float(found.l2[won].mean()),
                "linf": float(found.linf[won].mean()),
                "steps": float(np.median(found.steps[won].cpu().numpy())),
            }
        return drawn

    def _fooled(self, look: Look, *, steps: int) -> functional.Fooling:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the picture says it
            return functional.fooling_image(
                look.model,
                look.images,
                self._classes(look),
                norm=self.norm,
                bound=self.bound,
                confidence=self.confidence,
                steps=steps,
                pixels=look.pixels,
                score=look.score,
                progress=look.model.trainer.progress_bar_callback is not None,
                interruptible=False,
            )

    def _classes(self, look: Look) -> Any:
        """What each image is to be taken for, as `fooling_image` takes it."""
        count, classes = len(look.images), max(2, look.scores.shape[1])
        if self.to in ("runner_up", "least_likely"):
            return self.to
        if self.to == "other":
            generator = torch.Generator().manual_seed(self.seed % 2**63)
            two = torch.stack([torch.randperm(classes, generator=generator)[:2] for _ in range(count)])
            own = look.targets.cpu()
            return torch.where(two[:, 0] == own, two[:, 1], two[:, 0])
        if isinstance(self.to, (int, str)):
            return class_index(self.to, look.class_names)
        if len(self.to) != count:
            raise UsageError(f"to names {len(self.to)} classes for {count} probe images; give one, or one for each.")
        return torch.tensor([class_index(one, look.class_names) for one in self.to])


def two_scores(model: Model, images: Tensor, *, score: Score | None = None) -> Tensor:
    """Scores (N, K), of two classes where there is one, as `fooling_image` has them."""
    with torch.no_grad():
        scores = functional.class_scores(model, images, score=score)
    return torch.cat([-scores / 2, scores / 2], dim=1) if scores.shape[1] == 1 else scores


def how_it_was_fooled(norm: str | None, bound: float | None, confidence: float) -> str:
    """What was done to the images, in words for a subtitle."""
    size = {"l2": "L2", "linf": "L∞"}.get(norm or "", "")
    if norm is None:
        way = "by gradient ascent"
    elif bound is None:
        way = f"as little as can be ({size})"
    else:
        way = f"by at most {f'{255 * bound:.3g}/255' if norm == 'linf' else f'{bound:.3g}'} ({size})"
    least = f" with p ≥ {confidence:g}" if confidence else ""
    return (
        f"Each image is changed {way} until the network takes it for the named class{least}, as an 8-bit picture. "
        f"Shuffled: the same changes at other places."
    )


def fooling_sheet(
    found: functional.Fooling,
    control: Tensor,
    *,
    class_name: Callable[[int], str],
    names: Sequence[str] | None = None,
    title: str,
    subtitle: str,
) -> np.ndarray:
    """One card for each image: the image, what it was changed to, and the difference, made large.

    Args:
        found: What came of `functional.fooling_image`.
        control: Scores (N, K) of images changed by noise of the same size.
        class_name: From an index to a name.
        names: Of the images.
        title: Of the picture.
        subtitle: How to read it.
    """
    colors = found.eight_bit.float() / 255
    factor = _amplification(found.perturbation)
    pictures = [draw.to_uint8(one) for one in (colors - found.perturbation, colors, 0.5 + factor * found.perturbation)]
    scores = (found.scores_before, found.scores_after, control)
    before, after, noise = (functional.probabilities(one).cpu() for one in scores)
    cards = []
    for i, target in enumerate(found.targets.tolist()):

        def said(p: Tensor, i: int = i) -> str:
            best = int(p[i].argmax())
            return f"{class_name(best)} {float(p[i, best]):.2f}"

        p, steps = float(after[i, target]), int(found.steps[i])
        details = [
            "" if found.success[i] else found.notes[i],
            "" if int(after[i].argmax()) == target else f"wanted: {class_name(target)} {p:.2f}",
            f"L2 {float(found.l2[i]):.2f}",
            f"L∞ {float(found.linf[i]) * 255:.0f}/255",
            f"{steps} step{'s' * (steps != 1)}",
            f"shuffled: {said(noise)}",
            found.notes[i] if found.success[i] else "",
            names[i] if names else "",
        ]
        cards.append(
            draw.Card([p[i] for p in pictures], f"{said(before)}  → {said(after)}", " · ".join(filter(None, details)))
        )
    columns = ("image", "fooled", f"difference × {factor}")
    return draw.sheet(cards, columns=columns, title=title, subtitle=subtitle)


def _amplification(change: Tensor) -> int:
    """The factor that makes changes well seen: few of them reach black or full intensity."""
    size = change.abs()[change != 0].double().cpu().numpy()
    bright = float(np.percentile(size, 99)) if size.size else 1 / 255
    return max((f for f in _FACTORS if f * bright <= 0.55), default=1)
