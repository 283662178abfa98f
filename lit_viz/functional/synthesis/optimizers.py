"""Optimizers of images: steps of a known size whatever the scale of scores, and Adam that comes to rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lit_viz.errors import UsageError, check_choice

_EVALUATIONS = 26  # of a start and a line search

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
"""Makes an optimizer, any of torch's among them, of one tensor (n, …); it is to minimise."""


class NormalizedSGD(torch.optim.Optimizer):
    r"""Steps along the gradient of each image divided by its size.

    $$x \leftarrow x - \eta_t\, g / \lVert g \rVert$$

    Args:
        parameters: Tensors (n, …), one entry for each image.
        lr: η; how far a step goes in the norm that is named.
        norm: "l2"; "mean_abs", for the mean of |g|, so that η is about the change of a single pixel; or "max", so
            that η is the largest one.
        final_lr: η after `steps` steps, to which it falls evenly; None for a constant one.
        steps: How many steps there will be, for `final_lr`.
    """

    def __init__(
        self,
        parameters: list[Tensor],
        lr: float,
        *,
        norm: Literal["l2", "mean_abs", "max"] = "l2",
        final_lr: float | None = None,
        steps: int = 1,
    ) -> None:
        check_choice("norm", norm, ("l2", "mean_abs", "max"))
        if not lr > 0:
            raise UsageError(f"lr must be positive, got {lr}.")
        super().__init__(parameters, {"lr": lr})
        self.norm, self.final_lr, self.steps, self.done = norm, final_lr, steps, 0

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; `closure` computes the gradient."""
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                rate = group["lr"]
                if self.final_lr is not None:
                    rate += (self.final_lr - rate) * min(1.0, self.done / max(1, self.steps))
                for values in group["params"]:
                    if values.grad is None:
                        continue
                    flat = values.grad.flatten(1)
                    size = {
                        "l2": _norm,
                        "mean_abs": lambda g: g.abs().mean(dim=1),
                        "max": lambda g: g.abs().amax(dim=1),
                    }[self.norm](flat)
                    # A gradient of nothing moves nothing.
                    size = torch.where(size > 0, size, 1.0).reshape(-1, *[1] * (values.dim() - 1))
                    values.sub_(rate * values.grad / size)
        self.done += 1
        return loss


class CosineAdam(torch.optim.Adam):
    """Adam whose rate falls along half a cosine to nothing: what is gained at the end is fine detail.

    Args:
        parameters: As for Adam.
        lr: At the start.
        steps: After how many steps it is nothing.
    """

    def __init__(self, parameters: Any, lr: float, *, steps: int) -> None:
        super().__init__(parameters, lr=lr, betas=(0.9, 0.99))
        for group in self.param_groups:
            group.update(first_lr=lr, done=0, steps=steps)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; `closure` computes the gradient."""
        for group in self.param_groups:
            group["lr"] = group["first_lr"] * 0.5 * (1 + math.cos(math.pi * group["done"] / max(1, group["steps"])))
            group["done"] += 1
        return super().step(closure)


def quasi_newton(*, lr: float = 1.0, iterations: int = 1, history: int) -> MakeOptimizer:
    """Makes L-BFGS with a line search for the strong Wolfe conditions.

    It never ends by itself: losses of deep layers and their gradients are small all along.

    Args:
        lr: First step that is tried along a line.
        iterations: In each step of the optimizer.
        history: How many iterations are remembered.
    """
    return partial(
        torch.optim.LBFGS,
        lr=lr,
        max_iter=iterations,
        # By default, None, a single iteration has no room for a search.
        max_eval=_EVALUATIONS if iterations == 1 else None,
        history_size=history,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )


def _norm(flat: Tensor) -> Tensor:
    """Lengths of rows; squares of what is small would be nothing, and those of what is large infinite."""
    largest = flat.abs().amax(dim=1)
    return largest * (flat / torch.where(largest > 0, largest, 1.0)[:, None]).norm(dim=1)
