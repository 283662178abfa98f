"""Maps of a trained network fall on the object, on composites whose masks are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_viz.functional import (
    energy_inside,
    grad_cam,
    guided_backprop,
    guided_grad_cam,
    pointing_score,
    saliency,
    upsampled,
)
from tests.composites import composites


@pytest.mark.slow
def test_maps_point_at_the_object(network: Callable[[str], nn.Module]) -> None:
    """More than twice as often as chance, which is the object's share of the image; raw gradients 1.5 times."""
    model, cards = network("efficientnet_lite0"), composites(12, seed=7)
    images = (cards.images - 127 / 255) / (128 / 255)
    with torch.no_grad():
        predicted = model(images).argmax(1)

    def strength(gradient: Tensor) -> Tensor:
        return gradient.abs().amax(1)

    maps = {
        "grad_cam": (upsampled(grad_cam(model, images, predicted), (224, 224)), 2.0),
        "guided_backprop": (strength(guided_backprop(model, images, predicted)), 2.0),
        "guided_grad_cam": (strength(guided_grad_cam(model, images, predicted)), 2.0),
        "saliency": (saliency(model, images, predicted), 1.5),
    }
    chance = cards.masks.float().mean()
    for name, (heat, times) in maps.items():
        hits = pointing_score(heat, cards.masks).float().mean()
        assert hits > times * chance, f"{name}: {hits:.2f} of the maxima on objects that cover {chance:.2f}"
        assert energy_inside(heat, cards.masks).nanmean() > 1.2 * chance, name
    # Nothing of the network in it: chance.
    noise = torch.rand(12, 224, 224, generator=torch.Generator().manual_seed(0))
    assert abs(energy_inside(noise, cards.masks).mean() - chance) < 0.02
