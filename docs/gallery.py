"""Makes the pictures of the README and of the lecture: trains the quickstart, and looks into EfficientNet-Lite0.

    uv run docs/gallery.py        # about ten minutes on two cores

What is drawn is exactly what the callbacks log; nothing is touched up.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image, ImageOps

import lit_viz
from lit_viz import draw
from lit_viz.callbacks import (
    ActivationMaximization,
    Activations,
    Faithfulness,
    FoolingImages,
    GradCAM,
    GuidedBackprop,
    MaxActivatingPatches,
    NearestNeighbors,
    ObjectExtraction,
    Saliency,
    VisualizationCallback,
)
from lit_viz.cli import LitVizCLI
from lit_viz.cli import main as run_command_line
from lit_viz.modules import StyleTransfer, TextureSynthesis

ROOT = Path(__file__).parents[1]
IMAGES = Path(__file__).parent / "images"

# Beside the callbacks of each configuration.
MORE: dict[str, list[Callback]] = {
    "quickstart": [NearestNeighbors(every_n_epochs=14, at_start=False)],
    "analyze_efficientnet_lite0": [
        Activations("_blocks.10._bn1", num_images=4),
        GradCAM(num_images=10),
        GuidedBackprop(num_images=6),
        Saliency(method="smooth_grad", num_images=10),
        ObjectExtraction(num_images=10),
        MaxActivatingPatches("_blocks.5._depthwise_conv", channels=[20, 80, 95, 159], k=7, guided=True, name="guided"),
        Faithfulness(of=["saliency", "smooth_grad", "grad_cam", "occlusion"], num_images=10),
        ActivationMaximization(classes=[9, 130, 107, 985, 12, 340, 963, 510], recipe="natural", steps=128),
        ActivationMaximization(layer="_blocks.5", channels=8, steps=128, name="ascent_units"),
        FoolingImages(num_images=4, norm="linf", bound=8 / 255, confidence=0.9),
    ],
}

# Name in docs/images: configuration, tag, and whether the first picture of the run is wanted rather than the last.
PICTURES = {
    "filters-before": ("quickstart", "filters/network.conv1", True),
    "filters": ("quickstart", "filters/network.conv1", False),
    "embeddings": ("quickstart", "embeddings/network.head", False),
    "embeddings-map": ("quickstart", "embeddings/network.head/map", False),
    "neighbors": ("quickstart", "neighbors/network.head", False),
    "patches": ("quickstart", "patches/network.conv3", False),
    "occlusion": ("analyze_efficientnet_lite0", "occlusion/probe", False),
    "saliency": ("analyze_efficientnet_lite0", "saliency/probe", False),
    "smooth-grad": ("analyze_efficientnet_lite0", "smooth_grad/probe", False),
    "objects": ("analyze_efficientnet_lite0", "objects/probe", False),
    "grad-cam": ("analyze_efficientnet_lite0", "grad_cam/network._bn1", False),
    "guided-backprop": ("analyze_efficientnet_lite0", "guided_backprop/probe", False),
    "patches-guided": ("analyze_efficientnet_lite0", "guided/network._blocks.5._depthwise_conv", False),
    "activations": ("analyze_efficientnet_lite0", "activations/network._blocks.10._bn1", False),
    "ascent": ("analyze_efficientnet_lite0", "ascent/classes", False),
    "ascent-units": ("analyze_efficientnet_lite0", "ascent_units/network._blocks.5", False),
    "fooling": ("analyze_efficientnet_lite0", "fooling/probe", False),
    "faithfulness": ("analyze_efficientnet_lite0", "faithfulness/curves", False),
}


def run(config: str, folder: Path) -> None:
    """Runs a configuration, with more callbacks, and has every one of them write PNG files."""
    args = ["--config", str(ROOT / "configs" / f"{config}.yaml"), "--trainer.logger=false"]
    cli = LitVizCLI(args=args, run=False)
    cli.trainer.callbacks += MORE[config]
    for callback in cli.trainer.callbacks:
        if isinstance(callback, VisualizationCallback):
            callback.folder = folder / config
    if config == "quickstart":
        cli.trainer.callbacks.append(ModelCheckpoint(folder, filename="quickstart"))
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    else:
        cli.trainer.validate(cli.model, datamodule=cli.datamodule)


def keep(picture: Image.Image, name: str) -> None:
    path = IMAGES / f"{name}.webp"
    picture.save(path, quality=90, method=6)
    print(f"{path.name}  {path.stat().st_size // 1024} KiB")


def facets(folder: Path) -> Path:
    """Kinds of cats: crops of a photograph."""
    from skimage import data

    generator = np.random.default_rng(0)
    (folder / "crops").mkdir()
    for i in range(60):
        top, left = generator.integers(0, (150, 300))
        Image.fromarray(data.chelsea()[top : top + 150, left : left + 150]).save(folder / "crops" / f"{i}.png")
    network = ["--model", "efficientnet_lite0", "--predicted", "--target", "Egyptian cat", "--facets", "3"]
    run_command_line(["facets", str(folder / "crops"), *network, "--steps", "200", "--out", str(folder / "facets")])
    return folder / "facets" / "facets.png"


def dream(folder: Path) -> Image.Image:
    """A cat, and what three layers make of it."""
    from skimage import data

    Image.fromarray(data.chelsea()).save(folder / "cat.png")
    made = [Image.open(folder / "cat.png")]
    for layer in ("_blocks.3", "_blocks.10"):
        out = folder / layer
        run_command_line(
            ["dream", str(folder / "cat.png"), "--model", "efficientnet_lite0", "--layer", layer, "--out", str(out)]
        )
        made.append(Image.open(next(out.glob("*.png"))))
    width, height = made[0].size
    row = Image.new("RGB", (3 * width + 16, height), "white")
    for i, picture in enumerate(made):
        row.paste(picture, (i * (width + 8), 0))
    return row


def inverted(folder: Path) -> Path:
    """A cat from what five layers say of it, shallow to deep."""
    layers = ["--layers", "_blocks.0,_blocks.2,_blocks.4,_blocks.8,_blocks.12", "--size", "112", "--steps", "12"]
    network = ["--model", "efficientnet_lite0", *layers]
    run_command_line(
        ["invert", str(folder / "cat.png"), *network, "--restarts", "2", "--out", str(folder / "inverted")]
    )
    return folder / "inverted" / "cat.png"


def decoder(folder: Path) -> Image.Image:
    """Digits by gradient ascent in the code of a decoder and in pixels, beside real ones; as the tests do it."""
    sys.path.insert(0, str(ROOT))
    from tests.digits import SPACE, classifier, digits
    from tests.functional.test_latent import CLASSES, digit_decoder, flat, made, nearest

    code, _ = digit_decoder(folder / "decoder.ckpt")
    pixels = {"Yosinski's recipe": made("yosinski-1")[0], "plain gradient": made("plain")[0]}
    rows = {"decoder": made("dgn-am", decoder=code)[0], **pixels}
    far = {name: nearest(images) for name, images in rows.items()}
    other = digits().held_out_labels != torch.tensor(CLASSES)[:, None]
    distances = torch.cdist(flat(rows["decoder"]), flat(digits().held_out)).masked_fill(other, torch.inf)
    rows["real"] = digits().held_out[distances.argmin(dim=1)]
    # The nearest to a real one is itself, so that the next is meant.
    far["real"] = torch.cdist(flat(rows["real"]), flat(digits().held_out)).kthvalue(2, dim=1).values
    cards = []
    for name, images in rows.items():
        with torch.no_grad():
            sure = classifier()(images).softmax(dim=1).diagonal()
        detail = f"p = {float(sure.mean()):.2f} · distance {float(far[name].mean()):.1f}"
        cards.append(draw.Card(list(draw.to_uint8(SPACE.to_color(images))), name, detail))
    picture = draw.sheet(
        cards,
        columns=[str(k) for k in CLASSES],
        title="Gradient ascent for ten digits",
        subtitle="In the code of a decoder and in pixels; last, of each class, the held-out digit nearest to the first "
        "row. Means over a row: the probability of the class, and the distance to the nearest (other) held-out digit.",
    )
    return Image.fromarray(picture)


def styled(folder: Path) -> Image.Image:
    """Photographs, and below what the network makes of them in one pass; some fifteen minutes."""
    log = {"class_path": "CSVLogger", "init_args": {"save_dir": str(folder), "name": "style", "version": 0}}
    run_command_line(
        ["fit", "--config", str(ROOT / "configs" / "fast_style.yaml"), f"--trainer.logger={json.dumps(log)}"]
    )
    return in_one_pass(next((folder / "style").rglob("*.ckpt")), folder)


def in_one_pass(checkpoint: Path, folder: Path) -> Image.Image:
    """Photographs above, in the style of a trained network below."""
    from skimage import data

    files = []
    for name in ("astronaut", "chelsea", "coffee"):
        files.append(folder / f"{name}.png")
        Image.fromarray(getattr(data, name)()).save(files[-1])
    made = lit_viz.stylize(checkpoint, files, folder / "stylized").written
    return in_rows([[np.array(Image.open(file)) for file in row] for row in (files, made)], 320)


def textures() -> Image.Image:
    """Three textures; more of each, pixel by pixel and by quilting; and where the pixels of the quilts come from."""
    from skimage import data

    from lit_viz.commands.texture import place_colors
    from lit_viz.functional import efros_leung, image_quilting

    side, gap = 192, 8
    # What to cut out, the window for growing by pixels, and the block for quilting.
    rows = ((data.gravel(), 7, 24), (data.brick(), 15, 32), (data.immunohistochemistry(), 7, 24))
    page = Image.new("RGB", (4 * (side + gap) - gap, len(rows) * (side + gap) - gap), "white")
    for i, (pixels, window, block) in enumerate(rows):
        small = Image.fromarray(pixels[150:342, 150:342]).resize((side // 2, side // 2))
        source = torch.from_numpy(np.array(small).reshape(side // 2, side // 2, -1)).permute(2, 0, 1)
        quilt = image_quilting(source, size=side, block=block)
        grown = efros_leung(source, size=side, window=window, copies=False)
        places = place_colors(quilt.positions.numpy(), (side // 2, side // 2))
        made = [one.image.expand(3, -1, -1).permute(1, 2, 0).numpy() for one in (grown, quilt)]
        for j, picture in enumerate([np.array(small.convert("RGB")), *made, places]):
            page.paste(Image.fromarray(picture), (j * (side + gap), i * (side + gap)))
    return page


LITE = {
    "network": "efficientnet_lite0",
    "style_layers": ["_blocks.0", "_blocks.2", "_blocks.4", "_blocks.7"],
    "content_layers": "_blocks.4",
    "scales": 2,
    "steps": 100,
    "out": None,
}
PAINTINGS = ["waves", "stained glass", "brush strokes", "tissue"]


def transferred(**given: Any) -> list[np.ndarray]:
    """Images that `StyleTransfer` makes, by EfficientNet-Lite0's ImageNet features, uint8 (H, W, 3) each."""
    module = StyleTransfer(**LITE | given)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(max_epochs=1, logger=False, **quiet).fit(module)
    return [draw.to_uint8(image)[0] for image in module.images()]


