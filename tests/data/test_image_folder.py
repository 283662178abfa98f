import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_viz.data import UNLABELLED, ImageFolderData
from lit_viz.errors import UsageError


def paint(file: Path, color: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (40, 30)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(file)
    return file


def noise(file: Path) -> Path:
    """Noise doesn't compress, so half of the file is half of the picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten red and five blue images."""
    for i in range(10):
        paint(tmp_path / "red" / f"{i}.png")
    for i in range(5):
        paint(tmp_path / "blue" / "deeper" / f"{i}.JPG", (0, 0, 255))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "red" / "notes.txt").write_text("no image")
    return tmp_path


def test_one_folder_is_split_class_by_class(folder: Path):
    data = ImageFolderData(folder, size=16, mean=(0, 0, 0), std=(1, 1, 1))
    assert (data.class_names, data.num_classes) == (["blue", "red"], 2)
    data.setup("fit")
    assert [label for _, label in data.train_set] == [0] * 4 + [1] * 8
    assert [label for _, label in data.val_set] == [0] + [1] * 2
    image, _ = data.val_set[2]
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1).expand(3, 16, 16))
    files = [[file for file, _ in part.source.samples] for part in (data.train_set, data.val_set)]
    assert not set(files[0]) & set(files[1])
    again = ImageFolderData(folder, size=16)
    again.setup("fit")
    assert [file for file, _ in again.val_set.source.samples] == files[1]
    assert data.val_set.captions == [file.name for file in files[1]]


def test_separate_folders(folder: Path, tmp_path: Path):
    paint(tmp_path / "val" / "red" / "0.png")
    paint(tmp_path / "train" / "red" / "0.png")
    paint(tmp_path / "train" / "blue" / "0.png")
    data = ImageFolderData(tmp_path / "train", tmp_path / "val", size=16, in_channels=1)
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set)) == (2, 1)
    image, label = data.val_set[0]
    assert (image.shape, label, len(data.mean)) == ((1, 16, 16), 1, 1)


def test_flat_folder_is_unlabelled(tmp_path: Path):
    for i in range(3):
        paint(tmp_path / f"{i}.png")
    data = ImageFolderData(val_dir=tmp_path, size=16)
    assert (data.num_classes, data.class_names) == (None, [])
    data.setup("validate")
    assert data.train_set is None
    assert [label for _, label in data.val_set] == [UNLABELLED] * 3
    assert data.val_set.captions == ["0.png", "1.png", "2.png"]


def test_files_that_do_not_open_are_left_out_and_named(folder: Path):
    broken = folder / "red" / "3.png"
    broken.write_bytes(b"not an image")
    data = ImageFolderData(folder, size=16)
    with pytest.warns(UserWarning, match=r"left out 1 broken image files: .*3\.png"):
        data.setup("fit")
    assert data.skipped == [broken]
    assert len(data.train_set) + len(data.val_set) == 14
    with pytest.raises(UsageError, match=r"3\.png"):
        ImageFolderData(folder, size=16, on_corrupt="raise").setup("fit")


def test_a_file_that_breaks_off_is_replaced_by_the_next(tmp_path: Path):
    paint(tmp_path / "a.png", (255, 0, 0))
    cut = noise(tmp_path / "b.jpg")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    paint(tmp_path / "c.png", (0, 0, 255))
    data = ImageFolderData(val_dir=tmp_path, size=16)
    data.setup("validate")
    assert data.skipped == [] and len(data.val_set) == 3
    with pytest.warns(UserWarning, match=r"b\.jpg"):
        image, _ = data.val_set[1]
    assert torch.equal(image, data.val_set[2][0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # It was told once.
        assert torch.equal(data.val_set[1][0], image)
    strict = ImageFolderData(val_dir=tmp_path, size=16, on_corrupt="raise")
    strict.setup("validate")
    with pytest.raises(UsageError, match=r"b\.jpg"):
        strict.val_set[1]


def test_a_stand_in_never_comes_from_the_other_part(tmp_path: Path):
    cut = noise(tmp_path / "train" / "z.jpg")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    paint(tmp_path / "train" / "a.png", (255, 0, 0))
    paint(tmp_path / "val" / "b.png", (0, 0, 255))
    data = ImageFolderData(tmp_path / "train", tmp_path / "val", size=16)
    data.setup("fit")
    with pytest.warns(UserWarning):
        assert torch.equal(data.train_set[1][0], data.train_set[0][0])


def test_all_images_broken(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UsageError, match="no readable val image"):
        ImageFolderData(val_dir=tmp_path).setup("validate")


def test_a_class_without_readable_images_is_named(folder: Path):
    for file in (folder / "blue" / "deeper").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UsageError, match="class blue"):
        ImageFolderData(folder).setup("fit")


def test_folder_faults(folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="no folder"):
        ImageFolderData(folder / "nowhere")
    (folder / "green").mkdir()
    with pytest.raises(UsageError, match=r"class folder .*green holds no image"):
        ImageFolderData(folder)
    with pytest.raises(UsageError, match="is empty"):
        ImageFolderData(folder / "green")
    paint(folder / "green" / "0.png")
    paint(folder / "loose.png")
    with pytest.raises(UsageError, match=r"loose\.png"):
        ImageFolderData(folder)


def test_validation_class_that_training_lacks(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    other = tmp_path_factory.mktemp("val")
    paint(other / "reed" / "0.png")
    with pytest.raises(UsageError, match=r"reed is a class .*did you mean 'red'"):
        ImageFolderData(folder, other)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "give train_dir"),
        ({"val_dir": ".", "val_fraction": 1.0}, "val_fraction"),
        ({"val_dir": ".", "on_corrupt": "ignore"}, "on_corrupt"),
        ({"val_dir": ".", "in_channels": 2}, "in_channels"),
    ],
)
def test_bad_arguments(arguments: dict, told: str):
    with pytest.raises(UsageError, match=told):
        ImageFolderData(**arguments)
