"""See what a vision network looks at and what it has learned, while it trains with PyTorch Lightning.

Without a trainer, `lit_viz.show(model, image)` makes a sheet of the most telling pictures, and
`lit_viz.stylize(checkpoint, files)` gives pictures and videos the style that a network was trained for.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


_ROOMS = {"show": "lit_viz.showing", "stylize": "lit_viz.stylizing"}


def __getattr__(name: str) -> Any:
    # Only whoever asks for it waits for torch.
    if name in _ROOMS:
        globals()[name] = found = getattr(import_module(_ROOMS[name]), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
