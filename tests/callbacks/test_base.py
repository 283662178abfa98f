"""When callbacks look, what they find out by themselves, and what they say about bad input."""

from __future__ import annotations

import re
import warnings
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision import transforms

from lit_viz.callbacks import (
    Embeddings,
    Filters,
    Look,
    MaxActivatingPatches,
    Occlusion,
    Saliency,
    VisualizationCallback,
)
from lit_viz.errors import UsageError
from lit_viz.probing import scattered
from tests.conformance.harness import CLASSES, Blobs, Mode, Recorder, TinyModule, fit, loaders, trainer


class Notes(VisualizationCallback):
    """Draws nothing and remembers every look."""

    tag = "notes"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"on_error": "raise", **kwargs})
        self.looks: list[Look] = []

    def visualize(self, look: Look) -> dict[str, np.ndarray]:
        self.looks.append(look)
        return {"probe": np.zeros((4, 4, 3), np.uint8)}


def fitted(callback: Any, module: L.LightningModule | None = None, data: Any = None, **kwargs: Any) -> Any:
    data = data or loaders()
    trainer([callback], logger=Recorder(), **kwargs).fit(module or TinyModule(), *data)
    return callback


def steps(**kwargs: Any) -> list[int]:
    of_run = ("max_epochs", "val_check_interval", "accumulate_grad_batches", "check_val_every_n_epoch")
    run = {k: kwargs.pop(k) for k in list(kwargs) if k in of_run}
    return [look.step for look in fitted(Notes(**kwargs), **{"max_epochs": 4, **run}).looks]


# Four steps an epoch.
@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, [0, 4, 8, 12, 16]),
        ({"at_start": False}, [4, 8, 12, 16]),
        ({"every_n_epochs": 2}, [0, 8, 16]),
        ({"every_n_epochs": 3}, [0, 12, 16]),
        ({"every_n_epochs": 2, "check_val_every_n_epoch": 3, "max_epochs": 6}, [0, 8, 16, 24]),
        ({"every_n_epochs": 3, "at_end": False}, [0, 12]),
        ({"every_n_epochs": None}, [0, 16]),
        ({"every_n_steps": 6}, [0, 6, 12, 16]),
        ({"every_n_steps": 1, "max_epochs": 1}, [0, 1, 2, 3, 4]),
        ({"every_n_steps": 1, "accumulate_grad_batches": 2, "max_epochs": 1}, [0, 1, 2]),
        ({"val_check_interval": 0.5, "max_epochs": 2}, [0, 2, 6, 8]),
    ],
)
def test_schedule(kwargs: dict[str, Any], expected: list[int]) -> None:
    assert steps(**kwargs) == expected


def test_collecting_schedule_follows_validation() -> None:
    recorder = Recorder()
    callback = Embeddings(methods=["pca"], thumbnails=False, every_n_epochs=2, on_error="raise")
    trainer([callback], logger=recorder, max_epochs=5).fit(TinyModule(), *loaders())
    assert [step for _, step, _ in recorder.images] == [8, 16, 20]


@pytest.mark.parametrize(
    ("kwargs", "run", "expected"),
    [
        ({"every_n_epochs": 2}, {"max_epochs": 6, "check_val_every_n_epoch": 3}, [12, 24]),
        ({}, {"max_epochs": 2, "val_check_interval": 0.5}, [2, 6, 8]),
        ({"at_end": False}, {"max_epochs": 2, "val_check_interval": 0.5}, [2, 6]),
        ({"every_n_steps": 3}, {"max_epochs": 2, "val_check_interval": 0.25}, [3, 6, 8]),
        ({"every_n_epochs": 100}, {"max_epochs": 3}, [12]),
        ({"every_n_epochs": 100}, {"max_epochs": -1, "max_steps": 8}, [8]),
        ({"every_n_epochs": 100}, {"max_epochs": 2, "val_check_interval": 3, "check_val_every_n_epoch": None}, [6]),
    ],
)
def test_when_collecting_callbacks_look(kwargs: dict[str, Any], run: dict[str, Any], expected: list[int]) -> None:
    recorder = Recorder()
    callback = Embeddings(methods="pca", thumbnails=False, on_error="raise", **kwargs)
    trainer([callback], logger=recorder, **run).fit(TinyModule(), *loaders())
    assert [step for _, step, _ in recorder.images] == expected


