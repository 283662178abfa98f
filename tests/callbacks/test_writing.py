"""Pictures are written beside training: complete at the end, however it comes, and never at the run's expense."""

from __future__ import annotations

import errno
import pickle
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_viz import writer
from lit_viz.callbacks import Look, VisualizationCallback
from lit_viz.write_behind import WriteBehind
from tests.conformance.harness import Recorder, TinyModule, assert_untouched, fit, loaders, trainer


class Steps(VisualizationCallback):
    """Draws the number of its look, over the last one, as someone who saves memory would."""

    tag = "steps"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"every_n_steps": 1, **kwargs})
        self.canvas = np.zeros((5, 4, 3), np.uint8)
        self.steps: list[int] = []

    def visualize(self, look: Look) -> dict[str, Any]:
        self.steps.append(look.step)
        self.canvas[:] = look.step
        return {"number": self.canvas, "step": float(look.step)}


class Held:
    """Encoding that stands still until it is let go; counts what has gone through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.count, encoded = threading.Event(), 0, writer.encoded

        def held(picture: np.ndarray) -> bytes:
            assert self.open.wait(60)
            self.count += 1
            return encoded(picture)

        monkeypatch.setattr(writer, "encoded", held)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.open.set()


def on_disk(folder: Path, tag: str = "steps/number") -> list[int]:
    """Numbers in the pictures that lie in a folder, in the order of their names, which they must agree with."""
    paths = sorted((folder / tag).glob("*"))
    numbers = [int(np.asarray(Image.open(path))[0, 0, 0]) for path in paths]
    assert [path.name for path in paths] == [f"step_{number:08d}.png" for number in numbers]
    return numbers


def told(caught: list[warnings.WarningMessage], what: str) -> list[str]:
    return [str(w.message) for w in caught if what in str(w.message)]


def test_training_goes_on_while_pictures_are_written(tmp_path: Path, held: Held) -> None:
    class LetsGo(Callback):
        def on_train_end(self, *args: Any) -> None:
            assert held.count == 0, "a training step waited for a picture"
            held.open.set()

    callback = Steps(folder=tmp_path, on_error="raise")
    seen = fit("fp32", [callback, LetsGo()], logger=Recorder())
    assert on_disk(tmp_path) == list(range(9)) and callback.written == {"steps/number": 9}
    assert_untouched(seen, fit("fp32"))


def test_tensorboard_has_all_when_fit_returns(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="run", version="")
    fit("fp32", [Steps(on_error="raise"), Steps(on_error="raise")], logger=logger)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    for name in ("steps", "steps-2"):
        images = events.Images(f"{name}/number")
        assert [image.step for image in images] == list(range(9))
        times = [image.wall_time for image in images]
        assert times == sorted(times)
        assert [scalar.step for scalar in events.Scalars(f"{name}/step")] == list(range(9))
    assert [s.step for s in events.Scalars("val_loss")] == [3, 7]


def test_loggers_that_may_not_like_it_are_called_from_the_thread_of_the_run(tmp_path: Path) -> None:
    class Careful(Recorder):
        def log_image(self, *args: Any, **kwargs: Any) -> None:
            assert threading.current_thread() is threading.main_thread()
            super().log_image(*args, **kwargs)

    careful, beside = Careful(), CSVLogger(tmp_path, name=None, version="table")
    fit("fp32", [Steps(on_error="raise")], logger=[careful, beside])
    assert [step for _, step, _ in careful.images] == list(range(9)) == on_disk(tmp_path / "table" / "pictures")


def test_several_callbacks_write_in_the_order_in_which_they_drew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, save = [], writer.save_png
    monkeypatch.setattr(writer, "save_png", lambda *args: (order.append((args[3], args[1])), save(*args)))
    callbacks = [Steps(folder=tmp_path, on_error="raise", name=name) for name in ("b", "a")]
    fit("fp32", callbacks, logger=False)
    assert order == [(step, f"{name}/number") for step in range(9) for name in ("b", "a")]


def test_two_runs_in_a_row(tmp_path: Path) -> None:
    callback = Steps(on_error="raise")
    for run in (1, 2):
        callback.folder = tmp_path / str(run)
        runner = trainer([callback], logger=False, max_epochs=run)
        runner.fit(TinyModule(), *loaders())
        assert on_disk(callback.folder) == list(range(4 * run + 1))
    runner.fit_loop.max_epochs = 3  # the same trainer once more
    runner.fit(runner.lightning_module, *loaders())
    assert on_disk(callback.folder) == list(range(13))
    assert callback.written == {"steps/number": 5 + 9 + 4}
    for thread in (t for t in threading.enumerate() if t.name == "lit_viz writer"):
        thread.join(60)
        assert not thread.is_alive(), "it waits for something that never comes"


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_pictures_of_a_finished_model(stage: str, tmp_path: Path) -> None:
    getattr(trainer([Steps(folder=tmp_path)], logger=False), stage)(TinyModule(), loaders()[1], verbose=False)
    assert on_disk(tmp_path) == [0]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    callback = Steps()
    fit("fp32", [callback], fast_dev_run=True)
    assert callback.steps and not callback.written


class Ends(TinyModule):
    """A run that ends in the third step, while all pictures still wait to be written."""

    def __init__(self, end: Any, held: Held) -> None:
        super().__init__()
        self.end, self.held = end, held

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == 2:
            assert self.held.count == 0
            threading.Timer(0.05, self.held.open.set).start()
            self.end()
        return super().training_step(batch, batch_idx)


def fails() -> None:
    raise FloatingPointError("the loss is gone")


@pytest.mark.parametrize(
    ("end", "error", "steps"),
    [
        (fails, FloatingPointError, [0, 1, 2]),
        (lambda: signal.raise_signal(signal.SIGINT), SystemExit, [0, 1, 2]),
        (lambda: signal.raise_signal(signal.SIGTERM), SIGTERMException, [0, 1, 2, 3]),
    ],
    ids=["exception", "Ctrl-C", "SIGTERM"],
)
def test_pictures_are_there_however_a_run_ends(
    end: Any, error: type[BaseException], steps: list[int], tmp_path: Path, held: Held
) -> None:
    callback, handler = Steps(folder=tmp_path), signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(error):
            trainer([callback], logger=False).fit(Ends(end, held), *loaders())
    finally:
        signal.signal(signal.SIGINT, handler)  # which Lightning has switched off
    assert on_disk(tmp_path) == steps and callback.written == {"steps/number": len(steps)}


def full(*args: Any) -> Any:
    """Names another file each time."""
    raise OSError(errno.ENOSPC, "No space left on device", f"step {args[3]}")


def test_a_full_disk_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = Steps(folder=tmp_path)
    monkeypatch.setattr(writer, "save_png", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = fit("fp32", [callback], logger=Recorder())
    (message,) = told(caught, "No space left")
    assert message.startswith("steps: Steps could not write and is left out here; the run goes on.")
    assert callback.steps == list(range(9)) and not callback.written
    assert_untouched(seen, fit("fp32"))


def test_what_fails_to_be_written_in_the_end_is_told_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "save_png", full)
    callback = Steps(folder=tmp_path, every_n_steps=None, every_n_epochs=None, at_start=False)
    with pytest.warns(UserWarning, match="No space left"):
        fit("fp32", [callback], logger=False)


@pytest.mark.parametrize("last", [False, True])
def test_on_request_it_stops_the_run(last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "save_png", full)
    schedule = {"every_n_steps": None, "every_n_epochs": None, "at_start": False} if last else {}
    callback = Steps(folder=tmp_path, on_error="raise", **schedule)
    with pytest.raises(OSError, match="No space left"):
        fit("fp32", [callback], logger=False)
    assert (callback.steps == [8]) == last


def test_one_logger_that_fails_costs_the_others_nothing(tmp_path: Path) -> None:
    class Broken(Recorder):
        def log_image(self, *args: Any, **kwargs: Any) -> None:
            raise ConnectionError("gone")

    callback = Steps(folder=tmp_path)
    with pytest.warns(UserWarning, match="gone"):
        fit("fp32", [callback], logger=Broken())
    assert on_disk(tmp_path) == list(range(9))
    assert not callback.written, "nothing was written to all of them"


def test_a_writer_that_hangs_stalls_no_run(tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WriteBehind.__init__, "__defaults__", (3 * 5 * 4 * 3, 0.01))  # room for three pictures
    callback = Steps(folder=tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = fit("fp32", [callback], logger=Recorder())
    (message,) = told(caught, "seems to hang")
    assert "TimeoutError" in message
    assert callback.steps == list(range(9)) and not callback.written
    assert_untouched(seen, fit("fp32"))
    held.open.set()


def test_a_look_that_failed_to_be_written_keeps_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    kept: list[Any] = []

    def fails(folder: Path, tag: str, picture: np.ndarray, step: int) -> None:
        kept.append(weakref.ref(picture))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "save_png", fails)
    gc.disable()
    try:
        with pytest.warns(UserWarning, match="No space left"):
            fit("fp32", [Steps(folder=tmp_path)], logger=False, max_epochs=1)
        assert kept and all(one() is None for one in kept)
    finally:
        gc.enable()


def test_a_callback_that_has_written_goes_to_other_processes(tmp_path: Path) -> None:
    """As spawned strategies send it."""
    callback = Steps(folder=tmp_path / "here", on_error="raise")
    fit("fp32", [callback], logger=False)
    sent = pickle.loads(pickle.dumps(callback))
    sent.folder = tmp_path / "there"
    fit("fp32", [sent], logger=False)
    assert on_disk(tmp_path / "here") == on_disk(tmp_path / "there") == list(range(9))
