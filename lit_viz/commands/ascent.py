"""`ascent`: images that excite classes or units of a network most, as files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_viz import draw, functional
from lit_viz.callbacks.ascent import ascent_sheet, ascent_title, target_probabilities, unit_objective
from lit_viz.commands.base import Results, chosen_network, classes_of, listed, output_paths, parser_for
from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.ascent import check_recipe
from lit_viz.functional.classes import two_classes
from lit_viz.functional.scores import Score
from lit_viz.functional.synthesis import eight_bit_rounded
from lit_viz.layers import find_layer
from lit_viz.networks import load_decoder, network_inputs
from lit_viz.pixels import PixelSpace, usual_pixel_space
from lit_viz.probing import evenly_spaced


def run(args: Sequence[str]) -> None:
    """Writes an image for each class or unit and a sheet of them, and to TensorBoard how they came about.

    Probabilities are those of the files, whose pixels have 8 bits. Ctrl-C ends it with what there is.
    """
    parser = parser_for("ascent", "Makes images that excite classes or units of a network most, by gradient ascent.")
    parser.add_argument("--classes", help='index, name or a word of it, with commas between: "ostrich,flamingo,130"')
    parser.add_argument(
        "--layer", help="dotted name of a layer, to excite its channels instead, as `layers` lists them"
    )
    parser.add_argument(
        "--channels",
        default="8",
        help="of the layer: which, with commas between (3,17,20, or 17, for a single one), or how many (%(default)s)",
    )
    parser.add_argument("--unit", action="store_true", help="excite the middle of a channel instead of all of its map")
    parser.add_argument(
        "--recipe", help=f"of {', '.join(functional.RECIPES)}; by default one that suits the network and its images"
    )
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="of the noise to start from, and of changes (%(default)s)")
    parser.add_argument("--start", help="zero (grey), noise, or an image file; by default as the recipe has it")
    parser.add_argument("--decoder", help="checkpoint of a FeatureDecoder, whose code is optimised instead of pixels")
    parser.add_argument("--snapshots", type=int, default=8, help="pictures on the way, in TensorBoard (%(default)s)")
    given = parser.parse_args(args)
    if (given.classes is None) == (given.layer is None):
        raise UsageError('give --classes "ostrich,flamingo", or --layer for channels of a layer; one of the two.')
    check_at_least("snapshots", given.snapshots, 0)
    if given.steps is not None:
        check_at_least("steps", given.steps, 1)
    recipe = check_recipe(given.recipe, given.decoder is not None)
    network, facts = chosen_network(given)
    model, space = network.module, facts.space or usual_pixel_space(facts.channels)
    shape = (facts.channels, facts.size or 224, facts.size or 224)
    start = given.start
    if start not in (None, "zero", "noise"):
        ((start, space, _),) = network_inputs(start, facts)
    code = None if given.decoder is None else load_decoder(given.decoder, space)
    recipe = recipe or (functional.recipe_for(model, shape) if code is None else functional.RECIPES["dgn-am"])
    steps = given.steps or recipe.steps
    layer = None if given.layer is None else find_layer(model, given.layer)[0]
    blank = torch.zeros(1, *shape, device=facts.device, dtype=facts.dtype)
    if layer is None:
        score = _score(model, blank)
        wanted = list(dict.fromkeys(classes_of(given.classes, facts)))
        target: list[int] | functional.Objective = wanted
    else:
        score = None
        wanted = _channels(given.channels, model, layer, blank)
        target = unit_objective(layer, wanted, "center" if given.unit else "channel")
    names = [_file_name(index, layer, facts.class_names) for index in wanted]
    output_paths(given, [] if given.start is None else [given.start], [f"{name}.png" for name in (*names, "ascent")])
    results = Results(given.out)
    made = functional.activation_maximization(
        model,
        target,
        shape=shape,
        recipe=recipe,
        start=start,
        steps=steps,
        seed=given.seed,
        pixels=space,
        decoder=code,
        score=score,
        snapshot_every=max(1, steps // given.snapshots) if given.snapshots else None,
        progress=True,
    )
    # What a file holds, and what the network says of that.
    made = replace(made, images=eight_bit_rounded(made.images, space))
    if layer is None:
        with torch.no_grad():
            scores = [functional.class_scores(model, one[None].to(facts.dtype), score=score) for one in made.images]
        made = replace(made, scores=torch.cat(scores))
        told = [f"probability {p:.3f}" for p in target_probabilities(made, wanted).tolist()]
    else:
        told = [f"response {value:.3g}" for value in made.objective.tolist()]
    for i, name in enumerate(names):
        _write_course(results, f"ascent/{name}", made, i, space)
        path = results.image(name, made.images[i], space, tag=f"ascent/{name}", step=steps)
        print(f"{path}  {told[i]}" + (f"  ({made.notes[i]})" if made.notes[i] else ""), flush=True)
    sheet = ascent_sheet(
        made,
        wanted,
        class_name=None if layer else lambda index: _class_name(index, facts.class_names),
        pixels=space,
        title=f"{ascent_title(layer)} · {given.model or Path(given.weights).name}",
        unit="center" if given.unit else "channel",
    )
    print(results.picture("ascent", sheet, tag="ascent/sheet", step=steps), flush=True)
    results.close()


def _score(model: nn.Module, blank: Tensor) -> Score | None:
    """For a network with a single score, what makes two classes of it."""
    with torch.no_grad():
        return two_classes(None) if functional.class_scores(model, blank).shape[1] == 1 else None


def _channels(text: str, model: nn.Module, layer: str, blank: Tensor) -> list[int]:
    """The channels that are named, or as many as are asked for, spread evenly over all."""
    words = listed(text)
    if not words or not all(word.isdigit() for word in words):
        raise UsageError(f"channels are numbers with commas between, or how many; not {text!r}.")
    if "," in text:
        return list(dict.fromkeys(map(int, words)))
    check_at_least("channels", int(text), 1)
    with torch.no_grad():
        count = functional.LayerUnits(model, layer, place="mean")(blank).shape[1]
    return evenly_spaced(count, min(int(text), count)).tolist()


def _class_name(index: int, names: Sequence[str] | None) -> str:
    return names[index] if names else f"class {index}"


def _file_name(index: int, layer: str | None, names: Sequence[str] | None) -> str:
    """Of a picture, without an ending; two classes may have one name."""
    if layer is not None:
        return f"{layer}-{index}"
    if not names or not 0 <= index < len(names):
        return f"class-{index}"
    return f"{index}-{re.sub(r'[^a-z0-9]+', '-', names[index].casefold()).strip('-')}"


def _write_course(results: Results, tag: str, made: functional.Synthesis, which: int, space: PixelSpace) -> None:
    """How an image came about: pictures and the objective at the steps between, to TensorBoard."""
    for step, images in made.snapshots:
        if step < len(made.history):
            results.writer.picture(tag, draw.to_uint8(space.to_color(images[which])), step)
    for step in [step for step, _ in made.snapshots] or [len(made.history)]:
        value = float(made.history[step - 1, which])
        if math.isfinite(value):
            results.scalars({f"{tag}/objective": value}, step)
