"""The image-to-image network: sizes, styles, norms."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError
from lit_viz.networks.transformer_net import ConditionalInstanceNorm, TransformerNet, _MeanAndVariance


def images(count: int = 2, height: int = 32, width: int = 40) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> TransformerNet:
    torch.manual_seed(0)
    made = TransformerNet(width=4, blocks=2, styles=3).eval()
    for module in made.modules():
        if isinstance(module, ConditionalInstanceNorm):
            for gamma, beta in zip(module.gamma, module.beta, strict=True):
                nn.init.normal_(gamma, 1, 0.3)
                nn.init.normal_(beta, 0, 0.3)
    return made


def test_it_has_the_parameters_of_the_paper() -> None:
    net = TransformerNet()
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    # 1,676,035 with biases, which norms take away from all but the last.
    assert sum(m.weight.numel() + m.out_channels for m in convolutions) == 1_676_035
    styles = [p.numel() for name, p in TransformerNet(styles=2).named_parameters() if "gamma" in name or "beta" in name]
    assert sum(styles) / 2 == pytest.approx(3200, rel=0.05)  # Dumoulin et al. 2017, with one norm more


@pytest.mark.parametrize("size", [(32, 40), (33, 47), (16, 16), (61, 18)])
def test_images_keep_their_size(net: TransformerNet, size: tuple[int, int]) -> None:
    made = net(images(1, *size), torch.tensor([0]))
    assert made.shape == (1, 3, *size) and 0 < made.min() < made.max() < 1


def test_instance_norm_is_that_of_pytorch() -> None:
    norm, x = ConditionalInstanceNorm(4, 1), torch.randn(3, 4, 5, 6)
    torch.testing.assert_close(norm(x, None), nn.functional.instance_norm(x))
    nn.init.normal_(norm.gamma[0])
    nn.init.normal_(norm.beta[0])
    torch.testing.assert_close(norm(x, None), nn.functional.instance_norm(x, weight=norm.gamma[0], bias=norm.beta[0]))


def test_each_image_has_its_style_and_styles_mix(net: TransformerNet) -> None:
    one = [net(images(), torch.tensor([k, k])) for k in range(3)]
    assert (one[0] - one[1]).abs().max() > 0.05
    both = net(images(), torch.tensor([2, 0]))
    torch.testing.assert_close(both, torch.stack([one[2][0], one[0][1]]))
    pure = net(images(), torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    torch.testing.assert_close(pure, both)
    half = net(images(), torch.tensor([[0.5, 0.5, 0.0]] * 2))
    assert (half - one[0]).abs().mean() < (one[1] - one[0]).abs().mean()
    alone = TransformerNet(width=4, blocks=2).eval()
    alone.load_state_dict(
        {re.sub(r"(gamma|beta)\.1", r"\1.0", k): v for k, v in net.state_dict().items()}, strict=False
    )
    torch.testing.assert_close(alone(images()), one[1])


def test_contrast_of_the_content_does_not_count(net: TransformerNet) -> None:
    x = images()
    # Behind the first norm, which sees the reflected image as it is.
    pale = net(0.5 + 0.2 * (x - 0.5), torch.tensor([0, 0]))
    torch.testing.assert_close(pale, net(x, torch.tensor([0, 0])), atol=2e-3, rtol=0)


def test_borders_are_not_seen_as_edges() -> None:
    """A plain image stays plain: with zeros around it, it would have a frame."""
    net = TransformerNet(width=4, blocks=2, norm="batch").eval()
    made = net(torch.full((1, 3, 48, 48), 0.7))
    assert (made - made[..., :1, :1]).abs().max() < 1e-5


def test_bad_arguments_are_told(net: TransformerNet) -> None:
    with pytest.raises(UsageError, match="3 styles: say which"):
        net(images())
    with pytest.raises(UsageError, match="norm is"):
        TransformerNet(norm="layer")
    with pytest.raises(UsageError, match="has one style"):
        TransformerNet(norm="batch", styles=2)
    with pytest.raises(UsageError, match="width must be"):
        TransformerNet(width=0)


def test_gradients_of_norms() -> None:
    norm = ConditionalInstanceNorm(3, 2)
    with torch.no_grad():
        for value in (*norm.gamma, *norm.beta):
            value.normal_()
    x, mix = torch.randn(2, 3, 5, 4, requires_grad=True), torch.tensor([[1.0, 0.0], [0.3, 0.7]])
    of = (x, *norm.parameters())
    gamma, beta = (mix @ torch.stack(list(values)) for values in (norm.gamma, norm.beta))
    expected = F.instance_norm(x) * gamma[:, :, None, None] + beta[:, :, None, None]
    made = norm(x, mix)
    torch.testing.assert_close(made, expected)
    slopes = torch.randn_like(made)
    for ours, theirs in zip(
        torch.autograd.grad(made, of, slopes), torch.autograd.grad(expected, of, slopes), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    x64 = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_MeanAndVariance.apply, x64) and torch.autograd.gradgradcheck(
        _MeanAndVariance.apply, x64
    )


@pytest.mark.parametrize("size", [(300, 700), (3, 1), (1, 1)])
@pytest.mark.parametrize("last", [True, False])
def test_norms_of_large_maps_do_not_drift(size: tuple[int, int], last: bool) -> None:
    """A naive sum of as many equal numbers is wrong by more than a thousandth."""
    maps = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 1e-2 + 5
    maps[1] = 1.3
    maps = maps.contiguous(memory_format=torch.channels_last) if last else maps
    mean, variance = _MeanAndVariance.apply(maps)
    exact = maps.double()
    torch.testing.assert_close(mean.double(), exact.mean((2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), exact.var((2, 3), unbiased=False), rtol=1e-5, atol=1e-12)
