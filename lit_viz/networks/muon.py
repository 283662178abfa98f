"""Muon: an optimizer that takes steps along all directions of a kernel at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lit_viz.errors import UsageError

# Of a polynomial x → a x + b x³ + c x⁵ that takes singular values between 0 and 1 to about 1 in five rounds.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5
_RMS = 0.2  # of an update, about that of Adam


class Muon(torch.optim.Optimizer):
    r"""Momentum whose singular values are all brought to about 1, for kernels; Adam for biases, γ and β.

    $$M \leftarrow \mu M + G, \qquad W \leftarrow W - \eta\, s\, U V^\top \quad\text{where}\quad
      G + \mu M = U \Sigma V^\top$$

    A kernel (out, in, h, w) is the matrix (out, in·h·w). Gradients of image-to-image networks have few directions that
    are much larger than the others; here these grow as well. UVᵀ is not computed by the decomposition, but nearly, by a
    Newton–Schulz iteration (Jordan, Jin, Boza, You, Cesista, Newhouse & Bernstein, *Muon: An Optimizer for Hidden
    Layers in Neural Networks*, 2024). The factor $s = 0.2\sqrt{\max(\text{out}, \text{in}\cdot h\cdot w)}$ makes
    updates as large as Adam's, so that one rate serves both (Liu et al., *Muon is Scalable for LLM Training*, 2025).

    Args:
        params: Parameters, or groups of them.
        lr: η.
        momentum: μ.
        betas: Of Adam, for parameters of one dimension.
        eps: Of Adam.

    Raises:
        UsageError: For rates out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.004,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        if not lr > 0:
            raise UsageError(f"lr must be positive, got {lr}.")
        if not 0 <= momentum < 1 or not all(0 <= beta < 1 for beta in betas):
            raise UsageError(f"momentum and betas are from 0 to below 1, got {momentum} and {tuple(betas)}.")
        super().__init__(params, {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; `closure`, if given, computes the gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if weight.dim() < 2:
                    self._adam(weight, group)
                else:
                    self._muon(weight, group)
        return loss

    def _muon(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        mean = state["momentum"].mul_(group["momentum"]).add_(weight.grad)
        update = (weight.grad + group["momentum"] * mean).flatten(1)
        scale = _RMS * max(update.shape) ** 0.5
        weight.sub_(group["lr"] * scale * orthogonalized(update).reshape(weight.shape).to(weight.dtype))

    def _adam(self, weight: Tensor, group: dict[str, Any]) -> None:
        state, (one, two) = self.state[weight], group["betas"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        steps = float(state["step"])
        mean = state["mean"].lerp_(weight.grad, 1 - one) / (1 - one**steps)
        square = state["square"].lerp_(weight.grad.square(), 1 - two) / (1 - two**steps)
        weight.sub_(group["lr"] * mean / (square.sqrt() + group["eps"]))


def orthogonalized(matrix: Tensor) -> Tensor:
    """Nearly UVᵀ of a matrix UΣVᵀ (m, n), float32: singular values between about 0.7 and 1.2; zeros for zeros."""
    values = matrix.float()
    wide = values.T if values.shape[0] > values.shape[1] else values
    wide = wide / wide.norm().clamp(min=1e-12)
    for _ in range(_ROUNDS):
        gram = wide @ wide.T
        wide = _A * wide + (_B * gram + _C * gram @ gram) @ wide
    return wide.T if values.shape[0] > values.shape[1] else wide