@pytest.mark.parametrize("run", [{"limit_val_batches": 0}, {"max_steps": 3, "max_epochs": -1}])
def test_nothing_to_collect_is_said_once(run: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer([Embeddings()], logger=Recorder(), **run).fit(TinyModule(), *loaders())
    assert sum("nothing was drawn" in str(w.message) for w in caught) == 1


def test_probes_are_the_same_at_every_look_and_spread_over_the_data() -> None:
    data = Blobs(30, 5)
    order = torch.arange(30).sort(stable=True).indices
    looks = fitted(Notes(num_images=4), data=(DataLoader(data, 8), DataLoader(Subset(data, order.tolist()), 6))).looks
    assert all(torch.equal(look.images, looks[0].images) for look in looks)
    assert torch.equal(looks[0].images, data.images[scattered(30, 4)])


def test_random_augmentation_does_not_change_the_probes() -> None:
    class Noisy(Blobs):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            image, label = super().__getitem__(index)
            return image + torch.randn(image.shape), label

    looks = fitted(Notes(), data=(DataLoader(Blobs(16, 1), 8), DataLoader(Noisy(12, 2), 6))).looks
    assert all(torch.equal(look.images, looks[0].images) for look in looks)


def test_class_names_come_from_the_data_set_through_a_subset() -> None:
    train, _ = loaders()
    looks = fitted(Notes(), data=(train, DataLoader(Subset(Blobs(14, 2), range(10)), 5))).looks
    assert looks[0].class_names == CLASSES
    assert looks[0].class_name(2) == "cat"
    caption, detail, correct = looks[-1].captions()[0]
    assert caption.split("  ")[0] in CLASSES and correct in (True, False)
    assert ("predicted" in detail) == (not correct)


def test_targets() -> None:
    data = Blobs(12, 2)
    labels = data.labels[[0, 2, 3, 5, 6, 8, 9, 11]]
    targets = {
        "label": labels,
        "predicted": None,
        1: torch.ones(8).long(),
        "cat": torch.full((8,), 2),
        "Cat": torch.full((8,), 2),
        ("ant", 1) * 4: torch.tensor([0, 1] * 4),
    }
    for target, expected in targets.items():
        given = list(target) if isinstance(target, tuple) else target
        look = fitted(Notes(target=given), data=(DataLoader(data, 6), DataLoader(data, 6)), max_epochs=1).looks[0]
        wanted = look.scores.argmax(1) if expected is None else expected
        assert torch.equal(look.targets, wanted), target


def test_labels_of_other_classes_are_no_targets() -> None:
    """Ten photographs say nothing about the classes of an ImageNet network."""

    class Other(Blobs):
        def __init__(self, count: int, seed: int) -> None:
            super().__init__(count, seed)
            self.classes = [f"photo {i}" for i in range(7)]

    module = TinyModule()
    look = fitted(Notes(), module, data=(loaders()[0], DataLoader(Other(12, 2), 6)), max_epochs=1).looks[0]
    assert look.labels is None
    assert torch.equal(look.targets, look.scores.argmax(1))
    assert look.class_names is None


class OneLogit(TinyModule):
    """A binary classifier as many write it."""

    def __init__(self) -> None:
        super().__init__()
        self.net.head = nn.Linear(24, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.binary_cross_entropy_with_logits(self(images)[:, 0], labels.float().flatten())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


class CatsAndDogs(Blobs):
    def __init__(self, count: int, seed: int, as_float: bool = False) -> None:
        super().__init__(count, seed)
        self.labels, self.classes, self.as_float = self.labels.clamp(max=1), ["cat", "dog"], as_float

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image, torch.tensor([float(label)]) if self.as_float else label


@pytest.mark.parametrize("as_float", [False, True])
@pytest.mark.parametrize("given", [None, ["Katze", "Hund"]])
def test_one_logit_is_two_classes(as_float: bool, given: list[str] | None) -> None:
    data = CatsAndDogs(12, 2, as_float)
    notes, recorder = Notes(class_names=given, num_images=12), Recorder()
    names = given or ["cat", "dog"]
    others = [c(class_names=given, on_error="raise") for c in (Saliency, Occlusion)]
    loader = DataLoader(data, 6)
    trainer([notes, *others], logger=recorder, max_epochs=1).fit(OneLogit(), loader, loader)
    look = notes.looks[-1]
    assert look.class_names == names and torch.equal(look.labels, data.labels)
    with torch.no_grad():
        dog = look.model.eval()(look.images)[:, 0].sigmoid()
    for i, (caption, _, correct) in enumerate(look.captions()):
        label = int(data.labels[i])
        probability = dog[i] if label else 1 - dog[i]
        assert caption == f"{names[label]}  {probability:.2f}"
        assert correct == bool((dog[i] > 0.5) == label)


def test_a_single_score_that_is_no_class_stays_one() -> None:
    class Regression(OneLogit):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0]).square().mean()

    images = torch.randn(12, 3, 16, 20)
    data = DataLoader(TensorDataset(images, torch.rand(12)), 6)
    look = fitted(Notes(), Regression(), data=(data, data), max_epochs=1).looks[0]
    assert look.scores.shape == (8, 1) and look.labels is None


