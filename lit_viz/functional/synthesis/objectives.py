"""What is sought in a network: a class, a channel, a unit, a direction, or weighted sums of these."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lit_viz.errors import UsageError, check_choice
from lit_viz.functional.scores import as_float
from lit_viz.functional.synthesis.reading import Reading

Indices = int | Sequence[int] | Tensor


class Objective:
    """How much an image excites what is sought: one number for each image, to be made large.

    Objectives add up, and are multiplied by numbers: `ClassScore(281) - 0.5 * Channel("layer3", 17)`. One that holds a
    list of classes or channels is for as many images at once, one for each.

    Attributes:
        layers: Layers that it reads, by dotted name.
        needs_scores: Whether it reads the class scores, so that the network has to be run to its end.
        count: How many images it is for; None for any number.
    """

    layers: tuple[str, ...] = ()
    needs_scores: bool = False
    count: int | None = None

    def __call__(self, reading: Reading) -> Tensor:
        """From a reading of n images to (n,)."""
        raise NotImplementedError(f"{type(self).__name__} must override __call__().")

    def __add__(self, other: Objective) -> Objective:
        return WeightedSum([(1.0, self), (1.0, other)])

    def __sub__(self, other: Objective) -> Objective:
        return WeightedSum([(1.0, self), (-1.0, other)])

    def __mul__(self, weight: float) -> Objective:
        return WeightedSum([(float(weight), self)])

    __rmul__ = __mul__

    def __neg__(self) -> Objective:
        return self * -1.0


class WeightedSum(Objective):
    """Several objectives at once, each with its weight.

    Args:
        terms: Weights and objectives.

    Raises:
        UsageError: If they are for different numbers of images.
    """

    def __init__(self, terms: Sequence[tuple[float, Objective]]) -> None:
        if not terms:
            raise UsageError("a weighted sum needs at least one objective.")
        counts = {objective.count for _, objective in terms if objective.count is not None}
        if len(counts) > 1:
            raise UsageError(f"objectives for {' and '.join(map(str, sorted(counts)))} images can't be added.")
        self.terms = list(terms)
        self.layers = tuple(dict.fromkeys(layer for _, objective in terms for layer in objective.layers))
        self.needs_scores = any(objective.needs_scores for _, objective in terms)
        self.count = next(iter(counts), None)

    def __call__(self, reading: Reading) -> Tensor:
        return torch.stack([weight * objective(reading) for weight, objective in self.terms]).sum(dim=0)

    def __repr__(self) -> str:
        return " + ".join(f"{weight:g} × {objective}" for weight, objective in self.terms)


class ClassScore(Objective):
    r"""The score $S_t(x)$ of a class before any softmax (Simonyan, Vedaldi & Zisserman 2014, section 2).

    A probability could be made large by making all other scores small, which shows nothing of the class.

    Args:
        target: A class index for all images, or one for each.
        of: "score"; "log_probability" for $\log p_t$, which also counts what speaks for other classes; or "log_odds"
            for $\log \frac{p_t}{1 - p_t} = S_t - \log \sum_{i \ne t} e^{S_i}$, whose gradient does not fade as $p_t$
            comes near 1. A single score is the log-odds of two classes itself.
    """

    needs_scores = True

    def __init__(self, target: Indices, *, of: Literal["score", "log_probability", "log_odds"] = "score") -> None:
        check_choice("of", of, ("score", "log_probability", "log_odds"))
        self.target, self.of = target, of
        self._index = _Index("target", target)
        self.count = self._index.count

    def __call__(self, reading: Reading) -> Tensor:
        scores = reading.scores
        classes = scores.shape[1]
        bad = self._index.outside(classes)
        if bad is not None:
            raise UsageError(f"class index {bad} is out of range: the model has {classes} classes, 0 to {classes - 1}.")
        if self.of == "score" or (self.of == "log_odds" and classes == 1):
            return self._index.choose(scores, reading)
        scores = as_float(scores)
        if self.of == "log_probability":
            return self._index.choose(scores.log_softmax(dim=1), reading)
        own = self._index.choose(torch.arange(classes, device=scores.device).expand(scores.shape), reading)
        others = scores.scatter(1, own[:, None], -torch.inf)
        return self._index.choose(scores, reading) - others.logsumexp(dim=1)

    def __repr__(self) -> str:
        return f"{self.of.replace('_', ' ')} of class {self.target}"


class Channel(Objective):
    """The mean response of a channel of a layer, or of a feature of all patch tokens of a transformer.

    Args:
        layer: Dotted name, see `lit_viz.layers.find_layer`.
        channel: Its index for all images, or one for each.
        call: Which call of the layer, where a forward pass calls it several times; −1 for the last.
    """

    def __init__(self, layer: str, channel: Indices, *, call: int | None = None) -> None:
        self.layer, self.channel, self.call = layer, channel, call
        self.layers = (layer,)
        self._index = _Index("channel", channel)
        self.count = self._index.count

    def __call__(self, reading: Reading) -> Tensor:
        return _chosen(reading, self.layer, self.call, self._index).flatten(1).mean(dim=1)

    def __repr__(self) -> str:
        return f"channel {self.channel} of {self.layer}"


class Unit(Objective):
    """The response of a single unit: a channel at one place of the map.

    Args:
        layer: Dotted name, see `lit_viz.layers.find_layer`.
        channel: Its index for all images, or one for each.
        place: Row and column on the map, or the one in its middle.
        call: As for `Channel`.

    Raises:
        UsageError: When called, for a place or channel that the layer doesn't have.
    """

    def __init__(
        self,
        layer: str,
        channel: Indices,
        *,
        place: Literal["center"] | tuple[int, int] = "center",
        call: int | None = None,
    ) -> None:
        self.layer, self.channel, self.place, self.call = layer, channel, place, call
        self.layers = (layer,)
        self._index = _Index("channel", channel)
        self.count = self._index.count

    def __call__(self, reading: Reading) -> Tensor:
        chosen = _chosen(reading, self.layer, self.call, self._index)
        height, width = chosen.shape[1:]
        row, column = (height // 2, width // 2) if self.place == "center" else self.place
        if not (0 <= row < height and 0 <= column < width):
            raise UsageError(f"layer '{self.layer}' has {height} × {width} places; {self.place} was asked for.")
        return chosen[:, row, column]

    def __repr__(self) -> str:
        return f"unit {self.channel} of {self.layer} at {self.place}"


class Direction(Objective):
    r"""The response of a layer along a direction in the space of its channels, mean over places.

    $$\langle a, v \rangle \cdot \max(\tfrac1{10}, \cos(a, v))^p$$

    with p = 0 the dot product; larger p asks for the direction itself rather than for a long vector (Olah et al.,
    *The Building Blocks of Interpretability*, 2018).

    Args:
        layer: Dotted name, see `lit_viz.layers.find_layer`.
        vector: (channels,) for all images, or one for each, (N, channels).
        cosine_power: p.
        call: As for `Channel`.
    """

    def __init__(self, layer: str, vector: Tensor, *, cosine_power: float = 0.0, call: int | None = None) -> None:
        if vector.dim() not in (1, 2) or not vector.is_floating_point():
            raise UsageError(
                f"a direction is a floating-point vector (channels,) or (N, channels), not {vector.shape}."
            )
        self.layer, self.vector, self.cosine_power, self.call = layer, vector.detach(), cosine_power, call
        self.layers = (layer,)
        self.count = len(vector) if vector.dim() == 2 else None

    def __call__(self, reading: Reading) -> Tensor:
        maps = reading.maps(self.layer, self.call)
        vector = self.vector.to(maps, copy=True)  # autograd refuses one that was made in inference mode
        vector = (vector[reading.which] if vector.dim() == 2 else vector.expand(len(maps), -1))[:, :, None, None]
        if vector.shape[1] != maps.shape[1]:
            raise UsageError(f"layer '{self.layer}' has {maps.shape[1]} channels; the direction has {vector.shape[1]}.")
        dot = (maps * vector).sum(dim=1)
        if self.cosine_power:
            cosine = torch.nn.functional.cosine_similarity(maps, vector, dim=1)
            dot = dot * cosine.clamp(min=0.1) ** self.cosine_power
        return dot.flatten(1).mean(dim=1)

    def __repr__(self) -> str:
        return f"a direction of {self.layer}"


class Energy(Objective):
    r"""Half the mean square of a layer's output, $\tfrac1{2n}\sum a^2$: more of whatever there is, as DeepDream wants.

    Args:
        layer: Dotted name, see `lit_viz.layers.find_layer`.
        channels: Only these; None for all of them.
        call: As for `Channel`.
    """

    def __init__(self, layer: str, *, channels: Sequence[int] | None = None, call: int | None = None) -> None:
        self.layer, self.channels, self.call = layer, None if channels is None else list(channels), call
        self.layers = (layer,)

    def __call__(self, reading: Reading) -> Tensor:
        maps = reading.maps(self.layer, self.call)
        if self.channels is not None:
            bad = next((c for c in self.channels if not 0 <= c < maps.shape[1]), None)
            if bad is not None:
                raise _no_channel(self.layer, maps.shape[1], bad)
            maps = maps[:, self.channels]
        return maps.square().flatten(1).mean(dim=1) / 2

    def __repr__(self) -> str:
        return f"energy of {self.layer}"


class _Index:
    """Indices as a user gave them: one for all images, or one for each.

    They are checked here, not on the device: a step on a GPU must not wait for what the last one is still at.
    """

    def __init__(self, name: str, value: Any) -> None:
        try:
            indices = torch.as_tensor(
                value if isinstance(value, bool) or not isinstance(value, numbers.Integral) else int(value)
            )
        except (TypeError, ValueError, RuntimeError):
            indices = torch.empty(0, 0)
        if indices.dim() == 1 and not len(indices):
            raise UsageError(f"{name} is an empty list; give at least one.")
        if indices.dim() > 1 or indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise UsageError(f"{name} is a whole number, or a list of these, not {value!r}.")
        self.values: list[int] = indices.flatten().tolist()
        self.count = len(indices) if indices.dim() else None
        self._on: dict[torch.device, Tensor] = {}

    def outside(self, count: int) -> int | None:
        """An index that is none of 0 … count − 1."""
        return next((index for index in self.values if not 0 <= index < count), None)

    def choose(self, values: Tensor, reading: Reading) -> Tensor:
        """From values (n, K, …) the entries (n, …) that belong to the images of a reading."""
        if self.count is None:
            return values[:, self.values[0]]
        if values.device not in self._on:
            with torch.inference_mode(False):
                self._on[values.device] = torch.tensor(self.values, device=values.device)
        return values[torch.arange(len(values), device=values.device), self._on[values.device][reading.which]]


def _chosen(reading: Reading, layer: str, call: int | None, index: _Index) -> Tensor:
    """The map (n, h, w) of one channel for each image."""
    maps = reading.maps(layer, call)
    if len(maps) != len(reading.which):
        raise UsageError(f"layer '{layer}' puts out {len(maps)} entries for {len(reading.which)} images.")
    bad = index.outside(maps.shape[1])
    if bad is not None:
        raise _no_channel(layer, maps.shape[1], bad)
    return index.choose(maps, reading)


def _no_channel(layer: str, count: int, channel: int) -> UsageError:
    return UsageError(f"layer '{layer}' has channels 0 to {count - 1}; {channel} was asked for.")
