"""DeepDream: what it must keep, what it must raise, and tiles against the whole image."""

from __future__ import annotations

import copy
import signal
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError
from lit_viz.functional import (
    Channel,
    ClassScore,
    Energy,
    GuideMatch,
    Unit,
    activations,
    deep_dream,
    dream_layer,
    dream_zoom,
    receptive_field,
)
from lit_viz.functional.dream import enlarged
from lit_viz.functional.synthesis import reading
from lit_viz.functional.synthesis.reading import Reading
from lit_viz.functional.tiles import Tiled, Tiling, spans, tiling
from lit_viz.pixels import PixelSpace, guess_pixel_space

Network = Callable[[str], nn.Module]
LITE0 = PixelSpace((127 / 255,) * 3, (128 / 255,) * 3)
PLAIN = PixelSpace((0.5,), (0.25,))


def small(seed: int = 0) -> nn.Module:
    """Strides, pooling and padding: all that must fall on the same places in tiles."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        ).eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp(-1.5, 1.5)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def whole_gradient(model: nn.Module, objective: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    pixels = images.clone().requires_grad_(True)
    with reading(model, objective.layers, needs_scores=objective.needs_scores) as read:
        value = objective(read(pixels, torch.arange(len(images))))
        (gradient,) = torch.autograd.grad(value.sum(), pixels)
    return value.detach(), gradient


def tiled_gradient(model: nn.Module, objective: Any, images: Tensor, cut: Tiling) -> tuple[Tensor, Tensor]:
    pixels = images.clone().requires_grad_(True)
    with reading(model, objective.layers, needs_scores=objective.needs_scores) as read:
        value = Tiled(read, objective, cut, 0, torch.float32)(pixels)[:, 0]
        (gradient,) = torch.autograd.grad(value.sum(), pixels)
    return value.detach(), gradient


# What must hold of dreams.


def test_no_steps_give_the_image_back_bit_for_bit() -> None:
    images = noise(2, 3, 33, 41)
    images[0, 0, 0, 0] = -0.0
    dream = deep_dream(small(), images, "4", steps=0)
    assert dream.images.numpy().tobytes() == images.numpy().tobytes()
    assert dream.images is not images and dream.octaves == () and dream.notes == ("", "")


@pytest.mark.parametrize(("name", "layer"), [("efficientnet_lite0", "_blocks.5"), ("resnet18", "layer2"), ("vit", "")])
def test_the_objective_rises_in_every_octave(name: str, layer: str, network: Network, photographs: Tensor) -> None:
    model = network(name)
    images, layer = photographs[:2, :, 40:136, 40:136], layer or "encoder.layers.encoder_layer_2"
    images = F.interpolate(images, 64) if name == "vit" else images
    octaves = 1 if name == "vit" else 3
    # Without shifts the history is that of the images themselves, and can be had otherwise.
    dream = deep_dream(model, images, layer, octaves=octaves, steps=4, jitter=0, pixels=LITE0)
    assert dream.notes == ("", "") and len(dream.octaves) == octaves
    for octave in dream.octaves:
        assert (octave.objective > octave.before).all()
        torch.testing.assert_close(octave.before, octave.history[0])
        expected = activations(model, octave.images, layer).square().flatten(1).mean(1) / 2
        torch.testing.assert_close(octave.objective, expected, rtol=1e-4, atol=1e-6)
    first = F.interpolate(images, size=dream.octaves[0].size, mode="bilinear", antialias=True)
    expected = activations(model, first, layer).square().flatten(1).mean(1) / 2
    torch.testing.assert_close(dream.octaves[0].history[0], expected, rtol=1e-4, atol=1e-6)
    shifted = deep_dream(model, images, layer, octaves=octaves, steps=4, pixels=LITE0)
    assert all((octave.objective > octave.before).all() for octave in shifted.octaves)


def test_one_step_is_the_formula() -> None:
    model, image = small(), noise(1, 3, 24, 32) * 0.2
    dream = deep_dream(model, image, "4", octaves=1, steps=1, lr=3.0, jitter=0, pixels=PLAIN)
    _, gradient = whole_gradient(model, Energy("4"), image)
    expected = image + 3 / 255 / 0.25 * gradient / gradient.abs().mean()
    torch.testing.assert_close(dream.images, expected.clamp(-2, 2))
    # On average a step moves a pixel by lr, of 255.
    assert float((PLAIN.to_color(dream.images) - PLAIN.to_color(image)).abs().mean() * 255) == pytest.approx(3, rel=0.1)


def test_shifts_are_undone() -> None:
    """A network that sees single pixels can't tell a shift, so that none may be left behind."""
    model, image = nn.Conv2d(3, 4, 1), noise(1, 3, 20, 24)
    net = nn.Sequential(model)
    still, moving = (deep_dream(net, image, "0", octaves=1, steps=5, jitter=j, pixels=PLAIN) for j in (0, 9))
    torch.testing.assert_close(still.images, moving.images)


