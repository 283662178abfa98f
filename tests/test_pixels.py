"""What a pixel means, and where that is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import FakeData
from torchvision.transforms import v2

from lit_viz.errors import UsageError
from lit_viz.pixels import PixelSpace, find_pixel_space, given_pixel_space, guess_pixel_space

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def colors(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


# --- PixelSpace ---


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (3, 5, 4), (2, 2, 3, 5, 4)])
def test_round_trip(shape: tuple[int, ...]) -> None:
    space, c = PixelSpace(MEAN, STD), colors(*shape)
    x = space.from_color(c)
    assert x.shape == c.shape and torch.allclose(x, transforms.Normalize(MEAN, STD)(c), atol=1e-6)
    assert torch.allclose(space.to_color(x), c, atol=1e-6)


def test_one_value_serves_all_channels() -> None:
    c = colors(2, 3, 5, 4)
    for space in (PixelSpace((0.5,), STD), PixelSpace(MEAN, (0.25,)), PixelSpace(0.5, 0.25)):  # type: ignore[arg-type]
        wide = PixelSpace(space.mean * (3 // len(space.mean)), space.std * (3 // len(space.std)))
        assert torch.equal(space.from_color(c), wide.from_color(c))
        assert torch.equal(space.to_color(c), wide.to_color(c))


def test_colors_are_clipped_and_never_broken() -> None:
    x = torch.tensor([-9.0, 9.0, torch.nan, torch.inf, -torch.inf, 0.0]).reshape(1, 1, 1, 6)
    assert PixelSpace((0.5,), (0.25,)).to_color(x).flatten().tolist() == [0, 1, 0, 1, 0, 0.5]
    assert x[0, 0, 0, 0] == -9  # the input stays


def test_half_precision_becomes_float32() -> None:
    space, c = PixelSpace(MEAN, STD), colors(1, 3, 4, 4)
    found = space.to_color(space.from_color(c).bfloat16())
    assert found.dtype == torch.float32 and (found - c).abs().max() < 0.01


def test_values_come_from_lists_arrays_and_tensors() -> None:
    expected = PixelSpace(MEAN, STD)
    for make in (list, np.array, lambda v: torch.tensor(v, dtype=torch.float64)):
        assert PixelSpace(make(MEAN), make(STD)) == expected  # type: ignore[operator]
    assert isinstance(expected.mean[0], float)


def test_wrong_values() -> None:
    for std in ((0.0,), (0.5, -1.0, 0.5), (0.5, 0.0, 0.5)):
        with pytest.raises(UsageError, match="std must be positive"):
            PixelSpace((0.5,), std)
    with pytest.raises(UsageError, match="mean is empty"):
        PixelSpace((), (1.0,))
    space = PixelSpace((0.5, 0.5), (1.0,), "from Test")
    with pytest.raises(UsageError, match=r"mean has 2 values \(from Test\) but the images have 3 channels"):
        space.to_color(colors(1, 3, 4, 4))
    with pytest.raises(UsageError, match="std has 3 values"):
        PixelSpace((0.5,), STD).from_color(colors(1, 1, 4, 4))


# --- Finding ---


def space_of(*sources: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    found = find_pixel_space(*sources)
    return None if found is None else (found.mean, found.std)


def v1(*extra: Any) -> transforms.Compose:
    return transforms.Compose([transforms.Resize(8), transforms.ToTensor(), *extra])


NORMALIZE = (transforms.Normalize(MEAN, STD), v2.Normalize(list(MEAN), list(STD)))


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda n: n,
        lambda n: transforms.Compose([transforms.ToTensor(), n]),
        lambda n: v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32), n]),
        lambda n: v2.Compose([v2.Compose([v2.ToImage(), n]), v2.RandomHorizontalFlip()]),
        lambda n: transforms.RandomApply([n]),
        lambda n: transforms.Compose([nn.Sequential(transforms.CenterCrop(4), n)]),
    ],
)
@pytest.mark.parametrize(
    "nest",
    [
        lambda d: d,
        lambda d: Subset(d, [0, 1]),
        lambda d: Subset(Subset(d, [0, 1]), [0]),
        lambda d: ConcatDataset([TensorDataset(torch.zeros(1)), d]),
        lambda d: ConcatDataset([d, TensorDataset(torch.zeros(1))]),
        lambda d: DataLoader(Subset(d, [0])),
    ],
)
def test_normalisation_in_transforms_of_nested_data_sets(normalize: Any, wrap: Any, nest: Any) -> None:
    found = find_pixel_space(nest(FakeData(4, transform=wrap(normalize))))
    assert found is not None and (found.mean, found.std) == (MEAN, STD) and found.source == "from Normalize"


def test_a_sequential_of_transforms_for_torchscript() -> None:
    transform = nn.Sequential(transforms.CenterCrop(4), transforms.Normalize(MEAN, STD))
    assert space_of(FakeData(4, transform=transform)) == (MEAN, STD)


def test_a_normalisation_inside_the_network_is_not_one_of_its_input() -> None:
    assert space_of(nn.Sequential(transforms.Normalize(MEAN, STD), nn.Conv2d(3, 4, 3))) is None


def test_the_last_normalisation_counts_and_the_first_source() -> None:
    other = transforms.Normalize((0.5,), (0.5,))
    twice = transforms.Compose([other, transforms.ToTensor(), NORMALIZE[0], transforms.RandomErasing()])
    assert space_of(twice) == (MEAN, STD)
    assert space_of(None, FakeData(4), FakeData(4, transform=v1(other)), NORMALIZE[0]) == ((0.5,), (0.5,))


class Data(L.LightningDataModule):
    """As before `setup`: what is asked for raises."""

    def __init__(self, mean: Any = None, std: Any = None) -> None:
        super().__init__()
        if mean is not None:
            self.mean, self.std = mean, std
        self.transform = NORMALIZE[0]

    @property
    def dataset(self) -> Dataset[Any]:
        raise RuntimeError("call setup first")

    @property
    def datasets(self) -> Dataset[Any]:
        raise NotImplementedError


class Unready(Data):
    @property
    def mean(self) -> Any:  # type: ignore[override]
        raise RuntimeError("call setup first")


def test_data_modules() -> None:
    assert space_of(Data((0.1,), (0.2,))) == ((0.1,), (0.2,))
    assert space_of(Data(torch.tensor([0.25]), np.array([0.5]))) == ((0.25,), (0.5,))
    assert space_of(Data()) == (MEAN, STD)  # its transform


def test_objects_whose_properties_raise() -> None:
    assert space_of(Unready()) == (MEAN, STD)


class AddGaussianNoise:
    """Has a mean and a deviation, and is no normalisation."""

    mean, std = 0.0, 1.0


class Odd:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


@pytest.mark.parametrize(
    "source",
    [
        None,
        FakeData(4),
        FakeData(4, transform=v1()),
        v1(AddGaussianNoise()),
        torch.zeros(3),
        np.zeros(3),
        "Normalize",
        nn.BatchNorm2d(3),
        transforms.Normalize((0.5,), (0.0,)),
        Odd(mean=["a"], std=["b"]),
        Odd(mean=(), std=()),
        Odd(mean="red", std="blue"),
        Odd(mean=(0.5,)),
        Odd(transform=lambda x: x),
        3,
    ],
)
def test_nothing_to_find(source: Any) -> None:
    assert space_of(source) is None


def test_cycles_end() -> None:
    a, b = Odd(), Odd()
    a.dataset, b.dataset = b, a  # type: ignore[attr-defined]
    assert space_of(a) is None


# --- Guessing ---


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.0, 1.0, "[0, 1]"),
        (0.2, 0.7, "[0, 1]"),
        (0.0, 0.0, "[0, 1]"),
        (0.0, 255.0, "[0, 255]"),
        (3.0, 97.0, "[0, 255]"),
        (-1.0, 1.0, "[-1, 1]"),
        (-0.3, 0.2, "[-1, 1]"),
        (-2.1, 2.6, "stretched"),
        (-0.5, 1.5, "stretched"),
        (0.0, 300.0, "stretched"),
        (-4.0, -2.0, "stretched"),
    ],
)
def test_guesses(low: float, high: float, words: str) -> None:
    images = torch.linspace(low, high, 48).reshape(1, 3, 4, 4)
    space = guess_pixel_space(images)
    assert words in space.source
    found = space.to_color(images)
    scales = {
        "[0, 1]": (0.0, 1.0),
        "[0, 255]": (0.0, 255.0),
        "[-1, 1]": (-1.0, 1.0),
        "stretched": (low, high),
    }
    black, white = scales[words]
    assert torch.allclose(found, (images - black) / (white - black), atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_broken_values_do_not_count(value: float) -> None:
    images = torch.linspace(-2, 3, 48).reshape(1, 3, 4, 4)
    images[0, 0, 0, 1] = value
    assert guess_pixel_space(images) == guess_pixel_space(torch.linspace(-2, 3, 48).reshape(1, 3, 4, 4))
    assert "[0, 1]" in guess_pixel_space(torch.full((1, 3, 4, 4), value)).source


def test_a_constant_outside_of_any_range() -> None:
    found = guess_pixel_space(torch.full((1, 3, 4, 4), -7.0)).to_color(torch.full((1, 3, 4, 4), -7.0))
    assert torch.isfinite(found).all()


def test_values_of_bytes_that_were_found_are_scaled() -> None:
    found = find_pixel_space(SimpleNamespace(mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4]), channels=3)
    assert found is not None and found.mean == pytest.approx([0.485, 0.456, 0.406], abs=1e-3)
    assert find_pixel_space(SimpleNamespace(mean=[1200.0], std=[500.0]), channels=3) is None


def test_values_of_another_number_of_channels_are_passed_over() -> None:
    other = SimpleNamespace(mean=[0.1] * 5, std=[1.0] * 5)
    assert find_pixel_space(other, channels=3) is None
    right = SimpleNamespace(mean=(0.5, 0.4, 0.3), std=(0.2,))
    assert find_pixel_space(other, right, channels=3).mean == (0.5, 0.4, 0.3)


def test_given_values_are_checked() -> None:
    assert given_pixel_space(0.5, 0.25).std == (0.25,)
    for mean, std in (([123.0], [58.0]), ("grey", 1.0), ([0.5, None], [1, 1]), (0.5, 0.0)):
        with pytest.raises(UsageError):
            given_pixel_space(mean, std)
