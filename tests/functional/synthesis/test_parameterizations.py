"""Pixels and spectra: ways there and back, what equal values look like, gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_viz.errors import UsageError
from lit_viz.functional.synthesis import Fourier, Pixels, clip, eight_bit_rounded, flat, normal
from lit_viz.functional.synthesis.parameterizations import _COLORS, color_covariance
from lit_viz.pixels import PixelSpace

IMAGENET = PixelSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LITE = PixelSpace((127 / 255,), (128 / 255,))
SIZES = [(8, 8), (9, 9), (8, 11), (11, 8), (1, 6)]


def colors(images: Tensor, space: PixelSpace) -> Tensor:
    return images * torch.tensor(space.std).reshape(-1, 1, 1) + torch.tensor(space.mean).reshape(-1, 1, 1)


def scale(height: int, width: int, decay: float = 1.0) -> np.ndarray:
    """1 / f in a loop, over the half plane."""
    out = np.zeros((height, width // 2 + 1))
    for i in range(height):
        for j in range(width // 2 + 1):
            row = i if i <= (height - 1) // 2 else i - height
            frequency = math.hypot(row / height, j / width)
            out[i, j] = max(frequency, 1 / max(height, width)) ** -decay
    return 4 * out / np.sqrt((out**2).mean())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_spectra_equal_numpy(size: tuple[int, int], channels: int) -> None:
    space = IMAGENET if channels == 3 else PixelSpace((0.3,), (0.2,))
    fourier = Fourier(size, space, decay=1.3)
    values = fourier.noise(2, channels, std=0.3, seed=1).double()
    spectrum = (values[..., 0] + 1j * values[..., 1]).numpy() * scale(*size, 1.3)
    maps = np.fft.irfft2(spectrum, s=size, norm="ortho")
    if channels == 3:
        matrix = np.array(_COLORS)
        maps = np.einsum("dc,nchw->ndhw", matrix / np.linalg.norm(matrix, axis=0).max(), maps)
    expected = 1 / (1 + np.exp(-maps))
    np.testing.assert_allclose(colors(fourier.images(values), space).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_round_trips(size: tuple[int, int], channels: int) -> None:
    fourier = Fourier(size, LITE)
    images = fourier.images(fourier.noise(2, channels, std=0.05, seed=0).double())
    torch.testing.assert_close(fourier.images(fourier.values(images)), images)
    shown = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    back = colors(fourier.images(fourier.values(LITE.from_color(shown))), LITE)
    torch.testing.assert_close(back, shown.clamp(0.02, 0.98), atol=1e-4, rtol=1e-4)


def test_photographs_come_back(photographs: Tensor) -> None:
    fourier = Fourier((224, 224), LITE)
    back = fourier.images(fourier.values(photographs))
    inside = colors(photographs, LITE).clamp(0.02, 0.98)
    torch.testing.assert_close(colors(back, LITE), inside, atol=2e-4, rtol=0)


def slope(maps: np.ndarray) -> float:
    """Of the logarithm of the amplitude over that of the frequency."""
    size = maps.shape[-1]
    amplitude = np.sqrt((np.abs(np.fft.fft2(maps)) ** 2).reshape(-1, size, size).mean(axis=0))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    ring = (frequency > 3 / size) & (frequency < 0.45)
    return float(np.polyfit(np.log(frequency[ring]), np.log(amplitude[ring]), 1)[0])


def test_equal_values_are_as_strong_in_all_frequencies_as_in_photographs(photographs: Tensor) -> None:
    for decay in (0.0, 1.0, 2.0):
        fourier = Fourier((64, 64), LITE, decay=decay)
        values = torch.randn(32, 1, 64, 33, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found = slope(torch.logit(colors(fourier.images(0.02 * values), LITE)).numpy())
        assert found == pytest.approx(-decay, abs=0.05)
    assert -1.8 < slope(photographs.mean(dim=1).numpy()) < -0.8  # these three were made smaller, hence smoother
    # Brightness of what comes of noise spreads by some 5 times the deviation of the values, whatever the size.
    for size in ((64, 64), (96, 33)):
        fourier = Fourier(size, LITE)
        values = torch.randn(64, 1, size[0], size[1] // 2 + 1, 2, generator=torch.Generator().manual_seed(0))
        logits = torch.logit(colors(fourier.images(0.01 * values), LITE))
        assert 0.04 < logits.std() < 0.06


def test_colours_of_noise_vary_together_as_in_photographs() -> None:
    """Equal values give logits whose covariance is that of the principal colours."""
    fourier = Fourier((32, 32), LITE)
    values = torch.randn(64, 3, 32, 17, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = torch.logit(colors(fourier.images(0.01 * values), LITE))
    found = np.corrcoef(logits.transpose(0, 1).flatten(1).numpy())
    covariance = np.array(_COLORS) @ np.array(_COLORS).T
    deviations = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(found, covariance / np.outer(deviations, deviations), atol=0.03)
    assert found[0, 1] > 0.8
    plain = Fourier((32, 32), LITE, decorrelate=False)
    alone = torch.logit(colors(plain.images(0.01 * values), LITE)).transpose(0, 1).flatten(1)
    np.testing.assert_allclose(np.corrcoef(alone.numpy()), np.eye(3), atol=0.05)


def test_principal_colours_are_those_of_photographs(photographs: Tensor) -> None:
    """Brightness varies most, then red against blue, then green against both; up to signs."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    pictures = [data.chelsea(), data.coffee(), data.astronaut(), load_sample_image("china.jpg")]
    pixels = np.concatenate([picture.reshape(-1, 3)[::50] for picture in pictures]) / 255
    _, vectors = np.linalg.eigh(np.cov(pixels.T))
    ours = np.array(_COLORS) / np.linalg.norm(_COLORS, axis=0)
    assert abs(ours[:, 0] @ vectors[:, 2]) > 0.98
    lengths = np.linalg.norm(_COLORS, axis=0)
    assert lengths[0] > lengths[1] > lengths[2]


