"""`fool`: images that a network takes for something else, as files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_viz import functional
from lit_viz.callbacks.fooling import fooling_sheet, how_it_was_fooled, two_scores
from lit_viz.commands.base import Results, chosen_network, classes_of, output_paths, parser_for
from lit_viz.errors import UsageError
from lit_viz.functional.fooling import check_fooling
from lit_viz.networks import InputFacts, network_inputs
from lit_viz.showing import distinct_names


def run(args: Sequence[str]) -> None:
    """Writes each image, changed so that the network takes it for another class, and sheets of them.

    What a file holds is read again and predicted again. Files that can't be read are named, images that could not be
    fooled too, and the rest goes on; the process then ends with status 1.
    """
    parser = parser_for("fool", "Changes images, hardly visibly, until the network takes them for something else.")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument(
        "--to",
        default="runner_up",
        help="class that they are to be taken for, index or name, or one for each image with commas between; "
        "runner_up (the second-best class, by default) or least_likely",
    )
    parser.add_argument("--norm", choices=("l2", "linf"), help="bound the change, or look for the smallest one")
    parser.add_argument("--bound", type=fraction, help="of the norm, in colour units, such as 8/255; else the smallest")
    parser.add_argument("--confidence", type=float, default=0.9, help="probability to be reached (%(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="at most so many (%(default)s)")
    given = parser.parse_args(args)
    check_fooling(norm=given.norm, bound=given.bound, confidence=given.confidence, steps=given.steps)
    names = [f"{Path(name).stem}-fooled" for name in distinct_names(given.images)]
    output_paths(given, given.images, [f"{name}.png" for name in (*names, "fooling")])
    network, facts = chosen_network(given)
    wanted = _wanted(given, facts)
    inputs: dict[int, Tensor] = {}
    for i, image in enumerate(given.images):
        try:
            ((inputs[i], space, _),) = network_inputs(image, facts)
        except UsageError as error:
            print(f"lit_viz: {error}" if image in str(error) else f"lit_viz: {image}: {error}", file=sys.stderr)
    if not inputs:
        sys.exit(1)
    results = Results(given.out)
    found = functional.fooling_image(
        network.module,
        torch.cat(list(inputs.values())),
        wanted if isinstance(wanted, str) else [wanted[i] for i in inputs],
        norm=given.norm,
        bound=given.bound,
        confidence=given.confidence,
        steps=given.steps,
        pixels=space,
        progress=True,
    )
    told = _Told(network.module, facts, found)
    fooled = 0
    for row, i in enumerate(inputs):
        path = results.image(names[i], found.images[row], space, tag=f"fooling/{names[i]}")
        fooled += told.line(row, path, given.confidence)
        sizes = {"l2": float(found.l2[row]), "linf": float(found.linf[row]), "steps": float(found.steps[row])}
        results.scalars({f"fooling/{names[i]}/{name}": value for name, value in sizes.items()})
    control = told.scores(space.from_color(functional.same_size_noise(found) / 255))
    sheet = fooling_sheet(
        found,
        control,
        class_name=told.name,
        names=[Path(given.images[i]).name for i in inputs],
        title=f"Fooling images · {given.model or Path(given.weights).name}",
        subtitle=how_it_was_fooled(given.norm, given.bound, given.confidence),
    )
    print(results.picture("fooling", sheet, tag="fooling/sheet"), flush=True)
    results.close()
    if fooled < len(given.images):
        sys.exit(1)


def fraction(text: str) -> float:
    """A number, or two with a stroke between, such as 8/255."""
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 8/255 or 0.03.") from error


def _wanted(given: argparse.Namespace, facts: InputFacts) -> str | list[int]:
    """What each image is to be taken for."""
    if given.to in ("runner_up", "least_likely"):
        return str(given.to)
    classes = classes_of(given.to, facts)
    if len(classes) not in (1, len(given.images)):
        count = len(given.images)
        raise UsageError(f"--to names {len(classes)} classes for {count} images; give one, or one for each.")
    return classes * len(given.images) if len(classes) == 1 else classes


class _Told:
    """What the network says of images, in words."""

    def __init__(self, module: nn.Module, facts: InputFacts, found: functional.Fooling) -> None:
        self.module, self.facts, self.found = module, facts, found
        names = facts.class_names
        self.names = names if names and len(names) == found.scores_before.shape[1] else None

    def name(self, index: int) -> str:
        return self.names[index] if self.names else f"class {index}"

    def scores(self, images: Tensor) -> Tensor:
        """Scores (N, K)."""
        return two_scores(self.module, images.to(self.facts.device, self.facts.dtype))

    def line(self, row: int, path: Path, confidence: float) -> bool:
        """Prints what became of an image, and says whether the file that was written fools the network."""
        found, target = self.found, int(self.found.targets[row])
        scores = self.scores(network_inputs(path, self.facts)[0][0])
        p, before = functional.probabilities(scores)[0], functional.probabilities(found.scores_before)[row]
        best, first = int(p.argmax()), int(before.argmax())
        size = f"L2 {float(found.l2[row]):.2f}, L∞ {float(found.linf[row]) * 255:.0f}/255"
        print(
            f"{path}  {self.name(first)} {float(before[first]):.2f} → {self.name(best)} {float(p[best]):.2f}  "
            f"({size}, steps: {int(found.steps[row])})",
            flush=True,
        )
        if best == target and float(p[best]) >= confidence:
            return True
        note = found.notes[row] or f"read again, {path.name} has {float(p[target]):.2g}"
        print(f"lit_viz: {path}, to be {self.name(target)}: {note}.", file=sys.stderr)
        return False
