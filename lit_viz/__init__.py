"""See what a vision network looks at and what it has learned, while it trains with PyTorch Lightning.

Without a trainer, `lit_viz.show(model, image)` makes a sheet of the most telling pictures.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Only whoever asks for it waits for torch.
    if name == "show":
        from lit_viz.showing import show

        globals()[name] = show
        return show
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "show"])
