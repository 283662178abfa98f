"""What a network says of images: scores, and outputs of layers, computed no further than they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.functional.scores import Model, Score, class_scores
from lit_viz.functional.units import the_call
from lit_viz.layers import as_maps, find_layer, first_tensor, spatial_maps


@dataclass(frozen=True, eq=False)
class Reading:
    """What came of one forward pass, with its graph.

    Attributes:
        images: (n, C, H, W), as they went into the network.
        which: (n,) int64, which of all the images that are being made these are.
        calls: For each layer that is read what it put out in each of its calls.
        all_scores: (n, K); None where only layers are read, since the pass ends behind the last of them.
    """

    images: Tensor
    which: Tensor
    calls: dict[str, list[Tensor]]
    all_scores: Tensor | None = None

    @property
    def scores(self) -> Tensor:
        """Class scores (n, K)."""
        assert self.all_scores is not None, "an objective that reads scores says so: needs_scores = True"
        return self.all_scores

    def layer(self, name: str, call: int | None = None) -> Tensor:
        """What a layer put out, as it is.

        Args:
            name: Its dotted name, one of those that the objective listed.
            call: Which call, where a pass has several; −1 for the last.
        """
        if name not in self.calls:
            ends = [known for known in self.calls if known.endswith("." + name)]
            name = ends[0] if len(ends) == 1 else name
        return the_call(self.calls.get(name, []), name, call)

    def maps(self, name: str, call: int | None = None) -> Tensor:
        """What a layer put out as maps (n, channels, h, w).

        Tokens that lie on a grid are folded, without class tokens; vectors have one place. See
        `lit_viz.layers.spatial_maps`.
        """
        values = self.layer(name, call)
        folded = spatial_maps(values, image_size=(self.images.shape[-2], self.images.shape[-1]))
        return as_maps(values) if folded is None else folded


Read = Callable[[Tensor, Tensor], Reading]
"""From images (n, C, H, W) and which they are, int64 (n,), to a reading."""


class _Enough(Exception):
    """All that is asked for has been computed."""


@contextmanager
def reading(
    model: Model, layers: Iterable[str] = (), *, needs_scores: bool = True, score: Score | None = None
) -> Iterator[Read]:
    """Reads layers of a network and its scores, again and again; hooks are gone afterwards.

    Where scores are not needed, a pass ends as soon as the deepest of the layers has been called as often as in the
    first pass, which runs to the end: what lies behind costs nothing, in time or in memory.

    Args:
        model: Maps (N, C, H, W) to scores; with `score`, to anything. A module, where layers are read.
        layers: Dotted names, see `lit_viz.layers.find_layer`.
        needs_scores: Whether scores are read as well.
        score: See `lit_viz.functional.class_scores`.

    Yields:
        A function from images and which they are to a `Reading`.

    Raises:
        UsageError: For an unknown layer, or layers of something that is no module.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 5))
    >>> with reading(net, ["0"], needs_scores=False) as read:
    ...     read(torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)).layer("0").shape
    torch.Size([1, 2, 2, 2])
    """
    names = list(dict.fromkeys(layers))
    if names and not isinstance(model, nn.Module):
        raise UsageError(f"layers can be read of a torch.nn.Module, not of a {type(model).__name__}.")
    full = {name: find_layer(model, name)[0] for name in names}  # type: ignore[arg-type]
    found = dict(find_layer(model, name) for name in names)  # type: ignore[arg-type]
    for name, layer in found.items():
        if isinstance(layer, torch.jit.ScriptModule):
            raise UsageError(f"layer '{name}' is compiled by TorchScript, so it can't be read; name one around it.")
    if not found and not needs_scores:
        raise UsageError("an objective reads the scores or at least one layer.")
    calls: dict[str, list[Tensor]] = {name: [] for name in found}
    wanted: dict[str, int] = {}
    active = False

    def complete() -> bool:
        return bool(wanted) and all(len(calls[name]) >= count for name, count in wanted.items())

    def keep(name: str, output: Any) -> None:
        tensor = first_tensor(output)
        # Not in the recomputation of checkpointed blocks, which runs inside of the backward pass.
        if tensor is None or not active:
            return
        calls[name].append(tensor)
        if complete() and not needs_scores:
            raise _Enough
        # A following in-place ReLU would change what is read here.
        calls[name][-1] = tensor.clone()

    def read(images: Tensor, which: Tensor) -> Reading:
        nonlocal active
        for values in calls.values():
            values.clear()
        active, scores = True, None
        try:
            if needs_scores:
                scores = class_scores(model, images, score=score)
            else:
                model(images)
        except _Enough:
            pass
        except Exception:
            # The first pass goes on behind the layers, where a head may take images of another size alone.
            if needs_scores or wanted or not all(calls.values()):
                raise
        finally:
            active = False
        if not wanted:
            wanted.update({name: max(1, len(values)) for name, values in calls.items()})
        taken = {name: list(values) for name, values in calls.items()}
        taken.update({name: taken[one] for name, one in full.items()})
        for values in calls.values():
            values.clear()  # whoever keeps the function must not keep a graph
        return Reading(images, which, taken, scores)

    handles = []
    try:
        for name, layer in found.items():
            handles.append(layer.register_forward_hook(lambda _, args, output, name=name: keep(name, output)))
        yield read
    finally:
        for handle in handles:
            handle.remove()


def runs_in(model: Model) -> tuple[torch.device | None, torch.dtype | None]:
    """Device and type of a network's floating-point weights, or of nothing where it has none."""
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return None, None