def test_detail_is_carried_up() -> None:
    """By hand: what an octave added is enlarged and laid over the next size of the image."""
    model, image = small(), noise(1, 3, 28, 42) * 0.3
    settings: dict[str, Any] = {"steps": 2, "jitter": 0, "pixels": PLAIN}

    def sized(x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(x, size, mode="bilinear", antialias=True)

    dream = deep_dream(model, image, "4", octaves=2, **settings)
    low = sized(image, (20, 30))
    first = deep_dream(model, low, "4", octaves=1, **settings).images
    start = (image + sized(first - low, (28, 42))).clamp(-2, 2)
    torch.testing.assert_close(dream.images, deep_dream(model, start, "4", octaves=1, **settings).images)
    assert [octave.size for octave in dream.octaves] == [(20, 30), (28, 42)]
    torch.testing.assert_close(dream.octaves[0].images, first)


def test_colours_stay_valid() -> None:
    dream = deep_dream(small(), noise(2, 3, 24, 32), "4", steps=5, lr=200, pixels=PLAIN)
    assert dream.images.min() >= -2 and dream.images.max() <= 2
    assert (dream.images == 2).any() and all(o.images.abs().max() <= 2 for o in dream.octaves)


def test_the_same_seed_gives_the_same_bits_and_nothing_is_touched() -> None:
    model, images = small().train(), noise(2, 3, 40, 48)
    state, weights = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    with torch.inference_mode():
        first = deep_dream(model, images, "4", steps=3, seed=5)
    again = deep_dream(model, images, "4", steps=3, seed=5)
    assert first.images.numpy().tobytes() == again.images.numpy().tobytes()
    assert not torch.equal(deep_dream(model, images, "4", steps=3, seed=6).images, again.images)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_images_of_a_batch_do_not_influence_each_other() -> None:
    model, images = small(), noise(2, 3, 40, 48)
    both = deep_dream(model, images, "4", steps=3, tile=32)
    for i in range(2):
        one = deep_dream(model, images[i : i + 1], "4", steps=3, tile=32, pixels=guess_pixel_space(images))
        torch.testing.assert_close(one.images, both.images[i : i + 1], rtol=1e-4, atol=1e-5)


def test_channels_and_objectives() -> None:
    model, image = small(), noise(1, 3, 40, 48)
    settings: dict[str, Any] = {"steps": 5, "octaves": 1, "pixels": PLAIN}
    for objective in (Channel("4", 3), ClassScore(1)):
        (octave,) = deep_dream(model, image, objective, **settings).octaves
        assert octave.objective > octave.before
    (octave,) = deep_dream(model, image, "4", channels=[2, 5], **settings).octaves
    found = activations(model, octave.images, "4")
    torch.testing.assert_close(octave.objective[0], found[0, [2, 5]].square().mean() / 2)


def test_a_guide_is_matched_place_by_place() -> None:
    maps, guide = noise(2, 5, 3, 4), noise(5, 7, seed=3)
    seen = Reading(torch.zeros(2, 3, 3, 4), torch.arange(2), {"a": [maps.clone().requires_grad_(True)]})
    values = GuideMatch("a", guide)(seen)
    expected = []
    for one in maps:  # a loop over places
        best = [max(float(one[:, i, j] @ guide[:, k]) for k in range(7)) for i in range(3) for j in range(4)]
        expected.append(np.mean(best))
    np.testing.assert_allclose(values.detach().numpy(), expected, rtol=1e-5)
    (gradient,) = torch.autograd.grad(values.sum(), seen.calls["a"][0])
    # The notebook's: dst.diff = y[:, A.argmax(1)].
    best = (maps[0].flatten(1).T @ guide).argmax(1)
    torch.testing.assert_close(gradient[0].flatten(1) * 12, guide[:, best])
    only = GuideMatch("a", guide, channels=[1, 3])(seen)
    torch.testing.assert_close(only, GuideMatch("a", guide[[1, 3]])(_cut(seen, [1, 3])))


def _cut(seen: Reading, channels: list[int]) -> Reading:
    return Reading(seen.images, seen.which, {"a": [seen.calls["a"][0][:, channels]]})


def test_a_dream_comes_to_match_its_guide() -> None:
    model, image, guide = small(), noise(1, 3, 40, 48), noise(3, 24, 24, seed=9)
    dream = deep_dream(model, image, "4", guide=guide, steps=5, octaves=2, pixels=PLAIN)
    features = activations(model, guide[None], "4")[0].flatten(1)
    found = activations(model, dream.images, "4")[0].flatten(1)
    assert all(o.objective > o.before for o in dream.octaves)
    torch.testing.assert_close(dream.octaves[-1].objective[0], (found.T @ features).amax(1).mean(), rtol=1e-4, atol=0)
    assert not torch.equal(dream.images, deep_dream(model, image, "4", steps=5, octaves=2, pixels=PLAIN).images)


# Tiles.


@pytest.mark.parametrize("one_size", [False, True])
@pytest.mark.parametrize(
    ("length", "tile", "halo", "align"), [(100, 32, 8, 4), (97, 40, 0, 8), (33, 32, 8, 8), (30, 32, 8, 4)]
)
def test_tiles_share_an_axis_out(length: int, tile: int, halo: int, align: int, one_size: bool) -> None:
    found = spans(length, tile, halo=halo, align=align, one_size=one_size)
    assert found[0].inner_start == 0 and found[-1].inner_stop == found[-1].stop == length
    assert all(a.inner_stop == b.inner_start for a, b in pairwise(found))
    for span in found:
        assert span.start <= span.inner_start < span.inner_stop <= span.stop <= length
        assert span.stop - span.start <= tile and (not one_size or length < tile or span.stop - span.start == tile)
        assert span.start % align == 0 or one_size
        assert span.start == 0 or span.inner_start - span.start >= halo
        assert span.stop == length or span.stop - span.inner_stop >= halo


@pytest.mark.parametrize("size", [(96, 96), (101, 83), (45, 130)])
@pytest.mark.parametrize("objective", [Energy("4"), Energy("2"), Channel("4", 3), Energy("4") - 0.3 * Channel("2", 1)])
def test_tiles_give_the_gradient_of_the_whole_image(size: tuple[int, int], objective: Any) -> None:
    model, images = small(), noise(1, 3, *size)
    cut = _tiling_of(model, objective, (3, min(48, size[0]), 48))
    assert cut.exact and cut.align[1] in (2, 4)
    (expected, gradient), (value, found) = (
        whole_gradient(model, objective, images),
        tiled_gradient(model, objective, images, cut),
    )
    same = size == (96, 96) or isinstance(objective, (Energy, Channel))
    torch.testing.assert_close(value, expected, rtol=1e-4 if same else 0.05, atol=1e-6)
    assert relative(found, gradient) < 1e-3 if same else 0.1


def _tiling_of(model: nn.Module, objective: Any, shape: tuple[int, int, int], halo: int | None = None) -> Tiling:
    fields = {layer: receptive_field(model, shape, layer).shape[1:] for layer in objective.layers}
    return tiling(model, shape, fields, halo=halo, one_size=False)


def test_without_halo_or_alignment_they_would_not() -> None:
    model, images = small(), noise(1, 3, 96, 96)
    _, gradient = whole_gradient(model, Energy("4"), images)
    bare = _tiling_of(model, Energy("4"), (3, 48, 48), halo=0)
    assert not bare.exact
    assert relative(tiled_gradient(model, Energy("4"), images, bare)[1], gradient) > 1e-2
    right = _tiling_of(model, Energy("4"), (3, 48, 48))
    shifted = Tiling(right.size, right.halo, (5, 5), False, right.strides, True)
    assert relative(tiled_gradient(model, Energy("4"), images, shifted)[1], gradient) > 1e-2


@pytest.mark.parametrize(
    ("name", "layer", "tile"), [("efficientnet_lite0", "_blocks.3", 112), ("resnet18", "layer1", 96)]
)
def test_real_networks_in_tiles(name: str, layer: str, tile: int, network: Network, photographs: Tensor) -> None:
    model, image = network(name), photographs[:1, :, :200, :213]
    cut = _tiling_of(model, Energy(layer), (3, tile, tile))
    assert cut.exact
    (expected, gradient), (value, found) = (
        whole_gradient(model, Energy(layer), image),
        tiled_gradient(model, Energy(layer), image, cut),
    )
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    assert relative(found, gradient) < 1e-3
    # … and so the dreams are the same; in double precision, since steps make much of what was rounded.
    settings: dict[str, Any] = {"octaves": 2, "steps": 2, "pixels": LITE0}
    model, image = copy.deepcopy(model).double(), image.double()
    whole, tiled = (deep_dream(model, image, layer, tile=t, **settings) for t in (None, tile))
    assert whole.tiling is None and tiled.tiling is not None and tiled.tiling.exact
    assert relative(tiled.images - image, whole.images - image) < 1e-4


def test_seams_do_not_show_where_the_halo_is_too_small(network: Network, photographs: Tensor) -> None:
    """A unit of block 10 sees 339 px, a tile of 112 px shows it 24 px of what is around."""
    model, image = network("efficientnet_lite0"), photographs[1:2]
    cut = _tiling_of(model, Energy("_blocks.10"), (3, 112, 112))
    assert not cut.exact and cut.halo == (16, 16)
    dream = deep_dream(model, image, "_blocks.10", octaves=1, steps=6, tile=112, pixels=LITE0)
    change = (dream.images - image)[0]
    rows, columns = cut.cut(224, 224)
    for axis, cuts in ((1, rows), (2, columns)):
        energy = change.diff(dim=axis).square().mean(dim=(0, 3 - axis))
        borders = [span.inner_stop for span in cuts[:-1]]
        assert borders
        across = torch.stack([energy[b - 1] for b in borders]).mean()
        inside = torch.cat([energy[b - 40 : b - 8] for b in borders] + [energy[b + 8 : b + 40] for b in borders])
        assert across <= 1.25 * inside.mean(), (axis, float(across), float(inside.mean()))


def _across_seams(dreamt: Tensor, images: Tensor, cut: Tiling) -> Tensor:
    """Energy of the change across the borders of tiles, of that inside: (2 n,), rows and columns of n images."""
    ratios = []
    for axis, cuts in zip((2, 3), cut.cut(images.shape[2], images.shape[3]), strict=True):
        energy = (dreamt - images).diff(dim=axis).square().mean(dim=(1, 5 - axis))
        borders = [span.inner_stop for span in cuts[:-1]]
        inside = torch.cat([energy[:, b + s : b + s + 32] for b in borders for s in (-40, 8)], dim=1)
        ratios.append(energy[:, [b - 1 for b in borders]].mean(dim=1) / inside.mean(dim=1))
    return torch.cat(ratios)


@pytest.mark.slow
def test_energy_across_seams_is_that_inside(network: Network, photographs: Tensor) -> None:
    """One line differs from others by a fifth whatever is cut: 24 of them tell what tiles do."""
    model, layer = network("efficientnet_lite0"), "_blocks.10"
    images = torch.cat([photographs, photographs.flip(2), photographs.flip(3), photographs.transpose(2, 3)])
    cut, bare = (_tiling_of(model, Energy(layer), (3, 112, 112), halo=halo) for halo in (None, 0))
    settings: dict[str, Any] = {"octaves": 1, "steps": 6, "pixels": LITE0}
    whole = deep_dream(model, images, layer, **settings).images
    tiled = deep_dream(model, images, layer, tile=112, **settings).images
    found, alone = (_across_seams(dreamt, images, cut) for dreamt in (tiled, whole))
    error = float(found.std() / len(found) ** 0.5)
    assert found.mean() <= 1 + 2 * error and abs(found.mean() - alone.mean()) < 3 * error
    # Tiles without halo and jitter leave a mark, which this would see.
    marked = deep_dream(model, images, layer, tile=112, halo=0, jitter=0, **settings).images
    assert abs(_across_seams(marked, images, bare).mean() - alone.mean()) > 6 * error


def test_a_network_of_one_size_dreams_in_tiles_of_it(network: Network) -> None:
    model, image = network("vit"), noise(1, 3, 90, 150) * 0.3  # takes 64×64
    layer = "encoder.layers.encoder_layer_2"
    with pytest.warns(
        UserWarning, match=r"at 55×33 px, 77×46 px, 107×64 px|at 55×33 px, 77×46 px: it takes images of 64×64"
    ):
        dream = deep_dream(model, image, layer, steps=4, pixels=PLAIN)
    assert dream.images.shape == image.shape and dream.tiling is not None
    assert dream.tiling.size == (64, 64) and dream.tiling.one_size and dream.tiling.align == (16, 16)
    assert all(o.objective > o.before for o in dream.octaves)
    assert (dream.images != image).float().mean() > 0.9
    with pytest.raises(UsageError, match="64×64 px alone, and the image has 40×90 px"):
        deep_dream(model, noise(1, 3, 90, 40), layer)


def test_a_head_of_one_size_does_not_matter() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 3)).eval()
    dream = deep_dream(model, noise(1, 1, 30, 50), "1", steps=3)
    assert len(dream.octaves) == 4 and dream.tiling is None
    with pytest.raises(UsageError, match="doesn't take images of 50×30 px"):
        deep_dream(model, noise(1, 1, 30, 50), ClassScore(1))
    # … where it does, the image is seen in tiles.
    tiled = deep_dream(model, noise(1, 1, 30, 50), ClassScore(1), steps=3, tile=8, jitter=0)
    assert tiled.tiling is not None and tiled.tiling.one_size
    assert all(o.objective > o.before for o in tiled.octaves)


