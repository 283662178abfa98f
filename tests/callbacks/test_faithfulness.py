"""What `Faithfulness` writes is what the functions say of the maps that the other callbacks give."""

from __future__ import annotations

import gc
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_viz import functional
from lit_viz.callbacks import AttributionCallback, Faithfulness, GuidedBackprop, Look, Occlusion, Saliency
from lit_viz.cli import LitVizCLI
from lit_viz.errors import UsageError
from tests.conformance.harness import Blobs, Recorder, TinyModule, loaders, trainer


class Edges(AttributionCallback):
    """The same map whatever the network has learned."""

    tag = "edges"

    def attribute(self, look: Look) -> Tensor:
        look.model(look.images)
        return (look.images - look.images.roll(1, 3)).abs().amax(1)


class Unprepared(AttributionCallback):
    """Needs its `check`."""

    tag = "unprepared"
    channel: int | None = None

    def check(self, look: Look) -> None:
        self.channel = 1

    def attribute(self, look: Look) -> Tensor:
        return look.images[:, self.channel]


class Broken(AttributionCallback):
    tag = "broken"

    def attribute(self, look: Look) -> Tensor:
        raise ZeroDivisionError("no maps today")


class Kept(Faithfulness):
    """Keeps its looks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"num_images": 3, "steps": 5, "on_error": "raise", **kwargs})
        self.looks: list[Look] = []

    def visualize(self, look: Look) -> Any:
        self.looks.append(look)
        return super().visualize(look)


def validated(callbacks: list[Any], module: TinyModule | None = None, **kwargs: Any) -> Recorder:
    recorder = Recorder()
    if module is None:
        torch.manual_seed(0)
        module = TinyModule()
    trainer(callbacks, logger=recorder, **kwargs).validate(module, loaders()[1], verbose=False)
    return recorder


def numbers(recorder: Recorder, step: int | None = None) -> dict[str, float]:
    found = [(tag, at, value) for tag, at, value in recorder.metrics if tag.startswith("faithfulness")]
    return {tag.split("/", 1)[1]: value for tag, at, value in found if step is None or at == step}


@pytest.mark.parametrize("output", ["probability", "score"])
def test_numbers_are_those_of_the_functions(output: Any) -> None:
    occlusion, callback = Occlusion(window=4, stride=2), Kept(output=output)
    recorder = validated([Saliency(), occlusion, callback])
    found, look = numbers(recorder), callback.looks[-1]
    assert recorder.tags == {"saliency/probe", "occlusion/probe", "faithfulness/curves"}
    maps = {
        "saliency": functional.saliency(look.model, look.images, look.targets),
        "occlusion": occlusion.attribute(look),
        "random": torch.rand(3, 16, 20, generator=torch.Generator().manual_seed(0)),
    }
    assert set(found) == {f"{name}/{game}" for name in maps for game in ("insertion", "deletion")}
    grey = look.pixels.from_color(torch.full((3, 1, 1), 0.5))
    for name, of_method in maps.items():
        options: dict[str, Any] = {"steps": 5, "end": grey, "output": output}
        curves = functional.insertion_deletion(look.model, look.images, of_method, look.targets, **options)
        assert found[f"{name}/insertion"] == pytest.approx(curves.insertion_area.mean().item(), abs=1e-5)
        assert found[f"{name}/deletion"] == pytest.approx(curves.deletion_area.mean().item(), abs=1e-5)


def test_schedules_may_differ() -> None:
    """Maps are had whenever they are wanted, from callbacks that look at other times and at other images."""
    recorder = Recorder()
    others = [Saliency(every_n_epochs=None, at_start=False, at_end=False, num_images=2), Occlusion(every_n_epochs=2)]
    trainer([Kept(), *others], logger=recorder, max_epochs=3).fit(TinyModule(), *loaders())
    curves = [step for tag, step, _ in recorder.images if tag == "faithfulness/curves"]
    assert curves == [0, 4, 8, 12] and "saliency/probe" not in recorder.tags
    for step in curves:
        assert {"saliency/insertion", "occlusion/deletion"} <= set(numbers(recorder, step))


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (None, {"saliency", "mine", "saliency-2"}),
        ("saliency", {"saliency"}),
        ("Saliency", {"saliency", "saliency-2"}),
        (["mine", "saliency"], {"saliency", "mine"}),
        (["Occlusion"], {"mine"}),
        ([Edges(), "mine", Edges(name="saliency")], {"edges", "mine", "saliency"}),
        (Edges(), {"edges"}),
        ([Edges(), Edges(name="random")], {"edges", "random-2"}),
    ],
)
def test_what_is_tested(of: Any, expected: set[str]) -> None:
    recorder = validated([Saliency(), Kept(of), Occlusion(name="mine"), Saliency()])
    assert {tag.split("/")[0] for tag in numbers(recorder)} == expected | {"random"}


def test_state_that_a_method_needs_is_prepared() -> None:
    recorder = validated([Kept([Unprepared()])])
    assert "unprepared/insertion" in numbers(recorder)


@pytest.mark.parametrize("order", [0, 1])
def test_a_method_that_fails_leaves_the_others(order: int) -> None:
    whole = validated([Kept([Saliency()])])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        methods = [Broken(), Saliency()] if order else [Saliency(), Broken()]
        recorder = Recorder()
        trainer([Kept(methods, on_error="warn")], logger=recorder).fit(TinyModule(), *loaders())
        found = validated([Kept(methods, on_error="warn")])
    assert sum("could not test broken which is left out" in str(w.message) for w in caught) == 2  # one for each run
    assert numbers(found) == numbers(whole)
    assert {step for _, step, _ in recorder.images} == {0, 4, 8}
    # The note makes the picture taller.
    assert found.images[0][2].shape[0] > whole.images[0][2].shape[0]


def test_a_method_without_meaning_for_the_network_leaves_the_others() -> None:
    class Smooth(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.net.relu1, self.net.relu2 = nn.GELU(), nn.GELU()

    with pytest.warns(UserWarning, match="could not test guided_backprop"):
        found = validated([Kept([GuidedBackprop(), Saliency()], on_error="warn")], Smooth())
    assert {tag.split("/")[0] for tag in numbers(found)} == {"saliency", "random"}
    with pytest.raises(UsageError, match="change the gradient at ReLUs"):
        validated([Kept([GuidedBackprop()], on_error="warn")], Smooth())


@pytest.mark.parametrize(
    "way", ["plain", "forward", *(pytest.param(w, marks=pytest.mark.slow) for w in ("compiled", "compiled part"))]
)
def test_maps_of_what_was_learned_fall_and_edges_stay(way: str) -> None:
    """Also where the module's `forward` is replaced, and a copy of it would still run the network that was copied."""
    kwargs: dict[str, Any] = {}
    module: Any = TinyModule()
    if way == "forward":
        kwargs["forward"] = lambda module, images: module(images)
    elif way == "compiled":
        module = torch.compile(module, backend="eager")
    elif way == "compiled part":
        module = TinyModule(wrap=lambda net: torch.compile(net, backend="eager"))
    recorder = Recorder()
    callback = Kept([Saliency(), Edges()], randomization=True, at_start=False, **kwargs)
    trainer([callback], logger=recorder, max_epochs=8).fit(module, *loaders())
    found = numbers(recorder, 32)
    assert found["edges/randomization"] == pytest.approx(1.0)
    assert found["saliency/randomization"] < 0.6
    assert recorder.tags == {"faithfulness/curves", "faithfulness/randomization"}
    look = callback.looks[-1]
    check = functional.randomization_check(
        look.model.net, lambda net: functional.saliency(net, look.images, look.targets), stages=8
    )
    expected = check.rank_correlation.nanmean().item()
    assert found["saliency/randomization"] == pytest.approx(expected, abs=1e-4)


