import pytest
import torch
from lightning import seed_everything

from lit_viz.data import UNLABELLED, Photographs
from lit_viz.data.photographs import SOURCES, recolor
from lit_viz.errors import UsageError


@pytest.fixture(scope="module")
def plain() -> Photographs:
    """Training patches in their own colours, so that their pixels can be found in the photographs."""
    data = Photographs(size=32, patches_per_epoch=200, val_patches=100, jitter=0.0, grey=0.0)
    data.setup("fit")
    return data


def test_facts_are_known_before_setup():
    data = Photographs()
    assert (data.num_classes, data.in_channels, len(data.mean), len(data.std)) == (10, 3, 3, 3)
    assert data.class_names == list(SOURCES)


def test_items_are_normalised_patches_of_every_photograph(plain: Photographs):
    for part, count in ((plain.train_set, 200), (plain.val_set, 100)):
        assert len(part) == count
        image, label = part[13]
        assert (image.shape, image.dtype, label) == ((3, 32, 32), torch.float32, 3)
        labels = [label for _, label in part.__getitems__(list(range(count)))]
        assert sorted(set(labels)) == list(range(10))
        assert max(labels.count(k) for k in range(10)) == count // 10
    images = torch.stack([image for image, _ in plain.val_set.__getitems__(list(range(100)))])
    colors = images * 0.25 + 0.5
    assert 0 <= colors.min() < 0.1 and 0.9 < colors.max() <= 1


def test_training_and_validation_share_no_pixel(monkeypatch: pytest.MonkeyPatch):
    """Photographs whose pixels say which column they are from: the two parts meet, and don't overlap."""
    columns = torch.arange(240, dtype=torch.uint8).expand(200, 240)
    picture = columns[..., None].expand(-1, -1, 3).contiguous().numpy()
    monkeypatch.setattr("lit_viz.data.photographs.SOURCES", dict.fromkeys(SOURCES, lambda: picture))
    data = Photographs(size=40, jitter=0.0, grey=0.0, mean=(0, 0, 0), std=(1, 1, 1))
    data.setup("fit")
    seen = {}
    for name, part in (("train", data.train_set), ("val", data.val_set)):
        images = torch.stack([image for image, _ in part.__getitems__(list(range(1000)))])
        seen[name] = set((images * 255).round().int().unique().tolist())
    assert seen["train"] == set(range(180))
    assert seen["val"] == set(range(180, 240))


def test_large_photographs_are_shrunk_after_the_cut(monkeypatch: pytest.MonkeyPatch):
    """A photograph black on the left and white on the right of the cut: no grey may leak across it."""
    picture = torch.zeros(800, 1600, 3, dtype=torch.uint8)
    picture[:, 1200:] = 255
    monkeypatch.setattr("lit_viz.data.photographs.SOURCES", dict.fromkeys(SOURCES, lambda: picture.numpy()))
    data = Photographs(jitter=0.0, grey=0.0, mean=(0, 0, 0), std=(1, 1, 1))
    data.setup("fit")
    assert all(p.shape == (3, 400, 600) and not p.any() for p in data.train_set.photographs)
    assert all(p.shape == (3, 400, 200) and (p == 255).all() for p in data.val_set.photographs)


def test_training_patches_change_and_validation_patches_stay(plain: Photographs):
    torch.manual_seed(0)
    first, second = plain.train_set[5][0], plain.train_set[5][0]
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(plain.train_set[5][0], first)
    state = torch.get_rng_state()
    assert torch.equal(plain.val_set[5][0], plain.val_set[5][0])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_seed_gives_the_same_epoch(num_workers: int):
    def epoch() -> list:
        seed_everything(7, verbose=False)
        data = Photographs(size=16, patches_per_epoch=64, batch_size=32, num_workers=num_workers)
        data.setup("fit")
        return list(data.train_dataloader())

    (a, labels_a), (b, labels_b) = (zip(*epoch(), strict=True) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a + labels_a, b + labels_b, strict=True))
    assert not torch.equal(a[0], a[1])


def test_whole_photographs_are_unlabelled_and_named():
    data = Photographs(whole=True, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert data.num_classes is None
    data.setup("validate")
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (10, 3, 224, 224)
    assert labels.tolist() == [UNLABELLED] * 10
    assert data.val_set.captions[2] == "coffee"


def test_recolor_keeps_greys_grey_and_changes_nothing_at_strength_zero():
    torch.manual_seed(0)
    colors = torch.rand(16, 3, 8, 8)
    torch.testing.assert_close(recolor(colors, 0.0, 0.0), colors)
    greys = colors.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    changed = recolor(greys, 0.8, 0.0)
    assert (changed - changed.mean(dim=1, keepdim=True)).abs().max() < 1e-5
    assert (changed - greys).abs().mean() > 0.05


def test_recolor_takes_colour_away_as_often_as_asked():
    torch.manual_seed(0)
    changed = recolor(torch.rand(2000, 3, 2, 2), 0.3, 0.25)
    grey = (changed.amax(dim=1) - changed.amin(dim=1)).flatten(1).amax(dim=1) < 1e-5
    assert 0.2 < grey.float().mean() < 0.3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"size": 200}, "don't fit"),
        ({"size": -1}, "size must be"),
        ({"val_patches": 3}, "val_patches"),
        ({"jitter": 1.5}, "jitter"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"std": (0.0, 1.0, 1.0)}, "std must be positive"),
    ],
)
def test_bad_arguments(arguments: dict, told: str):
    with pytest.raises(UsageError, match=told):
        Photographs(**arguments).setup("fit")


def test_loaders_ask_for_setup():
    with pytest.raises(UsageError, match="setup"):
        Photographs().train_dataloader()
