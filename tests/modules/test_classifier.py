import warnings
from pathlib import Path

import pytest
import torch
from lightning import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_viz.errors import UsageError
from lit_viz.modules import ImageClassifier
from lit_viz.pixels import PixelSpace

TINY = {"width": 2, "kernel_size": 3}


def batches(labels: list[int], n: int = 2) -> DataLoader:
    images = torch.randn(len(labels), 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return DataLoader(list(zip(images, labels, strict=True)), batch_size=max(len(labels) // n, 1))


def classifier(num_classes: int = 6, **arguments) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(num_classes=num_classes, options=TINY, **arguments)


def trainer(**arguments) -> Trainer:
    return Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        | arguments
    )


class FixedScores(nn.Module):
    """Scores 0, 1, 2, ... for each image: class 9 is best, 5 to 9 are the top five."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.arange(num_classes, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        return self.scores.expand(len(images), -1)


def fixed(num_classes: int = 10) -> ImageClassifier:
    return ImageClassifier(f"{__name__}.FixedScores", num_classes=num_classes)


class Auxiliary(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head, self.aux = nn.Linear(3, num_classes), nn.Linear(3, num_classes)

    def forward(self, images: Tensor):
        x = images.mean(dim=(2, 3))
        return (self.head(x), self.aux(x), None) if self.training else self.head(x)


def test_learns_and_reports():
    module = classifier(lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5), lr_interval="step")
    run = trainer(max_epochs=8)
    run.fit(module, batches([0, 1, 2, 3, 4, 5] * 4, n=4), batches([0, 1, 2, 3, 4, 5]))
    metrics = run.callback_metrics
    assert {"train_loss", "val_loss", "val_acc", "val_acc_top5"} <= set(metrics)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**32)


def test_numbers_are_the_mean_over_labelled_images():
    labels = [9, 8, -1, 0, -3, 9, 5]
    run = trainer()
    result = run.validate(fixed(), batches(labels), verbose=False)[0]
    known = torch.tensor([9, 8, 0, 9, 5])
    scores = torch.arange(10.0).expand(5, -1)
    assert result["val_loss"] == pytest.approx(F.cross_entropy(scores, known).item())
    assert result["val_acc"] == pytest.approx(2 / 5)
    assert result["val_acc_top5"] == pytest.approx(4 / 5)
    assert run.test(fixed(), batches(labels), verbose=False)[0]["test_acc"] == pytest.approx(2 / 5)


def test_top5_only_with_more_than_five_classes():
    result = trainer().validate(fixed(5), batches([4, 0]), verbose=False)[0]
    assert set(result) == {"val_loss", "val_acc"}


def test_unlabelled_images_report_nothing_and_cannot_be_trained_on():
    assert trainer().validate(fixed(), batches([-1, -1]), verbose=False) == [{}]
    with pytest.raises(UsageError, match="without any label"):
        trainer().fit(fixed(), batches([-1, -1]))


def test_numbers_start_anew_each_time():
    module, run = fixed(), trainer()
    assert run.validate(module, batches([9, 9]), verbose=False)[0]["val_acc"] == 1
    assert run.validate(module, batches([0, 0]), verbose=False)[0]["val_acc"] == 0


def test_labels_that_are_too_high():
    with pytest.warns(UserWarning, match="label 10, but the network has 10 classes"):
        assert trainer().validate(fixed(), batches([10, 3], n=1), verbose=False) == [{}]
    with pytest.raises(UsageError, match="num_classes"):
        trainer().fit(fixed(), batches([10, 3]))


def test_data_with_another_number_of_classes():
    class Data(LightningDataModule):
        num_classes = 3

        def val_dataloader(self) -> DataLoader:
            return batches([0, 1, 2])

        train_dataloader = val_dataloader

    with pytest.warns(UserWarning, match="the data have 3 classes and the network 10"):
        assert trainer().validate(fixed(), Data(), verbose=False) == [{}]
    with pytest.raises(UsageError, match="the data have 3 classes and the network 10"):
        trainer().fit(fixed(), Data())
    assert "val_acc" in trainer().validate(fixed(3), Data(), verbose=False)[0]


def test_auxiliary_heads_count_in_training_only():
    module = ImageClassifier(f"{__name__}.Auxiliary", num_classes=4)
    ((images, labels),) = batches([0, 1, 2, 3], n=1)
    x = images.mean(dim=(2, 3))
    network = module.network
    expected = F.cross_entropy(network.head(x), labels) + 0.3 * F.cross_entropy(network.aux(x), labels)
    module.log = lambda *args, **kwargs: None
    torch.testing.assert_close(module.training_step((images, labels), 0), expected)
    assert torch.equal(module(images), network.head(x))
    assert torch.equal(module.eval()(images), network.head(x))


def test_label_smoothing_counts_in_training_only(monkeypatch: pytest.MonkeyPatch):
    ((images, labels),) = batches([0, 1], n=1)
    module = classifier(label_smoothing=0.2).eval()
    scores = module(images).detach()
    result = trainer().validate(module, batches([0, 1], n=1), verbose=False)[0]
    assert result["val_loss"] == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-5)
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    expected = F.cross_entropy(scores, labels, label_smoothing=0.2)
    torch.testing.assert_close(module.training_step((images, labels), 0).detach(), expected)


def test_predictions_are_probabilities():
    outputs = trainer().predict(fixed(), batches([0, 1, 2]))
    torch.testing.assert_close(torch.cat(outputs), torch.arange(10.0).softmax(0).expand(3, -1))


def test_a_seed_gives_the_same_weights():
    def train() -> dict[str, Tensor]:
        seed_everything(3, verbose=False)
        module = ImageClassifier(num_classes=6, options=TINY)
        trainer().fit(module, batches([0, 1, 2, 3, 4, 5]))
        return module.state_dict()

    first, second = train(), train()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_checkpoints_are_safe_to_load_and_serve_as_weights(tmp_path: Path):
    module = classifier(optimizer=torch.optim.SGD, lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1))
    run = trainer()
    run.fit(module, batches([0, 1, 2, 3, 4, 5]))
    file = tmp_path / "last.ckpt"
    run.save_checkpoint(file)
    assert "optimizer" not in torch.load(file, weights_only=True)["hyper_parameters"]
    images = torch.randn(2, 3, 16, 16)
    loaded = ImageClassifier.load_from_checkpoint(file, weights_only=True)
    torch.testing.assert_close(loaded.eval()(images), module.eval()(images))
    again = ImageClassifier(weights=str(file), options=TINY)
    torch.testing.assert_close(again.eval()(images), module(images))


class Numbers(LightningDataModule):
    num_classes = 6

    def train_dataloader(self) -> DataLoader:
        return batches([0, 1, 2, 3, 4, 5])

    val_dataloader = train_dataloader


def test_command_line(tmp_path: Path):
    arguments = [
        "fit",
        "--model.model=small_cnn",
        "--model.num_classes=6",
        "--model.options={width: 2, kernel_size: 3}",
        "--model.optimizer=SGD",
        "--model.optimizer.lr=0.1",
        "--model.lr_scheduler=CosineAnnealingLR",
        "--model.lr_scheduler.T_max=2",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]
    cli = LightningCLI(ImageClassifier, Numbers, args=arguments, auto_configure_optimizers=False)
    optimizer = cli.trainer.optimizers[0]
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.param_groups[0]["initial_lr"] == 0.1
    file = next(tmp_path.rglob("*.ckpt"))
    torch.load(file, weights_only=True)
    loaded = ImageClassifier.load_from_checkpoint(file, weights_only=True)
    assert torch.equal(loaded.network.conv1.weight, cli.model.network.conv1.weight)


def test_images_normalised_for_another_network():
    module = fixed(6)
    data = Numbers()
    data.mean, data.std = (0.5,) * 3, (0.5,) * 3
    module.pixel_space = PixelSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.warns(UserWarning, match="the network expects mean"):
        trainer().validate(module, data, verbose=False)


@pytest.mark.parametrize("arguments", [{"label_smoothing": 1.0}, {"lr_interval": "hour"}])
def test_bad_arguments(arguments: dict):
    with pytest.raises(UsageError, match=next(iter(arguments))):
        classifier(**arguments)


def test_batches_must_be_pairs():
    with pytest.raises(UsageError, match="batches of"):
        trainer().validate(fixed(), DataLoader(torch.randn(2, 3, 8, 8)), verbose=False)


def test_metrics_in_bfloat16_do_not_saturate():
    labels = [i % 10 for i in range(4000)]
    module = fixed()
    run = trainer(precision="bf16-true")
    run.validate(module, batches(labels, n=250), verbose=False)
    assert run.callback_metrics["val_acc"] == pytest.approx(0.1, rel=0.01)
    expected = F.cross_entropy(torch.arange(10.0).expand(4000, -1), torch.tensor(labels))
    assert run.callback_metrics["val_loss"] == pytest.approx(float(expected), rel=0.01)


def test_other_channels_than_the_network_takes():
    grey = DataLoader([(torch.zeros(1, 16, 16), 0)] * 4, batch_size=2)
    with pytest.raises(UsageError, match=r"1 channel.*in_channels=1"):
        trainer().fit(classifier(), grey, grey)


def test_a_network_without_training_is_told():
    with pytest.warns(UserWarning, match="not trained"):
        trainer().validate(classifier(), batches([0, 1]), verbose=False)


def test_a_checkpoint_read_by_the_trainer_counts_as_trained(tmp_path: Path):
    trained = trainer()
    trained.fit(classifier(), batches([0, 1]))
    trained.save_checkpoint(tmp_path / "last.ckpt")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not trained.*")
        trainer().validate(classifier(), batches([0, 1]), ckpt_path=tmp_path / "last.ckpt", verbose=False)


def test_a_new_head_is_not_validated():
    with pytest.warns(UserWarning, match="head starts anew"):
        module = ImageClassifier("efficientnet_lite0", num_classes=3, weights="DEFAULT")
    with pytest.raises(UsageError, match="never trained"):
        trainer().validate(module, batches([0, 1]), verbose=False)