@pytest.mark.parametrize("size", [(4, 4), (5, 5), (4, 5)])
def test_gradients_of_spectra(size: tuple[int, int]) -> None:
    fourier = Fourier(size, IMAGENET)
    values = fourier.noise(1, 3, std=0.2, seed=0).double().requires_grad_()
    assert torch.autograd.gradcheck(fourier.images, values)


def test_spectra_made_in_inference_mode_lead_gradients_back() -> None:
    with torch.inference_mode():
        fourier = Fourier((6, 6), IMAGENET)
        fourier.images(fourier.noise(1, 3, std=0.1, seed=0))
    values = fourier.noise(1, 3, std=0.1, seed=0).double().requires_grad_()
    for kind in (torch.float64, torch.float32):
        (gradient,) = torch.autograd.grad(fourier.images(values.to(kind)).sum(), values)
        assert gradient.abs().sum() > 0


def test_colours_stay_in_range() -> None:
    fourier = Fourier((8, 8), IMAGENET)
    shown = colors(fourier.images(fourier.noise(2, 3, std=100.0, seed=0)), IMAGENET)
    assert shown.min() >= -1e-6 and shown.max() <= 1 + 1e-6 and shown.max() - shown.min() > 0.99


def test_noise_is_the_same_for_each_image_and_leaves_the_generator() -> None:
    state, fourier = torch.get_rng_state(), Fourier((8, 9), IMAGENET)
    values = fourier.noise(3, 3, std=0.01, seed=4)
    assert values.shape == (3, 3, 8, 5, 2) and torch.equal(values[0], values[2])
    assert values.std().item() == pytest.approx(0.01, rel=0.2)
    assert torch.equal(values, Fourier((8, 9), IMAGENET).noise(3, 3, std=0.01, seed=4))
    assert not torch.equal(values, fourier.noise(3, 3, std=0.01, seed=5))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(normal((3,), -1), normal((3,), 2**63 - 1))


def test_pixels() -> None:
    x = torch.tensor([[[[-9.0, 0.0, 9.0]]]]).expand(2, 3, 1, 3).clone()
    kept = Pixels()
    kept.project(x)
    assert kept.images(x) is x and x.max() == 9
    copied = kept.values(x)
    Pixels(IMAGENET).project(x)
    for channel in range(3):
        low, high = ((v - IMAGENET.mean[channel]) / IMAGENET.std[channel] for v in (0, 1))
        torch.testing.assert_close(x[1, channel, 0], torch.tensor([low, 0.0, high]))
    assert copied.max() == 9, "a copy"
    with pytest.raises(UsageError, match="3 values, but the images have 4 channels"):
        clip(torch.zeros(1, 4, 2, 2), IMAGENET)


def test_flat_images_and_eight_bits() -> None:
    grey = flat(0.5, (3, 2, 4), IMAGENET)
    torch.testing.assert_close(colors(grey, IMAGENET), torch.full((3, 2, 4), 0.5))
    shown = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    rounded = colors(eight_bit_rounded(IMAGENET.from_color(shown), IMAGENET), IMAGENET)
    np.testing.assert_allclose(rounded.numpy(), np.round(shown.numpy() * 255) / 255, atol=1e-6)
    assert torch.equal(
        eight_bit_rounded(IMAGENET.from_color(rounded), IMAGENET),
        eight_bit_rounded(IMAGENET.from_color(shown), IMAGENET),
    )


def test_types_inside_a_default_of_bfloat16() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        fourier = Fourier((6, 7), IMAGENET)
        values = fourier.noise(2, 3, std=0.1, seed=0)
        images = fourier.images(values)
        found = [values, images, fourier.values(images), flat(0.5, (3, 4, 4), IMAGENET), normal((2,), 0)]
        clip(images, IMAGENET)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(tensor.dtype == torch.float32 for tensor in found)
    torch.testing.assert_close(images, Fourier((6, 7), IMAGENET).images(values))


def test_the_covariance_of_colours_is_that_of_decorrelated_ones_mixed() -> None:
    """Numbers drawn apart from each other, and mixed as `Fourier` does, have it, up to the largest variance."""
    drawn = np.random.default_rng(0).normal(size=(3, 400_000))
    covariance = np.cov(np.array(_COLORS) @ drawn)
    largest = np.linalg.eigvalsh(covariance)[-1]
    np.testing.assert_allclose(color_covariance().numpy(), covariance / largest, atol=0.01)
    brightness, hue = torch.ones(3).double(), torch.tensor([1.0, -2.0, 1.0]).double()
    shrunk = [float((color_covariance() @ v).norm() / v.norm()) for v in (brightness, hue)]
    assert shrunk[0] > 0.95 and shrunk[1] < 0.05
