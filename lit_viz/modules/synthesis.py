"""What modules share whose parameters are images, and whose training steps are steps of optimizers on these."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lit_viz.errors import UsageError, check_at_least, check_choice
from lit_viz.functional.synthesis import Fourier, Parameterization, Pixels, total_variation
from lit_viz.functional.synthesis.optimizers import CosineAdam, MakeOptimizer, quasi_newton
from lit_viz.networks.perceptual import PerceptualNetwork
from lit_viz.networks.style_loss import StyleTerms
from lit_viz.networks.style_target import StyleTarget
from lit_viz.pictures import whole
from lit_viz.pixels import PixelSpace
from lit_viz.writer import Writer, encoded

SNAPSHOTS = 10
_RANGE = 10.0  # weight of what is out of the range of colours: the squares' mean over pixels
_RATES = {"lbfgs": 1.0, "adam": 0.02}
_HISTORY = 50
_LEAST = 16  # px


class SynthesisModule(LightningModule):
    """A module whose parameters are images; it brings its own steps, so that no data are needed.

    Attributes:
        steps: How many there are; all are one epoch.
        done: int64 (), how many of them were made.
        written: How many pictures were written, by tag.

    Args:
        steps: See above.
        snapshot_every: Log the images every so many steps; None for ten times.
    """

    done: Tensor

    def __init__(self, steps: int, snapshot_every: int | None) -> None:
        super().__init__()
        # Steps are taken by hand: a line search asks for the loss many times in each.
        self.automatic_optimization = False
        check_at_least("steps", steps, 1)
        self.steps = steps
        self.snapshot_every = max(1, steps // SNAPSHOTS) if snapshot_every is None else snapshot_every
        check_at_least("snapshot_every", self.snapshot_every, 1)
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))
        self.written: Counter[str] = Counter()

    def advance(self) -> None:
        """Makes one step."""
        raise NotImplementedError(f"{type(self).__name__} must override advance().")

    def draw(self, *, final: bool) -> None:
        """Writes pictures of the images as they are; on one process only."""
        raise NotImplementedError(f"{type(self).__name__} must override draw().")

    def keep(self) -> None:
        """Writes what is to be kept as files; nothing where there is nothing of that kind."""

    def configure_callbacks(self) -> list[Callback]:
        return [KeepInterrupted()]

    def train_dataloader(self) -> DataLoader[int]:
        return DataLoader(Steps(self.steps), batch_size=None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if int(self.done) >= self.steps:
            checkpoint["optimizer_states"] = []  # what L-BFGS remembers is large, and of no use any more

    def training_step(self, batch: int, batch_index: int) -> None:
        if int(self.done) >= self.steps:  # a run that was stopped by max_steps and goes on in another epoch
            self.trainer.should_stop = True
            return
        self.advance()
        self.done += 1
        if int(self.done) >= self.steps:
            self.trainer.should_stop = True  # however many epochs there might be
        if int(self.done) % self.snapshot_every == 0:
            self.show(final=False)

    def show(self, *, final: bool) -> None:
        """Draws, on one process only; a picture that fails is not worth a run."""
        if not self.trainer.is_global_zero:
            return
        try:
            self.draw(final=final)
        except Exception as error:
            rank_zero_warn(f"the images could not be drawn: {type(error).__name__}: {error}")

    def write(self, tag: str, picture: np.ndarray) -> None:
        """Writes a picture, uint8 (H, W, 3)."""
        writer = Writer(self.trainer.loggers)
        writer.picture(tag, picture, int(self.done))
        writer.flush()
        if writer.active:
            self.written[tag] += 1

    def write_scalars(self, values: dict[str, float]) -> None:
        """Writes numbers by tag."""
        if self.trainer.is_global_zero:
            Writer(self.trainer.loggers).scalars(values, int(self.done))


class StyleSynthesis(SynthesisModule):
    r"""Images that are brought to a style by optimisation of their pixels, large structures first where that is wanted.

    With several scales each image is made small first; then enlarged, it is where the next one starts (Gatys, Ecker,
    Bethge, Hertzmann & Shechtman, *Controlling Perceptual Factors in Neural Style Transfer*, 2017). A small image shows
    a network larger structures.

    A checkpoint holds the images and the optimizers, not the network, nor what is compared with; this is made again
    from the files. A run that is resumed goes on as if never stopped.

    Args:
        network: Of the loss.
        sizes: Height and width of each image.
        channels: Of what is optimised: 3, or 1 for its brightness alone.
        values: "fourier" optimises the spectrum with decorrelated colours, in range by itself: what the network does
            not see stays away, large structures come as fast as small ones, and noise of single pixels goes. "pixels"
            optimises pixels as in the papers, kept in range by a penalty and cut off at the end.
        scales: How many; each has half the sides of the next.
        steps: Of all scales together, which share them evenly.
        optimizer: "lbfgs" or "adam".
        lr: Its rate, by default 1 for L-BFGS, which searches along each line by itself, and 0.02 for Adam, falling.
        tv: Weight of the total variation, of the mean over pixels.
        snapshot_every: See `SynthesisModule`.
        out: Folder for the images as PNG files; None for none.

    Raises:
        UsageError: For arguments out of range.
    """

    def __init__(
        self,
        network: PerceptualNetwork,
        sizes: Sequence[tuple[int, int]],
        *,
        channels: int = 3,
        values: Literal["fourier", "pixels"] = "fourier",
        scales: int = 1,
        steps: int = 200,
        optimizer: Literal["lbfgs", "adam"] = "lbfgs",
        lr: float | None = None,
        tv: float = 0.0,
        snapshot_every: int | None = None,
        out: str | None = None,
    ) -> None:
        super().__init__(steps, snapshot_every)
        check_at_least("scales", scales, 1)
        if steps < scales:
            raise UsageError(f"{scales} scales need at least as many steps; got {steps}.")
        if not tv >= 0:
            raise UsageError(f"tv is a weight, at least 0; got {tv!r}.")
        self._make_optimizer = style_optimizer(optimizer, steps=-(-steps // scales), lr=lr)
        self.network, self.scales, self.tv, self.out, self.count = network, scales, tv, out, len(sizes)
        self.sizes = [[(max(_LEAST, h >> k), max(_LEAST, w >> k)) for h, w in sizes] for k in reversed(range(scales))]
        check_choice("values", values, ("fourier", "pixels"))
        self.ways: list[Parameterization] = [
            Fourier(size, PixelSpace()) if values == "fourier" else Pixels()
            for at_scale in self.sizes
            for size in at_scale
        ]
        grey = [torch.full((1, channels, *size), 0.5) for at_scale in self.sizes for size in at_scale]
        self.made = nn.ParameterList(
            [nn.Parameter(way.values(image)) for way, image in zip(self.ways, grey, strict=True)]
        )
        self._scale, self._targets = -1, list[StyleTarget]()

    def start(self, index: int, size: tuple[int, int]) -> Tensor:
        """Where an image starts: (1, channels, *size), colours from 0 to 1."""
        raise NotImplementedError(f"{type(self).__name__} must override start().")

    def target(self, index: int, size: tuple[int, int]) -> StyleTarget:
        """What an image of that size is to become like."""
        raise NotImplementedError(f"{type(self).__name__} must override target().")

    def name(self, index: int) -> str:
        """What an image is called in files."""
        raise NotImplementedError(f"{type(self).__name__} must override name().")

    def finished(self, index: int, colors: Tensor) -> Tensor:
        """The image (1, 3, H, W) of colours (1, channels, H, W) that were optimised, from 0 to 1 both."""
        return colors.expand(-1, 3, -1, -1)

    @property
    def tag(self) -> str:
        """What pictures and curves are filed under."""
        raise NotImplementedError(f"{type(self).__name__} must override tag.")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return TakingTurns([[image] for image in self.made], self._make_optimizer)

    def on_fit_start(self) -> None:
        if self.made[0].dtype != torch.float32:
            raise UsageError("images are made in 32 bits; take precision 32-true, or bf16-mixed.")
        self._scale = -1
        if int(self.done) >= self.steps:
            rank_zero_warn(f"the checkpoint has made its {self.steps} steps already; what it made is written again.")
            self._enter(self._at(int(self.done) - 1))

    def images(self) -> list[Tensor]:
        """The images as they are, each (1, 3, H, W), colours from 0 to 1."""
        return [self.finished(i, colors) for i, colors in enumerate(self._colors(self._at(max(0, int(self.done) - 1))))]

    def advance(self) -> None:
        scale = self._at(int(self.done))
        if scale != self._scale:
            self._enter(scale)
        seen: dict[int, StyleTerms] = {}  # before the step; a line search asks several times

        def closure() -> Tensor:
            turn = optimizer.optimizer.turn
            values, way = self.made[turn], self.ways[turn]
            with torch.autocast(self.device.type, enabled=False):
                colors = way.images(values)
                penalty = _RANGE * (colors - colors.detach().clamp(0, 1)).square().mean()
                penalty = penalty + self.tv * total_variation(colors).sum() / colors.numel()
                image = colors.expand(-1, 3, -1, -1)
            terms, gradient = self._targets[turn - scale * self.count](image.detach())
            (slope,) = torch.autograd.grad((image * gradient).sum() + penalty, values)
            values.grad = slope.contiguous()  # L-BFGS takes no other order of pixels
            seen.setdefault(turn, terms)
            return (terms.total.sum() + penalty).detach()

        optimizer: Any = self.optimizers()
        optimizer.optimizer.turns = range(scale * self.count, (scale + 1) * self.count)
        optimizer.step(closure)
        self.log("loss", self._write_terms(list(seen.values())), prog_bar=True, logger=False)

    def _write_terms(self, terms: Sequence[StyleTerms]) -> float:
        """Writes the means over the images, and returns that of the total."""
        means = [one.means() for one in terms]
        names = dict.fromkeys(name for one in means for name in one)  # images may have layers of their own
        found = {name: [one[name] for one in means if name in one] for name in names}
        told = {f"{self.tag}/{name}": float(torch.stack(values).mean()) for name, values in found.items()}
        self.write_scalars(told)
        return told[f"{self.tag}/total"]

    def _at(self, step: int) -> int:
        """The scale of a step."""
        return min(step * self.scales // self.steps, self.scales - 1)

    @torch.no_grad()
    def _colors(self, scale: int) -> list[Tensor]:
        """The images of a scale, each (1, channels, H, W), colours from 0 to 1."""
        first = scale * self.count
        return [self.ways[i].images(self.made[i].detach()).clamp(0, 1) for i in range(first, first + self.count)]

    @torch.no_grad()
    def _enter(self, scale: int) -> None:
        """Makes ready what images of a scale are compared with and, where its first step comes, the images."""
        if int(self.done) == 0 or self._at(int(self.done) - 1) != scale:
            before = None if scale == 0 else self._colors(scale - 1)
            for i, size in enumerate(self.sizes[scale]):
                start = self.start(i, size) if before is None else before[i]
                if before is not None:
                    start = F.interpolate(start, size, mode="bicubic", align_corners=False).clamp(0, 1)
                values = self.made[scale * self.count + i]
                values.copy_(self.ways[scale * self.count + i].values(start.to(values.device)))
        self._targets = [self.target(i, self.sizes[scale][i]) for i in range(self.count)]
        if not all(target.exact for target in self._targets) and scale > self._scale:
            rank_zero_warn(
                "tiles are smaller than what the deepest layer sees, so that they leave traces; take a larger tile."
            )
        self._scale = scale

    def told(self) -> list[StyleTerms]:
        """What the loss says of the images as they are in files: in range."""
        pairs = zip(self._targets, self._colors(self._scale), strict=True)
        return [target.terms(colors.expand(-1, 3, -1, -1)) for target, colors in pairs]

    def on_train_end(self) -> None:
        if not self._targets:
            return
        self._write_terms(self.told())
        self.show(final=True)
        self.keep()

    def keep(self) -> None:
        """Writes the images as PNG files; one that can't be written does not end the run."""
        if self.out is None or not self._targets or not self.trainer.is_global_zero:
            return
        done = "" if int(self.done) >= self.steps else f" ({int(self.done)} of {self.steps} steps)"
        for name, image in zip(numbered([self.name(i) for i in range(self.count)]), self.images(), strict=True):
            path = Path(self.out) / f"{name}.png"
            pixels = (255 * image[0]).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
            try:
                with whole(path) as file:
                    file.write_bytes(encoded(pixels))
            except OSError as error:
                rank_zero_warn(f"{path} could not be written: {error}")
            else:
                rank_zero_info(f"wrote {path}{done}")


