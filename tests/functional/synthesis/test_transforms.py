"""Random changes against NumPy and torchvision, and the way of their gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import affine

from lit_viz.errors import UsageError
from lit_viz.functional.synthesis import Jitter, RandomAffine, gaussian_blur


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_jitter_equals_roll_of_numpy() -> None:
    x, seen = images(2, 3, 9, 11), set()
    for seed in range(40):
        found = Jitter(2)(x, generator(seed)).numpy()
        fits = [
            (rows, columns)
            for rows in range(-2, 3)
            for columns in range(-2, 3)
            if np.array_equal(found, np.roll(x.numpy(), (rows, columns), axis=(2, 3)))
        ]
        assert len(fits) == 1
        seen.update(fits)
    assert {rows for rows, _ in seen} == {columns for _, columns in seen} == {-2, -1, 0, 1, 2}
    assert torch.equal(Jitter(0)(x, generator()), x)
    with pytest.raises(UsageError, match="jitter"):
        Jitter(-1)


def test_what_was_shifted_needs_no_shifting_back() -> None:
    """The gradient of what is seen at a fixed place lies where that came from."""
    x = torch.zeros(1, 1, 8, 8, requires_grad=True)
    seen = Jitter(3)(x, generator(4))
    (gradient,) = torch.autograd.grad(seen[0, 0, 4, 4], x)
    marked = torch.zeros(1, 1, 8, 8)
    marked[0, 0][tuple(gradient[0, 0].nonzero()[0])] = 1
    assert Jitter(3)(marked, generator(4))[0, 0, 4, 4] == 1


def test_no_turn_and_no_scaling_is_the_image() -> None:
    x = images(2, 3, 12, 17)
    torch.testing.assert_close(RandomAffine()(x, generator()), x, atol=1e-5, rtol=1e-5)


def fixed(scale: float, degrees: float, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The largest of its turns, drawn by force."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *args, **kwargs: torch.tensor([0.0, 1.0], dtype=torch.float64))
        return RandomAffine(scales=[scale], degrees=degrees)(x, generator())


def test_a_quarter_turn_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(2, 3, 9, 9)
    turned = fixed(1.0, 90.0, x, monkeypatch)
    fits = [k for k in (1, 3) if torch.allclose(turned, x.rot90(k, dims=(2, 3)), atol=1e-4)]
    assert len(fits) == 1
    half = fixed(1.0, 180.0, images(1, 3, 8, 13), monkeypatch)
    torch.testing.assert_close(half, images(1, 3, 8, 13).flip(2, 3), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("scale", "degrees"), [(1.3, 0.0), (0.8, 0.0), (1.0, 20.0), (1.1, 33.0)])
def test_inside_it_equals_torchvision(scale: float, degrees: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In images that are not square, too: an angle is one in pixels."""
    x = gaussian_blur(images(1, 2, 40, 60), 2.0)
    ours = fixed(scale, degrees, x, monkeypatch)
    inside = (slice(None), slice(None), slice(14, 26), slice(22, 38))
    theirs = [
        affine(x, sign * degrees, [0, 0], scale, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR)
        for sign in (1, -1)
    ]
    assert min((ours - other)[inside].abs().max().item() for other in theirs) < 1e-4
    assert (ours - x)[inside].abs().max() > 1e-2


def test_beyond_the_border_images_are_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(1, 3, 10, 10)
    torch.testing.assert_close(fixed(0.5, 45.0, x, monkeypatch), x)


def test_scales_and_angles_are_drawn_from_all_of_their_range() -> None:
    x = gaussian_blur(images(1, 1, 21, 21), 1.0)
    found = {round(RandomAffine(scales=[0.9, 1.0, 1.1])(x, generator(seed)).sum().item(), 2) for seed in range(30)}
    assert len(found) == 3
    found = {round(RandomAffine(degrees=5.0)(x, generator(seed)).sum().item(), 3) for seed in range(10)}
    assert len(found) > 8


@pytest.mark.parametrize("transform", [Jitter(2), RandomAffine(scales=[0.8, 1.2], degrees=20.0)])
def test_gradients_and_generators(transform: Jitter | RandomAffine) -> None:
    x = images(1, 2, 6, 7).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: transform(v, generator(3)), x)
    state = torch.get_rng_state()
    both = transform(torch.cat([x, x]), generator(3))
    assert torch.equal(both[0], both[1]) and torch.equal(both[:1], transform(x, generator(3)))
    assert torch.equal(state, torch.get_rng_state())


def test_errors() -> None:
    for scales in ([], [0.0], [1.0, math.inf], [-1.0]):
        with pytest.raises(UsageError, match="scales"):
            RandomAffine(scales=scales)
    for degrees in (-1.0, math.nan):
        with pytest.raises(UsageError, match="degrees"):
            RandomAffine(degrees=degrees)
