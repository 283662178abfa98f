"""The parameter randomisation test: do maps notice that the network forgets what it has learned?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lit_viz.errors import UsageError, check_at_least
from lit_viz.guard import isolated_rng, untouched
from lit_viz.layers import WRAPPER, named_layers


@dataclass(frozen=True)
class Randomization:
    """How much of its maps an attribution keeps while the network forgets, from the output down.

    Attributes:
        layers: Name of the layer that each stage has reached; the ones of the stages before are random as well.
        rank_correlation: (stages, N), Spearman's, of absolute maps with those of the network as it was, −1 to 1.
        ssim: (stages, N), structural similarity of the absolute maps, each scaled to its own range, −1 to 1; NaN for
            maps with fewer than three rows or columns.
    """

    layers: tuple[str, ...]
    rank_correlation: Tensor
    ssim: Tensor


def randomization_check(
    model: nn.Module, attribute: Callable[[nn.Module], Tensor], *, stages: int | None = None, seed: int = 0
) -> Randomization:
    """Makes a copy of a network random, layer by layer from output to input, and sees whether its maps notice.

    The cascading model parameter randomisation test of Adebayo, Gilmer, Muelly, Goodfellow, Hardt & Kim, *Sanity Checks
    for Saliency Maps* (2018). A map of what a network has learned can't survive that the network forgets it:
    similarity should fall. Guided backprop is known to stay alike for long, as an edge detector does for good.

    Layers are those that own parameters, last called first; modules that a forward pass doesn't call, but a called
    one around them holds (the projections inside of attention), go with that one. A layer with a method
    `reset_parameters` is initialised anew by it (a batch norm forgets its statistics, too); parameters of others are
    shuffled, which keeps their distribution.

    Args:
        model: The network. A deep copy is made random; the network itself is not even run.
        attribute: From a network to maps (N, H, W). It must run the network that it is given: the copy, in evaluation
            mode and with gradients on. Global generators start from `seed` at each call.
        stages: Compare maps at so many stages only, evenly spaced from the first layer to the last, all layers
            being made random nevertheless; None for all.
        seed: Of the new weights.

    Returns:
        The similarity to the original maps at each stage. A map that has become constant has none (0), and where the
        original is constant, or a map is not finite, there is nothing to compare (NaN).

    Raises:
        UsageError: If `model` is no module, `attribute` gives no maps, or no layer of the copy takes part in them.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"layers can be made random in an nn.Module, not in {type(model).__name__}.")
    if stages is not None:
        check_at_least("stages", stages, 1, " or None for all")
    with torch.inference_mode(False):
        copied = copy.deepcopy(model)

    def maps() -> NDArray[np.float64]:
        with untouched(copied, seed=seed):
            found = attribute(copied)
        if not isinstance(found, Tensor) or found.dim() != 3:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(f"attribute must return maps (N, H, W), got {got}.")
        return found.detach().cpu().double().abs().numpy()

    originals: list[NDArray[np.float64]] = []
    layers = _cascade(getattr(copied, WRAPPER, copied), lambda: originals.append(maps()))
    if not layers:
        raise UsageError(
            f"no layer of the copy of {type(model).__name__} takes part in the maps; attribute(model) must run the "
            f"model that it is given."
        )
    names, last = list(layers), len(layers) - 1
    shown = {round(i) for i in np.linspace(0, last, min(stages or len(layers), len(layers))).tolist()}
    found = []
    for i, modules in enumerate(layers.values()):
        for j, module in enumerate(modules):
            _forget(module, seed + 1000 * i + j)
        if i in shown:
            found.append(_similarity(originals[0], maps()))
    correlation, ssim = (torch.from_numpy(np.stack(values)) for values in zip(*found, strict=True))
    return Randomization(tuple(names[i] for i in sorted(shown)), correlation, ssim)


def _cascade(model: nn.Module, run: Callable[[], None]) -> dict[str, list[nn.Module]]:
    """Layers with parameters, the last called first, with the modules that own these parameters."""
    layers = {"": model, **named_layers(model)}
    called: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            called.setdefault(name, len(called))

        return hook

    handles: list[RemovableHandle] = []
    try:
        for name, layer in layers.items():
            if not isinstance(layer, torch.jit.ScriptModule):  # goes with the layer around it
                handles.append(layer.register_forward_pre_hook(note(name)))
        run()
    finally:
        for handle in handles:
            handle.remove()
    owners: dict[str, list[nn.Module]] = {}
    for name, layer in layers.items():
        owner = name
        while owner and owner not in called:
            owner = owner.rpartition(".")[0]
        # What only the whole network holds and nobody calls, such as a head for training, takes no part.
        if owner in called and (owner or not name) and any(p is not None for p in layer._parameters.values()):
            owners.setdefault(owner, []).append(layer)
    order = sorted(owners, key=lambda name: called[name], reverse=True)
    return {name or type(model).__name__: owners[name] for name in order}


def _forget(layer: nn.Module, seed: int) -> None:
    """Makes the parameters that a layer owns random."""
    reset = getattr(layer, "reset_parameters", None)
    with isolated_rng(seed), torch.inference_mode(False), torch.no_grad():
        if callable(reset):
            reset()
            return
        for parameter in layer._parameters.values():
            if parameter is not None:
                shuffle = torch.randperm(parameter.numel()).to(parameter.device)
                parameter.copy_(parameter.flatten()[shuffle].reshape(parameter.shape))


def _similarity(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Spearman's rank correlation and structural similarity of maps (N, H, W), (N,) each."""
    # Imported where needed: the rest of the package does without.
    from scipy.stats import rankdata
    from skimage.metrics import structural_similarity

    side = min(7, min(first.shape[1:]) - (min(first.shape[1:]) + 1) % 2)
    correlation, ssim = np.full(len(first), np.nan), np.full(len(first), np.nan)
    for i, pair in enumerate(zip(first, second, strict=True)):
        if not np.isfinite(pair).all() or np.ptp(pair[0]) == 0:
            continue
        if np.ptp(pair[1]) == 0:
            correlation[i] = 0.0
        else:
            correlation[i] = np.corrcoef(rankdata(pair[0]), rankdata(pair[1]))[0, 1]
        if side >= 3:
            unit = [(m - m.min()) / (np.ptp(m) or 1.0) for m in pair]
            ssim[i] = structural_similarity(*unit, win_size=side, data_range=1.0)
    return correlation, ssim
