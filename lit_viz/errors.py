"""The one exception for mistakes a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Bad input: the message names the fault and the remedy.

    Raised before any work is done. During a run callbacks let only this exception stop a `Trainer`, and only
    before the first training step; every other failure inside a visualization follows its `on_error` policy.
    """


def nearest(name: str, known: Iterable[str], *, n: int = 5) -> str:
    """The names in `known` that look most like `name`, as text for an error message.

    >>> nearest("layer5", ["conv1", "layer3", "layer4", "fc"], n=2)
    "did you mean 'layer4' or 'layer3'?"
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.4)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(repr(k) for k in known[:n])
    return f"known: {shown}" + (f" and {len(known) - n} more" if len(known) > n else "")