def test_images_without_a_label_are_asked_about_their_prediction() -> None:
    images, labels = Blobs(8, 2).images, torch.tensor([0, -100, 2, -1, 9, 1, 1, 0])

    class Ignoring(TinyModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0]).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

    data = DataLoader(TensorDataset(images, labels), 4)
    look = fitted(Notes(), Ignoring(), data=(data, data), max_epochs=1).looks[0]
    assert look.labels.tolist() == [0, -1, 2, -1, -1, 1, 1, 0]
    best = look.scores.argmax(1)
    assert look.targets.tolist() == [0, best[1], 2, best[3], best[4], 1, 1, 0]
    assert [correct is None for *_, correct in look.captions()] == [False, True, False, True, True] + [False] * 3


def test_names_that_are_numbers_go_before_indices() -> None:
    class Folders(Blobs):
        def __init__(self) -> None:
            super().__init__(12, 2)
            self.classes = ["1", "2", "3"]

    data = DataLoader(Folders(), 6)
    for target, expected in (("1", 0), (1, 1), (np.int64(2), 2), (torch.tensor([0, 1] * 4), None), ("0", 0)):
        look = fitted(Notes(target=target), data=(data, data), max_epochs=1).looks[0]
        assert look.targets.tolist() == ([0, 1] * 4 if expected is None else [expected] * 8)


def test_probabilities_are_not_squashed_again() -> None:
    class Probable(TinyModule):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).softmax(1)

    look = fitted(Notes(), Probable(), max_epochs=1).looks[0]
    caption = look.captions()[0][0]
    assert caption.endswith(f"{look.scores[0, look.targets[0]]:.2f}")


def test_images_of_bytes_that_the_module_converts() -> None:
    class Bytes(TinyModule):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.float() / 255)

    images = (Blobs(12, 2).images.clamp(0, 1) * 255).to(torch.uint8)
    data = DataLoader(TensorDataset(images, torch.arange(12) % 3), 6)
    recorder = Recorder()
    callbacks = [c(on_error="raise") for c in (Saliency, Occlusion, MaxActivatingPatches)]
    trainer(callbacks, logger=recorder, max_epochs=1).fit(Bytes(), data, data)
    assert {tag.split("/")[0] for tag in recorder.tags} == {"saliency", "occlusion", "patches"}


