"""Training a decoder: its loss, its statistics, its checkpoints, and what it leaves alone."""

from __future__ import annotations

import copy
import math
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.multiprocessing import start_processes
from torch.nn import functional as F
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from lit_viz.cli import main
from lit_viz.errors import UsageError
from lit_viz.modules import FeatureDecoder, ImageClassifier
from lit_viz.modules.decoder import Moments, _middle
from lit_viz.networks import SmallCNN, load_decoder
from lit_viz.pixels import PixelSpace

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "decoder.yaml"
MEAN, STD = (0.4, 0.5, 0.6), (0.25, 0.2, 0.3)
SPACE = PixelSpace(MEAN, STD)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*many workers.*")
        warnings.filterwarnings("ignore", message=".*log_every_n_steps.*|.*logging interval.*")
        yield


def images(count: int = 12, seed: int = 0) -> Tensor:
    """Smooth colours, normalised."""
    colors = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return SPACE.from_color(F.interpolate(colors, (16, 20), mode="bilinear"))


def loader(count: int = 12, *, seed: int = 0, labels: bool = False, batch_size: int = 5) -> DataLoader:
    data: Any = images(count, seed)
    return DataLoader([(x, 0) for x in data] if labels else list(data), batch_size=batch_size)


def classifier() -> SmallCNN:
    torch.manual_seed(0)
    net = SmallCNN(4, width=4, kernel_size=5)
    net(images(30, seed=9))  # batch norms that are not at their start
    with torch.no_grad():
        net.head.bias -= net.eval()(images(30, seed=9)).mean(dim=0)  # no class is the best of all images
    return net


def module(**changes: Any) -> FeatureDecoder:
    torch.manual_seed(1)
    return FeatureDecoder(**{"layer": "relu3", "model": classifier(), "width": 2, "mean": MEAN, "std": STD} | changes)


def trainer(**changes: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{"accelerator": "cpu", "max_epochs": 1, "logger": False} | quiet | changes)


def codes_of(net: nn.Module, x: Tensor, layer: str = "relu3") -> Tensor:
    kept: list[Tensor] = []
    handle = net.get_submodule(layer).register_forward_hook(lambda *args: kept.append(args[2].clone()))
    with torch.no_grad():
        net(x)
    handle.remove()
    return kept[0]


