"""Codes of a decoder: bounds, ways and types."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.functional.synthesis import Code
from lit_viz.pixels import PixelSpace


def decoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 48), nn.Dropout(), nn.Sigmoid(), nn.Unflatten(1, (3, 4, 4)))


MEAN, STD = torch.tensor([0.0, 1.0, 2.0, -1.0]), torch.tensor([1.0, 0.5, 0.0, 2.0])
SPACE = PixelSpace((0.5, 0.4, 0.3), (0.25, 0.2, 0.5))


def code(nonnegative: bool = False, decay: float = 1.0) -> Code:
    return Code(decoder(), mean=MEAN, std=STD, nonnegative=nonnegative, space=SPACE, decay=decay)


@pytest.mark.parametrize(("nonnegative", "low"), [(False, [-3.0, -0.5, 2.0, -7.0]), (True, [0.0, 0.0, 0.0, 0.0])])
def test_bounds(nonnegative: bool, low: list[float]) -> None:
    values = torch.tensor([[100.0] * 4, [-100.0] * 4])
    code(nonnegative).project(values)
    assert values.tolist() == [[3.0, 2.5, 2.0, 5.0], low]


def test_decay_then_bounds() -> None:
    values = torch.tensor([[2.0, 2.0, 2.0, -2.0]])
    code(decay=0.5).project(values)
    assert values.tolist() == [[1.0, 1.0, 2.0, -1.0]]


def test_noise_lies_within_bounds_and_is_the_same_for_each_image() -> None:
    made = code(nonnegative=True)
    values = made.noise(3, seed=5)
    kept = values.clone()
    made.decay = 1.0
    made.project(values)
    assert torch.equal(values, kept) and torch.equal(values[0], values[2])
    assert not torch.equal(values, made.noise(3, seed=6))


def test_images_are_what_the_decoder_paints_in_the_numbers_of_the_network() -> None:
    made, values = code(), torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    first = made.images(values)
    colors = made.decoder(values)
    by_hand = torch.stack([(colors[:, c] - SPACE.mean[c]) / SPACE.std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(first, by_hand)
    assert torch.equal(first, made.images(values)), "dropout is off"
    assert torch.autograd.gradcheck(
        Code(decoder().double(), mean=MEAN, std=STD, nonnegative=False, space=SPACE).images,
        values.double().requires_grad_(),
    )


def test_a_decoder_in_bfloat16_takes_codes_in_float32() -> None:
    made = Code(decoder().bfloat16(), mean=MEAN, std=STD, nonnegative=False, space=SPACE)
    values: Tensor = torch.zeros(2, 4).requires_grad_()
    images = made.images(values)
    assert images.dtype == torch.float32
    (gradient,) = torch.autograd.grad(images.sum(), values)
    assert gradient.dtype == torch.float32 and gradient.abs().sum() > 0


def test_errors() -> None:
    with pytest.raises(UsageError, match="one shape"):
        Code(decoder(), mean=MEAN, std=STD[:3], nonnegative=False, space=SPACE)
    with pytest.raises(UsageError, match="from 0 to 1"):
        code(decay=1.5)
    with pytest.raises(UsageError, match="no way from an image to its code"):
        code().values(torch.zeros(1, 3, 4, 4))