def test_filters_need_no_images() -> None:
    class Tokens(TinyModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net.conv1.weight.square().sum()

        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

        def forward(self, images: Tensor) -> Tensor:
            raise NotImplementedError

    data = DataLoader(TensorDataset(torch.arange(12)), 6)
    recorder = Recorder()
    trainer([Filters(on_error="raise")], logger=recorder, max_epochs=1).fit(Tokens(), data, data)
    assert recorder.tags == {"filters/net.conv1"}


def test_images_of_different_sizes_come_from_a_batch() -> None:
    class Ragged(Blobs):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            image, label = super().__getitem__(index)
            return image[:, :, : 20 - index % 2], label

    def cropped(samples: list[Any]) -> Any:
        width = min(image.shape[2] for image, _ in samples)
        return torch.utils.data.default_collate([(image[:, :, :width], label) for image, label in samples])

    data = DataLoader(Ragged(12, 2), 6, collate_fn=cropped)
    assert fitted(Notes(), data=(data, data), max_epochs=1).looks[0].images.shape == (8, 3, 16, 19)
    by_bucket = DataLoader(Ragged(12, 2), batch_sampler=[[0, 2, 4], [1, 3, 5]])
    assert fitted(Notes(), data=(data, by_bucket), max_epochs=1).looks[0].images.shape == (3, 3, 16, 20)


def test_training_images_without_an_index_are_looked_at_before_the_first_step() -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(Blobs(16, 4))

    notes = Notes()
    trainer([notes], logger=Recorder(), max_epochs=2).fit(TinyModule(), DataLoader(Stream(), 8))
    assert [look.step for look in notes.looks] == [0, 2, 4]


def test_a_module_that_is_called_in_another_way() -> None:
    class Siamese(TinyModule):
        def forward(self, *, left: Tensor, right: Tensor) -> Tensor:
            return super().forward(left) - super().forward(right)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(left=batch[0], right=batch[0].flip(0)).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.training_step(batch, batch_idx)

    def against_grey(module: Any, images: Tensor) -> Tensor:
        return module(left=images, right=torch.zeros_like(images))

    look = fitted(Notes(forward=against_grey), Siamese(), max_epochs=1).looks[-1]
    look.model.eval()
    torch.testing.assert_close(look.scores, against_grey(look.model, look.images))
    with pytest.warns(UserWarning, match=r"says how to run the module on images alone"):
        trainer([Saliency()], logger=Recorder(), max_epochs=1).fit(Siamese(), *loaders())


def test_other_channels_than_the_network_takes() -> None:
    class Colours(TinyModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step((batch[0].expand(-1, 3, -1, -1), batch[1]), batch_idx)

    data = DataLoader(TensorDataset(torch.rand(14, 1, 16, 20), torch.arange(14) % 3), 7)
    with pytest.raises(UsageError, match=r"1 channel\(s\), but the first convolution 'net.conv1' takes 3"):
        fitted(Saliency(), Colours(), data=(data, None))


def test_an_attribute_that_only_sounds_like_a_normalisation() -> None:
    class Described(Blobs):
        mean, std = [0.1] * 5, [1.0] * 5

    data = DataLoader(Described(12, 2), 6)
    assert fitted(Notes(), data=(data, data), max_epochs=1).looks[0].pixels.mean != (0.1,) * 5


def test_names_of_the_images_are_told() -> None:
    class Named(Blobs):
        captions = tuple(f"file {i}" for i in range(12))

    data = DataLoader(Named(12, 2), 6)
    looks = fitted(Notes(num_images=3), data=(data, data), max_epochs=1).looks
    assert [detail.split(" · ")[-1] for _, detail, _ in looks[0].captions()] == ["file 0", "file 6", "file 8"]


def test_one_broken_logger_does_not_silence_the_others() -> None:
    class Broken(Recorder):
        def log_image(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("gone")

    good = Recorder()
    with pytest.warns(UserWarning, match="gone"):
        trainer([Saliency()], logger=[Broken(), good], max_epochs=1).fit(TinyModule(), *loaders())
    assert good.tags == {"saliency/probe"}


def test_normalisation_is_found_in_the_transforms() -> None:
    class Images(Dataset[Any]):
        transform = None

        def __init__(self) -> None:
            self.transform = transforms.Compose([transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))])
            self.base = Blobs(12, 1)

        def __len__(self) -> int:
            return 12

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            image, label = self.base[i]
            return self.transform(image.clamp(0, 1)), label

    data = Images()
    look = fitted(Notes(num_images=12), data=(DataLoader(data, 6), DataLoader(data, 6)), max_epochs=1).looks[0]
    assert look.pixels.mean == (0.5, 0.4, 0.3)
    torch.testing.assert_close(look.pixels.to_color(look.images), data.base.images.clamp(0, 1), atol=1e-5, rtol=0)


def test_given_mean_and_std_win() -> None:
    assert fitted(Notes(mean=[0.1], std=[0.2]), max_epochs=1).looks[0].pixels.mean == (0.1,)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_numbers_of_channels(channels: int) -> None:
    class Net(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.net.conv1 = nn.Conv2d(channels, 6, 5, padding=2)

    images = torch.rand(14, channels, 18, 16)
    data = DataLoader(TensorDataset(images, torch.arange(14) % 3), 7)
    recorder = Recorder()
    callbacks = [c(on_error="raise") for c in (Filters, Saliency, Occlusion, MaxActivatingPatches)]
    callbacks.append(Embeddings(methods=["pca"], on_error="raise"))
    trainer(callbacks, logger=recorder, max_epochs=1).fit(Net(), data, data)
    assert {t.split("/")[0] for t in recorder.tags} == {
        "filters",
        "saliency",
        "occlusion",
        "patches",
        "embeddings",
    }


class DictModule(TinyModule):
    def forward(self, images: Tensor) -> Any:
        return {"logits": super().forward(images), "aux": None}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0])["logits"], batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


