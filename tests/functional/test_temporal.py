"""Frames that hold on to those before, against closed forms and on scenes of noise and movement."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lit_viz.errors import UsageError
from lit_viz.functional.temporal import Steady


def plain(value: float) -> Tensor:
    return torch.full((1, 3, 20, 24), value)


def test_a_constant_change_is_taken_up_by_the_formula() -> None:
    steady, seen, made = Steady(0.8, reach=0.2), 0.5, 0.1
    steady.seen(plain(0.5)), steady.shown(plain(0.1))
    for value, result in ((0.55, 0.3), (0.45, 0.2), (0.6, 0.9)):
        share = 0.8 * math.exp(-(((value - seen) / 0.2) ** 4))
        seen, made = share * seen + (1 - share) * value, share * made + (1 - share) * result
        torch.testing.assert_close(steady.seen(plain(value)), plain(seen))
        torch.testing.assert_close(steady.shown(plain(result)), plain(made))


def test_noise_fades_and_a_cut_is_sharp() -> None:
    generator = torch.Generator().manual_seed(0)
    scenes = [torch.rand(1, 3, 40, 40, generator=generator) for _ in range(2)]
    steady, frames = Steady(0.8), []
    for index in range(40):
        noise = 0.03 * torch.randn(1, 3, 40, 40, generator=generator)
        frames.append(steady.seen(scenes[index // 20] + noise))
        if index == 20:
            assert torch.equal(frames[-1], scenes[1] + noise)
    still = torch.cat(frames[10:20])
    # An exponential mean has (1 − w) / (1 + w) of the variance; w is below 0.8, as noise counts as change.
    share = 0.8 * math.exp(-((0.03**2 * (1 + 1 / 9) / 0.05**2) ** 2))
    assert still.std(dim=0).mean() / 0.03 == pytest.approx(math.sqrt((1 - share) / (1 + share)), rel=0.3)


def test_what_moves_is_not_drawn_along() -> None:
    steady = Steady(0.9)
    for left in range(0, 60, 6):
        frame = torch.full((1, 3, 40, 80), 0.2)
        frame[..., 10:30, left : left + 16] = 0.9
        seen = steady.seen(frame)
        assert (seen - frame).abs().max() < 0.1
        made = steady.shown(frame)
        assert (made - frame).abs().mean() < 0.002


def test_without_smoothness_and_after_a_change_of_size_frames_are_for_themselves() -> None:
    steady, frame = Steady(0.0), torch.rand(1, 3, 16, 16)
    for _ in range(3):
        frame = (frame + 0.01).clamp(max=1)
        assert torch.equal(steady.seen(frame), frame) and torch.equal(steady.shown(frame), frame)
    steady = Steady(0.9)
    steady.seen(frame), steady.shown(frame)
    other = torch.rand(1, 3, 20, 16)
    assert torch.equal(steady.seen(other), other) and torch.equal(steady.shown(other), other)


@pytest.mark.parametrize("smooth", [-0.1, 1.0, float("nan")])
def test_bad_arguments_are_told(smooth: float) -> None:
    with pytest.raises(UsageError, match="smooth lies between"):
        Steady(smooth)
    with pytest.raises(UsageError, match="reach is"):
        Steady(0.5, reach=0)
