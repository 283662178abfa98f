"""Small classifiers of handwritten digits, trained in seconds: networks that have learned something, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.pixels import PixelSpace

SPACE = PixelSpace((0.5,), (0.25,), "digits")
SIDE = 32


@dataclass(frozen=True)
class Digits:
    """Digits as networks take them, (n, 1, 32, 32), normalised by `SPACE`, and their labels (n,)."""

    train: Tensor
    train_labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


@cache
def digits() -> Digits:
    """scikit-learn's 1797 digits of 8×8 px, enlarged; every fifth is held out."""
    data = load_digits()
    colors = torch.from_numpy(data.images).float()[:, None] / 16
    colors = F.interpolate(colors, (SIDE, SIDE), mode="bilinear", align_corners=False)
    images, labels = SPACE.from_color(colors), torch.from_numpy(data.target).long()
    out = torch.arange(len(images)) % 5 == 0
    return Digits(images[~out], labels[~out], images[out], labels[out])


class Convolutional(nn.Module):
    """Three convolutions and a vector of 64 features behind a ReLU, `features`."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 5, stride=2, padding=2)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1)
        self.relu3 = nn.ReLU()
        self.fc = nn.Linear(32 * width, 64)
        self.features = nn.ReLU()
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu3(self.conv3(self.relu2(self.conv2(self.relu1(self.conv1(images))))))
        return self.head(self.features(self.fc(x.flatten(1))))


def perceptron() -> nn.Module:
    """A network of another kind, to ask for an independent opinion."""
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 128), nn.Tanh(), nn.Linear(128, 10))


@cache
def classifier(kind: str = "convolutional", seed: int = 0, epochs: int = 15) -> nn.Module:
    """A trained classifier in evaluation mode, always the same for the same arguments; not to be changed.

    Args:
        kind: "convolutional" or "perceptron".
        seed: Of its weights, and of the order of the images.
        epochs: How often all images are seen.
    """
    data = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Convolutional() if kind == "convolutional" else perceptron()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(epochs):
            for batch in torch.randperm(len(data.train)).split(64):
                # Small shifts, or the network would know them by single pixels.
                shift = torch.randint(-2, 3, (2,)).tolist()
                images = data.train[batch].roll(shift, dims=(2, 3))
                loss = F.cross_entropy(model(images), data.train_labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()


def accuracy(model: nn.Module) -> float:
    """On the digits that were held out."""
    data = digits()
    with torch.no_grad():
        return float((model(data.held_out).argmax(dim=1) == data.held_out_labels).float().mean())
