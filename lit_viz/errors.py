"""The one exception for mistakes a user can mend."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable, Sequence


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
    parts = [k for k in known if name and name.casefold() in k.casefold()]
    alike = difflib.get_close_matches(name, known, n=n, cutoff=0.4)
    close = list(dict.fromkeys(parts[:n] + alike))[:n]
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(repr(k) for k in known[:n])
    return f"known: {shown}" + (f" and {len(known) - n} more" if len(known) > n else "")


def check_at_least(name: str, value: object, least: int, otherwise: str = "") -> None:
    """Raises `UsageError` unless `value` is a whole number of at least `least`."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least:  # type: ignore[operator]
        raise UsageError(f"{name} must be a whole number, at least {least}{otherwise}; got {value!r}.")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises `UsageError` unless `value` is one of the choices."""
    if value not in choices:
        listed = ", ".join(repr(c) for c in choices[:-1])
        raise UsageError(f"{name} is {listed} or {choices[-1]!r}, not {value!r}.")
