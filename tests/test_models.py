"""Every method on many vision models, each result against a reference: `docs/models.py` holds the checks."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

from lit_viz import functional
from lit_viz.errors import UsageError
from tests.functional.test_saliency import images

PATH = Path(__file__).parents[1] / "docs" / "models.py"
spec = importlib.util.spec_from_file_location("docs_models", PATH)
models = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = models  # dataclasses look their module up
spec.loader.exec_module(models)
TABLE = models.parse(models.TABLE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if e.fast else pytest.mark.slow) for n, e in models.ENTRIES.items()]
)
def test_every_method_is_right_or_refuses_and_the_table_says_so(name: str) -> None:
    assert models.examine(models.ENTRIES[name]) == TABLE[name]


def test_the_table_has_every_model() -> None:
    assert set(models.ENTRIES) <= set(TABLE)
    if models.HAS_TIMM:
        assert list(models.ENTRIES) == list(TABLE)
        head = re.compile(r"with torch .*?;")
        committed, fresh = (head.sub("", t) for t in (models.TABLE.read_text("utf-8"), models.render(TABLE)))
        assert committed == fresh


@pytest.mark.slow
def test_a_check_fails_where_a_method_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a method that is off by a thousandth, and of Grad-CAM on some other layer's gradient."""
    case = models.Case(models.ENTRIES["resnet18"])
    for name, check in models.METHODS.items():
        if name in ("attention_rollout", "LayerUnits", "receptive_field"):
            continue
        right = getattr(functional, name)
        with monkeypatch.context() as patch:
            patch.setattr(functional, name, lambda *args, right=right, **kwargs: right(*args, **kwargs) * 1.001)
            with pytest.raises(AssertionError):
                check(case)


def detector(**arguments: object) -> nn.Module:
    torch.manual_seed(0)
    build = tv.detection.ssdlite320_mobilenet_v3_large
    return build(weights=None, weights_backbone=None, num_classes=4, **arguments).eval()


METHODS: list[Callable[..., Tensor]] = [
    functional.saliency,
    functional.integrated_gradients,
    functional.grad_cam,
    functional.occlusion,
]


@pytest.mark.parametrize("method", METHODS)
def test_a_detector_that_finds_nothing_is_told(method: Callable[..., Tensor]) -> None:
    model, x = detector(score_thresh=1.0), images(1, 3, 64, 64)
    with torch.no_grad():
        assert len(model(x)[0]["boxes"]) == 0
    with pytest.raises(UsageError, match="finds no object of class 2"):
        method(model, x, 0, score=models.box_score((0, 0, 32, 32), 2))


def test_a_detector_is_asked_about_one_box() -> None:
    """Boxes and labels made by hand: the box of the class with the largest overlap, whatever its score."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 9, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
    scores = torch.tensor([0.2, 0.9, 0.8, 0.7], requires_grad=True)
    found = [{"boxes": boxes, "labels": torch.tensor([1, 1, 2, 3]), "scores": scores}]
    assert models.box_score((0, 0, 10, 10), 1)(found).tolist() == [[pytest.approx(0.2)]]
    (gradient,) = torch.autograd.grad(models.box_score((0, 0, 8, 10), 1)(found).sum(), scores)
    assert gradient.tolist() == [0, 1, 0, 0]
    with pytest.raises(UsageError, match=r"no object of class 3 at \(0, 0, 10, 10\) in image 0"):
        models.box_score((0, 0, 10, 10), 3)(found)
    assert models.box_score((0, 0, 10, 10), 3, missing=0.0)(found).tolist() == [[0]]
