"""Filters and their roughness."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lit_viz.errors import UsageError
from lit_viz.functional import filters, roughness


def test_first_convolution_by_default_and_any_by_name(network: Callable[[str], nn.Module]) -> None:
    model = network("resnet18")
    assert torch.equal(filters(model), model.conv1.weight)
    assert torch.equal(filters(model, "layer2.0.downsample.0"), model.layer2[0].downsample[0].weight)
    assert torch.equal(filters(model, "layer3.1.conv2"), model.layer3[1].conv2.weight)


def test_a_copy_comes_back() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 5).bfloat16())
    found = filters(model)
    assert found.dtype == torch.float32 and not found.requires_grad
    assert torch.equal(found, model[0].weight.float())
    before = model[0].weight.detach().clone()
    found.zero_()
    assert torch.equal(model[0].weight, before)
    plain = nn.Sequential(nn.Conv2d(3, 4, 5))
    filters(plain).zero_()
    assert (plain[0].weight != 0).any()


def test_groups_parametrised_and_compiled_layers() -> None:
    assert filters(nn.Sequential(nn.Conv2d(6, 4, 3, groups=2))).shape == (4, 3, 3, 3)
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))
    assert torch.equal(filters(model), model[0].weight)
    assert torch.equal(filters(torch.compile(model, backend="eager")), model[0].weight)


def test_what_has_no_filters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3), nn.Conv1d(4, 4, 3))
    for layer, kind in (("1", "ReLU"), ("2", "ConvTranspose2d"), ("3", "Conv1d")):
        with pytest.raises(UsageError, match=f"layer '{layer}' is a {kind}, not a 2-d convolution"):
            filters(model, layer)
    with pytest.raises(UsageError, match="no 2-d convolution"):
        filters(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(UsageError, match="no layer 'conv9'"):
        filters(model, "conv9")


def test_roughness_equals_a_loop() -> None:
    weights = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = []
    for w in weights:
        variation = sum(
            abs(w[c, min(y + 1, 4), x] - w[c, y, x]) + abs(w[c, y, min(x + 1, 5)] - w[c, y, x])
            for c in range(3)
            for y in range(5)
            for x in range(6)
        )
        expected.append(float(variation / (w**2).sum().sqrt()))
    assert roughness(weights).tolist() == pytest.approx(expected, rel=1e-12)
    assert roughness(7 * weights).tolist() == pytest.approx(expected, rel=1e-12)


def test_roughness_tells_noise_from_structure() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 11), torch.linspace(-1, 1, 11), indexing="ij")
    gabor = torch.exp(-2 * (x**2 + y**2)) * torch.cos(4 * x)
    noise = torch.randn(11, 11, generator=torch.Generator().manual_seed(0))
    kinds = torch.stack([gabor, noise, torch.ones(11, 11), torch.zeros(11, 11)])
    smooth, rough, flat, zero = roughness(kinds[:, None])
    assert smooth < rough / 2 and flat == 0 and zero.isnan()