def test_a_dict_needs_a_score_and_is_fine_with_one() -> None:
    with pytest.raises(UsageError, match=r"dict with keys \['logits', 'aux'\]; pass score="):
        fitted(Saliency(), DictModule())
    recorder = Recorder()
    score = lambda out: out["logits"]  # noqa: E731
    callbacks = [c(score=score, on_error="raise") for c in (Saliency, Occlusion, MaxActivatingPatches)]
    trainer(callbacks, logger=recorder, max_epochs=1).fit(DictModule(), *loaders())
    assert {t.split("/")[0] for t in recorder.tags} == {"saliency", "occlusion", "patches"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Filters("net.conv9"), "no layer 'net.conv9'; did you mean 'net.conv"),
        (lambda: Filters("net.head"), "is a Linear, not a 2-d convolution"),
        (lambda: Embeddings("hed"), "no layer 'hed'"),
        (lambda: MaxActivatingPatches("nope"), "no layer 'nope'"),
        (lambda: MaxActivatingPatches("conv1", channels=[6]), "channels 0 to 5"),
        (lambda: MaxActivatingPatches(k=0), "k must be a whole number, at least 1"),
        (lambda: Occlusion(window=17), "larger than the image 16×20"),
        (lambda: Occlusion(stride=0), "stride must be a whole number, at least 1"),
        (lambda: Occlusion(baseline="gray"), "baseline is 'grey'"),
        (lambda: Occlusion(baseline=[0.1, 0.2]), "2 values, but the images have 3 channels"),
        (lambda: Saliency(target=3), "class index 3 is out of range: the model has 3 classes"),
        (lambda: Saliency(target="catt"), "no class 'catt'; did you mean 'cat'"),
        (lambda: Saliency(target=[0, 1]), "2 targets given for 8"),
        (lambda: Saliency(class_names=["a"]), "1 class_names given for 3"),
        (lambda: Saliency(mean=[0.5]), "mean and std together"),
        (lambda: Saliency(mean=[0.5, 0.5], std=[1, 1]), "2 values"),
        (lambda: Saliency(every_n_epochs=0), "every_n_epochs must be a whole number, at least 1"),
        (lambda: Saliency(num_images=0), "num_images must be a whole number, at least 1"),
        (lambda: Saliency(on_error="ignore"), "on_error is 'warn' or 'raise'"),
        (lambda: Saliency(batch_to_images=lambda batch: batch[1]), "found no images"),
        (lambda: Saliency(batch_to_images="image"), "batch_to_images must be a function"),
        (lambda: Saliency(score="logits"), "score must be a function"),
        (lambda: Saliency(dataloader_idx=3), "dataloader_idx is 3, but there is no such loader"),
        (lambda: Saliency(mean=[123, 116, 103], std=[58, 57, 57]), "by 255"),
        (lambda: Saliency(target=object()), "a target is"),
        (lambda: Saliency(scale="all"), "scale is 'each' or 'shared'"),
        (lambda: Occlusion(window=3.5), "window must be a whole number, at least 1"),
        (lambda: Occlusion(output="prob"), "output is 'probability' or 'score'"),
        (lambda: Occlusion(batch_size=0), "batch_size must be a whole number, at least 1"),
        (lambda: Occlusion(baseline=7.0), "a colour from 0"),
        (lambda: Filters(scale="eech"), "scale is 'each' or 'shared'"),
        (lambda: Filters(layers=3), "layers are given by their dotted names"),
        (lambda: Filters(layers=[]), "layers are given by their dotted names"),
        (lambda: Filters(max_filters=0), "max_filters must be a whole number, at least 1"),
        (lambda: Embeddings(methods=["umap"]), "methods are 'pca' and 'tsne'"),
        (lambda: Embeddings(methods="umap"), "methods are 'pca' and 'tsne', not ['umap'"),
        (lambda: Embeddings(perplexity=0), "perplexity is a number of neighbours"),
        (lambda: Embeddings(thumbnail_size=0), "thumbnail_size must be a whole number, at least 4"),
        (lambda: MaxActivatingPatches(channels="some"), "channels is 'all'"),
    ],
)
def test_mistakes_are_told_before_training_starts(make: Any, message: str) -> None:
    module = TinyModule()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(UsageError, match=re.escape(message)):
        fitted(make(), module)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_an_empty_data_set_is_told() -> None:
    with pytest.raises(UsageError, match="empty"):
        data = DataLoader(TensorDataset(torch.zeros(0, 3, 16, 20), torch.zeros(0).long()), 4)
        from lit_viz.probing import load_probe

        load_probe(trainer(), TinyModule(), data, 4)


