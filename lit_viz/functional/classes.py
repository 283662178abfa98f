"""What classes are called, and two of them told by a single score."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_viz.errors import UsageError, nearest
from lit_viz.functional.scores import Score


def names_of(source: Any) -> list[str] | None:
    """Names of the classes, from the attributes `class_names` or `classes` of a model, a data module or a data set."""
    for _ in range(6):
        for attribute in ("class_names", "classes"):
            names = getattr(source, attribute, None)
            if isinstance(names, (list, tuple)) and names and all(isinstance(n, str) for n in names):
                return list(names)
        source = getattr(source, "dataset", None) or next(iter(getattr(source, "datasets", None) or []), None)
        if source is None:
            return None
    return None


def class_index(target: int | str, names: Sequence[str] | None) -> int:
    """Index of a class given by its index, its name, or a word that only one name has.

    Raises:
        UsageError: For a name that no class has, or anything else.

    >>> class_index("cat", ["chelsea the cat", "a dog"])
    0
    """
    if not isinstance(target, (int, str)):
        raise UsageError(f"a target is 'label', 'predicted', a class index or a class name, not {target!r}.")
    if isinstance(target, int):
        return target
    folded = [n.casefold() for n in names or ()]
    if target.casefold() in folded:
        return folded.index(target.casefold())
    with_word = [i for i, name in enumerate(folded) if target.casefold() in re.split(r"[\s,;_-]+", name)]
    if len(with_word) == 1:
        return with_word[0]  # "cat" is "chelsea the cat" where no other class has that word
    if target.isdigit():
        return int(target)
    if names is None:
        raise UsageError(f"target {target!r} can't be found: the classes have no names here; give class_names.")
    raise UsageError(f"there is no class {target!r}; {nearest(target, names)}")


def two_classes(score: Score | None) -> Score:
    """For a network with one logit z: scores −z/2 and z/2, whose softmax is the logistic function of z."""

    def run(output: Any) -> Tensor:
        one = output if score is None else score(output)
        one = one.reshape(len(one), 1)
        return torch.cat([-one / 2, one / 2], dim=1)

    return run
