"""What each callback draws, against what the functions behind it give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lit_viz import functional
from lit_viz.callbacks import Embeddings, Filters, MaxActivatingPatches, Occlusion, Saliency
from tests.conformance.harness import Blobs, Recorder, TinyModule, loaders, trainer


def validated(callback: Any, module: Any, count: int = 20) -> Recorder:
    recorder = Recorder()
    trainer([callback], logger=recorder).validate(module, DataLoader(Blobs(count, 3), 6), verbose=False)
    return recorder


@pytest.fixture
def module() -> TinyModule:
    torch.manual_seed(0)
    return TinyModule()


def test_saliency_draws_what_the_function_gives(module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_viz.callbacks import saliency as file

    seen: dict[str, Any] = {}
    original = file.attribution_sheet
    monkeypatch.setattr(
        file,
        "attribution_sheet",
        lambda look, maps, **k: (seen.update(look=look, maps=maps), original(look, maps, **k))[1],
    )
    validated(Saliency(num_images=5, on_error="raise"), module)
    expected = functional.saliency(module, seen["look"].images, seen["look"].labels)
    torch.testing.assert_close(seen["maps"], expected)


def test_occlusion_covers_with_grey(module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grey is a colour: half intensity, whatever the normalisation."""
    from lit_viz.callbacks import occlusion as file

    seen: dict[str, Any] = {}
    original = file.attribution_sheet
    monkeypatch.setattr(
        file,
        "attribution_sheet",
        lambda look, maps, **k: (seen.update(look=look, maps=maps), original(look, maps, **k))[1],
    )
    callback = Occlusion(num_images=2, window=5, stride=4, mean=[0.4, 0.5, 0.6], std=[0.2, 0.5, 0.1], on_error="raise")
    validated(callback, module)
    images, labels = seen["look"].images, seen["look"].labels
    heat = torch.zeros(2, 4, 5)
    grey = (0.5 - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.2, 0.5, 0.1])
    module.eval()
    for i in range(heat.shape[1]):
        for j in range(heat.shape[2]):
            covered = images.clone()
            covered[:, :, 4 * i : 4 * i + 5, 4 * j : 4 * j + 5] = grey[:, None, None]
            heat[:, i, j] = module(covered).softmax(1).gather(1, labels[:, None])[:, 0].detach()
    torch.testing.assert_close(seen["maps"], functional.on_image(heat, (16, 20), 5, 4))
    torch.testing.assert_close(seen["maps"][:, 2::4, 2::4], heat)  # at the windows' centres