def test_the_loss_is_what_its_formula_says() -> None:
    one = module()
    run = trainer(max_epochs=0)
    run.fit(one, loader())
    x, net = images(5), one.classifier
    code = codes_of(net, x)
    one.eval()
    colors = one.decoder(code)
    made = (colors - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    expected = 10 * (colors - SPACE.to_color(x)).square().mean()
    for layer in ("relu2", "relu3"):
        true, got = codes_of(net, x, layer), codes_of(net, made.detach(), layer)
        expected = expected + (true - got).square().sum() / true.square().sum()
    assert one.mid_layer == "relu2"
    torch.testing.assert_close(one._compared(x).loss, expected)
    torch.testing.assert_close(one(x), made)


def test_it_learns_and_leaves_the_classifier_alone() -> None:
    seed_everything(0, verbose=False)
    one = module(layer="relu1", optimizer=lambda p: torch.optim.Adam(p, lr=0.01), width=4)
    before = copy.deepcopy(one.classifier.state_dict())
    run = trainer(max_epochs=40, check_val_every_n_epoch=40)
    run.fit(one, loader(20, labels=True, batch_size=10), loader(20))
    assert one.decoder.training and not any(m.training for m in one.classifier.modules())
    after = one.classifier.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(m._forward_hooks for m in one.classifier.modules())
    assert all(p.grad is None for p in one.classifier.parameters())
    assert not any(name.startswith("classifier") for name in one.state_dict())
    assert run.callback_metrics["val_pixel_ratio"] < 0.5
    assert run.callback_metrics["val_loss"] < 1


def test_statistics_are_exact() -> None:
    """Two epochs in uneven batches, against all codes at once."""
    one = module()
    trainer(max_epochs=2).fit(one, loader(12, batch_size=5), loader(3, seed=1))
    codes = codes_of(one.classifier, images(12))
    assert int(one.code_count) == 24
    torch.testing.assert_close(one.code_mean, codes.mean(0))
    torch.testing.assert_close(one.code_variance, codes.var(0, correction=0))
    assert torch.equal(one.code_minimum, codes.amin(0))


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_statistics_in_bfloat16(precision: str) -> None:
    one = module()
    trainer(max_epochs=8, precision=precision).fit(one, loader(40, batch_size=2), loader(3, seed=1))
    codes = codes_of(classifier(), images(40))
    assert one.code_mean.dtype == one.code_variance.dtype == torch.float32
    # 160 updates, of which bfloat16 would lose most.
    assert float((one.code_mean - codes.mean(0)).norm() / codes.mean(0).norm()) < 0.02
    assert float((one.code_variance - codes.var(0)).norm() / codes.var(0).norm()) < 0.1


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moments_of_parts_are_those_of_the_whole(offset: float) -> None:
    values = offset + torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    merged = Moments.of(values[:1])
    for part in values[1:].split([1, 30, 7, 11]):
        merged = merged.merged(Moments.of(part))
    assert int(merged.count) == 50
    torch.testing.assert_close(merged.mean, values.mean(0))
    torch.testing.assert_close(merged.variance, values.double().var(0, correction=0).float(), rtol=1e-3, atol=1e-4)
    assert torch.equal(merged.minimum, values.amin(0))
    empty = Moments(torch.tensor(0), *(torch.zeros(3) for _ in range(3)))
    first = empty.merged(Moments.of(values))
    torch.testing.assert_close(first.minimum, values.amin(0))
    torch.testing.assert_close(first.variance, values.var(0, correction=0), rtol=1e-3, atol=1e-4)


def test_statistics_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    one, parts = module(), images(9).flatten(1).split([4, 5])
    own = [Moments.of(part) for part in parts]
    fields = iter(("count", "mean", "variance", "minimum"))

    class TwoProcesses:
        world_size = 2

    def all_gather(value: Tensor) -> Tensor:
        return torch.stack([getattr(moments, name) for name in [next(fields)] for moments in own])

    monkeypatch.setattr(FeatureDecoder, "trainer", TwoProcesses())
    monkeypatch.setattr(one, "all_gather", all_gather)
    found, whole = one._everywhere(own[0]), Moments.of(images(9).flatten(1))
    assert int(found.count) == 9
    torch.testing.assert_close(found.mean, whole.mean)
    torch.testing.assert_close(found.variance, whole.variance)
    assert torch.equal(found.minimum, whole.minimum)


class MeanImage(nn.Module):
    """Knows nothing of the code."""

    def __init__(self, colors: Tensor) -> None:
        super().__init__()
        self.image = nn.Parameter(colors.mean(dim=0))
        self.image_shape = self.image.shape

    def forward(self, codes: Tensor) -> Tensor:
        return self.image.expand(len(codes), -1, -1, -1)


def test_the_mean_image_has_ratio_one_and_keeps_its_own_label() -> None:
    one = module()
    trainer(max_epochs=0).fit(one, loader())
    x = images(11, seed=2)
    one.decoder = MeanImage(SPACE.to_color(x))
    result = trainer().validate(one, loader(11, seed=2, batch_size=4), ckpt_path=None, verbose=False)[0]
    assert result["val_pixel_ratio"] == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        mean = one.classifier(SPACE.from_color(SPACE.to_color(x).mean(0))[None]).argmax()
        expected = (one.classifier(x).argmax(dim=1) == mean).float().mean()
    assert 0 < expected < 1
    assert result["val_label_kept"] == pytest.approx(float(expected))


def test_checkpoints(tmp_path: Path) -> None:
    one = module()
    run = trainer(max_epochs=2)
    run.fit(one, loader(), loader(3, seed=1))
    file = tmp_path / "decoder.ckpt"
    run.save_checkpoint(file)
    saved = torch.load(file, weights_only=True)
    assert not any("classifier" in name for name in saved["state_dict"])
    assert saved["hyper_parameters"]["layer"] == "relu3" and saved["classifier"]["type"] == "SmallCNN"

    again = FeatureDecoder.load_from_checkpoint(file, model=classifier(), weights_only=True)
    x = images(3, seed=5)
    torch.testing.assert_close(again.eval()(x), one.eval()(x))

    space = PixelSpace((0.5,), (0.25,))
    code = load_decoder(file, space)
    codes = codes_of(one.classifier, x)
    torch.testing.assert_close(code.images(codes), space.from_color(SPACE.to_color(one(x))), rtol=1e-4, atol=1e-5)
    assert torch.equal(code.mean, one.code_mean) and code.nonnegative
    torch.testing.assert_close(code.std.square(), one.code_variance)

    resumed = module()
    more = trainer(max_epochs=3)
    more.fit(resumed, loader(), loader(3, seed=1), ckpt_path=file, weights_only=True)
    assert more.current_epoch == 3 and int(resumed.code_count) == 36
    result = trainer().validate(module(), loader(3, seed=1), ckpt_path=file, verbose=False, weights_only=True)[0]
    assert result["val_pixel_ratio"] == pytest.approx(float(run.callback_metrics["val_pixel_ratio"]), rel=1e-4)

    torch.manual_seed(5)
    with pytest.raises(UsageError, match="trained for another SmallCNN"):
        FeatureDecoder.load_from_checkpoint(file, model=SmallCNN(4, width=4, kernel_size=5), weights_only=True)
    other = DataLoader(list(F.interpolate(images(), (24, 24))), batch_size=5)
    with pytest.raises(UsageError, match=r"makes images \(3, 16, 20\), but the data have \(3, 24, 24\)"):
        trainer().fit(module(), other, ckpt_path=file, weights_only=True)


def test_pictures_of_every_validation(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version=0)
    run = trainer(max_epochs=2, logger=logger, log_every_n_steps=1)
    run.fit(module(num_images=3), loader(labels=True), loader(7, seed=1, labels=True))
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path / "version_0")).Reload()
    assert [e.step for e in events.Images("reconstructions/relu3")] == [3, 6]
    assert {"train_loss", "val_loss", "val_pixel_ratio", "val_label_kept"} <= set(events.Tags()["scalars"])


