"""Style networks as files that run elsewhere."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch

from lit_viz.errors import UsageError
from lit_viz.networks.transformer_net import TransformerNet
from lit_viz.pictures import whole

_OPSET = 18  # the first in which maps are reflected in any direction


def export_onnx(net: TransformerNet, path: str | os.PathLike[str]) -> Path:
    """Writes a style network as ONNX, for images of any number and size.

    Its input `images` is (batch, 3, height, width), float32, colours from 0 to 1, at least 16 px a side; so is its
    output `stylized`. A network of several styles has one more, `style`: (batch, styles), float32, the share of each
    style; 1 for one and 0 for all others is that style. Weights are in the file.

    Args:
        net: Such as `FastStyleTransfer.net`; it is left as it was.
        path: Should end in .onnx.

    Raises:
        UsageError: If the packages for it are missing.
        OSError: If the file can't be written; nothing is left of it then.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError('ONNX files need an extra: pip install "lit-viz[onnx]".') from error
    path = Path(path)
    device, shapes = net.last.weight.device, {0: "batch", 2: "height", 3: "width"}
    # Sizes of an example count for no more than its axes: none is 1 or like another one, which might be taken as fixed.
    images = torch.rand(2, net.channels, 36, 44, generator=torch.Generator().manual_seed(0)).to(device)
    arguments, names, dynamic = [images], ["images"], [shapes]
    if net.styles > 1:
        arguments.append(torch.full((2, net.styles), 1 / net.styles, device=device))
        names.append("style")
        dynamic.append({0: "batch"})
    training = net.training
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own workings
            program = torch.onnx.export(
                net.eval(),
                tuple(arguments),
                dynamo=True,
                input_names=names,
                output_names=["stylized"],
                dynamic_shapes=tuple(dynamic),
                opset_version=_OPSET,
                verbose=False,
            )
    finally:
        net.train(training)
    assert program is not None
    with whole(path) as partial:
        program.save(partial)
    return path
