"""`show`: a sheet of pictures for each image file."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lit_viz.commands.base import Results, chosen_network, listed, output_paths, parser_for
from lit_viz.errors import UsageError
from lit_viz.showing import DEFAULT, PICTURES, distinct_names, show


def run(args: Sequence[str]) -> None:
    """Writes a sheet for each image.

    Files that can't be read are named, and the rest goes on; the process then ends with status 1.
    """
    parser = parser_for("show", "Writes a sheet for each image: what the network takes it for, and why.")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--target", help="class to ask about, index or name; the predicted one by default")
    parser.add_argument(
        "--pictures", help=f"with commas between, of {', '.join(PICTURES)} (by default {', '.join(DEFAULT)})"
    )
    given = parser.parse_args(args)
    outputs = output_paths(given, given.images, distinct_names(given.images))
    Results(given.out)
    network, _ = chosen_network(given)
    pictures = listed(given.pictures) if given.pictures else None
    failed = 0
    for image, path in zip(given.images, outputs, strict=True):
        try:
            sheet = show(
                network, image, given.target, pictures=pictures, size=given.size, mean=given.mean, std=given.std
            )
        except UsageError as error:
            failed += 1
            print(f"lit_viz: {error}" if image in str(error) else f"lit_viz: {image}: {error}", file=sys.stderr)
            continue
        sheet.save(path)
        best = ", ".join(f"{name} {p:.2f}" for name, p in sheet.predictions[:1])
        print(f"{path}  {best}", flush=True)
    if failed:
        sys.exit(1)
