"""What a user types to look into a network, or to make images from it, without a trainer."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

COMMANDS: dict[str, str] = {
    "show": "what a network takes an image for, and why",
}
"""Each command with what it does; `run` of the file of its name runs it."""


def run_command(name: str, args: Sequence[str]) -> None:
    """Runs the command of that name with its arguments."""
    importlib.import_module(f"lit_viz.commands.{name}").run(args)
