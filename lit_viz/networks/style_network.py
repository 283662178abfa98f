"""Trained style networks, from their checkpoints, and the styles they have."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_viz.errors import UsageError, nearest
from lit_viz.networks.transformer_net import TransformerNet

Style = int | str | Mapping[str, float]


@dataclass(frozen=True, eq=False)
class StyleNetwork:
    """A network with the names of its styles."""

    net: TransformerNet
    style_names: Sequence[str]


def load_style_network(checkpoint: str | os.PathLike[str]) -> StyleNetwork:
    """The network in a checkpoint that `FastStyleTransfer` left; nothing else of it is made, no loss network either.

    Raises:
        UsageError: If there is no such file, or no such network in it.
    """
    found = read_style_checkpoint(checkpoint)
    told, names = found["hyper_parameters"], [Path(style).stem for style in found["styles"]]
    net = TransformerNet(told["width"], told["blocks"], styles=len(names), norm=told["norm"])
    net.load_state_dict({k.removeprefix("net."): v for k, v in found["state_dict"].items() if k.startswith("net.")})
    # As the module has it, so that both give the same to the last bit.
    return StyleNetwork(net.eval().to(memory_format=torch.channels_last), names)


def read_style_checkpoint(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """What `FastStyleTransfer` left in a file, read safely.

    Raises:
        UsageError: If it can't be had.
    """
    try:
        found = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"there is no checkpoint {checkpoint}.") from None
    except Exception as error:
        raise UsageError(f"{checkpoint} can't be read as a checkpoint ({str(error).splitlines()[0]}).") from error
    if not isinstance(found, dict) or "styles" not in found or "hyper_parameters" not in found:
        raise UsageError(f"{checkpoint} holds no style network; give one that FastStyleTransfer left.")
    return found


def style_shares(style: Style | None, names: Sequence[str]) -> tuple[Tensor, str]:
    """How much of each style, and what to call it.

    Args:
        style: A name, a number from 0, or a blend: shares by name, as text "waves:0.7,tissue:0.3". Shares are divided
            by their sum; those that are not told are 1. None where there is one style.
        names: Of the styles that there are.

    Returns:
        (1, styles), which add up to 1, and a name, such as "waves" or "waves-70-tissue-30".

    Raises:
        UsageError: For styles that there are not, and shares that make no sense.

    >>> style_shares("waves:3,tissue", ["tissue", "waves"])
    (tensor([[0.2500, 0.7500]]), 'waves-75-tissue-25')
    """
    known = ", ".join(f"{number} {name!r}" for number, name in enumerate(names))
    if style is None:
        if len(names) != 1:
            raise UsageError(f"the network has {len(names)} styles, say which: {known}.")
        style = 0
    if isinstance(style, str) and style not in names:
        parts = [part.strip().rpartition(":") for part in style.split(",")]
        parts = [(name, share) if colon else (share, "1") for name, colon, share in parts]
    else:
        parts = [(k, str(v)) for k, v in style.items()] if isinstance(style, Mapping) else [(str(style), "1")]
    shares: dict[int, float] = {}
    for name, text in parts:
        try:
            share = float(text)
        except ValueError:
            share = -1.0
        if not 0 <= share < float("inf"):
            raise UsageError(f"a blend of styles is told as in 'waves:0.7,tissue:0.3', not {style!r}.")
        if name in names:
            number = list(names).index(name)
        elif name.isdecimal() and int(name) < len(names):
            number = int(name)
        else:
            hint = f"known: {known}." if name.isdecimal() or not name else nearest(name, names)
            raise UsageError(f"the network has no style {name!r}; {hint}")
        shares[number] = shares.get(number, 0) + share
    whole = sum(shares.values())
    if not whole > 0:
        raise UsageError(f"a blend needs a share above 0; got {style!r}.")
    mix = torch.zeros(1, len(names))
    for number, share in shares.items():
        mix[0, number] = share / whole
    there = {number: share / whole for number, share in shares.items() if share}
    if len(there) == 1:
        return mix, names[next(iter(there))]
    return mix, "-".join(f"{names[number]}-{100 * share:.0f}" for number, share in there.items())
