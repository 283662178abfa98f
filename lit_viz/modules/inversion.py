"""Watching images form that look the same to layers of a network as a given one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from skimage import data
from torch import Tensor, nn

from lit_viz import draw
from lit_viz.draw.inversion import inversion_card, inversion_sheet
from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.activations import telling_layers
from lit_viz.functional.inversion import (
    NORM_WEIGHT,
    TV_WEIGHT,
    FeatureMatch,
    default_steps,
    inversion_optimizer,
    inversion_start,
    layer_features,
    prior,
    psnr,
)
from lit_viz.functional.synthesis import reading
from lit_viz.layers import find_layer
from lit_viz.modules.synthesis import SynthesisModule, TakingTurns
from lit_viz.networks import input_facts, load_network, network_inputs
from lit_viz.networks.vgg_names import dotted_name, short_name, vgg_names

_VGG_LAYERS = ("relu2_2", "relu3_3", "relu4_3", "relu5_1", "relu5_3")
_LAYERS = 5


class FeatureInversion(SynthesisModule):
    """Reconstructs photographs from what layers of a network say of them (Mahendran & Vedaldi 2015).

    A training step is a step of `functional.invert_features` for every layer and restart; all steps are one epoch, and
    no data module is needed. Logged are the normalised error of each layer as a curve (`inversion/<layer>/error`), the
    images as they form (`inversion/forming/<image>`, by step) and at the end the lecture's figure, the image beside a
    reconstruction from each layer, shallow to deep (`inversion/<image>`), with PSNR (`inversion/<layer>/psnr`).

    Checkpoints hold the images and the state of the optimizer, not the network's weights; a run that is resumed goes on
    as if never stopped.

    Args:
        network: Name of a network, or a dotted path; see `load_network`.
        weights: "DEFAULT" or another name, the path of a checkpoint, or None for a random start.
        options: More arguments for the network's constructor.
        image: Path of an image file, or several; by default scikit-image's cat.
        layers: Dotted names, or those that papers have for VGG networks (relu2_2, pool3). By default the lecture's for
            VGG16, and five spread over the depth for others.
        jointly: One image for all layers at once instead of one for each.
        restarts: How often each image is made, from other noise each time.
        optimizer: "lbfgs" or "adam", see `functional.invert_features`.
        steps: 20 by default for L-BFGS, 400 for Adam.
        lr: See `functional.inversion_optimizer`.
        values: "fourier" or "pixels", see `functional.inversion_start`.
        tv: Weight of the total variation.
        norm: Weight of the norm.
        beta: Of the total variation.
        call: Which call of the layers, where a forward pass calls them several times; −1 for the last.
        size: Side that images are brought to, by default that of the network's training, or 224.
        mean: Of the normalisation in colour units, instead of the one that the weights tell.
        std: Likewise.
        snapshot_every: Log the images every so many steps; by default ten times.
        seed: Of the first start; restarts take the following ones.

    Raises:
        UsageError: For networks, weights or images that can't be had, unknown layers, and arguments out of range.
    """

    def __init__(
        self,
        network: str = "vgg16",
        weights: str | None = "DEFAULT",
        options: dict[str, Any] | None = None,
        image: str | list[str] | None = None,
        layers: str | list[str] | None = None,
        jointly: bool = False,
        restarts: int = 1,
        optimizer: Literal["lbfgs", "adam"] = "lbfgs",
        steps: int | None = None,
        lr: float | None = None,
        values: Literal["fourier", "pixels"] = "fourier",
        tv: float = TV_WEIGHT,
        norm: float = NORM_WEIGHT,
        beta: float = 2.0,
        call: int | None = None,
        size: int | None = None,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        snapshot_every: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(default_steps(optimizer) if steps is None else steps, snapshot_every)
        self.save_hyperparameters()
        check_at_least("restarts", restarts, 1)
        self._make_optimizer = inversion_optimizer(optimizer, steps=self.steps, lr=lr)
        loaded = load_network(network, weights=weights, options=options)
        # Out of sight of Lightning: neither in checkpoints nor in training mode.
        self._held = (loaded.module.eval().requires_grad_(False),)
        facts = input_facts(loaded, mean=mean, std=std, size=size)
        paths = [image] if isinstance(image, str) else image
        inputs = [one for given in (paths or [data.chelsea()]) for one in network_inputs(given, facts)]
        self.images, self.pixel_space = torch.cat([one for one, _, _ in inputs]), inputs[0][1]
        self.names = [Path(name).stem or "chelsea" for _, _, name in inputs]
        self.layers = self._layers([layers] if isinstance(layers, str) else layers)
        self.jointly, self.restarts, self.call = jointly, restarts, call
        self.penalties = prior(self.pixel_space, tv=tv, norm=norm, beta=beta)
        seeds = [seed + i for i in range(restarts)]
        self.parameterization, starts = inversion_start(values, self.images.shape[1:], self.pixel_space, seeds=seeds)
        each = starts.repeat_interleave(len(self.images), dim=0)  # restarts, and images in each
        count = 1 if jointly else len(self.layers)
        self.made = nn.ParameterList([nn.Parameter(one[None].clone()) for _ in range(count) for one in each])
        rows = [list(range(i, i + len(each))) for i in range(0, len(self.made), len(each))]
        # What is optimised together, as indices of images made: an L-BFGS knows one error.
        self.together = rows if optimizer == "adam" else [[i] for row in rows for i in row]
        self._matches: list[FeatureMatch] = []
        self._reads: list[Any] = []
        self._open = ExitStack()

    @property
    def network(self) -> nn.Module:
        """The network that is asked, as it is."""
        return self._held[0]

    def _layers(self, given: Sequence[str] | None) -> list[str]:
        """Dotted names of the layers."""
        if given is None:
            known = vgg_names(self.network)
            given = [name for name in _VGG_LAYERS if name in known]
        if not given:
            return telling_layers(self.network, self.images, _LAYERS)
        return [find_layer(self.network, dotted_name(self.network, name))[0] for name in given]

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), normalised, to the network's scores."""
        return self.network(images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return TakingTurns([[self.made[i] for i in items] for items in self.together], self._make_optimizer)

    def on_fit_start(self) -> None:
        if self.made[0].dtype != torch.float32:
            raise UsageError("an image in 16 bits would not form; take precision 32-true, or bf16-mixed.")
        self.network.to(self.device)
        found = layer_features(self.network, self.images, self.layers, call=self.call)
        self.layers = list(found)
        groups = [found] if self.jointly else [{name: features} for name, features in found.items()]
        self._matches = [FeatureMatch(group, call=self.call, repeats=self.restarts) for group in groups]
        self._reads = [
            self._open.enter_context(reading(self.network, match.layers, needs_scores=False)) for match in self._matches
        ]

    def teardown(self, stage: str) -> None:
        self._open.close()

    def advance(self) -> None:
        errors: dict[int, dict[str, Tensor]] = {}  # by turn, before the step

        def closure() -> Tensor:
            turn = optimizer.optimizer.turn
            items = self.together[turn]
            with torch.autocast(self.device.type, enabled=False):
                values = [self.made[i] for i in items]
                images = self.parameterization.images(torch.cat(values))
                penalty = torch.stack([images.new_zeros(()), *(w * p(images).sum() for w, p in self.penalties)]).sum()
            found = self._errors(images, items)
            total = torch.stack(list(found.values())).mean(dim=0).sum() + penalty
            for value, gradient in zip(values, torch.autograd.grad(total, values), strict=True):
                value.grad = gradient
            errors.setdefault(turn, {name: error.detach() for name, error in found.items()})
            return total.detach()

        optimizer: Any = self.optimizers()
        optimizer.step(closure)
        means = _means(errors.values())
        self._write_errors(means)
        self.log("error", sum(means.values()) / len(means), prog_bar=True, logger=False)

    def on_train_end(self) -> None:
        with torch.no_grad():
            made = enumerate(torch.cat(self._made()))
            self._write_errors(_means(self._errors(one[None], [i]) for i, one in made))
        self.show(final=True)

    def _errors(self, images: Tensor, items: Sequence[int]) -> dict[str, Tensor]:
        """The error of each layer for the images (n, C, H, W) made of these items."""
        row, which = divmod(items[0], self.restarts * len(self.images))
        places = torch.arange(which, which + len(items), device=images.device)
        return self._matches[row].errors(self._reads[row](images, places))

    def _made(self) -> list[Tensor]:
        """The images as they are, (restarts × N, C, H, W) for each layer, or for all at once."""
        size = self.restarts * len(self.images)
        with torch.no_grad():
            values = torch.cat([value.detach() for value in self.made])
            return [self.parameterization.images(part) for part in values.split(size)]

    def _write_errors(self, means: dict[str, float]) -> None:
        self.write_scalars({f"inversion/{self._short(name)}/error": value for name, value in means.items()})

    def _short(self, layer: str) -> str:
        return short_name(self.network, layer)

    def draw(self, *, final: bool) -> None:
        """Writes a sheet for each image, with a row for each restart and a column for each layer, and the likeness."""
        made, step, count = torch.cat(self._made()), int(self.done), len(self.images)
        space, short = self.pixel_space, [self._short(name) for name in self.layers]
        columns = [" + ".join(short)] if self.jointly else short
        grid = made.unflatten(0, (-1, self.restarts, count))
        likeness = psnr(grid, self.images.to(grid.device), space)
        originals = draw.to_uint8(space.to_color(self.images))
        for i, name in enumerate(self.names):
            cards = [
                inversion_card(
                    originals[i],
                    list(draw.to_uint8(space.to_color(grid[:, restart, i]))),
                    columns,
                    psnr=likeness[:, restart, i].tolist(),
                    caption=f"start {restart + 1}" if self.restarts > 1 else name,
                )
                for restart in range(self.restarts)
            ]
            title = f"Inversion · {name} · step {step} of {self.steps}"
            picture = inversion_sheet(cards, columns, title=title, restarts=self.restarts)
            self.write(f"inversion/{'' if final else 'forming/'}{name}", picture)
        means = likeness.flatten(1).mean(dim=1).tolist()
        self.write_scalars({f"inversion/{name}/psnr": mean for name, mean in zip(columns, means, strict=True)})


def _means(errors: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """The mean of each layer's errors, from several of {layer: (n,)}."""
    together: dict[str, list[Tensor]] = {}
    for found in errors:
        for name, values in found.items():
            together.setdefault(name, []).append(values)
    return {name: float(torch.cat(values).mean()) for name, values in together.items()}
