"""What each callback draws, against what the functions behind it give."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lit_viz import functional
from lit_viz.callbacks import Embeddings, Filters, MaxActivatingPatches, Occlusion, Saliency
from lit_viz.errors import UsageError
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


def started_from(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each t-SNE job is given, in their order."""
    from lit_viz import background

    given: list[dict[str, Any]] = []
    original = background.EmbeddingWorker.submit

    def submit(self: Any, arguments: Any, *rest: Any) -> None:
        original(self, lambda last: (given.append(arguments(last)), given[-1])[1], *rest)

    monkeypatch.setattr(background.EmbeddingWorker, "submit", submit)
    return given


@pytest.mark.parametrize("layer", [None, ["conv2", "head"]])
def test_successive_embeddings_start_from_the_last(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several layers each from its own."""
    given, results = started_from(monkeypatch), []
    callback = Embeddings(layer, projector=False, thumbnails=False, engine="exact", on_error="raise")
    pictures = callback._pictures

    def drawn(frame: Any) -> Any:
        results.append({name: shown["t-SNE"].points.numpy() for name, shown in frame.panels.items()})
        return pictures(frame)

    monkeypatch.setattr(callback, "_pictures", drawn)
    recorder = Recorder()
    trainer([callback], logger=recorder, max_epochs=3).fit(TinyModule(), *loaders())
    names = ["net.conv2", "net.head"] if layer else ["net.head"]
    assert len(results) == 3 and len(given) == 3 * len(names)
    assert {job["engine"] for job in given} == {"exact"}
    for i, name in enumerate(names):
        inits = [job["init"] for job in given[i :: len(names)]]
        assert inits[0] is None
        assert np.array_equal(inits[1], results[0][name]) and np.array_equal(inits[2], results[1][name])
    if layer:
        assert recorder.tags == {"embeddings/pca", "embeddings/tsne"}
        assert given[0]["features"].shape == (14, 6) and given[1]["features"].shape == (14, 3)


def test_a_layer_whose_tsne_fails_leaves_the_other(module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_viz import background

    original = background.EmbeddingWorker.submit

    def submit(self: Any, arguments: Any, *rest: Any) -> None:
        def broken(last: Any) -> dict[str, Any]:
            job = arguments(last)
            return {**job, "features": job["features"] * np.nan} if job["features"].shape[1] == 6 else job

        original(self, broken, *rest)

    monkeypatch.setattr(background.EmbeddingWorker, "submit", submit)
    callback, recorder = Embeddings(["conv2", "head"], projector=False, thumbnails=False), Recorder()
    frames = []
    pictures = callback._pictures
    monkeypatch.setattr(callback, "_pictures", lambda frame: (frames.append(frame), pictures(frame))[1])
    with pytest.warns(UserWarning, match="t-SNE failed"):
        trainer([callback], logger=recorder).validate(module, DataLoader(Blobs(24, 3), 6), verbose=False)
    assert [list(shown) for shown in frames[0].panels.values()] == [["PCA"], ["PCA", "t-SNE"]]
    assert recorder.tags == {"embeddings/pca", "embeddings/tsne"}
    told = {tag for tag, _, _ in recorder.metrics}
    assert "embeddings/net.head/trustworthiness" in told and "embeddings/net.conv2/trustworthiness" not in told


@pytest.mark.parametrize("methods", ["pca", ["pca", "tsne"]])
def test_embeddings_curves_are_those_of_scikit_learn(methods: Any, module: TinyModule) -> None:
    from sklearn.decomposition import PCA
    from sklearn.manifold import trustworthiness
    from sklearn.metrics import silhouette_score

    callback = Embeddings(["conv2", "head"], methods=methods, projector=False, thumbnails=False, on_error="raise")
    logged = validated(callback, module, 40).metrics
    numbers = {tag: value for tag, _, value in logged if tag.startswith("embeddings/")}
    features, labels = callback.features, callback.features.labels.numpy()
    assert len(numbers) == 8
    for name, values in zip(["net.conv2", "net.head"], features.values.split([6, 3], dim=1), strict=True):
        points = callback.points[name]["pca" if methods == "pca" else "tsne"]
        for measure, expected in (
            ("silhouette", silhouette_score(values.numpy(), labels)),
            ("explained_variance", PCA(2).fit(values.numpy()).explained_variance_ratio_.sum()),
            ("trustworthiness", trustworthiness(values.numpy(), points.numpy(), n_neighbors=10)),
            ("knn_accuracy", functional.knn_accuracy(values, features.labels, 10, metric="l2")),
        ):
            assert numbers[f"embeddings/{name}/{measure}"] == pytest.approx(expected, abs=1e-5), measure


def test_axes_of_the_pca_say_what_they_explain(module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_viz import draw

    seen: list[Any] = []
    original = draw.scatter_panels
    monkeypatch.setattr(draw, "scatter_panels", lambda panels, **k: (seen.extend(panels), original(panels, **k))[1])
    callback = Embeddings(methods="pca", projector=False, thumbnails=False, on_error="raise")
    validated(callback, module)
    shares = functional.pca(callback.features.values).explained.tolist()
    assert seen[0].axes == tuple(f"PC {i} · {100 * share:.0f} %" for i, share in enumerate(shares, 1))


def test_embeddings_without_labels_have_no_curves_of_classes() -> None:
    class Unlabelled(TinyModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch)

    recorder, callback = Recorder(), Embeddings(methods="pca", projector=False, on_error="raise")
    data = DataLoader(list(Blobs(30, 3).images), 6)
    trainer([callback], logger=recorder).validate(Unlabelled(), data, verbose=False)
    told = {tag for tag, _, _ in recorder.metrics if tag.startswith("embeddings/")}
    assert told == {f"embeddings/net.head/{name}" for name in ("explained_variance", "trustworthiness")}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "umap"}, "engine is 'auto', 'exact', 'sklearn' or 'opentsne'"),
        ({"engine": "opentsne"}, r"lit-viz\[opentsne\]"),
        ({"layer": list("abcde")}, "5 layers are too many"),
        ({"layer": 3}, "layers are given by their dotted names"),
    ],
)
def test_mistakes_in_embeddings(options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=words):
        Embeddings(**options)


def test_the_worker_is_gone_after_the_run(module: TinyModule) -> None:
    callback = Embeddings(projector=False, on_error="raise")
    validated(callback, module)
    assert callback._worker is None
    assert callback.points["net.head"]["tsne"].shape == (20, 2)


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


def test_guided_patches_are_cut_from_guided_backprop_of_the_image(module: TinyModule) -> None:
    callback = MaxActivatingPatches(
        ["conv1", "conv2"], k=3, channels=[1, 4], guided=True, mean=[0.5], std=[1.0], on_error="raise"
    )
    validated(callback, module)
    plain = MaxActivatingPatches(["conv1", "conv2"], k=3, channels=[1, 4], mean=[0.5], std=[1.0], on_error="raise")
    validated(plain, module)
    for name, result in plain.results.items():
        assert torch.equal(callback.results[name].images, result.images)
    assert set(callback.signals) == {"net.conv2"}
    told = callback._read("net.conv1", plain.results["net.conv1"])
    assert "No guided backprop: there is no ReLU below this layer." in told
    field, result = functional.receptive_field(module, (3, 16, 20), "net.conv2"), callback.results["net.conv2"]
    data = Blobs(20, 3)
    for row, channel in enumerate([1, 4]):
        for rank in range(3):
            sample, place = int(result.top.samples[channel, rank]), int(result.top.places[channel, rank])
            y, x = divmod(place, field.shape[2])
            image = ((data.images[sample] + 0.5).clamp(0, 1) * 255).round() / 255 - 0.5
            units = functional.LayerUnits(module, "net.conv2", place=(y, x))
            signal = functional.guided_backprop(units, image[None], channel)[0]
            top, left, bottom, right = field.box(channel, y, x)
            outside = signal.clone()
            outside[:, top:bottom, left:right] = 0
            assert signal.any() and not outside.any()  # nothing of it lies beyond what the unit sees
            inside = result.inside[row, rank]
            shown = callback.signals["net.conv2"][row, rank][:, inside].double() / 255
            cropped = signal[:, top:bottom, left:right].flatten(1).double()
            bound = np.percentile(np.abs(np.pad(cropped.flatten(), (0, 3 * int((~inside).sum())))), 99.5)
            torch.testing.assert_close(shown, (0.5 + 0.5 * cropped / bound).clamp(0, 1), rtol=0, atol=0.6 / 255)


def test_guided_patches_survive_a_checkpoint(tmp_path: Any) -> None:
    first = MaxActivatingPatches(guided=True, on_error="raise")
    runner = trainer([first], max_epochs=1, enable_checkpointing=True, default_root_dir=tmp_path)
    runner.fit(TinyModule(), *loaders())
    second = MaxActivatingPatches(guided=True)
    second.remember(first.memory())
    assert first.signals.keys() == second.signals.keys() == {"net.conv2"}
    assert torch.equal(first.signals["net.conv2"], second.signals["net.conv2"])
    assert first._run is None


def test_other_activation_functions_are_named_below_guided_patches() -> None:
    class Mixed(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.net.norm1 = torch.nn.Sequential(self.net.norm1, torch.nn.SiLU())

    callback = MaxActivatingPatches("conv2", guided=True, channels=2, k=2, on_error="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*workers.*")
        validated(callback, Mixed())
    assert "No rule for SiLU" in callback._read("net.conv2", callback.results["net.conv2"])
