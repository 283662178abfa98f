"""A room imports only from rooms before it; see the rule below."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lit_viz

ROOT = Path(lit_viz.__file__).parent

# Rooms by storey; those on one storey don't import each other.
STOREYS = [
    ["errors"],
    ["layers", "guard", "memory", "pixels", "pictures"],
    ["functional"],
    ["draw", "probing", "state", "writer", "write_behind", "budget", "background", "video", "styles"],
    ["networks"],
    ["callbacks", "modules", "data", "showing", "stylizing"],
    ["commands"],
    ["cli"],
]
STOREY = {room: storey for storey, rooms in enumerate(STOREYS) for room in rooms}

# In these rooms files are siblings that don't import each other, but for these.
SHARED = {
    "callbacks": {"base", "look", "collecting", "attribution", "features"},
    "modules": {"base", "synthesis"},
    "data": {"base"},
    "commands": {"base"},
}

LIGHTNING = {"probing", "writer", "callbacks", "modules", "data", "commands", "cli"}
METRICS = {"state", *LIGHTNING}


def imports(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Lines and dotted names of everything imported anywhere in a file; `package` is where the file lies."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            origin = [*start, *(node.module or "").split(".")] if node.module else start
            for alias in node.names:
                yield node.lineno, [*origin, alias.name]


def violations(source: str, path: str) -> list[str]:
    """What breaks the rule in a file; `path` relative to the package, as in "callbacks/saliency.py"."""
    parts = path.removesuffix(".py").split("/")
    room, file = parts[0], parts[-1]
    found = []
    for line, name in imports(ast.parse(source), ["lit_viz", *parts[:-1]]):
        where = f"{path}:{line} imports {'.'.join(name)}"
        if name[0] in ("lightning", "pytorch_lightning", "lightning_fabric") and room not in LIGHTNING:
            found.append(where)
        if name[0] == "torchmetrics" and room not in METRICS:
            found.append(where)
        if name[0] != "lit_viz":
            continue
        target = name[1] if len(name) > 1 else ""
        if target == room:
            sibling = name[2] if len(name) > 2 else ""
            exempt = file == "__init__" or room not in SHARED or sibling in SHARED[room]
            found += [] if exempt else [where]
        elif STOREY.get(target, len(STOREYS)) >= STOREY[room]:
            found.append(where)
    return found


FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES)
def test_a_room_imports_only_from_rooms_before_it(path: str) -> None:
    assert path.split("/")[0].removesuffix(".py") in STOREY, f"{path} has no place in the house"
    assert violations((ROOT / path).read_text(encoding="utf-8"), path) == []


def test_the_package_itself_imports_nothing() -> None:
    run = "import sys, lit_viz; print('show' in dir(lit_viz), {'torch', 'numpy', 'lightning'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "set()"]


def test_a_look_without_a_trainer_waits_for_no_trainer() -> None:
    run = "import sys, lit_viz; lit_viz.show; print('torch' in sys.modules, 'lightning' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "False"]


def test_who_writes_in_a_thread_knows_the_formats_of_pictures_before() -> None:
    # Else a process that is forked meanwhile may find the lock of an import taken for ever.
    run = "import PIL.Image, lit_viz.writer; print(PIL.Image._initialized)"
    found = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    assert int(found.stdout) >= 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("guard.py", "from lit_viz.layers import find_layer"),
        ("errors.py", "import lit_viz.guard"),
        ("functional/saliency.py", "from lit_viz import draw"),
        ("functional/saliency.py", "from lit_viz.probing import looking"),
        ("functional/occlusion/engine.py", "from ... import writer"),
        ("functional/saliency.py", "def f():\n    import lightning"),
        ("functional/saliency.py", "from torchmetrics import Metric"),
        ("draw/sheet.py", "from lit_viz.state import TopK"),
        ("state.py", "from lightning.pytorch import Trainer"),
        ("background.py", "from lightning.pytorch import Trainer"),
        ("networks/loading.py", "import pytorch_lightning as pl"),
        ("networks/loading.py", "from lit_viz.data import Photographs"),
        ("callbacks/saliency.py", "from lit_viz.callbacks.occlusion import Occlusion"),
        ("callbacks/saliency.py", "from lit_viz.callbacks import Occlusion"),
        ("callbacks/saliency.py", "from .occlusion import Occlusion"),
        ("callbacks/saliency.py", "from . import occlusion"),
        ("callbacks/saliency.py", "from lit_viz.modules import ImageClassifier"),
        ("data/photographs.py", "if True:\n    from lit_viz import callbacks"),
        ("data/photographs.py", "from lit_viz.data.image_folder import ImageFolderData"),
        ("showing.py", "from lit_viz.callbacks import Saliency"),
        ("showing.py", "from lightning.pytorch import Trainer"),
        ("networks/loading.py", "from lit_viz.showing import show"),
        ("modules/classifier.py", "from lit_viz import cli"),
        ("modules/classifier.py", "import lit_viz"),
    ],
)
def test_violations_are_seen(path: str, source: str) -> None:
    assert len(violations(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("guard.py", "from lit_viz.errors import UsageError"),
        ("functional/saliency.py", "from lit_viz.functional.scores import Score\nfrom .scores import Score"),
        ("state.py", "from torchmetrics import Metric\nfrom lit_viz import functional"),
        (
            "callbacks/saliency.py",
            "from .base import Look\nfrom lit_viz.callbacks.attribution import attribution_sheet",
        ),
        ("callbacks/__init__.py", "from lit_viz.callbacks.saliency import Saliency"),
        ("data/base.py", "from lightning import LightningDataModule"),
        ("cli.py", "import lit_viz.callbacks\nfrom lightning.pytorch.cli import LightningCLI"),
    ],
)
def test_what_the_rule_allows(path: str, source: str) -> None:
    assert violations(source, path) == []
