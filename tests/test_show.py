"""One line for a notebook: every kind of image and model, and that the numbers drawn are those of the functions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn
from torchvision.transforms import v2

import lit_viz
from lit_viz import draw, functional, showing
from lit_viz.errors import UsageError
from lit_viz.networks import Network, SmallCNN, load_network
from lit_viz.pixels import PixelSpace

SMALL: dict[str, Any] = {"size": 64, "mean": 0.5, "std": 0.25}
ADDED = ["saliency", "integrated_gradients", "guided_grad_cam", "rollout"]


@pytest.fixture
def net(network: Callable[[str], nn.Module]) -> nn.Module:
    return network("resnet18")


@pytest.fixture
def cat() -> np.ndarray:
    return data.chelsea()


def boards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """The tiles and the texts of every sheet that is laid out."""
    seen: list[tuple[Any, dict[str, Any]]] = []
    original = draw.board
    monkeypatch.setattr(draw, "board", lambda tiles, **k: seen.append((tiles, k)) or original(tiles, **k))
    return seen


def same(a: showing.Sheet, b: showing.Sheet) -> None:
    assert list(a.pictures) == list(b.pictures) and a.left_out == b.left_out
    for name in a.pictures:
        np.testing.assert_array_equal(a.pictures[name], b.pictures[name], err_msg=name)
    assert a.predictions == b.predictions


def test_every_kind_of_image_gives_the_same_sheet(net: nn.Module, cat: np.ndarray, tmp_path: Path) -> None:
    picture = Image.fromarray(cat)
    picture.save(tmp_path / "cat.png")
    first = lit_viz.show(net, tmp_path / "cat.png", **SMALL)
    assert set(first.pictures) == set(showing.DEFAULT) and not first.left_out
    assert first.name == "cat.png" and max(first.pixels.shape) <= 1400
    same(lit_viz.show(net, cat, **SMALL), first)
    numbers, few = torch.from_numpy(cat).permute(2, 0, 1), {"pictures": ["grad_cam", "prediction", "saliency"], **SMALL}
    first = lit_viz.show(net, cat, **few)
    for image in (str(tmp_path / "cat.png"), picture, cat / 255, numbers):
        same(lit_viz.show(net, image, **few), first)
    for images in ([picture, cat], (str(tmp_path / "cat.png"), numbers), torch.stack([numbers, numbers])):
        sheets = lit_viz.show(net, images, **few)
        assert len(sheets) == 2
        for sheet in sheets:
            same(sheet, first)


def test_network_input_is_taken_as_it_is(net: nn.Module, cat: np.ndarray) -> None:
    steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
    small = v2.Compose([v2.Resize(64), v2.CenterCrop(64)])(Image.fromarray(cat))
    image = v2.Compose(steps)(small)
    taken = lit_viz.show(net, image, mean=0.5, std=0.25)
    np.testing.assert_array_equal(taken.pictures["prediction"], np.asarray(small))
    with torch.no_grad():
        p = net(image[None])[0].softmax(0)
    assert [x for _, x in taken.predictions] == pytest.approx(p.topk(5).values.tolist(), abs=1e-5)
    assert [n for n, _ in taken.predictions] == [f"class {i}" for i in p.topk(5).indices.tolist()]
    prepared = lit_viz.show(net, cat, **SMALL)
    for name, picture in prepared.pictures.items():
        assert np.abs(picture.astype(float) - taken.pictures[name]).mean() < 2, name
    wide = lit_viz.show(net, torch.randn(3, 64, 96), pictures=["prediction", "grad_cam", "occlusion"])
    assert {p.shape for p in wide.pictures.values()} == {(64, 96, 3)}


def test_what_is_drawn_are_the_numbers_of_the_functions(
    net: nn.Module, cat: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    heats, colored, signed = [], [], []
    for drawing, into in (("overlay", heats), ("colorize", colored), ("around_grey", signed)):
        original = getattr(draw, drawing)

        def record(*args: Any, original: Any = original, into: Any = into, **kwargs: Any) -> Any:
            into.append(args[-1] if into is heats else args[0])
            return original(*args, **kwargs)

        monkeypatch.setattr(draw, drawing, record)
    image = torch.from_numpy(np.array(v2.CenterCrop(64)(v2.Resize(64)(Image.fromarray(cat))))).permute(2, 0, 1)
    image = (image[None] / 255 - 0.5) / 0.25
    lit_viz.show(net, cat, 3, **SMALL)
    cam, occluded = heats
    torch.testing.assert_close(cam, functional.grad_cam(net, image, 3, layer="layer4")[0])
    # The patch is a quarter of the image; its positions reach from one border to the other, nine of them at most.
    grey = functional.occlusion(net, image, 3, window=16, stride=6, baseline=0.0)
    assert grey.shape == (1, 9, 9)
    torch.testing.assert_close(occluded, functional.on_image(grey, (64, 64), 16, 6)[0])
    smooth = functional.smooth_grad(net, image, 3).abs().amax(dim=1)[0]
    torch.testing.assert_close(colored[0], smooth)
    torch.testing.assert_close(signed[0], functional.guided_backprop(net, image, 3))
    # Nine maps of an early layer, then nine of the last one: those whose activations times gradients add most.
    assert len(colored) == 1 + 9 + 9
    late, gradients = functional.activations_and_gradients(net, image, 3, layer="layer4")
    order = (late * gradients).sum(dim=(2, 3))[0].argsort(descending=True)[:9]
    torch.testing.assert_close(torch.stack(colored[10:]), late[0, order])
    assert colored[1].shape == (32, 32)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_model_is_left_as_it_was_found(net: nn.Module, cat: np.ndarray, mode: Any) -> None:
    net.train()
    net.layer1.eval()
    net.fc.requires_grad_(False)
    state, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    rng = torch.random.get_rng_state()
    with mode():
        sheet = lit_viz.show(net, cat, pictures=[*showing.DEFAULT, *ADDED], **SMALL)
    assert set(sheet.left_out) == {"rollout"}
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None and p.requires_grad is (not n.startswith("fc")) for n, p in net.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())
    assert torch.equal(torch.random.get_rng_state(), rng)


def test_twice_is_the_same(network: Callable[[str], nn.Module], cat: np.ndarray) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network("resnet18")

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + 0.1 * torch.randn(len(x), 20)

    noisy = Noisy()
    first = lit_viz.show(noisy, cat, **SMALL)
    torch.rand(5)
    second = lit_viz.show(noisy, cat, **SMALL)
    same(first, second)
    np.testing.assert_array_equal(first.pixels, second.pixels)


def test_what_has_no_meaning_is_said(network: Callable[[str], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = boards(monkeypatch)
    sheet = lit_viz.show(network("vit"), data.rocket(), pictures=[*showing.DEFAULT, "rollout"])
    assert list(sheet.left_out) == ["guided_backprop"] and "none between pixels" in sheet.left_out["guided_backprop"]
    assert sheet.pictures["prediction"].shape == (64, 64, 3)  # the network tells its size
    (tile,) = [t for t in seen[0][0] if t.image is None]
    assert tile.heading == "Guided backprop" and tile.note.startswith("Guided backprop and deconvnet change")
    assert set(sheet.pictures) == {*showing.DEFAULT, "rollout"} - {"guided_backprop"}


def test_a_picture_that_fails_is_left_out(net: nn.Module, cat: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "smooth_grad", lambda *_, **__: 1 / 0)
    with pytest.warns(UserWarning, match="smooth_grad failed"):
        sheet = lit_viz.show(net, cat, pictures=["prediction", "smooth_grad", "saliency"], **SMALL)
    assert sheet.left_out == {"smooth_grad": "ZeroDivisionError: division by zero"}
    assert list(sheet.pictures) == ["prediction", "saliency"]


def test_a_flat_network_is_told(cat: np.ndarray) -> None:
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.zeros_(flat[2].weight)
    nn.init.ones_(flat[2].bias)  # evidence of the same size everywhere
    sheet = lit_viz.show(flat, cat, **SMALL)
    assert list(sheet.left_out) == ["smooth_grad", "guided_backprop"]
    assert "no gradient reaches the pixels" in sheet.left_out["smooth_grad"]


def test_scores_that_are_no_numbers(net: nn.Module, cat: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = boards(monkeypatch)
    with torch.no_grad():
        net.fc.bias[2] = torch.nan
    sheet = lit_viz.show(net, cat, **SMALL)
    assert list(sheet.pictures) == ["prediction"] and seen[0][1]["title"] == "no prediction"
    assert all("NaN" in why for why in sheet.left_out.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(cat: np.ndarray, dtype: torch.dtype) -> None:
    """Of a small network: processors are slow at convolutions in 16 bits."""
    torch.manual_seed(0)
    net = SmallCNN(20, width=8).eval()
    net.head.weight.data *= 80  # so that classes differ
    told = {"pictures": [*showing.DEFAULT, *ADDED], **SMALL, "size": 32}
    first = lit_viz.show(net, cat, **told)
    sheet = lit_viz.show(net.to(dtype), cat, first.predictions[0][0][6:], **told)
    assert set(sheet.left_out) == {"rollout"} and sheet.left_out == first.left_out
    assert first.predictions[0][1] > 0.3
    assert dict(sheet.predictions)[first.predictions[0][0]] == pytest.approx(first.predictions[0][1], abs=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_device_of_the_model(net: nn.Module, cat: np.ndarray) -> None:
    first = lit_viz.show(net, cat, pictures=[*showing.DEFAULT, *ADDED], **SMALL)
    sheet = lit_viz.show(net.cuda(), cat, pictures=[*showing.DEFAULT, *ADDED], **SMALL)
    assert sheet.left_out == first.left_out and next(net.parameters()).is_cuda
    for name, picture in first.pictures.items():
        assert np.abs(picture.astype(float) - sheet.pictures[name]).mean() < 8, name


class Dict(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x)}


def test_other_outputs_by_score(net: nn.Module, cat: np.ndarray) -> None:
    plain = lit_viz.show(net, cat, **SMALL)
    same(lit_viz.show(Dict(net), cat, score=lambda out: out["logits"], **SMALL), plain)
    with pytest.raises(UsageError, match=r"dict with keys .'logits'.*score="):
        lit_viz.show(Dict(net), cat, **SMALL)


def test_one_logit_counts_as_two_classes(cat: np.ndarray) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    sheet = lit_viz.show(net, cat, class_names=["no", "yes"], pictures=["prediction", "grad_cam"], **SMALL)
    image = torch.from_numpy(sheet.pictures["prediction"]).permute(2, 0, 1)[None] / 255
    p = net((image - 0.5) / 0.25).sigmoid().item()
    assert dict(sheet.predictions)["yes"] == pytest.approx(p, abs=1e-5)


def test_classes_by_index_name_or_word(net: nn.Module, cat: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = boards(monkeypatch)
    net.class_names = [f"kind {chr(97 + i)}" for i in range(20)]
    for target in (7, "kind h", "h"):
        lit_viz.show(net, cat, target, pictures=["prediction"], **SMALL)
    for _, texts in seen:
        bars = texts["bars"]
        assert texts["title"].startswith("kind h  p = ") and bars.names[bars.asked] == "kind h"
        assert f"(predicted: {bars.names[0]} {bars.values[0]:.2f})" in texts["title"] and bars.asked > 0
    with pytest.raises(UsageError, match="no class 'zebra'"):
        lit_viz.show(net, cat, "zebra", **SMALL)
    with pytest.raises(UsageError, match="out of range"):
        lit_viz.show(net, cat, 20, **SMALL)
    with pytest.raises(UsageError, match="3 class_names given for 20 classes"):
        lit_viz.show(net, cat, class_names=["a", "b", "c"], **SMALL)


def test_normalisation_is_given_known_or_guessed_and_said(
    net: nn.Module, cat: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = boards(monkeypatch)
    inputs: list[Tensor] = []
    net.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().clone()))
    colors = torch.from_numpy(np.array(v2.CenterCrop(64)(v2.Resize(64)(Image.fromarray(cat))))).permute(2, 0, 1) / 255

    def said(model: Any, m: float | list[float], s: float | list[float], **given: Any) -> str:
        inputs.clear()
        lit_viz.show(model, cat, size=64, pictures=["prediction"], **given)
        expected = (colors - torch.tensor(m).reshape(-1, 1, 1)) / torch.tensor(s).reshape(-1, 1, 1)
        torch.testing.assert_close(inputs[0][0], expected)
        return seen[-1][1]["subtitle"]

    assert "guessed: ImageNet's" in said(net, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    known = Network(net, pixel_space=PixelSpace(0.1, 0.2, "what it was trained with"))
    assert "mean 0.1, std 0.2 (what it was trained with)" in said(known, 0.1, 0.2)
    assert "(given)" in said(known, 0.4, 0.3, mean=0.4, std=0.3)
    net.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.1, 0.1, 0.1), "input_size": (3, 96, 96)}
    assert "mean 0.5, std 0.1" in said(net, 0.5, 0.1)
    assert lit_viz.show(net, cat, pictures=["prediction"]).pictures["prediction"].shape == (96, 96, 3)
    net.pixel_space = PixelSpace(0.2, 0.3)
    wrapped = nn.Sequential(net)
    assert "mean 0.2, std 0.3" in said(wrapped, 0.2, 0.3)
    wrapped.register_buffer("mean", torch.zeros(3))
    wrapped.register_buffer("std", torch.ones(3))
    assert "mean 0.2" in said(wrapped, 0.2, 0.3)
    del net.pixel_space
    assert "normalises by itself" in said(wrapped, 0.0, 1.0)
    with pytest.raises(UsageError, match="belong together"):
        lit_viz.show(net, cat, mean=0.5)
    with pytest.raises(UsageError, match="divide"):
        lit_viz.show(net, cat, mean=127, std=128)


def test_files_of_every_kind(net: nn.Module, cat: np.ndarray, tmp_path: Path) -> None:
    picture, only = Image.fromarray(cat), {"pictures": ["prediction"], **SMALL}

    def shown(name: str, kind: Image.Image, **options: Any) -> np.ndarray:
        kind.save(tmp_path / name, **options)
        return lit_viz.show(net, tmp_path / name, **only).pictures["prediction"].astype(float)

    plain = shown("plain.png", picture)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    np.testing.assert_array_equal(shown("turned.png", picture.transpose(Image.Transpose.ROTATE_90), exif=exif), plain)
    np.testing.assert_array_equal(shown("alpha.png", picture.convert("RGBA")), plain)
    grey = shown("grey.png", picture.convert("L"))
    sixteen = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    np.testing.assert_allclose(shown("sixteen.png", sixteen), grey, atol=1)
    assert np.abs(shown("palette.gif", picture.quantize(256)) - plain).mean() < 8
    assert np.abs(shown("cmyk.jpg", picture.convert("CMYK"), quality=95) - plain).mean() < 8


def test_grey_networks_get_grey_images(cat: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    seen = boards(monkeypatch)
    grey = lit_viz.show(net, cat, size=28, pictures=["prediction", "saliency"]).pictures["prediction"]
    assert grey.shape == (28, 28, 3) and (grey == grey[..., :1]).all()
    assert "guessed: colours from 0 to 1" in seen[0][1]["subtitle"]


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("nowhere.png", "no image file nowhere.png"),
        (np.zeros((3, 8, 8), np.uint8), "comes as a tensor"),
        (np.full((8, 8, 3), 200.0), "colours from 0 to 1"),
        (np.zeros((8, 8, 3), np.int64), "holds bytes"),
        (torch.zeros(8, 8), r"\(C, H, W\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "got .* torch.int64"),
        (torch.zeros(1, 64, 64), "does not run on an image of shape"),
        (7, "not a int"),
    ],
)
def test_images_that_are_none(net: nn.Module, image: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        lit_viz.show(net, image)


def test_a_broken_file_is_named(net: nn.Module, cat: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(cat).save(tmp_path / "cat.png")
    for name, content in (("cut.png", (tmp_path / "cat.png").read_bytes()[:4000]), ("text.jpg", b"no picture")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=f"broken image file .*{name}"):
            lit_viz.show(net, tmp_path / name)


def test_a_slow_network_costs_few_passes(net: nn.Module, cat: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    images = 0

    def count(_: nn.Module, args: Any) -> None:
        nonlocal images
        images += len(args[0])

    net.register_forward_pre_hook(count)
    monkeypatch.setattr(showing, "_cost", lambda *_: 3e10)
    lit_viz.show(net, cat, pictures=["occlusion"], **SMALL)
    assert images <= 1 + 1 + 16
    monkeypatch.setattr(showing, "_cost", lambda *_: 1e12)
    sheet = lit_viz.show(net, cat, **SMALL)
    assert list(sheet.left_out) == ["occlusion"] and "pictures=['occlusion']" in sheet.left_out["occlusion"]
    assert "occlusion" in lit_viz.show(net, cat, pictures=["occlusion"], **SMALL).pictures


def test_the_cost_is_counted() -> None:
    assert showing._cost(nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 10, 10)) == 2 * 8 * 8 * 8 * 27


def test_saved_whole_or_not_at_all(net: nn.Module, cat: np.ndarray, tmp_path: Path) -> None:
    sheet = lit_viz.show(net, cat, pictures=["prediction"], **SMALL)
    path = sheet.save(tmp_path / "new" / "cat.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), sheet.pixels)
    assert sheet._repr_png_()[:4] == b"\x89PNG" and "class" in repr(sheet)
    with pytest.raises(UsageError, match=r"call it cat\.png"):
        sheet.save(tmp_path / "cat.txt")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["cat.png"]
    sheets = lit_viz.show(net, [cat, cat], pictures=["prediction"], **SMALL)
    assert [p.name for p in sheets.save(tmp_path / "all")] == ["image-0.png", "image-1.png"]
    assert sheets._repr_html_().count("<img") == 2


def test_names_of_pictures_are_checked(net: nn.Module, cat: np.ndarray) -> None:
    with pytest.raises(UsageError, match="no picture 'gradcam'; did you mean 'grad_cam'"):
        lit_viz.show(net, cat, pictures=["gradcam"])
    with pytest.raises(UsageError, match="not a function"):
        lit_viz.show(lambda x: x, cat)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_trained_network_by_name(cat: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = boards(monkeypatch)
    sheet = lit_viz.show("efficientnet_lite0", cat)
    tiles, texts = seen[0]
    assert not sheet.left_out and [t.heading for t in tiles][:2] == ["Grad-CAM", "Occlusion"]
    best, p = sheet.predictions[0]
    assert "cat" in best and texts["title"] == f"{best}  p = {p:.2f}"
    assert texts["subtitle"].startswith("efficientnet_lite0, weights DEFAULT · 224 × 224 px · normalised with")
    assert load_network("efficientnet_lite0", weights="DEFAULT").image_size == 224