def test_a_picture_that_fails_does_not_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: FeatureDecoder) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(FeatureDecoder, "_picture", fail)
    run = trainer(logger=TensorBoardLogger(tmp_path))
    with pytest.warns(UserWarning, match="could not be drawn: RuntimeError: no ink"):
        run.fit(module(), loader(), loader(3))
    assert run.current_epoch == 1


def test_the_layer_in_the_middle() -> None:
    assert _middle(classifier(), "relu3", images(1)) == "relu2"
    assert _middle(classifier(), "head", images(1)) == "relu2"  # 4 × 5 of 16 × 20
    assert _middle(classifier(), "conv1", images(1)) is None
    with torch.random.fork_rng():
        resnet, vit = torchvision.models.resnet18(), torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 16)
    photo = torch.zeros(1, 3, 64, 64)
    assert _middle(resnet.eval(), "layer4", photo) == "layer1"  # 16 × 16; layer2 has 8 × 8
    assert _middle(resnet.eval(), "avgpool", photo) == "layer1"
    assert _middle(vit.eval(), "encoder.ln", torch.zeros(1, 3, 32, 32)) is None


@pytest.mark.parametrize("layer", ["head", "relu1", "encoder.ln"])
def test_vectors_maps_and_tokens(layer: str) -> None:
    changes: dict[str, Any] = {"layer": layer}
    data = loader()
    if layer == "encoder.ln":
        torch.manual_seed(0)
        changes["model"] = torchvision.models.VisionTransformer(32, 8, 1, 2, 8, 16, num_classes=4)
        nn.init.normal_(changes["model"].heads.head.weight)
        data = DataLoader(list(F.interpolate(images(), (32, 32))), batch_size=5)
    one = module(**changes)
    run = trainer()
    run.fit(one, data, data)
    assert one.decoder.code_shape == {"head": (4,), "relu1": (4, 8, 10), "encoder.ln": (8, 4, 4)}[layer]
    assert torch.isfinite(run.callback_metrics["val_loss"])


