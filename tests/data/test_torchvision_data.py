import gzip
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets

from lit_viz.data import TorchvisionData
from lit_viz.data.torchvision_data import _DEBIAN
from lit_viz.errors import UsageError

ROOM = np.random.default_rng(0)
IMAGES = ROOM.integers(0, 256, (50, 28, 28), dtype=np.uint8)
LABELS = np.arange(50, dtype=np.uint8) % 10


def write_idx(folder: Path, *, packed: bool, part: str = "train") -> None:
    for kind, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        content = head + array.tobytes()
        file = folder / f"{part}-{kind}-ubyte"
        if packed:
            file.with_name(file.name + ".gz").write_bytes(gzip.compress(content))
        else:
            file.write_bytes(content)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch):
    """No connection, and no package of the operating system that brings data."""

    def refuse(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("lit_viz.data.torchvision_data._DEBIAN", {})


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_files_in_the_folder_itself(tmp_path: Path, packed: bool, offline: None):
    for part in ("train", "t10k"):
        write_idx(tmp_path, packed=packed, part=part)
    data = TorchvisionData("FashionMNIST", root=tmp_path, val_fraction=0.2)
    data.prepare_data()
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (40, 10, 50)
    assert (data.num_classes, data.in_channels, data.class_names[9]) == (10, 1, "Ankle boot")
    image, label = data.test_set[7]
    assert (image.shape, image.dtype, label) == ((1, 28, 28), torch.float32, 7)
    expected = (torch.from_numpy(IMAGES[7]) / 255 - 0.2860) / 0.3530
    torch.testing.assert_close(image[0], expected)


def test_torchvision_layout(tmp_path: Path, offline: None):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        write_idx(raw, packed=False, part=part)
    data = TorchvisionData("MNIST", root=tmp_path)
    data.setup("fit")
    assert len(data.train_set) == 45
    assert data.class_names[3] == "3 - three"


def test_split_follows_its_seed(tmp_path: Path, offline: None):
    for part in ("train", "t10k"):
        write_idx(tmp_path, packed=False, part=part)

    def held_out(seed: int) -> list[int]:
        data = TorchvisionData("MNIST", root=tmp_path, val_fraction=0.2, split_seed=seed)
        data.setup("fit")
        assert not set(data.train_set.indices) & set(data.val_set.indices)
        return data.val_set.indices

    assert held_out(0) == held_out(0) != held_out(1)


def test_broken_files_are_named(tmp_path: Path, offline: None):
    write_idx(tmp_path, packed=False)
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UsageError, match="train-images-idx3-ubyte can't be read"):
        TorchvisionData("MNIST", root=tmp_path).prepare_data()


@pytest.mark.skipif(not _DEBIAN["FashionMNIST"].is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist_of_debian(tmp_path: Path):
    data = TorchvisionData("FashionMNIST", root=tmp_path, download=False)
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (54_000, 6_000, 10_000)
    pixels = data.train_set.source.data / 255
    assert (round(pixels.mean(), 4), round(pixels.std(), 4)) == (data.mean[0], data.std[0])


@pytest.mark.parametrize("name", ["FashionMNIST", "CIFAR10", "SVHN"])
def test_offline_says_what_to_do(tmp_path: Path, name: str, offline: None):
    data = TorchvisionData(name, root=tmp_path)
    with pytest.raises(UsageError, match=f"{name} is not in .* could not be downloaded .*give that folder"):
        data.prepare_data()


def test_download_may_be_forbidden(tmp_path: Path, offline: None):
    with pytest.raises(UsageError, match="let download=True fetch it"):
        TorchvisionData("CIFAR10", root=tmp_path, download=False).prepare_data()


def test_colour_with_statistics_from_a_sample():
    options = {"size": 20, "image_size": (3, 12, 16), "num_classes": 4}
    data = TorchvisionData("FakeData", options=options, size=8, random_crop=True, random_flip=True)
    assert (data.num_classes, data.in_channels) == (4, 3)
    pictures = np.stack([np.array(torchvision.datasets.FakeData(**options)[i][0]) for i in range(20)]) / 255
    np.testing.assert_allclose(data.mean, pictures.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, pictures.std((0, 1, 2)), rtol=1e-4)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (18, 3, 8, 8) and labels.max() < 4


def test_values_of_ones_own_win():
    data = TorchvisionData("MNIST", mean=(0.5,), std=(0.25,))
    assert (data.mean, data.std) == ((0.5,), (0.25,))


def test_colour_statistics_of_a_grey_set_are_not_its_grey_ones(tmp_path: Path, offline: None):
    write_idx(tmp_path, packed=False)
    data = TorchvisionData("MNIST", root=tmp_path, in_channels=3)
    np.testing.assert_allclose(data.mean, [IMAGES.mean() / 255] * 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"name": "FasionMNIST"}, "did you mean 'FashionMNIST'"),
        ({"name": "CIFAR10", "val_fraction": 0.0}, "val_fraction"),
        ({"name": "CIFAR10", "mean": (0.5, 0.5, 0.5)}, "belong together"),
        ({"name": "CIFAR10", "random_crop": True}, "needs a size"),
        ({"name": "CIFAR10", "in_channels": 4}, "in_channels"),
    ],
)
def test_bad_arguments(arguments: dict, told: str):
    with pytest.raises(UsageError, match=told):
        TorchvisionData(**arguments)


def test_wrong_options_are_reported():
    with pytest.raises(UsageError, match="FakeData wants other options"):
        TorchvisionData("FakeData", options={"colour": 1}).prepare_data()


def test_images_of_many_sizes_need_a_size(monkeypatch: pytest.MonkeyPatch):
    from PIL import Image

    class Mixed(torchvision.datasets.FakeData):
        def __getitem__(self, index):
            return Image.new("RGB", (10 + index, 10)), 0

    monkeypatch.setattr(torchvision.datasets, "FakeData", Mixed)
    with pytest.raises(UsageError, match="differ in size"):
        TorchvisionData("FakeData", options={"size": 20}, mean=(0.5,) * 3, std=(0.5,) * 3).setup("fit")
