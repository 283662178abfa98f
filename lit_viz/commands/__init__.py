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
    "stylize": "pictures, folders and videos in a style that a network was trained for",
    "texture": "more of a texture, or a hole in a photograph filled with it",
}
"""Each command with what it does; `run` of the file of its name runs it."""


def command_of(args: Sequence[str]) -> str | None:
    """The command that arguments ask for; None where they are for a trainer.

    `predict` with files, or with --checkpoint, is what `stylize` does; with options of a trainer it is Lightning's.
    """
    if not args:
        return None
    if args[0] == "predict" and len(args) > 1:
        given = any(arg == "--checkpoint" or arg.startswith("--checkpoint=") for arg in args)
        return "stylize" if given or not args[1].startswith("-") else None
    return args[0] if args[0] in COMMANDS else None


def run_command(name: str, args: Sequence[str]) -> None:
    """Runs the command of that name with its arguments."""
    importlib.import_module(f"lit_viz.commands.{name}").run(args)