def in_rows(rows: list[list[np.ndarray]], side: int, gap: int = 8) -> Image.Image:
    """Pictures in rows, each brought to the height of the others and cut to a square."""
    page = Image.new("RGB", (max(map(len, rows)) * (side + gap) - gap, len(rows) * (side + gap) - gap), "white")
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            page.paste(ImageOps.fit(Image.fromarray(picture), (side, side)), (j * (side + gap), i * (side + gap)))
    return page


def style_row(folder: Path) -> Image.Image:
    """Two photographs in four styles, with the styles above; some five minutes."""
    from skimage import data

    from lit_viz.styles import style_picture

    photographs = {"astronaut": data.astronaut(), "cat": data.chelsea()[:, 60:360]}
    white = np.full((64, 64, 3), 255, np.uint8)
    rows = [[white, *(np.array(style_picture(name)) for name in PAINTINGS)]]
    each = [[float(i == j) for i in range(len(PAINTINGS))] for j in range(len(PAINTINGS))]
    for name, picture in photographs.items():
        Image.fromarray(picture).save(file := folder / f"{name}.png")
        made = transferred(content=str(file), styles=PAINTINGS, blend=each, strength=10.0, size=288)
        rows.append([picture, *made])
    return in_rows(rows, 192)


def style_figures() -> Image.Image:
    """The lecture's figures: style against content, the size of strokes, two styles; some five minutes."""
    given = {"size": 224, "styles": "waves", "strength": 10.0}
    blends = [[share, 1 - share] for share in (1.0, 0.75, 0.5, 0.25, 0.0)]
    return in_rows(
        [
            transferred(**given | {"strength": [0.3, 1.0, 3.0, 10.0, 100.0]}),
            transferred(**given | {"style_size": [64, 112, 192, 320, 512]}),
            transferred(**given | {"styles": ["waves", "tissue"], "blend": blends}),
        ],
        192,
    )


