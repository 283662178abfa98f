"""Run on two ranks by `test_ddp.py`: each rank writes down what it found."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from lit_viz.callbacks import Embeddings, MaxActivatingPatches, NearestNeighbors, Saliency
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
    (folder / f"report-{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
