"""Names of VGG layers, against the numbers that users of torchvision know by heart."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, vgg16, vgg16_bn, vgg19

from lit_viz.errors import UsageError
from lit_viz.networks.vgg_names import dotted_name, short_name, vgg_names


def test_names_that_papers_use() -> None:
    with torch.device("meta"):
        sixteen, normed, nineteen = vgg16(), vgg16_bn(), vgg19()
    # Johnson et al. 2016 and Gatys et al. 2016, as pytorch/examples and others index them.
    known = {"relu1_2": 3, "relu2_2": 8, "relu3_3": 15, "relu4_3": 22, "relu5_1": 25, "relu5_3": 29, "pool3": 16}
    assert {name: vgg_names(sixteen)[name] for name in known} == {n: f"features.{i}" for n, i in known.items()}
    known = {"conv1_1": 0, "conv2_1": 5, "conv3_1": 10, "conv4_1": 19, "conv4_2": 21, "conv5_1": 28, "pool4": 27}
    assert {name: vgg_names(nineteen)[name] for name in known} == {n: f"features.{i}" for n, i in known.items()}
    assert [dotted_name(normed, n) for n in ("conv2_2", "norm2_2", "relu2_2")] == [
        f"features.{i}" for i in (10, 11, 12)
    ]
    assert len(vgg_names(sixteen)) == 13 * 2 + 5 and len(vgg_names(normed)) == 13 * 3 + 5


def test_a_network_inside_and_other_networks() -> None:
    with torch.device("meta"):
        inside, other = nn.ModuleDict({"net": vgg16()}), resnet18()
    assert dotted_name(inside, "relu2_2") == "net.features.8"
    assert short_name(inside, "net.features.8") == "relu2_2"
    assert dotted_name(inside, "net.classifier.0") == short_name(inside, "net.classifier.0") == "net.classifier.0"
    assert vgg_names(other) == {} and dotted_name(other, "relu2_2") == "relu2_2"
    with pytest.raises(UsageError, match=r"no layer 'relu5_4'; did you mean 'relu5_"):
        dotted_name(inside, "relu5_4")
