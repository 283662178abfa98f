"""What only makes sense for vision transformers, through the same ways of training on a small one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_viz.callbacks import Activations, AttentionRollout, GradCAM, VisualizationCallback
from tests.conformance.harness import (
    CLASSES,
    MODES,
    Blobs,
    Mode,
    Outcome,
    Recorder,
    TinyModule,
    assert_no_hooks,
    assert_untouched,
    fit,
    loaders,
    trainer,
)


class TinyTransformer(nn.Module):
    """A class token, 4 × 5 patches, two blocks of attention with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(block, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)
        self.head = nn.Linear(8, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.encoder(torch.cat([self.token.expand(len(x), -1, -1), x], dim=1))[:, 0])


class TransformerModule(TinyModule):
    def __init__(self, wrap: Callable[[nn.Module], nn.Module] | None = None) -> None:
        super().__init__()
        self.net = TinyTransformer() if wrap is None else wrap(TinyTransformer())


WAYS = {
    name: Mode(MODES[name].trainer, module=TransformerModule)
    for name in ("fp32", "bf16-mixed", "bf16-true", "accumulation", "gradient-clipping")
}
WAYS["compiled"] = Mode(module=lambda: TransformerModule(lambda net: torch.compile(net, backend="aot_eager")))
MAKE: list[Callable[..., VisualizationCallback]] = [AttentionRollout, GradCAM, Activations]


@cache
def alone(way: str) -> Outcome:
    return fit(WAYS[way])


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.slow] if way == "compiled" else []) for way in WAYS]
)
@pytest.mark.parametrize("make", MAKE)
def test_fit_ends_in_the_same_weights(make: Any, way: str) -> None:
    recorder = Recorder()
    seen = fit(WAYS[way], [make(every_n_steps=1, on_error="raise")], logger=recorder)
    assert_untouched(seen, alone(way))
    assert {step for _, step, _ in recorder.images} == set(range(seen.trainer.global_step + 1))


@pytest.mark.parametrize("make", MAKE)
def test_the_same_pictures_under_inference_mode(make: Any) -> None:
    torch.manual_seed(0)
    module, pictures = TransformerModule(), []
    for inference_mode in (True, False):
        recorder = Recorder()
        runner = trainer([make(on_error="raise")], logger=recorder, inference_mode=inference_mode)
        runner.validate(module, loaders()[1], verbose=False)
        pictures.append({tag: image for tag, _, image in recorder.images})
    assert pictures[0].keys() == pictures[1].keys() and pictures[0]
    assert all((image == pictures[1][tag]).all() for tag, image in pictures[0].items())
    assert_no_hooks(module)


@pytest.mark.parametrize("make", MAKE)
def test_a_look_that_fails_costs_one_warning(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = make()
    monkeypatch.setattr(callback, "visualize", lambda look: 1 / 0)
    with pytest.warns(UserWarning, match="ZeroDivisionError"):
        seen = fit(WAYS["fp32"], [callback], logger=Recorder())
    assert_untouched(seen, alone("fp32"))


def test_iterable_data_and_no_logger() -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(Blobs(14, 4))

    recorder = Recorder()
    runner = trainer([AttentionRollout(on_error="raise")], logger=recorder)
    runner.fit(TransformerModule(), loaders()[0], DataLoader(Stream(), 6))
    assert recorder.tags == {"rollout/probe"}
    assert_untouched(fit(WAYS["fp32"], [AttentionRollout(on_error="raise")], logger=False), alone("fp32"))
