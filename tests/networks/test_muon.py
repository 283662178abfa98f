"""Muon against the singular value decomposition, and Adam's part against torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lit_viz.errors import UsageError
from lit_viz.networks.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16), (1, 5)])
def test_singular_values_come_to_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.T @ orthogonalized(1e-3 * matrix) @ right.T
    diagonal = found.diagonal()
    assert ((diagonal > 0.65) & (diagonal < 1.25)).all()
    torch.testing.assert_close(found, torch.diag(diagonal), atol=1e-4, rtol=0)
    assert values.max() / values.min() > 1.3 or 1 in shape
    assert (orthogonalized(torch.zeros(shape)) == 0).all()


def test_a_step_by_hand() -> None:
    weight = nn.Parameter(torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
    optimizer, before = Muon([weight], lr=0.1, momentum=0.5), weight.detach().clone()
    gradients = torch.randn(2, 4, 27, generator=torch.Generator().manual_seed(1))
    mean = torch.zeros(4, 27)
    for gradient in gradients:
        weight.grad = gradient.view(4, 3, 3, 3).clone()
        optimizer.step()
        mean = 0.5 * mean + gradient
        update = orthogonalized(gradient + 0.5 * mean)
        before = before - 0.1 * 0.2 * 27**0.5 * update.view(4, 3, 3, 3)
        torch.testing.assert_close(weight.detach(), before)
    assert float(update.square().mean().sqrt() * 0.2 * 27**0.5) == pytest.approx(0.2, rel=0.25)  # as large as Adam's


def test_one_dimension_is_adams() -> None:
    ours = nn.Parameter(torch.randn(5, generator=torch.Generator().manual_seed(0)))
    theirs = copy.deepcopy(ours)
    optimizers = Muon([ours], lr=0.01, betas=(0.8, 0.95)), torch.optim.Adam([theirs], lr=0.01, betas=(0.8, 0.95))
    for i in range(5):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = (parameter.detach() + i).sin()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_it_learns_and_goes_on_from_its_state() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator) * torch.logspace(0, -2, 8)
    target = x @ torch.randn(8, 4, generator=generator)

    def run(steps: int, optimizer: Muon, layer: nn.Linear) -> float:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (layer(x) - target).square().mean()
            loss.backward()
            optimizer.step(lambda: None)
        return loss.item()

    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    whole = copy.deepcopy(layer)
    optimizer = Muon(whole.parameters(), lr=0.05)
    assert run(1, optimizer, whole) > 5 * run(59, optimizer, whole)
    half, rest = copy.deepcopy(layer), copy.deepcopy(layer)
    first = Muon(half.parameters(), lr=0.05)
    run(30, first, half)
    rest.load_state_dict(half.state_dict())
    second = Muon(rest.parameters(), lr=0.05)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(30, second, rest)
    assert torch.equal(rest.weight, whole.weight) and torch.equal(rest.bias, whole.bias)


def test_rates_out_of_range_are_told() -> None:
    for bad in ({"lr": 0.0}, {"momentum": 1.0}, {"betas": (0.9, 1.0)}):
        with pytest.raises(UsageError):
            Muon([nn.Parameter(torch.zeros(2, 2))], **bad)