def texture_layers() -> Image.Image:
    """Textures of a source from its first layer alone, the first two, and so on; two minutes."""
    module = TextureSynthesis(
        "tissue", 256, network="efficientnet_lite0", layers=LITE["style_layers"], cumulative=True, scales=2, out=None
    )
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(max_epochs=1, logger=False, **quiet).fit(module)
    made = [draw.to_uint8(image)[0] for image in module.images()]
    return in_rows([[draw.to_uint8(module.source)[0], *made]], 224)


def main() -> None:
    from skimage import data

    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for config in MORE:
            seed_everything(1, verbose=False)
            run(config, folder)
        for name, (config, tag, first) in PICTURES.items():
            steps = sorted((folder / config / tag).glob("step_*.png"))
            keep(Image.open(steps[0 if first else -1]), name)
        sys.path.insert(0, str(Path(__file__).parent))
        from first_layers import main as first_layers

        first_layers(folder / "first.png", str(folder / "quickstart.ckpt"))
        keep(Image.open(folder / "first.png"), "first-layers")
        lit_viz.show("efficientnet_lite0", data.coffee()).save(folder / "show.png")
        keep(Image.open(folder / "show.png"), "show")
        keep(dream(folder), "dream")
        keep(Image.open(inverted(folder)), "inversion")
        keep(Image.open(facets(folder)), "facets")
        keep(textures(), "textures")
        keep(texture_layers(), "texture-layers")
        keep(style_row(folder), "styles")
        keep(style_figures(), "style-figures")
        keep(styled(folder), "style")
        keep(decoder(folder), "decoder")


if __name__ == "__main__":
    main()