class TakingTurns(torch.optim.Optimizer):
    """Several optimizers that step one after the other, as one: `turn` tells a closure whose turn it is.

    Attributes:
        turn: Which of them steps.
        turns: Which of them will; all, where nothing is said.

    Args:
        parameters: Those of each optimizer.
        make: Makes an optimizer.
    """

    def __init__(
        self, parameters: Sequence[list[nn.Parameter]], make: Callable[[list[Tensor]], torch.optim.Optimizer]
    ) -> None:
        super().__init__([p for of_one in parameters for p in of_one], {})
        self.parts, self.turn = [make(list(of_one)) for of_one in parameters], 0
        self.turns = range(len(self.parts))

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step of each whose turn comes."""
        for turn in self.turns:
            self.turn = turn
            self.parts[turn].step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


class Steps(IterableDataset[int]):
    """Nothing but how many steps there are: the images lie in the module. Of several processes each makes all."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))


class KeepInterrupted(Callback):
    """Whoever stops a run by hand wants the images as they are."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt) and isinstance(pl_module, SynthesisModule):
            pl_module.keep()


def style_optimizer(method: Literal["lbfgs", "adam"], *, steps: int, lr: float | None) -> MakeOptimizer:
    """Makes the optimizer of an image: L-BFGS with a line search, one iteration a step, or Adam with a falling rate.

    Args:
        method: "lbfgs" or "adam".
        steps: How many there will be.
        lr: See `StyleSynthesis`.
    """
    check_choice("optimizer", method, tuple(_RATES))
    rate = _RATES[method] if lr is None else lr
    if not rate > 0:
        raise UsageError(f"lr must be positive, got {lr}.")
    if method == "adam":
        return partial(CosineAdam, lr=rate, steps=steps)
    return quasi_newton(lr=rate, history=_HISTORY)


def resized(colors: Tensor, share: float) -> Tensor:
    """Colours (N, C, H, W) with sides that are this share of theirs, at least 16 px; smoothed before they shrink."""
    height, width = (max(_LEAST, round(share * length)) for length in colors.shape[2:])
    return to_size(colors, (height, width))


def to_size(colors: Tensor, size: tuple[int, int]) -> Tensor:
    """Colours (N, C, H, W), from 0 to 1, brought to a height and width; smoothed before they shrink."""
    if tuple(colors.shape[2:]) == size:
        return colors
    return F.interpolate(colors, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def numbered(names: Sequence[str]) -> list[str]:
    """Names for files: no two alike, and without what some systems don't take.

    >>> numbered(["a: b", "c", "c"])
    ['a-_b', 'c', 'c-2']
    """
    found: list[str] = []
    for name in names:
        plain = re.sub(r'[\\/:*?"<>|]', "-", name).replace(" ", "_")
        count, unique = 1, plain
        while unique in found:
            count += 1
            unique = f"{plain}-{count}"
        found.append(unique)
    return found
