"""Faithfulness against loops, closed forms, and what is known of methods that pass or fail."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError
from lit_viz.functional import (
    boxes_to_masks,
    energy_inside,
    guided_backprop,
    insertion_deletion,
    pointing_score,
    randomization_check,
    saliency,
)
from lit_viz.functional.baselines import gaussian_blur

Network = Callable[[str], nn.Module]


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.conv = nn.Conv2d(3, 6, 3)
            self.norm = nn.BatchNorm2d(6)
            self.drop = nn.Dropout(0.5)
            self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean(dim=(2, 3))))


@pytest.mark.parametrize("output", ["probability", "score"])
@pytest.mark.parametrize("batch_size", [None, 1, 7])
def test_equals_a_loop(output: Any, batch_size: int | None) -> None:
    model, x, maps = Small().eval(), images(3, 3, 6, 9), images(3, 6, 9, seed=2)
    target, steps = [1, 0, 3], 10
    curves = insertion_deletion(model, x, maps, target, steps=steps, end=0.25, output=output, batch_size=batch_size)
    blurred = gaussian_blur(x, 0.9)
    for i in range(3):
        pixels = sorted(((r, c) for r in range(6) for c in range(9)), key=lambda p: -maps[i, p[0], p[1]])
        for k in range(steps + 1):
            inserted, deleted = blurred[i].clone(), x[i].clone()
            count = k * 54 // 10
            for r, c in pixels[:count]:
                inserted[:, r, c] = x[i, :, r, c]
                deleted[:, r, c] = 0.25
            assert curves.fraction[k] == pytest.approx(count / 54)
            for copied, found in ((inserted, curves.insertion), (deleted, curves.deletion)):
                with torch.no_grad():
                    scores = model(copied[None])[0]
                expected = scores.softmax(0) if output == "probability" else scores
                assert found[i, k].item() == pytest.approx(expected[target[i]].item(), abs=1e-5)


def contributions(count: int = 5, seed: int = 3) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """A model that adds up weighted pixels, images, and what each pixel adds."""
    weight = images(2, 8, 8, seed=seed).abs()
    x = images(count, 2, 8, 8, seed=seed + 1).abs()
    return (lambda x: (x * weight).sum((1, 2, 3))[:, None]), x, (x * weight).sum(1)


def test_of_a_sum_the_curves_are_sorted_sums() -> None:
    model, x, parts = contributions()
    curves = insertion_deletion(model, x, parts, 0, steps=64, start=0.0, output="score")
    ordered = parts.flatten(1).sort(dim=1, descending=True).values
    gained = torch.cat([torch.zeros(5, 1), ordered.cumsum(1)], dim=1)
    assert torch.allclose(curves.insertion, gained, atol=1e-3)
    assert torch.allclose(curves.deletion, parts.sum((1, 2))[:, None] - gained, atol=1e-3)
    assert torch.equal(curves.fraction, torch.arange(65) / 64)
    for found, values in ((curves.insertion_area, gained), (curves.deletion_area, gained[:, -1:] - gained)):
        expected = torch.tensor(np.trapezoid(values.numpy(), dx=1 / 64, axis=1))
        assert torch.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_true_order_is_at_least_as_good_as_any_other(seed: int) -> None:
    model, x, parts = contributions()
    options: dict[str, Any] = {"steps": 13, "start": 0.0, "output": "score"}
    best = insertion_deletion(model, x, parts, 0, **options)
    other = insertion_deletion(model, x, images(5, 8, 8, seed=seed), 0, **options)
    assert (best.insertion >= other.insertion - 1e-3).all() and (best.deletion <= other.deletion + 1e-3).all()
    assert (best.insertion_area > other.insertion_area).all() and (best.deletion_area < other.deletion_area).all()


@pytest.mark.parametrize("rows", ["first", "last"])
def test_a_constant_map_gets_what_chance_gives(rows: str) -> None:
    """In the order of rows it would be as good as can be, or as bad, where only the first rows count."""

    def some(x: Tensor) -> Tensor:
        return (x[:, :, :2] if rows == "first" else x[:, :, -2:]).mean((1, 2, 3))[:, None]

    curves = insertion_deletion(some, torch.ones(2, 1, 16, 16), torch.zeros(2, 16, 16), 0, start=0.0, output="score")
    assert (curves.insertion_area - 0.5).abs().max() < 0.1 and (curves.deletion_area - 0.5).abs().max() < 0.1


def test_ties_come_in_one_order_that_the_seed_decides() -> None:
    model, x, parts = contributions(2)
    coarse = (parts > parts.median()).float()
    options: dict[str, Any] = {"steps": 64, "start": 0.0, "output": "score"}
    once, again = (insertion_deletion(model, x, coarse, 0, **options) for _ in range(2))
    assert torch.equal(once.insertion, again.insertion)
    assert not torch.allclose(insertion_deletion(model, x, coarse, 0, seed=1, **options).insertion, once.insertion)
    # Any monotone change of the map leaves the order as it is.
    assert torch.equal(insertion_deletion(model, x, coarse * 7 - 3, 0, **options).insertion, once.insertion)
    above = (parts * coarse).sum((1, 2))
    half = int(coarse[0].sum())
    assert 20 < half < 44 and torch.allclose(once.insertion[0, half], above[0], rtol=1e-4)


def test_predicted_class_is_that_of_the_whole_image() -> None:
    model, x, maps = Small().eval(), images(4, 3, 8, 8), images(4, 8, 8, seed=2)
    best = model(x).argmax(1)
    assert torch.equal(
        insertion_deletion(model, x, maps, steps=4).deletion,
        insertion_deletion(model, x, maps, best, steps=4).deletion,
    )
    wrapped = lambda x: {"logits": model(x)}  # noqa: E731
    found = insertion_deletion(wrapped, x, maps, steps=4, score=lambda out: out["logits"])
    assert torch.equal(found.deletion[:, 0], found.insertion[:, -1])


def test_memory_is_bounded_by_the_batch() -> None:
    model, sizes = Small().eval(), []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    insertion_deletion(model, images(5, 3, 8, 8), images(5, 8, 8), steps=20, batch_size=16)
    assert max(sizes) == 16 and sum(sizes) == 5 + 2 * 5 * 21


@pytest.mark.parametrize("check", ["curves", "randomization"])
def test_the_model_is_left_untouched(check: str) -> None:
    model = Small().train()
    model.conv.weight.requires_grad_(False)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x = images(3, 3, 8, 8)
    if check == "curves":
        insertion_deletion(model, x, images(3, 8, 8), steps=3)
    else:
        randomization_check(model, lambda m: saliency(m, x, 0))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training and model.norm.training and not model.conv.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_mode(mode: Any) -> None:
    model = Small().eval()
    with mode():
        x = images(2, 3, 8, 8)
        curves = insertion_deletion(model, x, images(2, 8, 8), steps=3)
        assert curves.insertion_area.shape == (2,)
        found = randomization_check(model, lambda m: saliency(m, x.clone(), 0))
    assert found.layers == ("head", "norm", "conv")


@pytest.mark.parametrize(
    ("maps", "options", "words"),
    [
        (torch.zeros(2, 8, 7), {}, r"maps must be a tensor \(2, 8, 8\), .* got \(2, 8, 7\)"),
        (torch.zeros(2, 3, 8, 8), {}, r"got \(2, 3, 8, 8\)"),
        (torch.tensor([0.0, torch.nan]).reshape(2, 1, 1).expand(2, 8, 8), {}, "map 1 holds NaN or infinite"),
        (torch.zeros(2, 8, 8), {"steps": 65}, "65 steps are more than the 64 pixels"),
        (torch.zeros(2, 8, 8), {"steps": 0}, "steps must be a whole number, at least 1"),
        (torch.zeros(2, 8, 8), {"start": "grey"}, "baseline 'grey' is unknown"),
        (torch.zeros(2, 8, 8), {"end": torch.zeros(3)}, "does not broadcast"),
        (torch.zeros(2, 8, 8), {"output": "logit"}, "output is 'probability' or 'score'"),
        (torch.zeros(2, 8, 8), {"target": 4}, "class index 4 is out of range"),
        (torch.zeros(2, 8, 8), {"batch_size": 0}, "batch_size must be a whole number"),
    ],
)
def test_errors(maps: Tensor, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        insertion_deletion(Small(), images(2, 3, 8, 8), maps, **{"steps": 4, **options})


@cache
def digits() -> tuple[nn.Module, Tensor]:
    """A network that has learned to read digits in a second or two, and some of them."""
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
    x = F.interpolate(x, scale_factor=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 32), nn.ReLU()),
            nn.Linear(32, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(4):
            for rows in torch.randperm(1500).split(100):
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    model.requires_grad_(True).zero_grad()
    with torch.no_grad():
        assert (model(x[1500:]).argmax(1) == y[1500:]).float().mean() > 0.85
    return model, x[1500:1516]


def test_saliency_of_what_was_learned_falls_and_edges_stay() -> None:
    model, x = digits()
    learned = randomization_check(model, lambda m: saliency(m, x))
    assert learned.layers == ("10", "8", "5", "2", "0")
    correlation = learned.rank_correlation.mean(1)
    assert correlation[-1] < 0.35 and learned.ssim[-1].mean() < 0.35

    def edges(m: nn.Module) -> Tensor:
        m(x)  # looked at, and of no influence
        return (x[:, 0] - x[:, 0].roll(1, 2)).abs()

    stays = randomization_check(model, edges)
    assert torch.allclose(stays.rank_correlation, torch.ones(5, 16, dtype=torch.float64))
    assert torch.allclose(stays.ssim, torch.ones(5, 16, dtype=torch.float64))


def test_guided_backprop_stays_alike_for_longer() -> None:
    """Adebayo et al. 2018, figure 2: it notices late that the layers at the top are random."""
    model, x = digits()
    plain = randomization_check(model, lambda m: saliency(m, x)).rank_correlation.mean(1)
    guided = randomization_check(model, lambda m: guided_backprop(m, x).abs().amax(1)).rank_correlation.mean(1)
    assert (guided[:3] > plain[:3]).all() and guided[2] > 0.5


def test_similarity_is_spearmans() -> None:
    model, x = digits()
    maps = []

    def attribute(m: nn.Module) -> Tensor:
        maps.append(saliency(m, x))
        return maps[-1]

    found = randomization_check(model, attribute)
    for stage, later in enumerate(maps[1:]):
        for i in range(len(x)):
            expected = spearmanr(maps[0][i].flatten(), later[i].flatten()).statistic
            assert found.rank_correlation[stage, i].item() == pytest.approx(expected, abs=1e-9)


def test_stages_are_reached_with_all_layers_before_them_random() -> None:
    model, x = digits()
    states = []

    def attribute(m: nn.Module) -> Tensor:
        states.append(copy.deepcopy(m.state_dict()))
        return saliency(m, x)

    whole = randomization_check(model, attribute)
    before, known = states[0], list(whole.layers)
    for stage, state in enumerate(states[1:], start=1):
        changed = {k.split(".")[0] for k in state if not torch.equal(state[k], before[k])}
        assert changed == set(known[:stage])
    few = randomization_check(model, lambda m: saliency(m, x), stages=3)
    assert few.layers == ("10", "5", "0")
    assert torch.equal(few.rank_correlation, whole.rank_correlation[[0, 2, 4]])
    assert not torch.equal(
        randomization_check(model, lambda m: saliency(m, x), seed=1).rank_correlation, whole.rank_correlation
    )


def test_each_layer_forgets_what_it_owns(network: Network) -> None:
    """Also what no module of PyTorch resets: class token, position embedding, the projections inside of attention."""
    model, x = network("vit"), images(1, 3, 64, 64)
    nn.init.normal_(model.class_token)  # zero at first
    states = []

    def attribute(m: nn.Module) -> Tensor:
        states.append(copy.deepcopy(m.state_dict()))
        return saliency(m, x, 0)

    found = randomization_check(model, attribute)
    assert found.layers[0] == "heads.head" and found.layers[-1] == "VisionTransformer"
    blocks = [n for n in found.layers if n.startswith("encoder.layers")]
    assert [n.split(".")[2] for n in blocks] == sorted((n.split(".")[2] for n in blocks), reverse=True)
    assert "encoder.layers.encoder_layer_0.self_attention" in found.layers
    still = {k for k, v in states[-1].items() if torch.equal(v, states[0][k])}
    # Norms and biases that had never been trained are reset to what they were.
    assert not [k for k in still if "ln" not in k and "bias" not in k]


def test_heads_for_training_alone_take_no_part() -> None:
    class WithAuxiliary(Small):
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary = nn.Linear(3, 3)

    assert randomization_check(WithAuxiliary(), lambda m: saliency(m, images(1, 3, 8, 8), 0)).layers == (
        "head",
        "norm",
        "conv",
    )


def test_constant_maps_and_maps_that_are_not_finite() -> None:
    calls = []
    ramp = torch.arange(64.0).reshape(1, 8, 8)

    def attribute(m: nn.Module) -> Tensor:
        m(images(1, 3, 8, 8))
        calls.append(1)
        flat = torch.zeros(1, 8, 8)
        return torch.cat([ramp if len(calls) == 1 else flat, flat, ramp if len(calls) == 1 else ramp / 0])

    found = randomization_check(Small(), attribute).rank_correlation
    assert (found[:, 0] == 0).all() and found[:, 1:].isnan().all()


def test_what_the_check_says_of_misuse() -> None:
    model, x = Small(), images(1, 3, 8, 8)
    with pytest.raises(UsageError, match="must run the model that it is given"):
        randomization_check(model, lambda m: saliency(model, x))
    with pytest.raises(UsageError, match=r"maps \(N, H, W\), got \(1, 3, 8, 8\)"):
        randomization_check(model, lambda m: x)
    with pytest.raises(UsageError, match=r"in an nn.Module, not in function"):
        randomization_check(lambda x: x, lambda m: x)
    with pytest.raises(UsageError, match="stages must be"):
        randomization_check(model, lambda m: saliency(m, x), stages=0)


def test_a_compiled_network() -> None:
    model, x = Small().eval(), images(2, 3, 8, 8)
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    compiled(x)
    expected = randomization_check(model, lambda m: saliency(m, x, 0))
    found = randomization_check(compiled, lambda m: saliency(m, x, 0))
    assert found.layers == expected.layers
    assert torch.allclose(found.rank_correlation, expected.rank_correlation)


def test_pointing() -> None:
    maps = torch.zeros(5, 6, 8)
    maps[0, 2, 3] = 1  # on the object
    maps[1, 2, 6] = 1  # two px beside it
    maps[2, 2, 3] = maps[2, 5, 7] = 1  # one of two maxima elsewhere
    maps[4, 2, 3] = torch.nan
    masks = boxes_to_masks(torch.tensor([[2, 1, 5, 4]]), (6, 8)).expand(5, -1, -1)
    assert pointing_score(maps, masks).tolist() == [True, False, False, False, False]
    assert pointing_score(maps, masks, tolerance=1.9).tolist() == [True, False, False, False, False]
    assert pointing_score(maps, masks, tolerance=2).tolist() == [True, True, False, False, False]
    assert not pointing_score(maps, torch.zeros(5, 6, 8), tolerance=50).any()
    whole = pointing_score(maps, torch.ones(5, 6, 8))
    assert whole.tolist() == [True, True, True, True, False]


def test_energy() -> None:
    masks = torch.zeros(3, 4, 5)
    masks[:, 1:3, 2:4] = 255
    maps = torch.ones(3, 4, 5)
    maps[1] = -1
    maps[2] *= -5
    maps[2, 1, 2], maps[2, 0, 0] = 3, 1
    found = energy_inside(maps, masks)
    assert found[0].item() == pytest.approx(4 / 20) and found[1].isnan() and found[2].item() == pytest.approx(0.75)


def test_boxes() -> None:
    boxes = torch.tensor([[0.0, 0.0, 5.0, 4.0], [1.4, 0.6, 3.6, 2.4], [2.0, 2.0, 2.0, 3.0]])
    masks = boxes_to_masks(boxes, (4, 5))
    assert masks[0].all() and masks.sum((1, 2)).tolist() == [20, 3, 0]
    assert masks[1].nonzero().tolist() == [[1, 1], [1, 2], [1, 3]]


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: boxes_to_masks(torch.zeros(2, 3), (4, 4)), r"boxes must be \(N, 4\)"),
        (lambda: boxes_to_masks(torch.tensor([[3, 0, 1, 2]]), (4, 4)), "left, top, right, bottom"),
        (lambda: pointing_score(torch.zeros(1, 4, 4), torch.zeros(1, 4, 5)), "both be"),
        (lambda: energy_inside(torch.zeros(4, 4), torch.zeros(4, 4)), "both be"),
        (lambda: pointing_score(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), tolerance=-1), "tolerance is a distance"),
    ],
)
def test_errors_of_masks(run: Callable[[], Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run()


def test_a_part_compiled_by_torchscript_goes_with_the_layer_around_it() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(scripted), nn.Flatten(), nn.Linear(4 * 4 * 4, 2))
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = scripted.state_dict()["0.weight"].clone()
    found = randomization_check(model, lambda m: saliency(m, x, 0))
    assert found.layers == ("3", "1", "0")
    assert torch.equal(scripted.state_dict()["0.weight"], before)
