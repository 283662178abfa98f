"""Run on two ranks by `test_ddp.py`: each rank writes down what it found."""

from __future__ import annotations

import json
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from lit_viz.budget import Budget
from lit_viz.callbacks import Embeddings, Filters, MaxActivatingPatches, NearestNeighbors, Saliency
from tests.conformance.cases import CASES, TSNE
from tests.conformance.harness import Blobs, Recorder, TinyModule, fit, trainer

TWO = {"strategy": "ddp", "devices": 2}
SAMPLES = 13  # not even: the sampler repeats one so that both ranks have seven


def collected(**kwargs: Any) -> dict[str, torch.Tensor]:
    """What the collecting callbacks hold after a pass over the uneven data set."""
    torch.manual_seed(0)
    module = TinyModule()
    patches = MaxActivatingPatches(k=5, channels="all", on_error="raise")
    embeddings = Embeddings(methods=["pca"], projector=False, on_error="raise")
    neighbors = NearestNeighbors(k=4, num_images=5, on_error="raise")
    loader = torch.utils.data.DataLoader(Blobs(SAMPLES, 3), 3)
    trainer([patches, embeddings, neighbors], logger=Recorder(), **kwargs).validate(module, loader, verbose=False)
    out: dict[str, torch.Tensor] = {}
    for layer, result in patches.results.items():
        out |= {f"{layer}.{f}": getattr(result.top, f) for f in ("values", "samples", "places")}
        out |= {f"{layer}.images": result.images, f"{layer}.inside": result.inside}
    for space, found in neighbors.found.items():
        out |= {f"{space}.neighbors": found.indices, f"{space}.distances": found.distances}
    features = embeddings.features
    assert features is not None
    return out | {f: getattr(features, f) for f in ("values", "labels", "samples", "thumbnails")}


class OwnClock:
    """Each rank's goes its own way: further each time it is read, and now and then a lot."""

    def __init__(self, rank: int) -> None:
        self.now, self.random = 0.0, random.Random(rank)

    def __call__(self) -> float:
        self.now += 2.0 if self.random.random() < 0.2 else 0.1
        return self.now


class OwnBudget(Budget):
    """Remembers what this rank alone would have decided, and what all of them did."""

    def __init__(self, share: float, rank: int) -> None:
        super().__init__(share, OwnClock(rank))
        self.alone: list[bool] = []
        self.agreed: list[tuple[str, bool]] = []

    def allows(self, name: str) -> bool:
        self.alone.append(super().allows(name))
        return self.alone[-1]

    def settle(self, name: str, granted: bool) -> None:
        self.agreed.append((name, granted))
        super().settle(name, granted)


def main(folder: Path) -> None:
    report: dict[str, Any] = {}
    alone = fit("fp32", **TWO)
    rank = alone.trainer.global_rank
    recorder = Recorder()
    callbacks = [c.make(on_error="raise") for c in [*CASES[:3], TSNE, *CASES[4:]]]
    seen = fit("fp32", callbacks, logger=recorder, **TWO)
    report["same weights"] = all(torch.equal(v, alone.weights[k]) for k, v in seen.weights.items())
    report["same optimizer"] = all(torch.equal(v, alone.optimizer[k]) for k, v in seen.optimizer.items())
    report["tags"] = sorted(recorder.tags)

    torch.save(collected(**TWO), folder / f"collected-{rank}.pt")

    def failing(cls: type, place: str, on: int, **kwargs: Any) -> Any:
        """A callback that fails at one place on one rank."""
        callback = cls(**kwargs)
        original = getattr(callback, place)

        def broken(*args: Any, **kwargs: Any) -> Any:
            if rank == on:
                raise ZeroDivisionError(f"rank {on} fails")
            return original(*args, **kwargs)

        setattr(callback, place, broken)
        return callback

    # One rank fails, at every place where one can, and the run goes on.
    for on in (0, 1):
        for cls, place in (
            (Saliency, "_prepared"),
            (Saliency, "check"),
            (Saliency, "visualize"),
            (Embeddings, "_prepared"),
            (Embeddings, "check"),
            (Embeddings, "begin"),
            (Embeddings, "update"),
            (Embeddings, "end"),
            (Embeddings, "finish"),
            (MaxActivatingPatches, "visualize"),
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome = fit("fp32", [failing(cls, place, on)], logger=Recorder(), **TWO)
            same = all(torch.equal(v, alone.weights[k]) for k, v in outcome.weights.items())
            report[f"{cls.__name__}.{place} fails on rank {on}"] = same

    # With on_error="raise" no rank is left waiting for the other.
    for cls, place in ((Saliency, "_prepared"), (Saliency, "visualize"), (Embeddings, "check"), (Embeddings, "update")):
        try:
            fit("fp32", [failing(cls, place, 1, on_error="raise")], logger=Recorder(), **TWO)
            report[f"{cls.__name__}.{place} raises"] = "nothing"
        except (ZeroDivisionError, RuntimeError) as error:
            report[f"{cls.__name__}.{place} raises"] = type(error).__name__
    # Clocks differ, and with them what each rank would leave out; all leave out the same.
    account = OwnBudget(0.6, rank)
    saliency = Saliency(every_n_steps=1, budget=account, on_error="raise")
    filters = Filters(every_n_steps=1, budget=account)
    neighbors = NearestNeighbors(k=3, num_images=3, budget=account, on_error="raise")
    run = {"max_epochs": 8, **TWO}
    recorder = Recorder()
    seen = fit("fp32", [saliency, filters, neighbors], logger=recorder, **run)
    unseen = fit("fp32", **run)
    report["same weights with a budget"] = all(torch.equal(v, unseen.weights[k]) for k, v in seen.weights.items())
    report["alone"], report["agreed"] = account.alone, account.agreed
    report["drawn"] = len({(tag.split("/")[0], step) for tag, step, _ in recorder.images})

    # What rank zero can't write stops both where that is asked for, and costs a warning where not.
    nowhere = folder / "report-0.json" / "below a file"
    (folder / "report-0.json").touch()
    try:
        fit("fp32", [Saliency(folder=nowhere, on_error="raise")], logger=False, **TWO)
        report["writing raises"] = "nothing"
    except (NotADirectoryError, RuntimeError) as error:
        report["writing raises"] = type(error).__name__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = fit("fp32", [Saliency(folder=nowhere)], logger=False, **TWO)
    report["writing fails on rank 0"] = all(torch.equal(v, alone.weights[k]) for k, v in outcome.weights.items())
    (folder / f"report-{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
