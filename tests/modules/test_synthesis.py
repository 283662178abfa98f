"""TextureSynthesis and StyleTransfer: what is made, logged, kept and resumed."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from skimage import data
from torch import Tensor

from lit_viz.cli import main
from lit_viz.errors import UsageError
from lit_viz.functional.style import gram_matrix, luminance
from lit_viz.modules import StyleTransfer, TextureSynthesis
from lit_viz.modules.synthesis import StyleSynthesis, resized
from lit_viz.networks.perceptual import PerceptualNetwork
from lit_viz.styles import picture_colors, style_picture
from tests.conformance.harness import Recorder, trainer

CONFIGS = Path(__file__).parents[2] / "configs"
NETWORK = "tests.conformance.harness.TinyNet"
LAYERS = ["conv1", "relu2"]
TINY: dict[str, Any] = {"network": NETWORK, "weights": None, "out": None}
TEXTURE: dict[str, Any] = TINY | {"source_size": 48, "layers": LAYERS, "steps": 6}
STYLE: dict[str, Any] = TINY | {
    "size": 48,
    "content_layers": "relu2",
    "style_layers": LAYERS,
    "styles": "waves",
    "steps": 6,
}
pytestmark = pytest.mark.filterwarnings("ignore:images are compared by a network that was not trained")
KINDS = [(TextureSynthesis, TEXTURE), (StyleTransfer, STYLE)]


def fit(module: StyleSynthesis, **arguments: Any) -> Recorder:
    recorder = Recorder()
    path = arguments.pop("ckpt_path", None)
    trainer(logger=recorder, **{"max_epochs": 1} | arguments).fit(module, ckpt_path=path)
    return recorder


def numbers(recorder: Recorder, tag: str) -> list[float]:
    return [value for name, _, value in recorder.metrics if name == tag]


def save(picture: np.ndarray, path: Path) -> str:
    Image.fromarray(picture).save(path)
    return str(path)


@pytest.mark.parametrize(("kind", "given"), KINDS)
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("values", ["fourier", "pixels"])
def test_the_loss_falls_and_everything_is_logged(kind: Any, given: Any, optimizer: str, values: str) -> None:
    module = kind(**given | {"optimizer": optimizer, "values": values, "steps": 12, "snapshot_every": 5})
    recorder = fit(module)
    totals = numbers(recorder, f"{module.tag}/total")
    assert len(totals) == 13 and totals[-1] < 0.8 * totals[0]
    if kind is TextureSynthesis:
        assert totals[0] == pytest.approx(1, rel=0.01)  # in units of the noise that it starts from
        assert {"texture/style/conv1", "texture/style/relu2"} <= {tag for tag, _, _ in recorder.metrics}
    else:
        # Content 0, style 1, strength 3; a spectrum with a sigmoid starts a little short of black and white.
        assert totals[0] == pytest.approx(3, rel=0.02 if values == "pixels" else 0.15)
        assert {"style/content/relu2", "style/style/conv1"} <= {tag for tag, _, _ in recorder.metrics}
    name = "tissue" if kind is TextureSynthesis else "astronaut"
    forming = [
        step for tag, step, _ in recorder.images if tag == f"{module.tag}/forming/{name}" or tag.endswith("/forming")
    ]
    assert forming == [5, 10]
    assert [step for tag, step, _ in recorder.images if tag == f"{module.tag}/{name}"] == [12]
    (image,) = module.images()
    assert image.shape[1] == 3 and image.min() >= 0 and image.max() <= 1


@pytest.mark.parametrize(("kind", "given"), KINDS)
def test_what_is_logged_is_so_by_hand(kind: Any, given: Any) -> None:
    module = kind(**given)
    recorder = fit(module)
    (image,) = module.images()
    network = PerceptualNetwork(LAYERS, NETWORK, None, pooling="average")
    if kind is TextureSynthesis:
        source, start = module.source, module.start(0, (48, 48))
    else:
        picture = picture_colors(style_picture("waves"))
        source, start = resized(picture, 48 / min(picture.shape[2:])), module.contents[0]
    grams = [{n: gram_matrix(f)[0] for n, f in network(x).items()} for x in (image, source, start)]
    for name in LAYERS:
        made, wanted, before = (gram[name] for gram in grams)
        expected = float((made - wanted).square().sum() / (before - wanted).square().sum())
        assert numbers(recorder, f"{module.tag}/style/{name}")[-1] == pytest.approx(expected, rel=1e-3)
    if kind is StyleTransfer:
        made, wanted = network(image)["relu2"], network(start)["relu2"]
        plain = wanted.mean(dim=(2, 3), keepdim=True)
        expected = float((made - wanted).square().mean() / (plain - wanted).square().mean())
        assert numbers(recorder, "style/content/relu2")[-1] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("kind", "given"), KINDS)
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_resumed_run_ends_in_the_same_bits(kind: Any, given: Any, optimizer: str, tmp_path: Path) -> None:
    def made(**changes: Any) -> StyleSynthesis:
        seed_everything(1, verbose=False)
        return kind(**given | {"optimizer": optimizer, "scales": 2} | changes)

    fit(whole := made())
    fit(again := made())
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer([keep], max_epochs=1, enable_checkpointing=True).fit(made())
    expected = whole.images()[0]
    assert torch.equal(again.images()[0], expected)
    for step in (2, 3, 4):  # in the first scale, between the two, in the second
        fit(rest := made(), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert int(rest.done) == 6 and torch.equal(rest.images()[0], expected), step
    held = torch.load(tmp_path / "step=6.ckpt", weights_only=True)
    assert held["optimizer_states"] == [] and not any("network" in key for key in held["state_dict"])


def test_coarse_scales_come_first() -> None:
    module = TextureSynthesis(**TEXTURE | {"scales": 3, "size": [64, 96], "steps": 7})
    assert module.sizes == [[(16, 24)], [(32, 48)], [(64, 96)]]
    seen: list[tuple[int, ...]] = []
    original = module.advance

    def advance() -> None:
        original()
        seen.append(tuple(module._colors(module._scale)[0].shape[2:]))

    module.advance = advance  # type: ignore[method-assign]
    fit(module)
    assert seen == [(16, 24)] * 3 + [(32, 48)] * 2 + [(64, 96)] * 2
    assert module.images()[0].shape == (1, 3, 64, 96)


def test_cumulative_layers_make_an_image_each(tmp_path: Path) -> None:
    module = TextureSynthesis(**TEXTURE | {"cumulative": True, "out": str(tmp_path)})
    fit(module)
    assert [list(of_one) for of_one in module.layers] == [LAYERS[:1], LAYERS]
    one, two = module.images()
    assert not torch.equal(one, two)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["tissue_texture_1_layers.png", "tissue_texture_2_layers.png"]
    written = np.array(Image.open(tmp_path / names[1]))
    np.testing.assert_array_equal(written, (255 * two[0]).round().byte().permute(1, 2, 0).numpy())


def test_an_image_for_each_strength_size_and_blend(tmp_path: Path) -> None:
    files = [save(data.chelsea()[:200, :300], tmp_path / "cat.png"), save(data.coffee(), tmp_path / "cup.png")]
    many = {"styles": ["waves", "tissue"], "blend": [[1, 0], [1, 3]], "strength": [0.0, 30.0], "style_size": [32, 64]}
    module = StyleTransfer(**STYLE | many | {"content": files, "steps": 3, "out": str(tmp_path / "made")})
    recorder = fit(module)
    assert len(module.wanted) == 16 and {"style/cat", "style/cup"} <= recorder.tags
    sheet = next(picture for tag, _, picture in recorder.images if tag == "style/cat")
    assert sheet.shape[1] < 2.5 * sheet.shape[0]  # eleven pictures: in rows
    assert module.wanted[2].blend == (1, 0) and module.wanted[4].blend == (0.25, 0.75)
    assert module.images()[0].shape == (1, 3, 32, 48)
    assert len(list((tmp_path / "made").glob("*.png"))) == 16
    unchanged = [i for i, one in enumerate(module.wanted) if one.strength == 0]
    for i in unchanged:  # no style at all: the photograph stays
        content = module.contents[module.wanted[i].content]
        assert (module.images()[i] - content).abs().mean() < 0.02
    assert (module.images()[2] - module.contents[0]).abs().mean() > 0.02


def test_colors_of_the_content_are_kept() -> None:
    stained = {"styles": "stained glass", "strength": 100.0, "steps": 10}
    made = {}
    for colors in ("style", "matched", "luminance"):
        module = StyleTransfer(**STYLE | stained | {"colors": colors})
        fit(module)
        made[colors] = module.images()[0]
    content = module.contents[0]
    hue = content - luminance(content)

    def off(image: Tensor) -> float:
        return float((image - luminance(image) - hue).square().mean())

    assert off(made["luminance"]) < 0.25 * off(made["style"])
    mean = content.mean(dim=(2, 3))
    assert (made["matched"].mean(dim=(2, 3)) - mean).norm() < (made["style"].mean(dim=(2, 3)) - mean).norm()


def test_each_style_has_its_part(tmp_path: Path) -> None:
    left = np.zeros((48, 48), np.uint8)
    left[:, :24] = 255
    masks = [save(left, tmp_path / "left.png"), save(255 - left, tmp_path / "right.png")]
    red, blue = (np.full((48, 48, 3), color, np.uint8) for color in ((220, 30, 30), (30, 30, 220)))
    styles = [save(red, tmp_path / "red.png"), save(blue, tmp_path / "blue.png")]
    module = StyleTransfer(**STYLE | {"styles": styles, "masks": masks, "strength": 300.0, "steps": 20})
    fit(module)
    image, content = module.images()[0][0], module.contents[0][0]
    change = [
        image[:, :, part].mean(dim=(1, 2)) - content[:, :, part].mean(dim=(1, 2))
        for part in (slice(0, 20), slice(28, 48))
    ]
    assert change[0][0] - change[0][2] > 0.1 and change[1][2] - change[1][0] > 0.1  # redder left, bluer right


def test_the_style_of_a_part_alone(tmp_path: Path) -> None:
    both = np.zeros((48, 96, 3), np.uint8)
    both[:, :48], both[:, 48:] = (220, 30, 30), (30, 30, 220)
    left = np.zeros((48, 96), np.uint8)
    left[:, :40] = 255
    style, mask = save(both, tmp_path / "both.png"), save(left, tmp_path / "left.png")
    module = StyleTransfer(**STYLE | {"styles": style, "style_masks": [mask], "strength": 300.0, "steps": 20})
    fit(module)
    change = (module.images()[0] - module.contents[0]).mean(dim=(0, 2, 3))
    assert change[0] - change[2] > 0.1  # red


def test_tiles_change_nothing() -> None:
    whole = StyleTransfer(**STYLE | {"size": 160, "optimizer": "adam", "steps": 3})
    tiled = StyleTransfer(**STYLE | {"size": 160, "optimizer": "adam", "steps": 3, "tile": 64})
    for module in (whole, tiled):
        fit(module)
    assert len(tiled._targets[0]._parts) > 1 and tiled._targets[0].exact
    torch.testing.assert_close(tiled.images()[0], whole.images()[0], atol=2e-3, rtol=0)


@pytest.mark.parametrize(("kind", "given"), KINDS)
def test_mixed_precision_gives_numbers(kind: Any, given: Any) -> None:
    module = kind(**given)
    recorder = fit(module, precision="bf16-mixed")
    totals = numbers(recorder, f"{module.tag}/total")
    assert torch.isfinite(torch.tensor(totals)).all() and totals[-1] < totals[0]
    assert all(torch.isfinite(p).all() for p in module.parameters())
    with pytest.raises(UsageError, match="in 32 bits"):
        trainer(max_epochs=1, precision="bf16-true").fit(kind(**given))


def test_a_file_that_can_not_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder would be")
    module = TextureSynthesis(**TEXTURE | {"out": str(tmp_path / "taken"), "steps": 1})
    with pytest.warns(UserWarning, match="could not be written"):
        fit(module)
    assert int(module.done) == 1


def test_layers_have_the_names_of_papers() -> None:
    module = TextureSynthesis(**TEXTURE | {"network": "vgg11", "layers": ["relu1_1", "relu2_1"], "steps": 2})
    assert numbers(fit(module), "texture/style/relu2_1")[-1] < 1


def test_one_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("lit_viz.modules.synthesis.rank_zero_info", told.append)
    usual = {"max_epochs": -1, "logger": False}
    begun = StyleTransfer(**STYLE | {"scales": 2, "out": str(tmp_path / "begun")})
    runner = trainer(**usual | {"max_steps": 4})
    runner.fit(begun)
    runner.save_checkpoint(tmp_path / "four.ckpt")
    assert "(4 of 6 steps)" in told[-1]
    rest, whole = (StyleTransfer(**STYLE | {"scales": 2, "out": str(tmp_path / name)}) for name in ("rest", "whole"))
    trainer(**usual).fit(rest, ckpt_path=tmp_path / "four.ckpt")
    last = trainer(**usual)
    last.fit(whole)
    assert int(rest.done) == 6 and torch.equal(rest.images()[0], whole.images()[0])
    assert [path.name for path in (tmp_path / "rest").iterdir()] == ["astronaut_waves.png"]
    # One that is finished writes its images again.
    last.save_checkpoint(tmp_path / "six.ckpt")
    again = StyleTransfer(**STYLE | {"scales": 2, "out": str(tmp_path / "again")})
    with pytest.warns(UserWarning, match="made its 6 steps already"):
        trainer(**usual).fit(again, ckpt_path=tmp_path / "six.ckpt")
    one, two = (np.array(Image.open(tmp_path / name / "astronaut_waves.png")) for name in ("whole", "again"))
    np.testing.assert_array_equal(one, two)


def test_who_stops_a_run_by_hand_has_the_image(tmp_path: Path) -> None:
    module, original = StyleTransfer(**STYLE | {"out": str(tmp_path)}), StyleTransfer.advance

    def advance() -> None:
        if int(module.done) == 3:
            raise KeyboardInterrupt
        original(module)

    module.advance = advance  # type: ignore[method-assign]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(module)
    written = np.array(Image.open(tmp_path / "astronaut_waves.png"))
    np.testing.assert_array_equal(written, (255 * module.images()[0][0]).round().byte().permute(1, 2, 0).numpy())


def test_a_picture_that_fails_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    module = TextureSynthesis(**TEXTURE | {"out": str(tmp_path)})
    monkeypatch.setattr("lit_viz.writer.Writer.picture", full)
    with pytest.warns(UserWarning, match="could not be drawn.*No space left"):
        fit(module)
    assert int(module.done) == 6 and (tmp_path / "tissue_texture.png").is_file()


def test_no_image_overwrites_another(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    files = [save(data.chelsea(), tmp_path / "a" / "same.png"), save(data.coffee(), tmp_path / "b" / "same.png")]
    several = {"content": files, "strength": [1.0, 1.00000000001, 1.0], "out": str(tmp_path / "made"), "steps": 1}
    recorder = fit(StyleTransfer(**STYLE | several))
    names = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert names == [
        "same-2_waves_strength_1-2.png",
        "same-2_waves_strength_1.png",
        "same_waves_strength_1-2.png",
        "same_waves_strength_1.png",
    ]
    assert {"style/same", "style/same-2"} <= recorder.tags


@pytest.mark.ddp
def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    script = f"""
import sys
from lightning.pytorch import Trainer
from lit_viz.modules import StyleTransfer, TextureSynthesis
given = dict(network="{NETWORK}", weights=None, scales=2, steps=4)
def make(out, **kwargs):
    modules = [
        StyleTransfer(out=out + "/style", content_layers="relu2", style_layers={LAYERS}, size=48, **given),
        TextureSynthesis(out=out + "/texture", layers={LAYERS}, source_size=48, **given),
    ]
    for module in modules:
        Trainer(max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            **kwargs).fit(module)
        assert int(module.done) == 4
