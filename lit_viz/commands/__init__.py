"""What a user types to look into a network, or to make images from it, without a trainer."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

COMMANDS: dict[str, str] = {
    "ascent": "make images that excite classes or units of a network most",
    "dream": "amplify what a layer sees in photographs (DeepDream)",
    "facets": "what kinds of images a class has for a network, and an image made for each",
    "fool": "change images so that a network takes them for something else",
    "invert": "reconstruct images from what layers of a network say of them",
    "show": "what a network takes an image for, and why",
    "texture": "more of a texture, or a hole in a photograph filled with it",
}
"""Each command with what it does; `run` of the file of its name runs it."""


def run_command(name: str, args: Sequence[str]) -> None:
    """Runs the command of that name with its arguments."""
    importlib.import_module(f"lit_viz.commands.{name}").run(args)