def test_octaves_that_are_too_small_are_left_out_and_told() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 11), nn.ReLU(), nn.Conv2d(4, 4, 5))
    with pytest.warns(UserWarning, match=r"at 13×10 px: they are too small for it; left out"):
        dream = deep_dream(model, noise(1, 3, 20, 26), "2", octaves=2, octave_scale=2, steps=2)
    assert [octave.size for octave in dream.octaves] == [(20, 26)]
    with pytest.raises(UsageError, match="doesn't take images of 12×9 px"):
        deep_dream(model, noise(1, 3, 9, 12), "2")


def test_memory_of_one_tile() -> None:
    """The network never sees more than a tile."""
    seen: list[tuple[int, int]] = []
    model = small()
    model[0].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[-2:])))
    deep_dream(model, noise(1, 3, 150, 170), "4", steps=1, tile=48)
    assert max(h for h, _ in seen) <= 48 and max(w for _, w in seen) <= 48


# What goes wrong.


@pytest.mark.parametrize("tile", [None, 16])
def test_silence_is_diagnosed(tile: int | None) -> None:
    model = small()
    nn.init.constant_(model[0].bias, -100.0)
    with pytest.warns(UserWarning, match=r"dream: no gradient reaches the image") as caught:
        dream = deep_dream(model, noise(2, 3, 24, 32), "1", steps=2, tile=tile)
    assert len([w for w in caught if "no gradient" in str(w.message)]) == 1
    assert all("dead ReLUs" in note for note in dream.notes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"objective": "9"}, "no layer '9'"),
        ({"channels": [8]}, "channels 0 to 7"),
        ({"channels": []}, "empty list"),
        ({"objective": Energy("4"), "channels": [1]}, "go with the name of a layer"),
        ({"objective": 3}, "name of a layer or an objective"),
        ({"objective": Channel("4", [1, 2])}, "for 2 images"),
        ({"octaves": 0}, "octaves"),
        ({"octave_scale": 1.0}, "octave_scale"),
        ({"steps": -1}, "steps"),
        ({"lr": 0.0}, "lr"),
        ({"jitter": -1}, "jitter"),
        ({"tile": 0}, "tile"),
        ({"halo": -1}, "halo"),
        ({"tile": 16, "halo": 8}, "no room"),
        ({"tile": 16, "objective": Unit("4", 1)}, "single unit"),
        ({"guide": torch.zeros(2, 3, 8, 8)}, "a guide is one image"),
        ({"images": torch.zeros(3, 8, 8)}, "batch dimension"),
    ],
)
def test_bad_input(arguments: dict[str, Any], words: str) -> None:
    given = {"images": noise(1, 3, 24, 32), "objective": "4", **arguments}
    with pytest.raises(UsageError, match=words):
        deep_dream(small(), given.pop("images"), given.pop("objective"), **given)


