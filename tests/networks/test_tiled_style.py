"""Style networks in tiles against one pass over the whole image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.functional.style import luminance
from lit_viz.networks.tiled_style import _layout, stylized
from lit_viz.networks.transformer_net import ConditionalInstanceNorm, TransformerNet


def network(norm: str = "instance", styles: int = 2) -> TransformerNet:
    torch.manual_seed(0)
    net = TransformerNet(width=4, blocks=2, styles=styles, norm=norm)
    for module in net.modules():
        if isinstance(module, ConditionalInstanceNorm):
            for gamma, beta in zip(module.gamma, module.beta, strict=True):
                nn.init.normal_(gamma, 1, 0.3)
                nn.init.normal_(beta, 0, 0.3)
    if norm == "batch":
        with torch.no_grad():
            net.train()(image(64, 64))
    return net.eval()


def image(height: int, width: int, count: int = 1) -> Tensor:
    """Dark and plain on the left, light and busy on the right, so that no part is like the whole."""
    noise = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height + width))
    ramp = torch.linspace(0, 1, width)
    return (0.1 + 0.8 * ramp) * (1 - ramp + ramp * noise)


def whole(net: TransformerNet, colors: Tensor, style: Tensor | None) -> Tensor:
    with torch.no_grad():
        return net(colors, style)


ONE = torch.tensor([1])


@pytest.mark.parametrize(
    ("size", "tile"), [((200, 330), 64), ((201, 323), 48), ((97, 33), 32), ((64, 260), 100), ((64, 64), 32)]
)
def test_tiles_give_what_one_pass_gives(size: tuple[int, int], tile: int) -> None:
    net, colors = network(), image(*size)
    made, expected = stylized(net, colors, ONE, tile=tile), whole(net, colors, ONE)
    assert made.shape == expected.shape and expected.std() > 0.02
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


def test_a_tile_with_statistics_of_its_own_would_not() -> None:
    net, colors = network(), image(200, 320)
    expected = whole(net, colors, ONE)
    naive = torch.cat([whole(net, part, ONE) for part in colors.split(64, dim=3)], dim=3)
    assert (naive - expected).abs().max() > 0.1

    def steps(made: Tensor) -> Tensor:
        """How much more neighbouring columns differ where tiles meet than they do in one pass."""
        jumps = [(x[..., 64::64] - x[..., 63:-1:64]).abs().mean() for x in (made, expected)]
        return jumps[0] - jumps[1]

    assert steps(naive) > 0.02 and steps(stylized(net, colors, ONE, tile=64)).abs() < 1e-6


def test_batches_blends_and_other_norms() -> None:
    colors = image(70, 90, count=2)
    for style in (torch.tensor([1, 0]), torch.tensor([[0.3, 0.7], [1.0, 0.0]])):
        net = network()
        torch.testing.assert_close(stylized(net, colors, style, tile=32), whole(net, colors, style), atol=1e-5, rtol=0)
    for norm in ("instance", "batch"):
        net = network(norm, styles=1)
        torch.testing.assert_close(stylized(net, colors, tile=32), whole(net, colors, None), atol=1e-5, rtol=0)


def test_no_more_than_a_tile_is_convolved_at_once() -> None:
    net, seen = network(), []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, inputs, out: seen.append(max(inputs[0].shape[2:])))
    stylized(net, image(300, 280), ONE, tile=64)
    assert max(seen) <= 64 + 2 * 5


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 7), (15, 16)])
def test_tiny_images_are_those_of_their_reflections(size: tuple[int, int]) -> None:
    net, colors = network(), image(*size)
    made = stylized(net, colors, ONE)
    assert made.shape == colors.shape
    beyond = [(0, max(0, 16 - n)) for n in size]
    mode: Any = "edge" if size == (1, 1) else "reflect"
    reflected = torch.from_numpy(np.pad(colors.numpy(), [(0, 0), (0, 0), *beyond], mode=mode))
    torch.testing.assert_close(made, whole(net, reflected, ONE)[..., : size[0], : size[1]])


def test_strength_goes_from_the_image_to_the_style() -> None:
    net, colors = network(), image(150, 64)
    made = whole(net, colors, ONE)
    assert torch.equal(stylized(net, colors, ONE, strength=0), colors)
    torch.testing.assert_close(stylized(net, colors, ONE, strength=1), made)
    torch.testing.assert_close(stylized(net, colors, ONE, strength=0.3), 0.7 * colors + 0.3 * made)


def test_hues_can_stay() -> None:
    net, colors = network(), 0.4 + 0.2 * image(150, 64)
    made = stylized(net, colors, ONE, keep_colors=True)
    torch.testing.assert_close(luminance(made), luminance(whole(net, colors, ONE)), atol=1e-4, rtol=0)
    change, was = made - luminance(made), colors - luminance(colors)
    torch.testing.assert_close(
        (change * was).sum(1), change.norm(dim=1) * was.norm(dim=1), atol=1e-5, rtol=0
    )  # the same direction, at times shorter


def test_the_network_is_left_as_it_was() -> None:
    net = network("batch", styles=1).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    stylized(net, image(40, 40), tile=32)
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tile": 16}, "tile must be"),
        ({"strength": 1.5}, "strength lies between"),
        ({"colors": torch.zeros(1, 1, 20, 20)}, r"shape \(N, 3, H, W\)"),
        ({"style": None}, "2 styles: say which"),
    ],
)
def test_bad_arguments_are_told(settings: dict[str, Any], words: str) -> None:
    given = {"colors": image(20, 20), "style": ONE, **settings}
    with pytest.raises(UsageError, match=words):
        stylized(network(), **given)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_map_keeps_the_order_of_memory_of_its_parts(layout: torch.memory_format) -> None:
    """Those that were cut out of larger ones are contiguous in neither."""
    maps = torch.rand(1, 8, 6, 7).contiguous(memory_format=layout)
    assert _layout(maps) == _layout(maps[..., 1:5, 2:6]) == layout
