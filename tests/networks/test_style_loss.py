"""The loss of style transfer by hand, its units, and the count of iterations."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.networks.perceptual import PerceptualNetwork
from lit_viz.networks.style_loss import StyleLoss, equivalent_iterations
from lit_viz.pixels import PixelSpace
from lit_viz.styles import picture_colors, style_picture

PLAIN = PixelSpace()


def photographs(count: int = 3, side: int = 24) -> Tensor:
    photograph = torch.from_numpy(np.array(data.astronaut())).permute(2, 0, 1).float() / 255
    return torch.stack([photograph[:, 40 * i : 40 * i + side, 200 : 200 + side] for i in range(count)])


def small(factor: float = 1.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU())
    with torch.no_grad():
        made[2].weight.mul_(factor)
        made[2].bias.mul_(factor)
    return made


def loss_of(module: nn.Module, styles: int = 1, **changes: object) -> StyleLoss:
    network = PerceptualNetwork(["1", "3"], module, pixel_space=PLAIN)
    made = StyleLoss(network, **{"content_layers": "3", "style_layers": ["1", "3"], "styles": styles} | changes)
    for i, name in enumerate(["waves", "stained glass", "tissue"][:styles]):
        made.set_style(i, picture_colors(style_picture(name), 40))
    return made


def features(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    one = module[1](module[0](x))
    return {"1": one, "3": module[3](module[2](one))}


def gram(f: Tensor) -> Tensor:
    c, h, w = f.shape[1:]
    return torch.einsum("nihw,njhw->nij", f, f) / (c * h * w)


@torch.no_grad()
def test_the_loss_by_hand() -> None:
    module = small()
    weighted = {"content_layers": {"1": 1.0, "3": 3.0}, "style_layers": {"1": 2.0, "3": 6.0}, "strength": 5.0}
    loss = loss_of(copy.deepcopy(module), **weighted)
    c, x, s = photographs(2), photographs(3)[1:], picture_colors(style_picture("waves"), 40)
    fc, fx, fs = (features(module, image) for image in (c, x, s))
    content = {n: ((fx[n] - fc[n]) ** 2).mean(dim=(1, 2, 3)) for n in fx}
    style = {n: ((gram(fx[n]) - gram(fs[n])) ** 2).sum(dim=(1, 2)) for n in fx}
    found = loss(x, loss.content_of(c))
    for n in fx:
        torch.testing.assert_close(found.content[n], content[n])
        torch.testing.assert_close(found.style[n], style[n])
    total = 0.25 * content["1"] + 0.75 * content["3"] + 5 * (0.25 * style["1"] + 0.75 * style["3"])
    torch.testing.assert_close(found.total, total)
    # In units of its own.
    p = photographs(3)
    loss.calibrate(p)
    fp = features(module, p)
    found = loss(x, loss.content_of(c))
    for n in fp:
        plain = fp[n].mean(dim=(2, 3), keepdim=True)
        torch.testing.assert_close(found.content[n], content[n] / ((fp[n] - plain) ** 2).mean())
        far = ((gram(fp[n]) - gram(fs[n])) ** 2).sum(dim=(1, 2)).mean()
        torch.testing.assert_close(found.style[n], style[n] / far)
    means = found.means()
    assert set(means) == {"content/1", "content/3", "style/1", "style/3", "total"}
    torch.testing.assert_close(means["style/3"], found.style["3"].mean())


@torch.no_grad()
def test_photographs_are_one_away_from_the_style_and_the_style_none() -> None:
    loss, p = loss_of(small()), photographs()
    loss.calibrate(p)
    content = loss.content_of(p)
    found = loss(p, content).means()
    assert found["content/3"] == 0
    assert found["style/1"] == pytest.approx(1, rel=1e-5) and found["style/3"] == pytest.approx(1, rel=1e-5)
    style = picture_colors(style_picture("waves"), 40)
    assert loss(style, loss.content_of(style)).total == pytest.approx(0, abs=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("factor", [0.01, 30.0])
def test_the_strength_means_the_same_for_networks_of_any_scale(factor: float) -> None:
    totals = []
    for module in (small(), small(factor)):
        loss = loss_of(module, strength=2.0)
        loss.calibrate(photographs())
        totals.append(loss(photographs(3).flip(0), loss.content_of(photographs())).total)
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-4, atol=0)


@torch.no_grad()
def test_calibration_is_a_mean_over_all_calls() -> None:
    once, twice = loss_of(small(), 2), loss_of(small(), 2)
    p = photographs(5)
    once.calibrate(p)
    twice.calibrate(p[:2])
    twice.calibrate(p[2:])
    for name, value in once.state_dict().items():
        torch.testing.assert_close(twice.state_dict()[name], value)
    with pytest.raises(UsageError, match="plain areas"):
        loss_of(small()).calibrate(torch.full((1, 3, 24, 24), 0.5))
    # What rounding leaves is no distance.
    same = loss_of(small(), content_layers=None)
    picture = picture_colors(style_picture("waves"), 40)
    with pytest.raises(UsageError, match="the style itself"):
        same.calibrate(picture.flip(3).flip(3))


@torch.no_grad()
def test_styles_are_chosen_and_mixed() -> None:
    loss, p = loss_of(small(), 3), photographs()
    content = loss.content_of(p)
    each = [loss(p, content, torch.full((3,), s)).style["3"] for s in range(3)]
    chosen = loss(p, content, torch.tensor([2, 0, 1])).style["3"]
    torch.testing.assert_close(chosen, torch.stack([each[2][0], each[0][1], each[1][2]]))
    mixed = loss(p, content, torch.tensor([[0.5, 0.25, 0.25]]).expand(3, 3)).style["3"]
    target = 0.5 * loss.gram_1[0] + 0.25 * loss.gram_1[1] + 0.25 * loss.gram_1[2]
    own = gram(features(loss.network.module, p)["3"])
    torch.testing.assert_close(mixed, ((own - target) ** 2).sum(dim=(1, 2)))
    with pytest.raises(UsageError, match="3 styles: say which"):
        loss(p, content)
    more = loss_of(small(), 1)
    wide = StyleLoss(more.network, "3", ["1", "3"], styles=2)
    wide.take_styles(more.state_dict())
    assert wide.known.tolist() == [True, False]
    first = torch.zeros(3, dtype=torch.int64)
    torch.testing.assert_close(loss(p, content, first).total, wide(p, content, first).total)


def test_16_bits_give_numbers() -> None:
    loss, x = loss_of(small(2e3)), photographs().requires_grad_()
    loss.calibrate(photographs())
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            found = loss(x, loss.content_of(photographs().flip(0)))
        (gradient,) = torch.autograd.grad(found.total.sum(), x)
        assert torch.isfinite(found.total).all() and torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_only_what_styles_are_is_saved() -> None:
    state = loss_of(small(), 2).state_dict()
    assert set(state) == {"known", "calibrated", "content_scale", "style_scale", "gram_0", "gram_1"}
    other = StyleLoss(PerceptualNetwork(["1", "3"], small(), pixel_space=PLAIN), "3", ["1", "3"], styles=2)
    other.load_state_dict(state)
    assert torch.equal(other.gram_1, state["gram_1"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strength": -1.0}, "strength is the weight"),
        ({"strength": float("nan")}, "strength is the weight"),
        ({"content_layers": {"3": -1.0}}, "content_layers are weights"),
        ({"style_layers": []}, "style_layers are weights"),
    ],
)
def test_bad_weights_are_told(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        loss_of(small(), **changes)


@pytest.mark.parametrize("steps", [0, 1, 5, 12])
def test_images_made_by_some_iterations_are_worth_these(steps: int) -> None:
    """A loop of our own, with the gradients that autograd gives to the whole loss by hand."""
    loss, colors = loss_of(small(), strength=30.0), photographs(2)
    loss.calibrate(colors)
    made = []
    for one in colors.split(1):
        x, content = one.clone().requires_grad_(), loss.content_of(one)
        # All iterations in one call.
        optimizer = torch.optim.LBFGS(
            [x],
            max_iter=max(1, steps),
            max_eval=10**6,
            history_size=100,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        def closure(x: Tensor = x, content: dict[str, Tensor] = content) -> Tensor:
            x.grad = None
            total = loss(x, content).total.sum()
            total.backward()
            return total

        if steps:
            optimizer.step(closure)
        made.append(x.detach())
    found = equivalent_iterations(loss, torch.cat(made), colors, limit=15)
    assert found.total == steps and found.curves.shape == (16, 3)
    assert (found.curves[:, 0].diff() < 0).all() and found.curves[0, 1] == 0
    with torch.no_grad():
        start = loss(colors, loss.content_of(colors))
    torch.testing.assert_close(found.curves[0, 0], start.total.mean())
    if steps == 5:
        style = picture_colors(style_picture("waves"), 40)[:, :, :24, :24].expand(2, -1, -1, -1)
        assert equivalent_iterations(loss, style, colors, limit=3).content == 3  # content is gone: as bad nowhere
