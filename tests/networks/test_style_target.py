"""The gradient towards a style, tile by tile: that of the whole image, by automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError
from lit_viz.networks.perceptual import PerceptualNetwork
from lit_viz.networks.style_loss import StyleLoss, masks_at
from lit_viz.networks.style_target import StyleTarget
from lit_viz.pixels import PixelSpace


def strided() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(5, 6, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 7, 3, padding=1),
            nn.ReLU(),
        ).double()


def loss_of(styles: int = 2, content: str | None = "3") -> StyleLoss:
    network = PerceptualNetwork(["1", "3", "6"], strided(), pixel_space=PixelSpace())
    loss = StyleLoss(network, content, ["1", "6"], styles=styles, strength=2.0)
    generator = torch.Generator().manual_seed(1)
    for i in range(styles):
        loss.set_style(i, torch.rand(1, 3, 40, 40, generator=generator))
    return loss


def images(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, c = (torch.rand(1, 3, height, width, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, c, torch.rand(1, 2, height, width, generator=generator)


@pytest.mark.parametrize("kind", ["one", "blend", "masks", "no content"])
@pytest.mark.parametrize(("height", "width"), [(96, 131), (65, 200)])
def test_tiles_give_loss_and_gradient_of_the_whole(kind: str, height: int, width: int) -> None:
    loss = loss_of(content=None if kind == "no content" else "3")
    x, c, masks = images(height, width)
    how: dict[str, Tensor] = {
        "one": {"style": torch.tensor([1])},
        "blend": {"style": torch.tensor([[0.3, 0.7]])},
        "masks": {"masks": masks},
        "no content": {"style": torch.tensor([0])},
    }[kind]
    # By hand: the loss of the whole image, differentiated.
    leaf = x.clone().requires_grad_()
    expected = loss(leaf, loss.content_of(c) if loss.content_layers else {}, how.get("style"), masks=how.get("masks"))
    (slope,) = torch.autograd.grad(expected.total.sum(), leaf)
    for tile in (None, 64, 80):
        target = StyleTarget(loss, c, tile=tile, **how)
        terms, gradient = target(x)
        assert target.exact and (len(target._parts) > 1) == (tile is not None)
        torch.testing.assert_close(terms.total, expected.total, rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6 * float(slope.abs().max()))
        for name, value in expected.means().items():
            torch.testing.assert_close(terms.means()[name], value, rtol=1e-5, atol=0)
        torch.testing.assert_close(target.terms(x).total, expected.total.detach(), rtol=1e-5, atol=0)


def test_tiles_without_room_are_told_and_deep_layers_are_not_called_exact() -> None:
    x, c, _ = images(96, 96)
    with pytest.raises(UsageError, match="tile"):
        StyleTarget(loss_of(), c, style=torch.tensor([0]), tile=8)
    deep = nn.Sequential(*(nn.Conv2d(3, 3, 5, padding=2) for _ in range(12)))
    network = PerceptualNetwork(["11"], deep, pixel_space=PixelSpace())
    loss = StyleLoss(network, None, ["11"])
    loss.set_style(0, x.float())
    assert not StyleTarget(loss, c.float(), tile=64).exact
    assert StyleTarget(loss, c.float()).exact


@torch.no_grad()
def test_masks_by_hand() -> None:
    """Each style is compared with its own places, and counts by how many these are."""
    loss, (x, c, _) = loss_of(), images(32, 48)
    masks = torch.zeros(1, 2, 32, 48)
    masks[:, 0, :, :16], masks[:, 1, :, 16:] = 1, 1
    found = loss(x, loss.content_of(c), masks=masks)
    features = loss.network(x)
    for i, (name, stride) in enumerate((("1", 1), ("6", 4))):
        maps, edge = features[name], 16 // stride
        expected = 0.0
        for part, style, share in ((maps[..., :edge], 0, 1 / 3), (maps[..., edge:], 1, 2 / 3)):
            flat = part.flatten(2)[0].float()
            gram = torch.stack([torch.stack([(a * b).mean() for b in flat]) for a in flat]) / len(flat)
            expected += share * float((gram - getattr(loss, f"gram_{i}")[style]).square().sum())
        assert float(found.style[name]) == pytest.approx(expected, rel=1e-4)


def test_masks_everywhere_are_no_masks_and_nowhere_count_for_nothing() -> None:
    loss, (x, c, _) = loss_of(), images(32, 48)
    everywhere = torch.cat([torch.ones(1, 1, 32, 48), torch.zeros(1, 1, 32, 48)], dim=1)
    content = loss.content_of(c)
    torch.testing.assert_close(loss(x, content, masks=everywhere).total, loss(x, content, torch.tensor([0])).total)


@pytest.mark.parametrize(("length", "count"), [(32, 8), (33, 9), (33, 8), (31, 16), (7, 7)])
def test_masks_are_means_over_the_pixels_of_each_place(length: int, count: int) -> None:
    masks = torch.rand(1, 2, length, length)
    stride = max(1, round(length / count))
    cells = [masks[..., i : i + stride] for i in range(0, length, stride)]
    rows = [
        torch.stack([cell[..., j : j + stride, :].mean(dim=(2, 3)) for cell in cells], dim=-1)
        for j in range(0, length, stride)
    ]
    expected = torch.stack(rows, dim=-2)
    missing = max(0, count - expected.shape[-1])
    expected = F.pad(expected, (0, missing, 0, missing), mode="replicate")[..., :count, :count]
    torch.testing.assert_close(masks_at(masks, (count, count)), expected)


def test_the_style_of_a_part_of_a_picture() -> None:
    loss, picture = loss_of(1), torch.rand(1, 3, 32, 64)
    mask = torch.zeros(1, 1, 32, 64)
    mask[..., :32] = 1
    loss.set_style(0, picture, mask)
    maps = loss.network(picture)["1"][..., :32].flatten(2)[0].float()
    torch.testing.assert_close(loss.gram_0[0], maps @ maps.T / (maps.shape[0] * maps.shape[1]), rtol=1e-4, atol=1e-6)