def blob_boxes(batch: Any) -> Tensor:
    left = 6 * batch[1]
    return torch.stack([left, torch.full_like(left, 4), left + 6, torch.full_like(left, 10)], dim=1)


def blob_masks(batch: Any) -> Tensor:
    return functional.boxes_to_masks(blob_boxes(batch), (16, 20))[:, None]


@pytest.mark.parametrize("of_batch", [blob_boxes, blob_masks])
@pytest.mark.parametrize("first_batch", [False, True])
def test_pointing_game(of_batch: Any, first_batch: bool) -> None:
    callback, recorder = Kept([Saliency(), Unprepared()], batch_to_masks=of_batch, tolerance=1), Recorder()
    data: Any = Blobs(14, 4)
    if first_batch:  # where samples can't be chosen
        data = type("Stream", (torch.utils.data.IterableDataset,), {"__iter__": lambda self: iter(Blobs(14, 4))})()
    trainer([callback], logger=recorder).validate(TinyModule(), torch.utils.data.DataLoader(data, 6), verbose=False)
    found, look = numbers(recorder), callback.looks[0]
    assert look.labels is not None
    masks = blob_masks((look.images, look.labels))[:, 0]
    for name, maps in {
        "saliency": functional.saliency(look.model, look.images),
        "unprepared": look.images[:, 1],
    }.items():
        if name == "saliency":
            maps = functional.saliency(look.model, look.images, look.targets)
        assert found[f"{name}/pointing"] == pytest.approx(
            functional.pointing_score(maps, masks, tolerance=1).float().mean().item()
        )
        assert found[f"{name}/energy"] == pytest.approx(functional.energy_inside(maps, masks).mean().item(), abs=1e-5)
    assert found["unprepared/energy"] > 0.3 > found["random/energy"]  # where the blobs are bright


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Faithfulness(), "no attribution callback whose maps could be tested"),
        (lambda: Faithfulness(of=["saliency"]), "no attribution callback named 'saliency'; it has none"),
        (lambda: Faithfulness(of=[]), "of holds attribution callbacks"),
        (lambda: Faithfulness(of=[3]), "of holds attribution callbacks"),
        (lambda: Faithfulness(of=Saliency(), steps=0), "steps must be a whole number"),
        (lambda: Faithfulness(of=Saliency(), stages=0), "stages must be a whole number"),
        (lambda: Faithfulness(of=Saliency(), end="white"), "end is 'blur', 'grey', 'mean' or 'noise'"),
        (lambda: Faithfulness(of=Saliency(), output="logit"), "output is 'probability' or 'score'"),
        (lambda: Faithfulness(of=Saliency(), tolerance=-1), "tolerance is a distance"),
        (lambda: Faithfulness(of=Saliency(), batch_to_masks="mask"), "batch_to_masks must be a function"),
        (lambda: Faithfulness(of=Saliency(), batch_to_masks=lambda b: b[1]), r"batch_to_masks gave \(8,\) for images"),
        (lambda: Faithfulness(of=GuidedBackprop(layer="nope")), "no layer 'nope'"),
    ],
)
def test_mistakes_are_told_before_training_starts(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        trainer([make()], logger=Recorder()).fit(TinyModule(), *loaders())


def test_names_that_are_not_there_are_compared() -> None:
    with pytest.raises(UsageError, match="named 'salience'; did you mean 'saliency'"):
        trainer([Saliency(), Faithfulness(of="salience")], logger=Recorder()).fit(TinyModule(), *loaders())


@pytest.mark.parametrize(
    ("options", "expected"),
    [("null", None), ("[saliency, Occlusion]", ["saliency", "Occlusion"]), ("saliency", ["saliency"])],
)
def test_from_yaml(options: str, expected: Any, tmp_path: Path) -> None:
    file = tmp_path / "add.yaml"
    file.write_text(f"trainer:\n  callbacks+:\n  - class_path: Faithfulness\n    init_args:\n      of: {options}\n")
    args = ["--config", "configs/quickstart.yaml", "--config", str(file), "--trainer.logger=false"]
    cli = LitVizCLI(args=args, run=False)
    (callback,) = (c for c in cli.trainer.callbacks if isinstance(c, Faithfulness))
    assert callback.of == expected


def test_callbacks_of_its_own_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "add.yaml"
    own = "[saliency, {class_path: Occlusion, init_args: {window: 9}}]"
    file.write_text(f"trainer:\n  callbacks+:\n  - class_path: Faithfulness\n    init_args:\n      of: {own}\n")
    cli = LitVizCLI(args=["--config", "configs/quickstart.yaml", "--config", str(file)], run=False)
    (callback,) = (c for c in cli.trainer.callbacks if isinstance(c, Faithfulness))
    assert callback.of is not None and callback.of[0] == "saliency"
    assert isinstance(callback.of[1], Occlusion) and callback.of[1].window == 9


def test_numbers_without_an_image_logger(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    table = CSVLogger(tmp_path, name=None, version="table")
    trainer([Kept(Saliency())], logger=table, max_epochs=1).fit(TinyModule(), *loaders())
    assert "faithfulness/saliency/insertion" in (tmp_path / "table" / "metrics.csv").read_text().splitlines()[0]
    assert list((tmp_path / "table" / "pictures" / "faithfulness" / "curves").glob("*.png"))


def test_a_method_that_is_left_out_holds_no_tensors() -> None:
    kept: list[weakref.ref[Tensor]] = []

    class Holding(Saliency):
        def check(self, look: Look) -> None:
            large = torch.zeros(10)
            kept.append(weakref.ref(large))
            try:
                raise ValueError("the cause")
            except ValueError as error:
                raise UsageError("no meaning") from error

    callback = Faithfulness([Holding(), Saliency()], steps=2, num_images=2)
    with pytest.warns(UserWarning, match="no meaning"):
        validated([callback])
    gc.collect()
    assert list(callback._unfit) == ["saliency"]
    assert kept[0]() is None
