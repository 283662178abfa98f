"""Objectives against indexing by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.functional.synthesis import (
    Channel,
    ClassScore,
    Direction,
    Energy,
    Objective,
    Reading,
    Unit,
    WeightedSum,
    reading,
)

Network = Callable[[str], nn.Module]


def made(shape: tuple[int, ...], *, size: tuple[int, int] = (12, 16), which: list[int] | None = None) -> Reading:
    """A reading of a layer "a.layer" of random values, and five scores."""
    generator = torch.Generator().manual_seed(0)
    values, scores = torch.randn(shape, generator=generator), torch.randn(shape[0], 5, generator=generator)
    indices = torch.arange(shape[0]) if which is None else torch.tensor(which)
    return Reading(torch.zeros(shape[0], 3, *size), indices, {"a.layer": [values]}, scores)


MAPS = (3, 4, 6, 8)


def test_class_scores() -> None:
    found = made(MAPS)
    scores = found.scores
    assert torch.equal(ClassScore(2)(found), scores[:, 2])
    assert torch.equal(ClassScore([4, 0, 1])(found), torch.stack([scores[0, 4], scores[1, 0], scores[2, 1]]))
    by_hand = scores[:, 2] - scores.exp().sum(dim=1).log()
    torch.testing.assert_close(ClassScore(2, of="log_probability")(found), by_hand)
    for target, bad in ((5, 5), (-1, -1), ([0, 1, 9], 9)):
        with pytest.raises(UsageError, match=f"class index {bad} is out of range: the model has 5 classes, 0 to 4"):
            ClassScore(target)(found)


def test_log_odds_push_on_where_the_probability_is_near_one() -> None:
    found = made(MAPS)
    p = found.scores.double().softmax(dim=1)
    for target in (2, [4, 0, 1]):
        own = p[range(3), target]
        odds = (own / (1 - own)).log().float()
        torch.testing.assert_close(ClassScore(target, of="log_odds")(found), odds)
    sure = torch.tensor([[40.0, 0.0, -3.0]], requires_grad=True)
    slopes = {}
    for of in ("log_probability", "log_odds"):
        reading = Reading(found.images[:1], torch.zeros(1, dtype=torch.int64), {}, sure)
        (slopes[of],) = torch.autograd.grad(ClassScore(0, of=of)(reading).sum(), sure)
    assert slopes["log_probability"].abs().max() < 1e-12
    rest = torch.tensor([0.0, -3.0]).softmax(dim=0)
    torch.testing.assert_close(slopes["log_odds"], torch.tensor([[1.0, -rest[0], -rest[1]]]))
    one = Reading(found.images, found.which, {}, found.scores[:, :1])  # the log-odds of two classes itself
    assert torch.equal(ClassScore(0, of="log_odds")(one), found.scores[:, 0])
    for of in ("score", "log_probability", "log_odds"):
        with pytest.raises(UsageError, match="class index 5 is out of range"):
            ClassScore(5, of=of)(found)


def test_log_probabilities_are_as_precise_as_the_scores() -> None:
    found = Reading(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64), {}, torch.zeros(1, 4).double())
    assert ClassScore(0, of="log_probability")(found).dtype == torch.float64
    half = Reading(found.images, found.which, {}, torch.zeros(1, 4).bfloat16())
    assert ClassScore(0, of="log_probability")(half).dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "size", "maps"),
    [
        (MAPS, (12, 16), lambda v: v),
        ((3, 6, 8, 5), (12, 16), lambda v: v.permute(0, 3, 1, 2)),
        ((3, 13, 5), (48, 64), lambda v: v[:, 1:].mT.reshape(3, 5, 3, 4)),
        ((3, 9), (8, 8), lambda v: v.reshape(3, 9, 1, 1)),
    ],
    ids=["maps", "channels last", "tokens", "vector"],
)
def test_layers_of_all_layouts(shape: tuple[int, ...], size: tuple[int, int], maps: Callable[[Tensor], Tensor]) -> None:
    found = made(shape, size=size)
    values = maps(found.layer("a.layer"))
    _, channels, height, width = values.shape
    each = [2, 0, channels - 1]
    rows = torch.arange(3)
    torch.testing.assert_close(Channel("a.layer", 2)(found), values[:, 2].mean(dim=(1, 2)))
    torch.testing.assert_close(Channel("layer", each)(found), values[rows, each].mean(dim=(1, 2)))
    assert torch.equal(Unit("a.layer", each)(found), values[rows, each, height // 2, width // 2])
    place = (height - 1, 0)
    assert torch.equal(Unit("a.layer", 1, place=place)(found), values[:, 1, height - 1, 0])
    torch.testing.assert_close(Energy("a.layer")(found), values.square().mean(dim=(1, 2, 3)) / 2)
    torch.testing.assert_close(
        Energy("a.layer", channels=[3, 1])(found), values[:, [1, 3]].square().mean(dim=(1, 2, 3)) / 2
    )
    vector = torch.randn(channels, generator=torch.Generator().manual_seed(3))
    by_hand = torch.einsum("nchw,c->nhw", values, vector).mean(dim=(1, 2))
    torch.testing.assert_close(Direction("a.layer", vector)(found), by_hand)


def test_a_direction_with_a_power_of_the_cosine_in_a_loop() -> None:
    found, power = made(MAPS), 2.0
    vectors = torch.randn(3, 4, generator=torch.Generator().manual_seed(3))
    values = found.layer("a.layer").double().numpy()
    for given in (vectors[1], vectors):
        expected = []
        for n in range(3):
            v = (given if given.dim() == 1 else given[n]).double().numpy()
            terms = []
            for i in range(6):
                for j in range(8):
                    a = values[n, :, i, j]
                    cosine = a @ v / np.linalg.norm(a) / np.linalg.norm(v)
                    terms.append(a @ v * max(0.1, cosine) ** power)
            expected.append(np.mean(terms))
        result = Direction("layer", given, cosine_power=power)(found)
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert Direction("layer", vectors).count == 3 and Direction("layer", vectors[0]).count is None


def test_one_for_each_image_follows_the_images_into_their_batches() -> None:
    found = made((2, 4, 6, 8), which=[5, 2])  # the sixth and the third of all
    values, channels = found.layer("layer"), [0, 1, 2, 3, 0, 3]
    expected = torch.stack([values[0, 3].mean(), values[1, 2].mean()])
    for given in (channels, tuple(channels), torch.tensor(channels), np.array(channels)):
        objective = Channel("layer", given)
        assert objective.count == 6
        torch.testing.assert_close(objective(found), expected)
    assert torch.equal(ClassScore(channels)(found), found.scores[[0, 1], [3, 2]])
    vectors = torch.eye(4)[channels]
    torch.testing.assert_close(Direction("layer", vectors)(found), expected)


def test_sums_weights_and_signs() -> None:
    found = made(MAPS)
    a, b, c = ClassScore([4, 0, 1]), Channel("layer", 2), Energy("a.layer")
    total = 2 * a - 0.5 * b + c * 3 - (-a)
    torch.testing.assert_close(total(found), 3 * a(found) - 0.5 * b(found) + 3 * c(found))
    assert total.needs_scores and total.count == 3 and set(total.layers) == {"layer", "a.layer"}
    assert not (b + c).needs_scores and (b + c).count is None
    given = WeightedSum([(-1.0, a), (0.25, b)])
    torch.testing.assert_close(given(found), 0.25 * b(found) - a(found))
    with pytest.raises(UsageError, match="2 and 3 images"):
        a + ClassScore([0, 1])
    with pytest.raises(UsageError, match="at least one"):
        WeightedSum([])


@pytest.mark.parametrize("channel", [4, -1, [0, 4, 1]])
def test_a_channel_out_of_range(channel: int | list[int]) -> None:
    for objective in (Channel("a.layer", channel), Unit("a.layer", channel)):
        with pytest.raises(UsageError, match=r"layer 'a.layer' has channels 0 to 3; (4|-1) was asked for"):
            objective(made(MAPS))
    with pytest.raises(UsageError, match="channels 0 to 3; 7 was"):
        Energy("a.layer", channels=[1, 7])(made(MAPS))


def test_a_place_or_a_direction_that_is_not_there() -> None:
    for place in ((6, 0), (0, 8), (-1, 0)):
        with pytest.raises(UsageError, match="6 × 8 places"):
            Unit("a.layer", 0, place=place)(made(MAPS))
    with pytest.raises(UsageError, match="4 channels; the direction has 3"):
        Direction("a.layer", torch.ones(3))(made(MAPS))
    for vector in (torch.ones(2, 2, 2), torch.tensor(1.0), torch.ones(4, dtype=torch.int64)):
        with pytest.raises(UsageError, match="floating-point vector"):
            Direction("a.layer", vector)


def test_a_layer_of_windows_has_no_image_for_each_entry() -> None:
    found = Reading(torch.zeros(2, 3, 8, 8), torch.arange(2), {"window": [torch.zeros(8, 4, 5)]})
    with pytest.raises(UsageError, match="8 entries for 2 images"):
        Channel("window", 1)(found)


@pytest.mark.parametrize(
    "value", [True, "7", 1.5, None, [0.5, 1.0], torch.tensor(1.5), torch.tensor([True]), torch.zeros(2, 2).long()]
)
def test_what_is_no_index(value: object) -> None:
    with pytest.raises(UsageError, match="target is a whole number, or a list of these"):
        ClassScore(value)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="channel is a whole number, or a list of these"):
        Channel("layer", value)  # type: ignore[arg-type]


def test_empty_lists_and_numbers_of_numpy() -> None:
    for empty in ([], torch.empty(0, dtype=torch.int64), np.array([], dtype=np.int64)):
        with pytest.raises(UsageError, match="empty list"):
            ClassScore(empty)
    found = made(MAPS)
    for two in (np.int64(2), torch.tensor(2), torch.tensor(2, dtype=torch.uint8)):
        assert ClassScore(two).count is None
        assert torch.equal(ClassScore(two)(found), found.scores[:, 2])


def test_indices_and_vectors_made_in_inference_mode_lead_gradients_back() -> None:
    with torch.inference_mode():
        objectives: list[Objective] = [
            ClassScore(torch.tensor([1, 2])),
            Channel("layer", torch.tensor(1)),
            Channel("layer", torch.tensor([0, 3])),
            Direction("layer", torch.ones(4)),
            Direction("layer", torch.ones(2, 4)),
        ]
    for objective in objectives:
        x = torch.ones(2, 4, 3, 3, requires_grad=True)
        scores = x.flatten(1)[:, :5] * x.flatten(1)[:, 1:6]
        found = Reading(torch.zeros(2, 3, 9, 9), torch.arange(2), {"layer": [x * x]}, scores)
        (gradient,) = torch.autograd.grad(objective(found).sum(), x)
        assert gradient.abs().sum() > 0


def test_descriptions() -> None:
    assert repr(ClassScore(3)) == "score of class 3" and repr(Channel("layer", 7)) == "channel 7 of layer"
    assert repr(2 * ClassScore(3) + Energy("layer")) == "1 × 2 × score of class 3 + 1 × energy of layer"


@pytest.mark.parametrize(
    ("name", "layer", "maps"),
    [
        ("resnet18", "layer2", lambda v: v),
        ("vit", "encoder.layers.encoder_layer_1", lambda v: v[:, 1:].mT.reshape(2, 48, 4, 4)),
        ("swin_t", "features.3", lambda v: v.permute(0, 3, 1, 2)),
        ("alexnet", "classifier.4", lambda v: v[:, :, None, None]),
    ],
)
def test_channels_of_networks(name: str, layer: str, maps: Callable[[Tensor], Tensor], network: Network) -> None:
    model, x = network(name), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, a, out: kept.append(out.detach().clone()))
    with torch.no_grad():
        model(x)
        handle.remove()
        with reading(model, [layer], needs_scores=False) as read:
            for _ in range(2):
                found = read(x, torch.arange(2))
                torch.testing.assert_close(Channel(layer, [3, 5])(found), maps(kept[0])[[0, 1], [3, 5]].mean((1, 2)))
