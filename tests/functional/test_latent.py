"""Images made in the code space of a decoder look like images: measured on digits, for all classes and seeds."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lit_viz.functional.ascent import activation_maximization
from lit_viz.functional.synthesis import Code, total_variation
from lit_viz.guard import isolated_rng
from lit_viz.modules import FeatureDecoder
from lit_viz.networks import load_decoder
from tests.digits import SIDE, SPACE, accuracy, classifier, digits

pytestmark = pytest.mark.slow  # about half a minute

SEEDS = 3
CLASSES = list(range(10))


def digit_decoder(file: Path) -> tuple[Code, dict[str, Tensor]]:
    """Trains a decoder that inverts the features of the classifier of digits, and what was measured of it.

    Args:
        file: Where its checkpoint goes.
    """
    data, epochs = digits(), 10
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with isolated_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seed_everything(0, verbose=False)
        module = FeatureDecoder(
            "features",
            classifier(),
            width=8,
            mean=SPACE.mean,
            std=SPACE.std,
            optimizer=partial(torch.optim.Adam, lr=3e-3),
            lr_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        )
        run = Trainer(
            max_epochs=epochs,
            check_val_every_n_epoch=epochs,
            num_sanity_val_steps=0,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        train = DataLoader(TensorDataset(data.train), batch_size=64, shuffle=True)
        run.fit(module, train, DataLoader(TensorDataset(data.held_out), batch_size=180))
    run.save_checkpoint(file)
    return load_decoder(file, SPACE), run.callback_metrics


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Code:
    decoder, metrics = digit_decoder(tmp_path_factory.mktemp("decoder") / "digits.ckpt")
    assert metrics["val_pixel_ratio"] < 0.25
    assert metrics["val_label_kept"] > 0.94
    return decoder


def flat(images: Tensor) -> Tensor:
    return SPACE.to_color(images).flatten(1)


def nearest(images: Tensor) -> Tensor:
    """Distance in pixel space from images (…, 1, H, W) to the nearest digit that no network has seen."""
    shape = images.shape[:-3]
    return torch.cdist(flat(images.reshape(-1, 1, SIDE, SIDE)), flat(digits().held_out)).amin(dim=1).reshape(shape)


def apart(images: Tensor) -> float:
    """Mean distance of images (seeds, 1, H, W) from each other."""
    return float(torch.pdist(flat(images)).mean())


def variation(images: Tensor) -> float:
    """Mean total variation of colours: high for noise."""
    return float(total_variation(SPACE.to_color(images.reshape(-1, 1, SIDE, SIDE)), beta=1.0).mean())


def greyness(images: Tensor) -> float:
    """Mean of c (1 − c): high for blurs, and for grey that was left as it was."""
    colors = flat(images.reshape(-1, 1, SIDE, SIDE))
    return float((colors * (1 - colors)).mean())


def faults(images: Tensor) -> set[str]:
    """What tells images (seeds, 10, 1, H, W), meant to show the ten digits, from digits."""
    data, found = digits(), set()
    wanted = torch.tensor(CLASSES).expand(len(images), -1)
    for judge in (classifier(seed=1), classifier("perceptron")):
        with torch.no_grad():
            agrees = judge(images.flatten(0, 1)).argmax(dim=1).reshape(wanted.shape) == wanted
        if agrees.float().mean() < 0.9:
            found.add("not recognised")
    real = [data.train[data.train_labels == k] for k in CLASSES]
    within = [apart(images[:, k]) / apart(real[k]) for k in CLASSES]
    if sum(within) / len(within) < 1 / 3 or min(within) < 0.1:
        found.add("all seeds alike")
    if greyness(images) > 1.18 * greyness(data.train):
        found.add("blurred")
    if variation(images) > 1.5 * variation(data.train):
        found.add("noisy")
    if (nearest(images).mean(dim=0) > 9).any() or nearest(images).mean() > 7:
        found.add("far from all digits")
    return found


def made(recipe: str, seeds: int = 1, decoder: Code | None = None) -> Tensor:
    """Images (seeds, 10, 1, H, W) of all classes."""
    return torch.stack(
        [
            activation_maximization(
                classifier(), CLASSES, shape=(1, SIDE, SIDE), recipe=recipe, seed=seed, pixels=SPACE, decoder=decoder
            ).images
            for seed in range(seeds)
        ]
    )


@pytest.fixture(scope="module")
def latent(code: Code) -> Tensor:
    return made("dgn-am", SEEDS, code)


def test_the_judges_know_digits() -> None:
    assert all(accuracy(net) > 0.95 for net in (classifier(), classifier(seed=1), classifier("perceptron")))


def test_images_of_a_decoder_are_like_digits(latent: Tensor) -> None:
    assert faults(latent) == set()


def test_controls() -> None:
    """Each fault is seen where it is, and real digits have none."""
    data = digits()
    by_class = [data.train[data.train_labels == k] for k in CLASSES]
    generator = torch.Generator().manual_seed(0)
    real = torch.stack([torch.stack([images[i] for images in by_class]) for i in range(SEEDS)])
    assert faults(real) == set()
    means = torch.stack([images.mean(dim=0) for images in by_class]).expand(SEEDS, -1, -1, -1, -1)
    assert faults(means) == {"all seeds alike", "blurred"}
    noisy = means + 0.4 * torch.randn(means.shape, generator=generator)
    assert faults(noisy) == {"blurred", "noisy"}
    assert "not recognised" in faults(real.roll(1, dims=1))
    assert "far from all digits" in faults(1 - real)


def test_nearer_to_digits_than_what_pixels_give(latent: Tensor) -> None:
    """For all classes the decoder's lie nearer than Yosinski's, and these on the whole nearer than plain ascent's."""
    yosinski, plain = nearest(made("yosinski-1"))[0], nearest(made("plain"))[0]
    decoded = nearest(latent).mean(dim=0)
    assert (decoded < 0.75 * yosinski).all()
    assert decoded.mean() < 0.55 * yosinski.mean()
    assert yosinski.mean() < 0.95 * plain.mean()
    assert {"far from all digits"} <= faults(made("yosinski-1", 2))


def test_a_seed_gives_the_same_image(code: Code, latent: Tensor) -> None:
    assert torch.equal(made("dgn-am", 1, code)[0], latent[0])
    assert not torch.equal(latent[0], latent[1])