def test_nan_weights_are_said_and_drawn() -> None:
    class Broken(TinyModule):
        def on_train_start(self) -> None:
            with torch.no_grad():
                self.net.head.weight.fill_(torch.nan)

    notes = Notes()
    recorder = Recorder()
    callbacks = [notes, *(c(on_error="raise") for c in (Filters, Saliency, Occlusion, MaxActivatingPatches))]
    trainer(callbacks, logger=recorder, max_epochs=1).fit(Broken(), *loaders())
    assert {"saliency/probe", "occlusion/probe"} <= recorder.tags
    assert all("NaN" in detail for _, detail, _ in notes.looks[-1].captions())


def test_features_that_are_nan_are_said_and_drawn() -> None:
    class Broken(TinyModule):
        def on_train_start(self) -> None:
            with torch.no_grad():
                self.net.conv1.weight.fill_(torch.nan)

    recorder, callback = Recorder(), Embeddings(on_error="raise")
    trainer([callback], logger=recorder).fit(Broken(), *loaders())
    assert recorder.tags == {"embeddings/net.head", "embeddings/net.head/map", "embeddings/net.head/grid"}


def test_weight_averaging_is_seen_as_validation_sees_it() -> None:
    """Pictures show the averaged weights that the validation metrics are of."""
    from lightning.pytorch.callbacks import EMAWeightAveraging

    class Remembers(Notes):
        def visualize(self, look: Look) -> dict[str, np.ndarray]:
            self.seen = look.model.net.head.weight.detach().clone()
            return super().visualize(look)

    class Module(TinyModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.validated = self.net.head.weight.detach().clone()
            super().validation_step(batch, batch_idx)

    callback, module = Remembers(at_end=False), Module()
    trainer([EMAWeightAveraging(decay=0.5), callback], max_epochs=1, logger=Recorder()).fit(module, *loaders())
    assert torch.equal(callback.seen, module.validated)


def test_png_files_beside_the_loggers(tmp_path: Any) -> None:
    fitted(Saliency(folder=tmp_path, on_error="raise"), max_epochs=1)
    assert sorted(p.name for p in (tmp_path / "saliency" / "probe").iterdir()) == [
        "step_00000000.png",
        "step_00000004.png",
    ]


def test_a_full_disk_costs_a_warning(tmp_path: Any) -> None:
    class Full(Recorder):
        def log_image(self, *args: Any, **kwargs: Any) -> None:
            raise OSError(28, "No space left on device")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner = trainer([Saliency()], logger=Full())
        runner.fit(TinyModule(), *loaders())
    assert runner.global_step == 8
    assert sum("No space left" in str(w.message) for w in caught) == 1


def test_numbers_become_curves_beside_the_pictures(tmp_path: Any) -> None:
    class Counts(Notes):
        def visualize(self, look: Look) -> dict[str, Any]:
            picture = super().visualize(look)
            return {"looks": len(self.looks), "half/float32": np.float32(0.5), **picture}

    callback, recorder = Counts(), Recorder()
    table = CSVLogger(tmp_path, name=None, version="table")
    trainer([callback], logger=[recorder, table], max_epochs=2).fit(TinyModule(), *loaders())
    ours = [entry for entry in recorder.metrics if entry[0].startswith("notes/")]
    assert [e for e in ours if e[0] == "notes/looks"] == [
        ("notes/looks", step, i + 1) for i, step in enumerate((0, 4, 8))
    ]
    assert {e[2] for e in ours if e[0] == "notes/half/float32"} == {0.5}
    assert [(tag, step) for tag, step, _ in recorder.images] == [
        ("notes/probe", 0),
        ("notes/probe", 4),
        ("notes/probe", 8),
    ]
    assert callback.written == {"notes/probe": 3}
    header, *rows = (tmp_path / "table" / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("notes/looks")
    assert [row.split(",")[column] for row in rows if row.split(",")[column]] == ["1.0", "2.0", "3.0"]


def test_titles_say_when() -> None:
    notes = fitted(Notes(), max_epochs=1)
    assert [look.when for look in notes.looks] == ["epoch 0 · step 0", "epoch 0 · step 4"]
    validated = Notes()
    trainer([validated], logger=Recorder()).validate(TinyModule(), loaders()[1], verbose=False)
    assert [look.when for look in validated.looks] == ["validate"]


def test_lazy_modules_get_their_values_from_the_run() -> None:
    """The first pass initialises them: were it ours, inside its seeded guard, training would start elsewhere."""

    class Lazy(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.net.head = torch.nn.LazyLinear(3)

    lazy = Mode(module=Lazy)
    for sanity in (0, 2):
        seen = fit(lazy, [Saliency(on_error="raise")], logger=Recorder(), num_sanity_val_steps=sanity)
        alone = fit(lazy, num_sanity_val_steps=sanity)
        assert all(torch.equal(v, alone.weights[k]) for k, v in seen.weights.items())


def test_a_look_that_failed_keeps_no_tensors() -> None:
    """They would lie in memory until Python's collector comes by, beside the next training step."""
    import gc
    import weakref

    kept: list[Any] = []

    class Fails(Saliency):
        def visualize(self, look: Any) -> Any:
            large = torch.zeros(1000)
            kept.append(weakref.ref(large))
            raise MemoryError

    gc.disable()
    try:
        with pytest.warns(UserWarning, match="MemoryError"):
            trainer([Fails()], logger=Recorder(), max_epochs=1).fit(TinyModule(), *loaders())
        assert kept and all(one() is None for one in kept)
    finally:
        gc.enable()
