"""`facets`: the kinds of images of a class in a folder, and an image that excites the class for each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lit_viz import functional
from lit_viz.callbacks.facets import class_facets, facet_sheet
from lit_viz.commands.base import Results, chosen_network, classes_of, output_paths, parser_for
from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.batches import fitting
from lit_viz.functional.facets import STEPS
from lit_viz.networks import InputFacts, network_inputs
from lit_viz.pixels import PixelSpace

MOST = 300


def run(args: Sequence[str]) -> None:
    """Writes a sheet of the facets, and for each its mean image and the image made.

    Files that can't be read are named, and the rest goes on.
    """
    parser = parser_for(
        "facets",
        "Groups the images of a class by what the network sees in them, and makes an image that excites the class for "
        "each of these kinds.",
    )
    parser.add_argument("folder", help="folder of images, with or without subfolders")
    parser.add_argument(
        "--target",
        help="class that the images are of, index or name; without it the one predicted most often, and the images "
        "that are taken for it",
    )
    parser.add_argument("--predicted", action="store_true", help="of all images only those taken for the target")
    parser.add_argument("--facets", type=int, default=4, help="how many (%(default)s)")
    parser.add_argument("--nearest", type=int, default=15, help="images to average at most (%(default)s)")
    parser.add_argument("--most", type=int, default=MOST, help="images to read at most (%(default)s)")
    parser.add_argument("--layer", help="group by the output of this layer; by default by what goes into the head")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the ascent (%(default)s)")
    parser.add_argument("--center-biased", action="store_true", help="draw one object in the middle")
    parser.add_argument("--seed", type=int, default=0, help="of all that is at random (%(default)s)")
    given = parser.parse_args(args)
    for name in ("facets", "nearest", "most", "steps"):
        check_at_least(f"--{name}", getattr(given, name), 1)
    files = _files(given.folder, given.most)
    names = [f"{kind}-{k + 1}.png" for k in range(given.facets) for kind in ("facet", "mean")]
    output_paths(given, [str(file) for file in files], ["facets.png", *names])
    results = Results(given.out)
    network, facts = chosen_network(given)
    target = None if given.target is None else _one_class(given.target, facts)
    colors, space = _read(files, facts)
    features, predicted = _features(network.module, colors, space, facts, given.layer)
    if target is None:
        target = int(predicted.bincount().argmax())
    own = predicted == target
    name = facts.class_names[target] if facts.class_names else f"class {target}"
    if given.target is None or given.predicted:
        if not own.any():
            raise UsageError(f"none of the {len(colors)} images is taken for {name}; give another --target.")
        print(f"{int(own.sum())} of {len(own)} images are taken for {name}.", flush=True)
        features, colors, told = features[own], colors[own], "taken for"
    else:
        print(f"{int(own.sum())} of the {len(own)} images are taken for {name}; all are used.", flush=True)
        told = "of"
    found, made, p = class_facets(
        network.module,
        features,
        colors,
        target,
        count=given.facets,
        nearest=given.nearest,
        seed=given.seed,
        pixels=space,
        steps=given.steps,
        center_biased=given.center_biased,
        progress=True,
    )
    for k in range(len(found)):
        results.image(f"mean-{k + 1}", found.means[k], space, tag=f"facets/mean/{k + 1}")
        path = results.image(f"facet-{k + 1}", made.images[k], space, tag=f"facets/made/{k + 1}")
        print(f"{path}  {name} {p[k]:.2f}, from {found.sizes[k]} images", flush=True)
    sheet = facet_sheet(
        found,
        made,
        p,
        colors,
        space,
        title=f"Facets of {name}",
        of=f"{len(colors)} images {told} {name}",
    )
    print(results.picture("facets", sheet, tag="facets/sheet"), flush=True)
    results.scalars({f"facets/probability/{k + 1}": value for k, value in enumerate(p)})
    results.close()


def _files(folder: str, most: int) -> list[Path]:
    """Image files below a folder, by name, from all over it where there are more than wanted."""
    if not Path(folder).is_dir():
        raise UsageError(f"there is no folder {folder}.")
    endings = Image.registered_extensions()
    files = sorted(f for f in Path(folder).rglob("*") if f.suffix.lower() in endings and f.is_file())
    if not files:
        raise UsageError(f"there is no image in {folder}.")
    return [files[i * len(files) // most] for i in range(most)] if len(files) > most else files


def _one_class(target: str, facts: InputFacts) -> int:
    classes = classes_of(target, facts)
    if len(classes) != 1:
        raise UsageError(f"--target is one class, not {len(classes)}.")
    return classes[0]


def _read(files: Sequence[Path], facts: InputFacts) -> tuple[Tensor, PixelSpace]:
    """All images that can be read, in colours, uint8 (N, C, H, W): a quarter of what the network's input would take."""
    found, space, broken = [], PixelSpace(), []
    for file in files:
        try:
            image, space, _ = network_inputs(file, facts)[0]
        except UsageError as error:
            broken.append(str(error))
            continue
        found.append((space.to_color(image) * 255).round().to(torch.uint8).cpu())
    for error in broken:
        print(f"lit_viz: {error}", file=sys.stderr)
    if not found:
        raise UsageError("none of the images can be read.")
    return torch.cat(found), space


def _features(
    model: torch.nn.Module, colors: Tensor, space: PixelSpace, facts: InputFacts, layer: str | None
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and predicted classes (N,), with few images as the network takes them at a time."""
    features, predicted = [], []
    for batch in colors.split(fitting(colors[0])):
        images = space.from_color(batch.to(facts.device) / 255)
        values, scores = functional.head_features(model, images, layer=layer)
        features.append(values)
        predicted.append(scores.argmax(dim=1))
    return torch.cat(features), torch.cat(predicted)
