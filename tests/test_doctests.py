"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import lit_viz

MODULES = sorted(m.name for m in pkgutil.walk_packages(lit_viz.__path__, "lit_viz."))


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    with torch.random.fork_rng():
        failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    found = {t.name for m in MODULES for t in finder.find(importlib.import_module(m)) if t.examples}
    assert {"lit_viz.functional.saliency.saliency", "lit_viz.guard.untouched"} <= found