class Brightness(nn.Module):
    """A discriminator that is known: a x̄ + b c̄, with the means of the colours and of the code."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b))

    def forward(self, colors: Tensor, codes: Tensor) -> Tensor:
        return self.a * colors.flatten(1).mean(dim=1) + self.b * codes.flatten(1).mean(dim=1)


def prepared(**changes: Any) -> FeatureDecoder:
    """A module with its networks, before its first step."""
    one = module(**{"adversarial_weight": 0.5} | changes)
    trainer(max_epochs=0).fit(one, loader())
    return one


def weights(part: nn.Module | None) -> list[Tensor]:
    assert part is not None
    return [value.detach().clone() for value in part.parameters()]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_without_adversarial_loss_there_is_no_discriminator() -> None:
    one, other = prepared(adversarial_weight=0.0), prepared()
    assert one.discriminator is None and not any("discriminator" in name for name in one.state_dict())
    assert other.discriminator is not None and equal(weights(one.decoder), weights(other.decoder))
    assert len(one.configure_optimizers().param_groups[0]["params"]) == len(weights(one.decoder))
    run = trainer()
    run.fit(one, loader())
    assert "train_loss" in run.logged_metrics and "train_adversarial" not in run.logged_metrics


def test_the_adversarial_losses_are_what_their_formulas_say() -> None:
    one, a, b, x = prepared(), 3.0, -2.0, images(5)
    one.discriminator = Brightness(a, b)
    found = one._compared(x)
    adversarial, discriminator = one._duel(found, x)

    def p(colors: Tensor, codes: Tensor) -> list[float]:
        logits = [a * float(x.mean()) + b * float(c.mean()) for x, c in zip(colors, codes, strict=True)]
        return [1 / (1 + math.exp(-logit)) for logit in logits]

    real, made = p(SPACE.to_color(x), found.codes), p(found.colors, found.codes)
    assert float(adversarial) == pytest.approx(-sum(math.log(v) for v in made) / 5, rel=1e-4)
    expected = -sum(math.log(v) + math.log(1 - w) for v, w in zip(real, made, strict=True)) / 5
    assert float(discriminator) == pytest.approx(expected, rel=1e-4)
    one.discriminator = Brightness(0.0, 0.0)  # can't tell them apart
    assert [float(v) for v in one._duel(found, x)] == pytest.approx([math.log(2), 2 * math.log(2)])


def test_each_has_gradients_of_its_own_loss_alone() -> None:
    one, x = prepared(), images(5)
    assert one.decoder is not None and one.discriminator is not None
    parts = [list(one.decoder.parameters()), list(one.discriminator.parameters())]
    for loss, (own, other) in ((0, parts), (1, parts[::-1])):
        found = one._duel(one._compared(x), x)[loss]
        gradients = torch.autograd.grad(found, own + other, allow_unused=True)
        assert all(g is not None for g in gradients[: len(own)])
        assert sum(float(g.abs().sum()) for g in gradients[: len(own)]) > 0
        assert all(g is None for g in gradients[len(own) :])


def test_a_step_follows_both_losses() -> None:
    """Against gradients taken apart, by plain gradient descent."""
    one, x = prepared(optimizer=lambda p: torch.optim.SGD(p, lr=0.1)), images(5)
    reference = copy.deepcopy(one)
    reference.decoder.train()
    found = reference._compared(x)
    adversarial, discriminator = reference._duel(found, x)
    expected = []
    for part, loss in ((reference.decoder, found.loss + 0.5 * adversarial), (reference.discriminator, discriminator)):
        own = list(part.parameters())
        steps = torch.autograd.grad(loss, own, retain_graph=True)
        expected += [p.detach() - 0.1 * g for p, g in zip(own, steps, strict=True)]
    run = trainer()
    run.fit(one, loader(5))
    torch.testing.assert_close(weights(one.decoder) + weights(one.discriminator), expected, rtol=1e-4, atol=1e-6)
    assert float(run.logged_metrics["train_adversarial"]) == pytest.approx(float(adversarial), rel=1e-4)
    assert float(run.logged_metrics["train_discriminator"]) == pytest.approx(float(discriminator), rel=1e-4)
    assert float(run.logged_metrics["train_loss"]) == pytest.approx(float(found.loss), rel=1e-4)


class Steps(Callback):
    """Which of the two moved in each step; `losses` are taken for those of its batches, if given."""

    def __init__(self, losses: list[list[tuple[float, float]]] | None = None) -> None:
        self.losses, self.moved, self.batches = losses, list[tuple[bool, bool]](), list[int]()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.batches.append(len(pl_module._duels))
        if self.losses is not None:
            pl_module._duels[:] = [torch.tensor(pair) for pair in self.losses[len(self.moved)]]
        self.before = weights(pl_module.decoder), weights(pl_module.discriminator)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self._note(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._note(pl_module)

    def _note(self, one: Any) -> None:
        if len(self.moved) < len(self.batches):
            after = weights(one.decoder), weights(one.discriminator)
            self.moved.append(tuple(not equal(a, b) for a, b in zip(self.before, after, strict=True)))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_discriminator_that_wins_by_too_much_waits(accumulate: int) -> None:
    """In spite of Adam's momentum; judged over all batches of a step."""
    losses = [[(1.0, 1.0)], [(1.0, 0.099)], [(1.0, 0.101)], [(9.0, 0.2)]]
    if accumulate == 2:
        losses = [[(1.0, 1.0)] * 2, [(1.0, 0.12), (1.0, 0.07)], [(1.0, 0.12), (1.0, 0.09)], [(2.0, 0.0)] * 2]
    steps = Steps(losses)
    one, data = module(adversarial_weight=0.5), loader(20 * accumulate)
    run = trainer(callbacks=[steps], accumulate_grad_batches=accumulate)
    run.fit(one, data)
    assert run.global_step == 4 and steps.batches == [accumulate] * 4
    assert steps.moved == [(True, True), (True, False), (True, True), (True, False)]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_adversarial_in_bfloat16(precision: str) -> None:
    one, steps = module(adversarial_weight=0.5), Steps()
    run = trainer(precision=precision, callbacks=[steps])
    run.fit(one, loader(10), loader(3))
    assert steps.moved == [(True, True)] * 2
    assert all(torch.isfinite(value) for value in run.callback_metrics.values())


