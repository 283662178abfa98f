"""ONNX files run by onnxruntime, against the network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.networks.exporting import export_onnx
from lit_viz.networks.transformer_net import ConditionalInstanceNorm, TransformerNet

onnxruntime = pytest.importorskip("onnxruntime")


def network(styles: int) -> TransformerNet:
    torch.manual_seed(0)
    net = TransformerNet(width=3, blocks=1, styles=styles)
    for module in net.modules():
        if isinstance(module, ConditionalInstanceNorm):
            for gamma, beta in zip(module.gamma, module.beta, strict=True):
                nn.init.normal_(gamma, 1, 0.3)
                nn.init.normal_(beta, 0, 0.3)
    return net


def session(net: TransformerNet, path: Path) -> Any:
    assert export_onnx(net, path) == path
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # weights are in it
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


pytestmark = pytest.mark.slow  # the exporter takes its time


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[TransformerNet, Any]:
    net = network(3).train()
    found = session(net, tmp_path_factory.mktemp("onnx") / "several.onnx")
    assert net.training
    return net.eval(), found


def same(net: TransformerNet, runtime: Any, images: Tensor, shares: Tensor | None) -> np.ndarray:
    given = {"images": images.numpy()} | ({} if shares is None else {"style": shares.numpy()})
    (made,) = runtime.run(["stylized"], given)
    with torch.no_grad():
        np.testing.assert_allclose(made, net(images, shares).numpy(), atol=1e-4, rtol=0)
    return made


@pytest.mark.parametrize("size", [(1, 64, 64), (2, 67, 45), (1, 16, 17), (3, 33, 130), (1, 250, 201)])
def test_any_size_and_number_of_images(several: tuple[TransformerNet, Any], size: tuple[int, int, int]) -> None:
    images = torch.rand(size[0], 3, *size[1:], generator=torch.Generator().manual_seed(1))
    shares = torch.eye(3)[torch.arange(size[0]) % 3]
    assert same(*several, images, shares).std() > 0.02


def test_each_style_and_blends(several: tuple[TransformerNet, Any]) -> None:
    images = torch.rand(1, 3, 40, 52, generator=torch.Generator().manual_seed(2))
    made = [same(*several, images, shares[None]) for shares in [*torch.eye(3), torch.tensor([0.2, 0.5, 0.3])]]
    assert all(abs(a - b).max() > 0.02 for i, a in enumerate(made) for b in made[:i])


def test_a_network_of_one_style_asks_for_none(tmp_path: Path) -> None:
    net = network(1).eval()
    runtime = session(net, tmp_path / "one.onnx")
    assert [given.name for given in runtime.get_inputs()] == ["images"]
    for size in ((1, 48, 48), (2, 21, 38)):
        same(net, runtime, torch.rand(size[0], 3, *size[1:]), None)


def test_without_the_extra_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"lit-viz\[onnx\]"):
        export_onnx(network(1), tmp_path / "x.onnx")


def test_a_file_that_can_not_be_written_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Program:
        def save(self, path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: Program())
    with pytest.raises(OSError, match="No space"):
        export_onnx(network(1), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())
