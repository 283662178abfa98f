"""One small network, one small data set, and all that may not change when a callback looks on."""

from __future__ import annotations

import logging
import random
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from lit_viz.probing import split_batch

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

CLASSES = ["ant", "bee", "cat"]


class Blobs(Dataset[tuple[Tensor, int]]):
    """Noise with a bright blob whose place tells the class; the same at every access."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, len(CLASSES), (count,), generator=generator)
        self.images = torch.randn(count, 3, 16, 20, generator=generator) * 0.3
        for image, label in zip(self.images, self.labels, strict=True):
            image[:, 4:10, 6 * int(label) : 6 * int(label) + 6] += 1.5
        self.classes = CLASSES

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


class TinyNet(nn.Module):
    """What goes wrong elsewhere in one place: batch norm, dropout, in-place ReLU, a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5, padding=2)
        self.norm1 = nn.BatchNorm2d(6)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.relu2 = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(6 * 2 * 2, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu1(self.norm1(self.conv1(x))), 2)
        x = x + self.relu2(self.conv2(x))
        return self.head(self.drop(F.adaptive_avg_pool2d(x, 2).flatten(1)))


class TinyModule(L.LightningModule):
    """A user's own module: nothing of ours in it."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module] | None = None, freeze_norm: bool = False) -> None:
        super().__init__()
        self.net = TinyNet()
        self.freeze_norm = freeze_norm
        if wrap is not None:
            self.net = wrap(self.net)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.freeze_norm:
            self.net.norm1.eval()
        images, labels = split_batch(batch)
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = split_batch(batch)
        self.log("val_loss", F.cross_entropy(self(images), labels))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class StatefulBlobs(Blobs):
    """Draws from a generator of its own at every access: one access more, and training goes another way."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed)
        self.random = np.random.RandomState(seed)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        return image + 0.1 * float(self.random.randn()), label


class HookedModule(TinyModule):
    """Augments on the device, from a generator of its own, and logs in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.random = torch.Generator().manual_seed(3)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        if self.trainer.training:
            images = images + 0.1 * torch.randn(1, generator=self.random)
        return images, labels

    def forward(self, images: Tensor) -> Tensor:
        scores = super().forward(images)
        if not self.trainer.sanity_checking:
            self.log("train_score" if self.trainer.training else "val_score", scores.mean())
        return scores


class Recorder(Logger):
    """Keeps what is logged in memory, as a logger that takes images."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[str, int, Any]] = []
        self.metrics: list[tuple[str, int | None, float]] = []

    name = version = "recorder"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.metrics += [(tag, step, value) for tag, value in metrics.items()]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.images += [(key, step, image) for image in images]

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _, _ in self.images}


@dataclass
class Outcome:
    """All that a callback may not change."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    rng: tuple[Any, ...]
    metrics: dict[str, Tensor]
    modes: dict[str, bool]
    grads: dict[str, Tensor | None]
    needs_grad: dict[str, bool]
    module: L.LightningModule = field(repr=False)
    trainer: Trainer = field(repr=False)


@dataclass(frozen=True)
class Mode:
    """A way of training."""

    trainer: dict[str, Any] = field(default_factory=dict)
    module: Callable[[], L.LightningModule] = TinyModule
    data: type[Blobs] = Blobs


MODES = {
    "fp32": Mode(),
    "bf16-mixed": Mode({"precision": "bf16-mixed"}),
    "bf16-true": Mode({"precision": "bf16-true"}),
    "accumulation": Mode({"accumulate_grad_batches": 3}),
    "frozen-norm": Mode(module=lambda: TinyModule(freeze_norm=True)),
    "gradient-clipping": Mode({"gradient_clip_val": 0.1, "val_check_interval": 0.5}),
    "stateful-data": Mode(data=StatefulBlobs),
    "stateful-data-no-sanity-check": Mode({"num_sanity_val_steps": 0}, data=StatefulBlobs),
    "hooks-and-logs": Mode(module=HookedModule),
    "compiled-module": Mode(module=lambda: torch.compile(TinyModule(), backend="aot_eager")),
    "compiled-part": Mode(module=lambda: TinyModule(wrap=lambda net: torch.compile(net, backend="aot_eager"))),
    "compiled-in-place": Mode(module=lambda: TinyModule(wrap=_compiled_in_place)),
}


def _compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="aot_eager")
    return net


def trainer(callbacks: Sequence[Callback] = (), **kwargs: Any) -> Trainer:
    """A quiet trainer on the CPU."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "default_root_dir": tempfile.gettempdir(),
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **kwargs})


def loaders(train: int = 30, val: int = 14, data: type[Blobs] = Blobs) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Shuffled training data, and validation data, a part of the same set, whose last batch is smaller."""
    whole = data(train + val, 1)
    train_set, val_set = Subset(whole, range(train)), Subset(whole, range(train, train + val))
    return DataLoader(train_set, 8, shuffle=True), DataLoader(val_set, 6)


def fit(mode: str | Mode, callbacks: Sequence[Callback] = (), ckpt_path: Path | None = None, **kwargs: Any) -> Outcome:
    """Trains from a fixed seed and returns everything that may not depend on the callbacks."""
    mode = MODES[mode] if isinstance(mode, str) else mode
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*treespec.*")
        L.seed_everything(7, verbose=False)
        torch._dynamo.reset()
        module = mode.module()
        runner = trainer(callbacks, **{**mode.trainer, **kwargs})
        runner.fit(module, *loaders(data=mode.data), ckpt_path=ckpt_path)
    return outcome(runner)


def outcome(runner: Trainer) -> Outcome:
    """What a finished run left behind."""
    module = runner.lightning_module
    state = runner.optimizers[0].state_dict()["state"] if runner.optimizers else {}
    return Outcome(
        {k: v.clone() for k, v in module.state_dict().items()},
        {f"{i}.{k}": torch.as_tensor(v).clone() for i, s in state.items() for k, v in s.items()},
        (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()),
        {name: value.clone() for name, value in runner.callback_metrics.items()},
        {name: m.training for name, m in module.named_modules()},
        {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()},
        {name: p.requires_grad for name, p in module.named_parameters()},
        module,
        runner,
    )


def assert_untouched(seen: Outcome, alone: Outcome) -> None:
    """Bit for bit the same run, and nothing left behind in the model."""
    for part in ("weights", "optimizer", "grads", "metrics"):
        a, b = getattr(seen, part), getattr(alone, part)
        assert a.keys() == b.keys(), part
        for name in a:
            same = a[name] is b[name] if a[name] is None or b[name] is None else torch.equal(a[name], b[name])
            assert same, f"{part} {name} differ"
    assert seen.rng == alone.rng, "the global generators went on differently"
    assert seen.modes == alone.modes
    assert seen.needs_grad == alone.needs_grad
    assert_no_hooks(seen.module)


def assert_no_hooks(module: nn.Module) -> None:
    for name, m in module.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            assert not getattr(m, kind), f"{kind} left on {name or 'the module'}"
