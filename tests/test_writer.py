"""Pictures arrive where each logger keeps them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_viz import writer as writer_file
from lit_viz.writer import Writer, save_png

TAG = "saliency/probe"


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def tensorboard(folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(folder, name="run", version="")


def events(logger: TensorBoardLogger) -> EventAccumulator:
    found = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def decoded(image: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))


class Takes(Logger):
    """Any logger of the user's that takes images."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Any] = []
        self.numbers: list[Any] = []

    name = version = "takes"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.numbers.append((metrics, step))

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.images.append((key, images, step))


class OnlyNumbers(Takes):
    log_image = None  # type: ignore[assignment]

    def __init__(self, save_dir: Path | None) -> None:
        super().__init__()
        self.folder = save_dir

    @property
    def save_dir(self) -> str | None:
        return None if self.folder is None else str(self.folder)


class Fails(Takes):
    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        raise ConnectionError("no server")


# --- Pictures ---


def test_tensorboard_gets_pictures_by_tag_and_step(tmp_path: Path) -> None:
    logger = tensorboard(tmp_path)
    writer = Writer([logger])
    assert writer.active
    writer.picture(TAG, picture(0), 7)
    writer.picture(TAG, picture(1), 14)
    writer.picture("filters/conv1", picture(2), 14)
    writer.scalars({"occlusion/drop": 0.25}, 14)
    writer.flush()  # without closing
    found = events(logger)
    assert sorted(found.Tags()["images"]) == ["filters/conv1", TAG]
    images = found.Images(TAG)
    assert [i.step for i in images] == [7, 14]
    assert [(i.width, i.height) for i in images] == [(20, 12)] * 2
    assert all(np.array_equal(decoded(i), picture(n)) for n, i in enumerate(images))
    assert [(s.step, s.value) for s in found.Scalars("occlusion/drop")] == [(14, 0.25)]


@pytest.mark.filterwarnings("error")
def test_loggers_of_numbers_get_files_beside_their_own(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="run")
    writer = Writer([logger])
    writer.picture(TAG, picture(), 1200)
    writer.scalars({"a": 1.0}, 3)
    logger.save()
    path = Path(logger.log_dir) / "pictures" / "saliency" / "probe" / "step_00001200.png"
    assert np.array_equal(read(path), picture())
    assert "1.0" in (Path(logger.log_dir) / "metrics.csv").read_text()
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half written is left


def test_a_logger_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    takes, numbers, homeless = Takes(), OnlyNumbers(tmp_path / "own"), OnlyNumbers(None)
    writer = Writer([takes, numbers, homeless])
    writer.picture(TAG, picture(), 3)
    writer.scalars({"a": 2.0}, 4)
    ((key, (image,), step),) = takes.images
    assert key == TAG and step == 3 and np.array_equal(image, picture())
    assert takes.numbers == numbers.numbers == [({"a": 2.0}, 4)]
    for folder in (tmp_path / "own", tmp_path):
        assert np.array_equal(read(folder / "pictures" / TAG / "step_00000003.png"), picture())


def test_several_loggers_and_a_folder_at_once(tmp_path: Path) -> None:
    board, numbers, takes = tensorboard(tmp_path / "a"), CSVLogger(tmp_path / "b"), Takes()
    writer = Writer([board, numbers, takes], folder=str(tmp_path / "c"))
    writer.picture(TAG, picture(), 5)
    writer.flush()
    assert len(events(board).Images(TAG)) == 1 and len(takes.images) == 1
    for folder in (Path(numbers.log_dir) / "pictures", tmp_path / "c"):
        assert np.array_equal(read(folder / TAG / "step_00000005.png"), picture())


