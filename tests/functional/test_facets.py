"""Facets of planted kinds, and images that keep to them."""

from __future__ import annotations

import warnings
from functools import cache
from itertools import permutations
from typing import Any

import pytest
import torch
from skimage.restoration import denoise_tv_chambolle
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError
from lit_viz.functional import Channel, Facets, facet_images, find_facets, head_features, match_facets, tv_denoised
from lit_viz.functional.facets import _Drawing
from lit_viz.pixels import PixelSpace
from tests.digits import SPACE, Convolutional, digits

MERGED = 4  # fours and sevens


@cache
def merged() -> tuple[nn.Module, Tensor, Tensor]:
    """A network for which sevens are fours, the images of that class, and which of them are sevens."""
    data = digits()
    labels = torch.where(data.train_labels == 7, MERGED, data.train_labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Convolutional()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(8):
            for batch in torch.randperm(len(labels)).split(64):
                loss = F.cross_entropy(model(data.train[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    optimizer.zero_grad()
    return model.eval(), data.train[labels == MERGED], (data.train_labels[labels == MERGED] == 7).long()


@cache
def found() -> Facets:
    model, images, _ = merged()
    return find_facets(head_features(model, images)[0], images, count=2)


def test_facets_are_the_kinds_that_a_class_was_made_of() -> None:
    _, images, kind = merged()
    facets = found()
    assert adjusted_rand_score(kind, facets.facet_of) >= 0.9
    assert facets.sizes == tuple(sorted(facets.sizes, reverse=True)) and sum(facets.sizes) == len(images)
    assert sorted(torch.cat(facets.members).tolist()) == list(range(len(images)))
    for k, members in enumerate(facets.members):
        # From the middle outwards, and the mean of the first ones.
        distance = (facets.points[members] - facets.centroids[k]).norm(dim=1)
        assert (distance.diff() >= -1e-4).all()
        torch.testing.assert_close(facets.centroids[k], facets.points[members].mean(dim=0), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(facets.means[k], images[members[:15]].mean(dim=0))


@pytest.mark.parametrize("steps", [40, 370])
def test_each_image_is_of_its_own_kind_and_excites_the_class(steps: int) -> None:
    model, images, kind = merged()
    facets = found()
    made = facet_images(model, facets, MERGED, steps=steps, pixels=SPACE)
    assert (made.scores.softmax(dim=1)[:, MERGED] >= 0.99).all()
    with torch.no_grad():
        assert (made.scores[:, MERGED] > model(facets.means)[:, MERGED]).all()
        torch.testing.assert_close(made.scores, model(made.images))
    assert made.notes == ("", "")
    for k, members in enumerate(facets.members):
        own = int(kind[members].float().mean().round())
        distance = (images - made.images[k]).flatten(1).norm(dim=1)
        assert distance[kind == own].mean() < distance[kind != own].mean()
    colors = made.images * SPACE.std[0] + SPACE.mean[0]
    assert colors.min() >= -1e-6 and colors.max() <= 1 + 1e-6


def test_center_biased_images_change_in_the_middle() -> None:
    model, _, _ = merged()
    share = []
    for center_biased in (False, True):
        made = facet_images(model, found(), MERGED, steps=60, center_biased=center_biased, pixels=SPACE)
        assert (made.scores.softmax(dim=1)[:, MERGED] >= 0.99).all()
        change = (made.images - found().means).square().sum(dim=1)
        share.append(change[:, 8:24, 8:24].sum(dim=(1, 2)) / change.sum(dim=(1, 2)))
    assert (share[1] > share[0] + 0.2).all()
    assert (share[1] > 0.6).all()  # of a quarter of the area


def test_three_colours_of_blobs() -> None:
    """Features that lie far apart need no network."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(90) % 3
    images = torch.rand(90, 3, 12, 12, generator=generator) * 0.1
    images[torch.arange(90), kind, 3:9, 3:9] += 0.8
    facets = find_facets(images.flatten(1), images, count=3)
    assert adjusted_rand_score(kind, facets.facet_of) == 1.0
    for mean, members in zip(facets.means, facets.members, strict=True):
        assert int(mean.mean(dim=(1, 2)).argmax()) == int(kind[members[0]])
    # The network answers to either colour, and the images stay with theirs.
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2, bias=False))
    net[2].weight.data = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
    made = facet_images(net, facets, 0, steps=30, pixels=PixelSpace())
    assert (made.objective > 0).all()
    assert made.images.mean(dim=(2, 3)).argmax(dim=1).tolist() == facets.means.mean(dim=(2, 3)).argmax(dim=1).tolist()


@pytest.mark.parametrize("seed", range(6))
def test_facets_are_matched_like_the_best_of_all_orders(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before_count, count = ((3, 3), (4, 3), (2, 4))[seed % 3]
    samples = torch.randperm(90, generator=generator)[:60]
    facets = find_facets(torch.randn(60, 2, generator=generator), torch.rand(60, 1, 2, 2), count=count)
    kinds = torch.randint(before_count, (90,), generator=generator)
    before = [torch.where(kinds == k)[0] for k in range(before_count)]
    matched = match_facets(facets, samples, before)
    assert sorted(m.tolist() for m in matched.members) == sorted(m.tolist() for m in facets.members)
    for members, centroid, mean in zip(matched.members, matched.centroids, matched.means, strict=True):
        k = next(k for k, other in enumerate(facets.members) if torch.equal(members, other))
        assert torch.equal(centroid, facets.centroids[k]) and torch.equal(mean, facets.means[k])

    def shared(order: Any) -> int:
        """How many images keep their number, where facets get the numbers of the earlier ones in that order."""
        pairs = zip(order, facets.members, strict=False)
        return sum(len(set(samples[m].tolist()) & set(before[k].tolist())) for k, m in pairs if k < before_count)

    slots = range(max(count, before_count))
    best = max(shared(order) for order in permutations(slots, count))
    if count == before_count:
        kept = sum(int(torch.isin(samples[m], b).sum()) for m, b in zip(matched.members, before, strict=True))
        assert kept == best


def test_facets_without_earlier_ones_stay_as_they_are() -> None:
    facets = found()
    for before in ([], [torch.tensor([10**6])] * 2):
        same = match_facets(facets, torch.arange(sum(facets.sizes)), before)
        assert [m.tolist() for m in same.members] == [m.tolist() for m in facets.members]


def test_the_same_seed_gives_the_same() -> None:
    model, images, _ = merged()
    features = head_features(model, images)[0]
    before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    first, second = (find_facets(features, images, count=3, seed=5) for _ in range(2))
    assert torch.equal(first.points, second.points) and torch.equal(first.means, second.means)
    made = [facet_images(model, first, MERGED, steps=12, seed=seed, pixels=SPACE).images for seed in (1, 1, 2)]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert torch.equal(before[0], torch.get_rng_state())
    assert all(torch.equal(v, before[1][k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_batches_don_t_matter() -> None:
    model, _, _ = merged()
    together = facet_images(model, found(), MERGED, steps=20, pixels=SPACE)
    alone = facet_images(model, found(), MERGED, steps=20, pixels=SPACE, batch_size=1)
    torch.testing.assert_close(alone.images, together.images, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("images", "facets"), [(1, 1), (3, 1), (7, 1), (8, 2), (11, 2), (13, 3)])
def test_few_images_make_few_facets(images: int, facets: int) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(images, 6, generator=generator)
    found = find_facets(features, torch.rand(images, 1, 4, 4, generator=generator), count=5)
    assert len(found) == facets
    assert found.note == f"{images} images are enough for {facets} of 5 facets"
    assert all(torch.isfinite(found.means).flatten()) and sum(found.sizes) == images


def test_equal_images_are_one_facet() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = find_facets(torch.ones(40, 5), torch.ones(40, 1, 3, 3), count=4)
    assert len(found) == 1 and torch.equal(found.means, torch.ones(1, 1, 3, 3))


def test_bytes_are_averaged_as_numbers() -> None:
    images = torch.tensor([0, 255, 255, 255], dtype=torch.uint8).reshape(4, 1, 1, 1)
    assert find_facets(torch.zeros(4, 2), images, count=1).means.item() == pytest.approx(191.25)


@pytest.mark.parametrize(
    ("features", "images", "kwargs", "words"),
    [
        (torch.zeros(3, 2), torch.zeros(4, 1, 2, 2), {}, "same N"),
        (torch.zeros(0, 2), torch.zeros(0, 1, 2, 2), {}, "no image"),
        (torch.full((9, 2), torch.nan), torch.zeros(9, 1, 2, 2), {}, "NaN"),
        (torch.zeros(3, 2), torch.zeros(3, 1, 2, 2), {"count": 0}, "count"),
        (torch.zeros(3, 2), torch.zeros(3, 1, 2, 2), {"nearest": 0}, "nearest"),
    ],
)
def test_what_can_t_work_is_told(features: Tensor, images: Tensor, kwargs: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_facets(features, images, **kwargs)


def test_denoising_equals_scikit_images() -> None:
    image = torch.rand(1, 2, 20, 25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for weight in (0.02, 0.1):
        expected = denoise_tv_chambolle(image[0].numpy(), weight=weight, eps=1e-12, max_num_iter=400, channel_axis=0)
        found = tv_denoised(image, weight, iterations=400)[0]
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-4)
    assert torch.equal(tv_denoised(image, 0.0), image)


def test_denoising_takes_contrast_from_a_disc_as_the_closed_form_says() -> None:
    """A disc of radius r on a wide ground loses 2 λ / r (Strong & Chan 2003)."""
    place = torch.arange(101, dtype=torch.float64) - 50
    disc = (place.square()[:, None] + place.square() <= 20.5**2).to(torch.float64)
    found = tv_denoised(disc[None, None], 1.0, iterations=2000)[0, 0]
    assert 1 - float(found[50, 50]) == pytest.approx(2 / 20.5, rel=0.1)


def test_stages_come_in_their_shares_of_the_steps() -> None:
    images = torch.zeros(1, 1, 56, 56)
    drawing = _Drawing(images, PixelSpace(), 37, False)
    zooms = [drawing.stage(step)[0].zoom for step in range(37)]
    margins = [drawing.stage(step)[0].margin for step in range(37)]
    assert zooms == [1.0] * 19 + [1.2] * 17 + [1.0]
    assert [m > 0 for m in margins] == [False] * 34 + [True] * 2 + [False]
    inside = drawing.weight(34, images)
    assert float(inside.sum()) == 28 * 28 and bool(inside[14:42, 14:42].all())


def test_hidden_units_have_facets_too() -> None:
    model, images, _ = merged()
    made = facet_images(model, images[:2], Channel("relu3", 3), steps=30, pixels=SPACE)
    assert made.scores is None and (made.objective > made.history[0]).all()


def test_head_features_are_what_goes_into_the_last_layer() -> None:
    model, images, _ = merged()
    features, scores = head_features(model, images, batch_size=50)
    with torch.no_grad():
        torch.testing.assert_close(model.head(features), scores)
        torch.testing.assert_close(scores, model(images))
    maps, _ = head_features(model, images[:4], layer="relu3")
    assert maps.shape == (4, 32)


@pytest.mark.slow
def test_photographs(network: Any, photographs: Tensor) -> None:
    """An ImageNet network and a cat: crops of one photograph, at 224 px in colour, with the same settings."""
    model = network("efficientnet_lite0")
    space = PixelSpace((127 / 255,) * 3, (128 / 255,) * 3)
    generator = torch.Generator().manual_seed(0)
    crops = []
    for _ in range(12):
        top, left = torch.randint(0, 75, (2,), generator=generator).tolist()
        crop = photographs[:1, :, top : top + 150, left : left + 150]
        crops.append(F.interpolate(crop, (224, 224), mode="bilinear", antialias=True))
    images = torch.cat(crops)
    features, scores = head_features(model, images)
    target = int(scores.mean(dim=0).argmax())
    facets = find_facets(features, images, count=2)
    made = facet_images(model, facets, target, steps=60, pixels=space)
    with torch.no_grad():
        before = model(facets.means).softmax(dim=1)[:, target]
    assert (made.scores.softmax(dim=1)[:, target] > before.clamp(max=0.9)).all()