def test_patches_equal_a_full_sort(module: TinyModule) -> None:
    callback = MaxActivatingPatches(["conv1", "conv2"], k=4, channels="all", mean=[0.5], std=[1.0], on_error="raise")
    validated(callback, module)
    data = Blobs(20, 3)
    module.eval()
    with torch.no_grad():
        conv1 = module.net.conv1(data.images)
        hidden = torch.nn.functional.max_pool2d(module.net.norm1(conv1).relu(), 2)
        maps = {"net.conv1": conv1, "net.conv2": module.net.conv2(hidden)}
    for name, activation in maps.items():
        result, field = callback.results[name], functional.receptive_field(module, (3, 16, 20), name)
        peaks = activation.flatten(2).amax(2).T
        order = peaks.sort(dim=1, descending=True, stable=True)
        torch.testing.assert_close(result.top.values, order.values[:, :4], rtol=1e-5, atol=1e-6)
        assert torch.equal(result.top.samples, order.indices[:, :4])
        for channel in range(6):
            for rank in range(4):
                sample = int(result.top.samples[channel, rank])
                place = int(activation[sample, channel].argmax())
                assert place == int(result.top.places[channel, rank])
                y, x = divmod(place, activation.shape[3])
                top, left, bottom, right = field.box(channel, y, x)
                seen = data.images[sample, :, top:bottom, left:right]
                inside = result.inside[channel, rank]
                kept = result.images[channel, rank][:, inside]
                expected = ((seen + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).flatten(1)
                assert torch.equal(kept, expected)


def test_patches_of_the_head_are_whole_images(module: TinyModule) -> None:
    callback = MaxActivatingPatches("head", k=2, channels=[1], mean=[0.5], std=[1.0], on_error="raise")
    validated(callback, module)
    result = callback.results["net.head"]
    sample = int(result.top.samples[1, 0])
    expected = ((Blobs(20, 3).images[sample] + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(result.images[0, 0], expected)
    assert "whole image" in callback._read("net.head", result)


def test_embeddings_hold_the_input_of_the_head(module: TinyModule) -> None:
    callback = Embeddings(methods=["pca"], projector=False, on_error="raise")
    validated(callback, module)
    data = Blobs(20, 3)
    features = []
    handle = module.net.head.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    module.eval()(data.images)
    handle.remove()
    torch.testing.assert_close(callback.features.values, features[0].detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(callback.features.labels, data.labels)


def test_successive_embeddings_start_from_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_viz import background

    inits = []
    original = background.EmbeddingWorker.submit

    def submit(self: Any, arguments: Any, *rest: Any) -> None:
        def spied(last: np.ndarray | None) -> dict[str, Any]:
            inits.append(None if last is None else last.copy())
            return arguments(last)

        original(self, spied, *rest)

    monkeypatch.setattr(background.EmbeddingWorker, "submit", submit)
    callback, results = Embeddings(projector=False, thumbnails=False, on_error="raise"), []
    pictures = callback._pictures
    monkeypatch.setattr(
        callback, "_pictures", lambda frame, p: (results.append(p["t-SNE"].numpy()), pictures(frame, p))[1]
    )
    trainer([callback], logger=Recorder(), max_epochs=3).fit(TinyModule(), *loaders())
    assert len(inits) == len(results) == 3
    assert inits[0] is None
    assert np.array_equal(inits[1], results[0]) and np.array_equal(inits[2], results[1])


def test_the_worker_is_gone_after_the_run(module: TinyModule) -> None:
    callback = Embeddings(projector=False, on_error="raise")
    validated(callback, module)
    assert callback._worker is None
    assert callback.points["tsne"].shape == (20, 2)


def test_three_collecting_callbacks_cost_no_forward_pass() -> None:
    class Counting(TinyModule):
        images = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            Counting.images += len(images)
            return super().forward(images)

    counts = []
    for callbacks in (
        [],
        [MaxActivatingPatches(), MaxActivatingPatches(name="b"), Embeddings(methods=["pca"])],
    ):
        Counting.images = 0
        trainer(callbacks, logger=Recorder()).validate(Counting(), DataLoader(Blobs(48, 1), 8), verbose=False)
        counts.append(Counting.images)
    # What comes on top are the probe images, twice for each callback, a look at its layers, and one for the fields.
    assert counts[0] == 48
    assert counts[1] - 48 <= 3 * 8 * 3 + 2 + 8 * 2


def test_filters_show_a_change_only_once_there_is_one(module: TinyModule) -> None:
    assert validated(Filters(change=True, on_error="raise"), module).tags == {"filters/net.conv1"}


@pytest.mark.parametrize("make", [MaxActivatingPatches, lambda **k: Embeddings(projector=False, **k)])
def test_memory_survives_a_checkpoint(make: Any, tmp_path: Any) -> None:
    """What the last pass found is there again before the resumed run has made one."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    first, keep = make(on_error="raise"), ModelCheckpoint(tmp_path, filename="one")
    runner = trainer([first, keep], max_epochs=1, enable_checkpointing=True)
    runner.fit(TinyModule(), *loaders())
    runner.save_checkpoint(tmp_path / "end.ckpt")
    second = make(on_error="raise")
    trainer([second], max_epochs=1).fit(TinyModule(), *loaders(), ckpt_path=tmp_path / "end.ckpt")

    def flat(memory: Any) -> list[torch.Tensor]:
        return [t for v in memory.values() for t in (flat(v) if isinstance(v, dict) else [v])]

    assert flat(first.memory())
    assert all(torch.equal(a, b) for a, b in zip(flat(first.memory()), flat(second.memory()), strict=True))
