"""Maximally activating patches of the units of chosen layers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from lit_viz import draw, functional
from lit_viz.callbacks.base import Look, layer_list
from lit_viz.callbacks.collecting import Batch, CollectingCallback, Tap
from lit_viz.errors import UsageError, check_at_least, check_choice
from lit_viz.functional import ReceptiveField, Responses, TopResponses
from lit_viz.functional.batches import fitting, in_batches
from lit_viz.layers import as_maps, capture, convolutions, find_layer
from lit_viz.pixels import PixelSpace
from lit_viz.probing import evenly_spaced, to_network
from lit_viz.state import Accumulator, Kept, Patches, TopK

LARGEST = 112  # px along a side of a kept patch; larger receptive fields are reduced
ROWS = 16  # channels on one picture
GUIDED_ROWS = 4  # with guided backprop, whose lines want larger patches
BRIGHT = 99.5  # percentile of a guided picture that becomes black or white
LARGEST_MEMORY = 2**25  # bytes of patches that go into a checkpoint


class MaxActivatingPatches(CollectingCallback):
    """The image patches that excite a unit most, over the whole validation set (the lecture's conv5 figure).

    For each channel of a layer the k strongest responses are kept, at most one per image, and the patch shown is what
    the unit saw: its exact receptive field, see `functional.receptive_field`. Where that is the whole image (vision
    transformers, layers behind squeeze-and-excitation) the picture says so. Responses are kept for all channels, in
    O(channels × k) memory, and during the pass at most k 8-bit images for each channel shown. The result goes into
    checkpoints, the patches themselves up to 32 MiB.

    With `guided` each patch has its guided backprop beneath it (the figure of Springenberg et al. 2015): the pixels in
    the patch that excite the unit, around mid-grey. After the pass over the data this takes a forward and a backward
    pass of one image for each patch shown, channels × k of them for each layer, on every rank. A layer with no ReLU
    below it, such as a first convolution, has none, and the picture says so.

    Tag: `patches/<layer>`, with more pages where there are many channels.

    Args:
        layers: Dotted names; by default four convolutions spread over the depth of the network.
        channels: How many channels to show of each layer, evenly spaced; or which; or "all".
        k: How many patches for each channel.
        guided: Also show what `functional.guided_backprop` gives for each patch.
        **kwargs: See `CollectingCallback`.
    """

    tag = "patches"

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        *,
        channels: int | Sequence[int] | Literal["all"] = 8,
        k: int = 9,
        guided: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_at_least("k", k, 1)
        if isinstance(channels, str):
            check_choice("channels", channels, ("all", "a number", "a list of channels"))
        elif not isinstance(channels, Sequence):
            check_at_least("channels", channels, 1, "; to name a channel give a list")
        self.layers = layer_list(layers)
        self.channels, self.k, self.guided = channels, k, guided
        self.results: dict[str, Patches] = {}
        self.signals: dict[str, Tensor] = {}  # guided backprop of the patches, uint8 (S, k, 3, h, w)
        self._guidance: dict[str, tuple[bool, str]] = {}  # whether a layer has one, and what to say of it
        self._run: tuple[Trainer, LightningModule] | None = None  # while a pass goes on
        self._fields: dict[str, ReceptiveField] = {}
        self._kept: dict[str, Kept] = {}
        self._metric: TopK | None = None
        self._images: dict[int, Tensor] = {}
        self._pixels = PixelSpace()
        self._size = (0, 0)

    def layer_names(self) -> Sequence[str]:
        return self.layers or ()

    def check(self, look: Look) -> None:
        names = self.layers or _spread(_called_once(look))
        names = [find_layer(look.model, name)[0] for name in names]
        self._size = (look.images.shape[2], look.images.shape[3])
        self._pixels = look.pixels
        self._fields = functional.receptive_field(look.model, look.images[:1], names)
        self._guidance = {name: _guidance(look, name) for name in self._fields} if self.guided else {}
        colors = look.images.shape[1]
        self._kept = {
            name: Kept(
                field.shape[0],
                self._shown(name, field.shape[0]),
                (colors + 3 * self._is_guided(name), *_kept_size(field)),
            )
            for name, field in self._fields.items()
        }

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._images = {}
        self._run = (trainer, pl_module)
        self._metric = TopK(self._kept, self.k).to(pl_module.device)

    def taps(self) -> Sequence[Tap]:
        metric = self._metric
        assert metric is not None

        def tap(name: str) -> Tap:
            floor, shape = metric.floor(name), self._fields[name].shape

            def reduce(values: Tensor) -> Responses:
                maps = as_maps(values, image_size=self._size)
                if maps.shape[1:] != shape:
                    raise UsageError(f"its maps {tuple(maps.shape[1:])} are not those of the probe images, {shape}.")
                return functional.strongest(maps, self.current.samples, floor, k=self.k)

            return Tap(name, "output", reduce)

        return [tap(name) for name in self._fields]

    def update(self, batch: Batch, values: Sequence[Any]) -> None:
        assert self._metric is not None
        self._metric.update(dict(zip(self._fields, values, strict=True)))
        # Patches are cut at the end; until then the images that may still have one among the strongest are kept.
        if self._metric.settled:
            wanted = self._metric.leading()
            leading = set(wanted.tolist())
            self._images = {sample: image for sample, image in self._images.items() if sample in leading}
        else:
            wanted = self._metric.latest()
        for i in torch.isin(batch.samples, wanted).nonzero()[:, 0].tolist():  # one by one they fit into the cache
            colors = self._pixels.to_color(batch.images[i]).mul_(255).round_()
            self._images[int(batch.samples[i])] = colors.to("cpu", torch.uint8)

    def end(self) -> None:
        assert self._metric is not None and self._run is not None
        (trainer, pl_module), self._run = self._run, None
        runs = any(self._is_guided(name) for name in self._fields)
        with self.looking(trainer, pl_module) if runs else nullcontext():
            self._metric.fill(lambda *units: self._cut(trainer, pl_module, *units))
        self._images = {}

    def metrics(self) -> dict[str, Accumulator]:
        assert self._metric is not None
        return {"patches": self._metric}

    def finish(self, results: dict[str, Any]) -> None:
        self.results, self.signals = {}, {}
        for name, found in results["patches"].items():
            result = _on_cpu(found)
            if self._is_guided(name):
                self.signals[name] = result.images[:, :, -3:].clone()
                result = replace(result, images=result.images[:, :, :-3].clone())
            self.results[name] = result
        self._metric = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._run = None

    def _is_guided(self, name: str) -> bool:
        return self._guidance.get(name, (False, ""))[0]

    def _cut(
        self, trainer: Trainer, module: LightningModule, name: str, channels: Tensor, samples: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What units saw, for `TopK.fill`, and behind its colours three more of guided backprop."""
        field, channels, places = self._fields[name], channels.cpu(), places.cpu()
        stacked = torch.stack([self._images[sample] for sample in samples.tolist()])
        patches, seen = _patches(stacked, field, channels, places)
        if not self._is_guided(name):
            return patches, seen
        images = to_network(trainer, module, self._pixels.from_color(stacked.float() / 255))
        units = torch.stack([places // field.shape[2], places % field.shape[2]], dim=1).to(images.device)
        targets = channels.to(images.device)

        def run(which: Tensor) -> Tensor:
            scores = functional.LayerUnits(module, name, place=units[which])
            return functional.guided_backprop(scores, images[which], targets[which]).float().cpu()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of other activation functions, at each call
            signal = in_batches(run, len(images), fitting(images[0]), images.device)
        colors = draw.around_grey(_patches(signal, field, channels, places)[0], percentile=BRIGHT)
        return torch.cat([patches, torch.from_numpy(colors).movedim(-1, 1)], dim=1), seen

    def visualize(self, look: Look) -> Mapping[str, np.ndarray]:
        pictures = {}
        for name, result in self.results.items():
            rows = [self._row(name, result, i, int(channel)) for i, channel in enumerate(result.shown)]
            most = GUIDED_ROWS if name in self.signals else ROWS
            pages = [rows[i : i + most] for i in range(0, len(rows), most)]
            for number, page in enumerate(pages, start=1):
                pictures[name if number == 1 else f"{name}/page-{number:03d}"] = draw.patch_sheet(
                    page, title=f"Patches · {name} · {look.when}", subtitle=self._read(name, result)
                )
        return pictures

    def _row(self, name: str, result: Patches, index: int, channel: int) -> draw.PatchRow:
        values = result.top.values[channel]
        seen = int((result.top.samples[channel] >= 0).sum())
        return draw.PatchRow(
            f"ch {channel}",
            draw.to_uint8(result.images[index, :seen].float() / 255) if seen else [],
            values[:seen].tolist(),
            result.inside[index, :seen].numpy(),
            "" if seen else "nothing but NaN",
            self.signals[name][index, :seen].movedim(1, -1).numpy() if name in self.signals else None,
            "guided" if name in self.signals else "",
        )

    def _read(self, name: str, result: Patches) -> str:
        field = self._fields[name]
        if field.is_global:
            what = "Its units see the whole image, which is what each patch is"
        elif field.size[0] > field.image_size[0] or field.size[1] > field.image_size[1]:
            what = f"Units see {field.size[0]} × {field.size[1]} px around their place, more than the image has"
        else:
            what = f"Each patch is the {field.size[0]} × {field.size[1]} px that the unit sees"
        channels = len(result.top.values)
        shown = f"{len(result.shown)} of {channels} channels" if len(result.shown) < channels else "all channels"
        counted = "" if self.indices is None or self.indices.exact else " Samples are counted as seen."
        inexact = f" Receptive field widened at {', '.join(field.approximations)}." if field.approximations else ""
        guided = " Beneath: guided backprop, the pixels that excite the unit." if name in self.signals else ""
        guided += self._guidance.get(name, (False, ""))[1]
        return (
            f"What excites a unit most in the whole data set, the strongest first, one per image; {shown}. "
            f"{what}.{guided}{counted}{inexact}"
        )

    def _shown(self, name: str, channels: int) -> Tensor:
        if self.channels == "all":
            return torch.arange(channels)
        if isinstance(self.channels, int):
            count = min(self.channels, channels)
            return evenly_spaced(channels, count)
        wanted = torch.tensor(list(self.channels), dtype=torch.int64)
        if len(wanted) == 0 or int(wanted.min()) < 0 or int(wanted.max()) >= channels:
            raise UsageError(f"layer '{name}' has channels 0 to {channels - 1}; {list(self.channels)} was asked for.")
        return wanted

    def memory(self) -> dict[str, Any]:
        size = sum(r.images.nbytes + r.inside.nbytes for r in self.results.values())
        size += sum(signal.nbytes for signal in self.signals.values())
        pictures = ("images", "inside") if size <= LARGEST_MEMORY else ()
        out = {
            name: {**asdict(r.top), "shown": r.shown, **{part: getattr(r, part) for part in pictures}}
            for name, r in self.results.items()
        }
        for name, signal in self.signals.items() if pictures else ():
            out[name]["guided"] = signal
        return out

    def remember(self, memory: dict[str, Any]) -> None:
        top = [f.name for f in fields(TopResponses)]
        self.results = {
            name: Patches(TopResponses(*(s[f] for f in top)), s["shown"], s["images"], s["inside"])
            for name, s in memory.items()
            if "images" in s
        }
        self.signals = {name: s["guided"] for name, s in memory.items() if "guided" in s}


def _called_once(look: Look) -> list[str]:
    """The convolutions that take part in the forward pass, once each."""
    names = list(convolutions(look.model))
    with capture(look.model, names, reduce=lambda maps: maps.shape[2:].numel()) as calls, torch.no_grad():
        look.model(look.images[:1])
    used = {name: values[0] for name, values in calls.items() if len(values) == 1}
    if not used:
        raise UsageError(f"{type(look.model).__name__} runs no 2-d convolution (once); name the layers to look at.")
    # Those of a single place, in squeeze-and-excitation blocks, tell nothing of where.
    return [name for name, places in used.items() if places > 1] or list(used)


def _guidance(look: Look, name: str) -> tuple[bool, str]:
    """Whether guided backprop makes sense for a layer, and what the picture says of it."""
    scores = functional.LayerUnits(look.model, name)(look.images[:1].detach().clone().requires_grad_(True))
    try:
        found = functional.find_activations(scores)
    except UsageError as error:
        return False, f" No guided backprop: {error}"
    if not found.rectifiers:
        return False, " No guided backprop: there is no ReLU below this layer."
    return True, f" {found.note[0].upper()}{found.note[1:]}." if found.note else ""


def _spread(names: list[str], most: int = 4) -> list[str]:
    """Up to `most` of the names, evenly spaced, first and last among them."""
    picks = np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int))
    return [names[i] for i in picks]


def _window(field: ReceptiveField) -> tuple[int, int]:
    """What is cut out for a unit: its frame, or the whole image along an axis that the frame is larger than."""
    return min(field.size[0], field.image_size[0]), min(field.size[1], field.image_size[1])


def _kept_size(field: ReceptiveField) -> tuple[int, int]:
    height, width = _window(field)
    scale = min(1.0, LARGEST / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _patches(images: Tensor, field: ReceptiveField, channels: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """What units saw, each in its image (M, C, H, W): patches of the kept size, and where they saw something."""
    rows, columns = places // field.shape[2], places % field.shape[2]
    window, size = _window(field), _kept_size(field)
    boxes = field.boxes(channels, rows, columns)
    origins = field.frames(channels, rows, columns)[:, :2]
    for axis in (0, 1):
        if field.size[axis] >= field.image_size[axis]:
            origins[:, axis] = 0
    # Fills what the unit did not see, in its image or beyond it, with nothing.
    y, x = (origins[:, a, None] + torch.arange(window[a]) for a in (0, 1))
    seen_y = (y >= boxes[:, 0, None]) & (y < boxes[:, 2, None])
    seen_x = (x >= boxes[:, 1, None]) & (x < boxes[:, 3, None])
    seen = seen_y[:, :, None] & seen_x[:, None, :]
    patches, inside = functional.cut(images, torch.arange(len(images)), origins, window)
    if size != window:
        # The mean of the pixels that there are, lest the edge of an image gets dark.
        share = F.interpolate(inside[:, None].float(), size=size, mode="area")
        reduced = F.interpolate(patches.float(), size=size, mode="area") / share.clamp(min=1e-6)
        patches = reduced if patches.is_floating_point() else reduced.round().clamp(0, 255).to(torch.uint8)
        seen = F.interpolate(seen[:, None].float(), size=size, mode="area")[:, 0] > 0.5
    return patches, seen


def _on_cpu(result: Patches) -> Patches:
    return Patches(result.top.map(Tensor.cpu), result.shown.cpu(), result.images.cpu(), result.inside.cpu())
