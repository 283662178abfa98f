"""Styles by name, number and blend, and networks from checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_viz.errors import UsageError
from lit_viz.networks.style_network import load_style_network, style_shares

NAMES = ["stained glass", "waves", "a, b:2"]


@pytest.mark.parametrize(
    ("style", "shares", "label"),
    [
        ("waves", [0, 1, 0], "waves"),
        (0, [1, 0, 0], "stained glass"),
        ("1", [0, 1, 0], "waves"),
        ("a, b:2", [0, 0, 1], "a, b:2"),
        ("waves:0.7, stained glass:0.3", [0.3, 0.7, 0], "waves-70-stained glass-30"),
        ("waves:2,2:6", [0, 0.25, 0.75], "waves-25-a, b:2-75"),
        ("0,1", [0.5, 0.5, 0], "stained glass-50-waves-50"),
        ("waves:1,0:0", [0, 1, 0], "waves"),
        ({"waves": 3, "a, b:2": 1}, [0, 0.75, 0.25], "waves-75-a, b:2-25"),
    ],
)
def test_styles_are_told_in_many_ways(style: Any, shares: list[float], label: str) -> None:
    found, name = style_shares(style, NAMES)
    torch.testing.assert_close(found, torch.tensor([shares]).float())
    assert name == label


def test_the_only_style_needs_no_name() -> None:
    assert style_shares(None, ["waves"])[0].tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("style", "words"),
    [
        (None, "3 styles, say which: 0 'stained glass', 1 'waves'"),
        ("wavs", "no style 'wavs'; did you mean 'waves'"),
        (3, "no style '3'; known: 0 'stained glass'"),
        ("waves:much", "as in 'waves:0.7"),
        ("waves:-1", "as in 'waves:0.7"),
        ("waves:inf", "as in 'waves:0.7"),
        ("waves:0", "share above 0"),
        ("waves,", "no style ''"),
        ({}, "share above 0"),
    ],
)
def test_styles_that_there_are_not_are_told(style: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        style_shares(style, NAMES)


def test_what_is_no_style_network_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no checkpoint .*no\.ckpt"):
        load_style_network(tmp_path / "no.ckpt")
    (tmp_path / "text.ckpt").write_text("text")
    with pytest.raises(UsageError, match="can't be read as a checkpoint"):
        load_style_network(tmp_path / "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UsageError, match="holds no style network"):
        load_style_network(tmp_path / "other.ckpt")
