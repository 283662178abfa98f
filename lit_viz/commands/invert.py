"""`invert`: photographs reconstructed from what layers of a network say of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from lit_viz import draw
from lit_viz.commands.base import Results, chosen_network, listed, output_paths, parser_for, short_path
from lit_viz.draw.inversion import inversion_card, inversion_sheet
from lit_viz.errors import UsageError
from lit_viz.functional.activations import telling_layers
from lit_viz.functional.inversion import NORM_WEIGHT, STEPS, TV_WEIGHT, Inversion, invert_features, psnr
from lit_viz.layers import find_layer
from lit_viz.networks import network_inputs
from lit_viz.networks.vgg_names import dotted_name, short_name
from lit_viz.pixels import PixelSpace
from lit_viz.showing import distinct_names

_LAYERS = 5
_SNAPSHOTS = 10


def run(args: Sequence[str]) -> None:
    """Writes a figure for each image, and each reconstruction as a file of its own.

    Files that can't be read are named, and the rest goes on; the process then ends with status 1.
    """
    parser = parser_for(
        "invert",
        "Reconstructs photographs from what layers of a network say of them: what differs the layers have thrown away.",
    )
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument(
        "--layers",
        help="dotted names with commas between, or relu2_2 … for VGG networks; by default five over the depth",
    )
    parser.add_argument("--jointly", action="store_true", help="one image for all layers at once")
    parser.add_argument(
        "--restarts", type=int, default=1, help="how often each is made, from other noise (%(default)s)"
    )
    parser.add_argument("--optimizer", choices=list(STEPS), default="lbfgs", help="(%(default)s)")
    parser.add_argument("--steps", type=int, help="by default 20 of ten iterations each with lbfgs, 400 with adam")
    parser.add_argument("--tv", type=float, default=TV_WEIGHT, help="weight of the total variation (%(default)s)")
    parser.add_argument("--norm", type=float, default=NORM_WEIGHT, help="weight of the norm (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first start (%(default)s)")
    given = parser.parse_args(args)
    names = [Path(name).stem for name in distinct_names(given.images)]
    output_paths(given, given.images, [f"{name}.png" for name in names])
    results = Results(given.out)
    network, facts = chosen_network(given)
    layers = None
    if given.layers:
        layers = [find_layer(network.module, dotted_name(network.module, name))[0] for name in listed(given.layers)]
    steps = STEPS[given.optimizer] if given.steps is None else given.steps
    failed = 0
    for file, name in zip(given.images, names, strict=True):
        try:
            image, space, _ = network_inputs(file, facts)[0]
            made = invert_features(
                network.module,
                image,
                layers or telling_layers(network.module, image, _LAYERS),
                jointly=given.jointly,
                restarts=given.restarts,
                optimizer=given.optimizer,
                steps=steps,
                tv=given.tv,
                norm=given.norm,
                pixels=space,
                snapshot_every=max(1, steps // _SNAPSHOTS),
                seed=given.seed,
                progress=True,
            )
        except UsageError as error:
            failed += 1
            print(f"lit_viz: {error}" if file in str(error) else f"lit_viz: {file}: {error}", file=sys.stderr)
            continue
        _write(results, name, image, space, made, network.module, jointly=given.jointly)
        if made.interrupted:
            break
    results.close()
    if failed:
        sys.exit(1)


def _write(
    results: Results,
    name: str,
    image: Tensor,
    space: PixelSpace,
    made: Inversion,
    model: nn.Module,
    *,
    jointly: bool,
) -> None:
    """Files and TensorBoard entries of one image, and a line for each layer."""
    columns = [short_name(model, layer) for layer in made.images]
    if jointly:
        columns = [" + ".join(columns)]
    restarts = len(next(iter(made.images.values())))
    original = draw.to_uint8(space.to_color(image))[0]
    layers = list(made.images)[: len(columns)]

    def picture(grid: dict[str, Tensor], title: str, errors: dict[str, Tensor] | None = None) -> np.ndarray:
        """A row for each restart, from images (restarts, 1, C, H, W) and errors (restarts, 1) by layer."""
        cards = [
            inversion_card(
                original,
                [draw.to_uint8(space.to_color(grid[layer][restart, 0])) for layer in layers],
                columns,
                psnr=[float(psnr(grid[layer][restart, 0], image[0].to(grid[layer].device), space)) for layer in layers],
                errors=None if errors is None or jointly else [float(errors[layer][restart, 0]) for layer in layers],
                caption=f"start {restart + 1}" if restarts > 1 else "",
            )
            for restart in range(restarts)
        ]
        return inversion_sheet(cards, columns, title=title, restarts=restarts)

    for shots in zip(*(made.snapshots[layer] for layer in layers), strict=False):
        step = shots[0][0]
        shown = {layer: shot for layer, (_, shot) in zip(layers, shots, strict=True)}
        results.writer.picture(f"inversion/forming/{name}", picture(shown, f"Inversion · {name} · step {step}"), step)
    path = results.picture(name, picture(made.images, f"Inversion · {name}", made.errors), tag=f"inversion/{name}")
    print(short_path(path), flush=True)
    for layer, column in zip(layers, columns, strict=True):
        for restart in range(restarts):
            again = f"-{restart + 1}" if restarts > 1 else ""
            part = f"{name}/{column.replace(' + ', '+')}{again}"
            results.image(part, made.images[layer][restart, 0], space, tag=f"inversion/{part}")
    for layer in made.images:
        error, likeness = float(made.errors[layer].mean()), float(made.psnr[layer].mean())
        short = short_name(model, layer)
        results.scalars({f"inversion/{name}/{short}/error": error, f"inversion/{name}/{short}/psnr": likeness})
        print(f"  {short:<24} {likeness:5.1f} dB, error of the features {error:.2%}", flush=True)