if __name__ == "__main__":
    make(sys.argv[1], devices=2, strategy="ddp")
"""
    (tmp_path / "script.py").write_text(script)
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "two")],
        check=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        cwd=root,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runpy.run_path(str(tmp_path / "script.py"))["make"](str(tmp_path / "one"), devices=1)
    finally:
        torch.set_num_threads(threads)
    for kind in ("style", "texture"):
        one, two = (next((tmp_path / count / kind).glob("*.png")) for count in ("one", "two"))
        assert one.name == two.name and one.read_bytes() == two.read_bytes()
    assert len(list((tmp_path / "two").rglob("*.png"))) == 2


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (TextureSynthesis, {"layers": ["relu9_9"]}, "relu9_9"),
        (TextureSynthesis, {"source": "tisue"}, "tissue"),
        (TextureSynthesis, {"steps": 0}, "steps"),
        (TextureSynthesis, {"scales": 9}, "9 scales need"),
        (TextureSynthesis, {"size": 4}, "size"),
        (TextureSynthesis, {"tv": -1.0}, "tv is a weight"),
        (TextureSynthesis, {"lr": 0.0}, "lr must be positive"),
        (TextureSynthesis, {"values": "wavelet"}, "values"),
        (StyleTransfer, {"blend": [1.0, 2.0]}, "blend has a share"),
        (StyleTransfer, {"blend": [[0.0]]}, "blend has a share"),
        (StyleTransfer, {"strength": -1.0}, "strength"),
        (StyleTransfer, {"content": "nowhere.jpg"}, "nowhere.jpg"),
        (StyleTransfer, {"styles": []}, "at least one style"),
        (StyleTransfer, {"colors": "sepia"}, "colors"),
        (StyleTransfer, {"start": "style"}, "start"),
        (StyleTransfer, {"masks": ["a.png", "b.png"]}, "one picture for each style"),
        (StyleTransfer, {"size": 8}, "size"),
        (StyleTransfer, {"strength": []}, "strength is an empty list"),
        (StyleTransfer, {"style_size": []}, "style_size is an empty list"),
        (StyleTransfer, {"masks": "a.png", "blend": [1.0]}, "leave out blend"),
        (TextureSynthesis, {"size": [40]}, "height and width"),
    ],
)
def test_faults_are_told_at_once(kind: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        kind(**(TEXTURE if kind is TextureSynthesis else STYLE) | changes)


@pytest.mark.parametrize("config", ["texture", "style"])
def test_the_configurations_run(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.chdir(tmp_path)
    size = "--model.source_size=64" if config == "texture" else "--model.size=64"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(["fit", "--config", str(CONFIGS / f"{config}.yaml"), size, "--model.steps=4"])
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1
    told = capsys.readouterr().out
    assert "Pictures logged" in told and ("texture/tissue" in told or "style/astronaut" in told)


@pytest.mark.reproduction
@pytest.mark.parametrize("name", ["gravel", "brick"])
def test_textures_are_nearer_than_two_halves_of_a_photograph(name: str, tmp_path: Path) -> None:
    """By the network that they were made by, and by another one, which has seen none of it."""
    pytest.importorskip("efficientnet_lite_pytorch")
    layers = ["_blocks.0", "_blocks.2", "_blocks.4", "_blocks.7"]
    source = save(getattr(data, name)(), tmp_path / f"{name}.png")
    module = TextureSynthesis(
        source, network="efficientnet_lite0", layers=layers, scales=2, steps=300, out=None, snapshot_every=300
    )
    fit(module)
    made, wanted = module.images()[0], module.source
    noise = torch.rand(wanted.shape, generator=torch.Generator().manual_seed(5))
    pixels = torch.stack([made.mean(dim=1).flatten(), wanted.mean(dim=1).flatten()])
    assert torch.corrcoef(pixels)[0, 1].abs() < 0.1
    other = PerceptualNetwork(["relu", "layer1", "layer2"], "resnet18", None, seed=3)
    for network, least in ((module.network, 50), (other, 10)):

        def off(one: Tensor, two: Tensor, network: PerceptualNetwork = network) -> Tensor:
            grams = [[gram_matrix(f)[0] for f in network(x).values()] for x in (one, two)]
            return torch.stack([(a - b).square().sum() for a, b in zip(*grams, strict=True)])

        found = off(made, wanted)
        assert (found < off(noise, wanted) / least).all()
        if network is module.network:
            halves = off(wanted[..., :128], wanted[..., 128:]) + off(wanted[..., :128, :], wanted[..., 128:, :])
            assert (found < halves / 2).all()