def test_one_schedule_for_both() -> None:
    schedule = {"optimizer": lambda p: torch.optim.SGD(p, 0.1), "lr_scheduler": lambda o: StepLR(o, 1, gamma=0.0)}
    one, steps = module(adversarial_weight=0.5, **schedule), Steps()
    trainer(max_epochs=2, callbacks=[steps]).fit(one, loader(5))
    assert steps.moved == [(True, True), (False, False)]


def test_an_adversarial_run_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    schedule = {"lr_scheduler": lambda optimizer: StepLR(optimizer, 1, gamma=0.5)}
    straight, first, second = trainer(max_epochs=4), trainer(max_epochs=2), trainer(max_epochs=4)
    # Networks start from the generator as each run finds it.
    straight.fit(whole := module(adversarial_weight=0.5, **schedule), loader())
    first.fit(half := module(adversarial_weight=0.5, **schedule), loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    rest = module(adversarial_weight=0.5, **schedule)
    torch.manual_seed(99)
    second.fit(rest, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert any(name.startswith("discriminator.") for name in whole.state_dict())
    assert not equal(weights(half.discriminator), weights(whole.discriminator))
    assert all(torch.equal(value, rest.state_dict()[name]) for name, value in whole.state_dict().items())
    one, other = (run.optimizers[0].state_dict()["state"] for run in (straight, second))
    assert len(one) == len(weights(whole.decoder)) + len(weights(whole.discriminator))
    assert all(torch.equal(v, other[i][name]) for i, state in one.items() for name, v in state.items())


def test_the_discriminator_is_for_training_only(tmp_path: Path) -> None:
    one, plain = module(adversarial_weight=0.5), module()
    run, without = trainer(), trainer()
    run.fit(one, loader(), loader(3, seed=1))
    without.fit(plain, loader())
    run.save_checkpoint(tmp_path / "duel.ckpt")
    without.save_checkpoint(tmp_path / "plain.ckpt")
    x = images(3, seed=5)
    expected, codes = SPACE.to_color(one.eval()(x)), codes_of(one.classifier, x)
    code = load_decoder(tmp_path / "duel.ckpt", SPACE)
    torch.testing.assert_close(SPACE.to_color(code.images(codes)), expected, rtol=1e-4, atol=1e-5)
    for weight in (0.0, 0.5):
        for file, ratio in (("duel", run.callback_metrics["val_pixel_ratio"]), ("plain", None)):
            tested = module(adversarial_weight=weight)
            path = tmp_path / f"{file}.ckpt"
            result = trainer().validate(tested, loader(3, seed=1), ckpt_path=path, verbose=False, weights_only=True)
            assert ratio is None or result[0]["val_pixel_ratio"] == pytest.approx(float(ratio), rel=1e-4)
    with pytest.raises(UsageError, match=r"trained with an adversarial loss: to go on, .* above 0"):
        trainer(max_epochs=2).fit(module(), loader(), ckpt_path=tmp_path / "duel.ckpt", weights_only=True)
    with pytest.raises(UsageError, match=r"trained without an adversarial loss: to go on, .* of 0"):
        other = module(adversarial_weight=0.5)
        trainer(max_epochs=2).fit(other, loader(), ckpt_path=tmp_path / "plain.ckpt", weights_only=True)


@pytest.mark.ddp
def test_adversarial_on_two_processes(tmp_path: Path) -> None:
    """Both hold the same weights, and wait at the same steps, whatever each alone would do."""
    command = [sys.executable, "-m", "tests.modules.test_decoder", str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [one["moved"] for one in found] == [[(True, True), (True, False), (True, True)]] * 2
    for part in ("decoder", "discriminator"):
        assert equal(found[0][part], found[1][part])


def on_one_of_two_processes(rank: int, folder: Path, port: int) -> None:
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "two"}  # as torchrun tells them
    os.environ.update({name: str(value) for name, value in (world | meeting).items()})
    # Together 0.55, 0.095 and 0.105; alone they would disagree at each step.
    losses = [[(1.0, (0.09, 1.01)[rank])], [(1.0, (0.12, 0.07)[rank])], [(1.0, (0.13, 0.08)[rank])]]
    one, steps = module(adversarial_weight=0.5), Steps(losses)
    trainer(strategy="ddp", devices=2, callbacks=[steps]).fit(one, loader(30))
    state = {part: weights(getattr(one, part)) for part in ("decoder", "discriminator")}
    torch.save({"moved": steps.moved, **state}, folder / f"{rank}.pt")


def test_usage_errors() -> None:
    with pytest.raises(UsageError, match="no layer 'relu9'"):
        module(layer="relu9")
    with pytest.raises(UsageError, match="mean and std belong together"):
        module(std=None)
    with pytest.raises(UsageError, match="num_images"):
        module(num_images=0)
    with pytest.raises(UsageError, match="pixel_weight"):
        module(pixel_weight=-1.0)
    with pytest.raises(UsageError, match="adversarial_weight"):
        module(adversarial_weight=-1.0)
    with pytest.raises(UsageError, match="there is no decoder yet"):
        trainer().validate(module(), loader(), verbose=False)
    with pytest.raises(UsageError, match="there is no decoder yet"):
        module()(images(1))
    with pytest.raises(UsageError, match="bring all to one size"):
        one = module()
        trainer(max_epochs=0).fit(one, loader())
        one._compared(F.interpolate(images(2), (24, 20)))
    with pytest.warns(UserWarning, match="not trained; give weights"):
        trainer().fit(
            FeatureDecoder("relu3", num_classes=4, options={"width": 2}, width=1, mean=0.5, std=0.5), loader()
        )


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    trained = ImageClassifier(num_classes=10, options={"width": 4})
    run = trainer(max_epochs=0)
    run.fit(trained, DataLoader([(torch.zeros(3, 64, 64), 0)] * 2))
    run.save_checkpoint(tmp_path / "classifier.ckpt")
    main(
        [
            "fit",
            "--config",
            str(CONFIG),
            "--model.weights=classifier.ckpt",
            "--model.options={width: 4}",
            "--model.width=2",
            "--trainer.max_epochs=1",
            "--trainer.accelerator=cpu",
            "--trainer.limit_train_batches=2",
            "--trainer.limit_val_batches=1",
            "--trainer.enable_progress_bar=false",
        ]
    )
    (file,) = (tmp_path / "runs" / "decoder").rglob("*.ckpt")
    code = load_decoder(file, PixelSpace((0.5,), (0.25,)))
    assert code.mean.shape == (16, 8, 8) and code.images(code.noise(2, seed=0)).shape == (2, 3, 64, 64)


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("localhost", 0))
        given = Path(sys.argv[1]), free.getsockname()[1]
    # Forked, so that what takes longest, the imports, is done once for both.
    start_processes(on_one_of_two_processes, given, nprocs=2, start_method="fork")
