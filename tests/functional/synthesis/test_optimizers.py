"""Steps of known size against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_viz.errors import UsageError
from lit_viz.functional.synthesis import NormalizedSGD


def gradients() -> Tensor:
    scale = torch.tensor([1.0, 1e-3, 1e6]).reshape(3, 1, 1, 1)
    return scale * torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))


SIZES = {
    "l2": lambda g: g.square().sum(dim=(1, 2, 3)).sqrt(),
    "mean_abs": lambda g: g.abs().mean(dim=(1, 2, 3)),
    "max": lambda g: g.abs().amax(dim=(1, 2, 3)),
}


@pytest.mark.parametrize("norm", ["l2", "mean_abs", "max"])
def test_a_step_has_the_size_that_was_asked_for(norm: str) -> None:
    values = torch.zeros(3, 2, 4, 5, requires_grad=True)
    values.grad = gradients()
    NormalizedSGD([values], 0.7, norm=norm).step()
    torch.testing.assert_close(SIZES[norm](values.detach()), torch.full((3,), 0.7))
    expected = -0.7 * gradients() / SIZES[norm](gradients()).reshape(3, 1, 1, 1)
    torch.testing.assert_close(values.detach(), expected)


@pytest.mark.parametrize("norm", ["l2", "mean_abs", "max"])
def test_a_gradient_of_nothing_moves_nothing(norm: str) -> None:
    values = torch.ones(2, 3, requires_grad=True)
    values.grad = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    NormalizedSGD([values], 1.0, norm=norm).step()
    assert torch.equal(values[0].detach(), torch.ones(3)) and values[1, 1] < 1


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_gradients_whose_squares_no_float_holds(size: float) -> None:
    values = torch.zeros(1, 2, requires_grad=True)
    values.grad = size * torch.tensor([[3.0, -4.0]])
    NormalizedSGD([values], 5.0).step()
    torch.testing.assert_close(values.detach(), torch.tensor([[-3.0, 4.0]]))


def test_one_image_does_not_influence_another() -> None:
    steps = []
    for rows in (slice(0, 3), slice(1, 2)):
        values = torch.zeros(3, 2, 4, 5)[rows].clone().requires_grad_()
        values.grad = gradients()[rows]
        NormalizedSGD([values], 1.0).step()
        steps.append(values.detach())
    assert torch.equal(steps[0][1:2], steps[1])


def test_the_rate_falls_evenly() -> None:
    values, moved = torch.zeros(1, 1, requires_grad=True), []
    optimizer = NormalizedSGD([values], 8.0, final_lr=0.0, steps=4)
    for _ in range(6):
        before = values.item()
        values.grad = torch.ones(1, 1)
        optimizer.step()
        moved.append(before - values.item())
    assert moved == pytest.approx([8.0, 6.0, 4.0, 2.0, 0.0, 0.0])


def test_the_closure_is_asked_once_and_its_loss_given_back() -> None:
    values, asked = torch.zeros(1, 1, requires_grad=True), []

    def closure() -> float:
        asked.append(1)
        values.grad = torch.ones(1, 1)
        return 3.5

    assert NormalizedSGD([values], 1.0).step(closure) == 3.5 and len(asked) == 1 and values.item() == -1


def test_errors() -> None:
    values = torch.zeros(1, 1, requires_grad=True)
    for lr in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="lr must be positive"):
            NormalizedSGD([values], lr)
    with pytest.raises(UsageError, match="norm is"):
        NormalizedSGD([values], 1.0, norm="l1")  # type: ignore[arg-type]
