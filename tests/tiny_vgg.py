"""A small network of the same kind as those that papers compare images by."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.vgg import VGG, make_layers


def tiny_vgg() -> VGG:
    """Three blocks of a VGG network, eight channels each, without the 120 million weights behind them."""
    blocks = make_layers([8, "M", 8, "M", 8, 8, "M"])
    with torch.device("meta"):
        net = VGG(blocks, init_weights=False)
    net.avgpool, net.classifier = nn.Identity(), nn.Identity()
    return net