@pytest.mark.parametrize("loggers", [[], [DummyLogger()]])
def test_without_loggers_nothing_is_written(
    loggers: list[Logger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    writer = Writer(loggers)
    assert not writer.active
    writer.picture(TAG, picture(), 1)
    writer.scalars({"a": 1.0}, 1)
    writer.embedding("e", torch.zeros(4, 2), ["a"] * 4, torch.zeros(4, 3, 2, 2, dtype=torch.uint8), 1)
    writer.flush()
    assert list(tmp_path.iterdir()) == []
    assert Writer(loggers, folder=tmp_path).active


def test_a_logger_that_fails_is_not_hushed_up(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="no server"):
        Writer([Fails()]).picture(TAG, picture(), 1)


class Later:
    """Takes what may be done elsewhere, and remembers what it is told."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Any, int, Any]] = []
        self.told: list[Exception | None] = []

    def submit(self, write: Any, size: int, done: Any) -> None:
        self.jobs.append((write, size, done))

    def done(self, seconds: float, failure: Exception | None) -> None:
        self.told.append(failure)


def test_a_picture_is_written_later_as_it_was_then(tmp_path: Path) -> None:
    board, takes, later, canvas = tensorboard(tmp_path / "a"), Takes(), Later(), picture()
    Writer([board, takes], tmp_path / "b").picture_behind(TAG, canvas, 5, later.submit, later.done)
    canvas[:] = 0
    assert len(takes.images) == 1 and not list((tmp_path / "b").glob("*")) and later.told == []
    ((write, size, done),) = later.jobs
    write()
    done(0.0, None)
    board.experiment.flush()
    (image,) = events(board).Images(TAG)
    for written in (decoded(image), read(tmp_path / "b" / TAG / "step_00000005.png"), takes.images[0][1][0]):
        assert np.array_equal(written, picture())
    assert size == picture().nbytes and later.told == [None]


def test_which_loggers_are_called_from_the_thread_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that say nothing of threads, and Weights & Biases, whose history counts calls."""
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    calls: list[str] = []

    class Client:
        def log_image(self, *args: Any, **kwargs: Any) -> None:
            calls.append("mlflow")

    monkeypatch.setattr(MLFlowLogger, "experiment", Client())
    monkeypatch.setattr(MLFlowLogger, "run_id", "run")
    monkeypatch.setattr(WandbLogger, "log_image", lambda *args, **kwargs: calls.append("wandb"))
    loggers = [object.__new__(WandbLogger), object.__new__(MLFlowLogger), Takes()]
    for logger, elsewhere in zip(loggers, (False, True, False), strict=True):
        later = Later()
        Writer([logger]).picture_behind(TAG, picture(), 5, later.submit, later.done)
        assert bool(later.jobs) == elsewhere == (not later.told)
        for write, _, _ in later.jobs:
            write()
    assert calls == ["wandb", "mlflow"]


def test_of_failures_here_and_elsewhere_the_first_is_told(tmp_path: Path) -> None:
    later = Later()
    Writer([Fails()], tmp_path).picture_behind(TAG, picture(), 5, later.submit, later.done)
    ((write, _, done),) = later.jobs
    write()
    done(0.0, None)
    assert [type(failure) for failure in later.told] == [ConnectionError]
    assert list(tmp_path.rglob("*.png"))


def test_where_nothing_is_written_nothing_is_told() -> None:
    later, writer = Later(), Writer([])
    writer.picture_behind(TAG, picture(), 5, later.submit, later.done)
    writer.flush_behind(later.submit, later.done)
    assert later.jobs == later.told == []


def test_save_png_replaces_and_never_leaves_half_a_file(tmp_path: Path) -> None:
    save_png(tmp_path, TAG, picture(0), 1)
    path = save_png(tmp_path, TAG, picture(1), 1)
    assert np.array_equal(read(path), picture(1))
    with pytest.raises(TypeError):
        save_png(tmp_path, TAG, np.zeros((2, 2, 5, 5)), 1)
    assert np.array_equal(read(path), picture(1))


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    for name, value in (
        ("MODE", "offline"),
        ("SILENT", "true"),
        ("DIR", str(tmp_path)),
        ("DISABLE_GIT", "true"),
    ):
        monkeypatch.setenv(f"WANDB_{name}", value)
    logger = WandbLogger(name="run", save_dir=tmp_path, offline=True)
    try:
        writer = Writer([logger])
        writer.picture(TAG, picture(0), 3)
        writer.scalars({"a": 1.0}, 3)
        writer.picture(TAG, picture(1), 5)
    finally:
        logger.experiment.finish()
    found = sorted(tmp_path.glob("wandb/offline-run-*/files/media/images/saliency/probe_*.png"))
    assert len(found) == 2
    assert all(np.array_equal(read(path), picture(n)) for n, path in enumerate(found))


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger(tracking_uri=tmp_path.as_uri())
    writer = Writer([logger])
    writer.picture(TAG, picture(), 3)
    writer.scalars({"a": 0.5}, 3)
    (path,) = tmp_path.glob("*/*/artifacts/images/*.png")
    assert path.name.startswith("saliency~probe+step+3+") and np.array_equal(read(path), picture())
    assert logger.experiment.get_run(logger.run_id).data.metrics == {"a": 0.5}


# --- Embeddings ---


def embedding(folder: Path, names: list[str], thumbnails: torch.Tensor) -> Path:
    logger = tensorboard(folder)
    features = torch.arange(2.0 * len(names)).reshape(-1, 2)
    Writer([Takes(), logger]).embedding("embeddings/fc", features, names, thumbnails, 42)
    (config,) = Path(logger.log_dir).glob("projector_config.pbtxt")
    assert 'metadata_path: "00042/embeddings' in config.read_text()
    (tensors,) = Path(logger.log_dir).glob("00042/*/tensors.tsv")
    assert np.array_equal(np.loadtxt(tensors), features.numpy())
    return tensors.parent


def sprites(folder: Path) -> np.ndarray:
    return read(folder / "sprite.png")


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_metadata_has_two_columns_and_one_line_for_each_sample(tmp_path: Path) -> None:
    names = ["cat", "a\tb", "c\r\nd", "", " \n ", "zwei Wörter"]
    folder = embedding(tmp_path, names, noise(6, 3, 8, 8))
    lines = (folder / "metadata.tsv").read_text(encoding="utf-8").split("\n")
    assert lines == [
        "class\tsample",
        "cat\t0",
        "a b\t1",
        "c d\t2",
        "-\t3",
        "-\t4",
        "zwei Wörter\t5",
        "",
    ]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sprites_in_the_order_of_the_samples(channels: int, tmp_path: Path) -> None:
    thumbnails = noise(5, channels, 8, 8)
    sheet = sprites(embedding(tmp_path, ["a"] * 5, thumbnails)).astype(int)
    assert sheet.shape == (24, 24, 3)  # three to a side
    for n, thumbnail in enumerate(thumbnails):
        expected = thumbnail[:3].expand(3, 8, 8).permute(1, 2, 0).numpy()
        top, left = n // 3 * 8, n % 3 * 8
        assert np.abs(sheet[top : top + 8, left : left + 8] - expected).max() <= 1  # the sheet rounds down


@pytest.mark.parametrize(("height", "width"), [(12, 7), (7, 12)])
def test_thumbnails_that_are_not_square_keep_their_shape(height: int, width: int, tmp_path: Path) -> None:
    thumbnails = noise(4, 3, height, width)
    folder = embedding(tmp_path, ["a"] * 4, thumbnails)
    sheet = sprites(folder).astype(int)
    assert sheet.shape == (24, 24, 3)
    assert "single_image_dim: 12\n    single_image_dim: 12" in (
        folder.parents[1] / "projector_config.pbtxt"
    ).read_text().replace("\r", "")
    top, left = (12 - height) // 2, (12 - width) // 2
    for n, thumbnail in enumerate(thumbnails):
        cell = sheet[n // 2 * 12 :, n % 2 * 12 :][:12, :12]
        inner = cell[top : top + height, left : left + width]
        assert np.abs(inner - thumbnail.permute(1, 2, 0).numpy()).max() <= 1
        cell[top : top + height, left : left + width] = 255
        assert (cell == 255).all()


@pytest.mark.parametrize(("limit", "side"), [(64, 16), (50, 12), (1000, 16)])
def test_the_sprite_sheet_stays_within_the_projectors_limit(
    limit: int, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert writer_file.SPRITE_LIMIT == 8192
    monkeypatch.setattr(writer_file, "SPRITE_LIMIT", limit)
    folder = embedding(tmp_path, ["a"] * 13, torch.full((13, 3, 16, 16), 200, dtype=torch.uint8))
    sheet = sprites(folder)
    assert sheet.shape == (4 * side, 4 * side, 3) and max(sheet.shape) <= limit
    assert np.abs(sheet[:side, :side].astype(int) - 200).max() <= 1