@pytest.mark.parametrize("tile", [None, 24])
def test_stopped_by_hand_it_gives_what_there_is(tile: int | None) -> None:
    model, calls = small(), 0

    def stop(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            signal.raise_signal(signal.SIGINT)

    stop_at, ends = 10**9, []
    handle = model[0].register_forward_hook(stop)
    image, settings = noise(1, 3, 28, 36), {"steps": 3, "octaves": 2, "tile": tile}
    deep_dream(model, image, "4", on_octave=lambda _: ends.append(calls), **settings)
    # Right behind the first size, where nothing is being changed, and within the last one.
    for stop_at, octaves in ((ends[0] + 1, 1), (ends[1] - (ends[1] - ends[0]) // 3, 2)):  # noqa: B007
        calls = 0
        dream = deep_dream(model, image, "4", **settings)
        assert dream.interrupted and dream.images.shape == image.shape and len(dream.octaves) == octaves
        assert torch.isfinite(dream.images).all() and not torch.equal(dream.images, image)
        calls = 0
        with pytest.raises(KeyboardInterrupt):
            deep_dream(model, image, "4", interruptible=False, **settings)
    handle.remove()


# Around it.


def test_zoom() -> None:
    image = noise(1, 3, 40, 40) * 0.3
    torch.testing.assert_close(enlarged(image, 2.0).mean(), image[..., 10:30, 10:30].mean(), atol=0.03, rtol=0)
    ramp = torch.linspace(-1, 1, 40).expand(1, 3, 40, 40)
    torch.testing.assert_close(enlarged(ramp, 2.0)[..., 4:-4], ramp[..., 4:-4] / 2, atol=5e-3, rtol=0)
    frames = list(dream_zoom(small(), image, "4", frames=3, octaves=2, steps=2, pixels=PLAIN))
    assert [f.images.shape for f in frames] == [image.shape] * 3
    assert torch.equal(frames[0].images, deep_dream(small(), image, "4", octaves=2, steps=2, pixels=PLAIN).images)
    next_start = enlarged(frames[0].images, 1.05).clamp(-2, 2)
    assert torch.equal(frames[1].images, deep_dream(small(), next_start, "4", octaves=2, steps=2, pixels=PLAIN).images)
    for arguments, words in (({"frames": 0}, "frames"), ({"frames": 2, "zoom": 1.0}, "zoom is a factor")):
        with pytest.raises(UsageError, match=words):
            next(dream_zoom(small(), image, "4", **arguments))


def test_where_to_dream(network: Network) -> None:
    image = torch.zeros(1, 3, 64, 64)
    expected = {
        "efficientnet_lite0": "_blocks.10",
        "resnet18": "layer3.1",
        "vit": "encoder.layers.encoder_layer_2",
    }
    assert {name: dream_layer(network(name), image) for name in expected} == expected
    with pytest.raises(UsageError, match="has maps"):
        dream_layer(nn.Sequential(nn.Flatten(), nn.Linear(12288, 3)), image)


def test_other_types_and_progress() -> None:
    model, image = small().to(torch.bfloat16), noise(1, 3, 24, 32)
    told: list[tuple[int, int]] = []
    dream = deep_dream(model, image, "4", steps=3, octaves=2, on_octave=lambda octave: told.append(octave.size))
    assert dream.images.dtype == torch.float32 and told == [octave.size for octave in dream.octaves]
    assert all(o.objective > o.before for o in dream.octaves)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deep_dream(small(), image.double(), "4", steps=1, tile=16, progress=True)


@pytest.mark.slow
def test_1024_px_within_4_gib() -> None:
    """In a process of its own, whose peak is its own."""
    import subprocess
    import sys

    run = (
        "import resource, torch\n"
        "from lit_viz.networks import load_network\n"
        "from lit_viz.functional import deep_dream\n"
        "net = load_network('efficientnet_lite0', weights='DEFAULT')\n"
        "image = torch.rand(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0)) * 2 - 1\n"
        "deep_dream(net.module, image, '_blocks.10', octaves=2, steps=1, tile=512, pixels=net.pixel_space)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    found = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    assert int(found.stdout) / 2**20 < 4


def test_torchvision_networks_run() -> None:
    model = tv.mobilenet_v3_small(num_classes=5).eval()  # squeeze-and-excitation: each unit sees the whole image
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dream = deep_dream(model, noise(1, 3, 80, 100) * 0.3, "features.5", octaves=2, steps=2, tile=64, pixels=PLAIN)
    assert dream.tiling is not None and not dream.tiling.exact
    assert all(o.objective > o.before for o in dream.octaves)
