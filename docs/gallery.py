"""Makes the pictures of the README: trains the quickstart, and looks into EfficientNet-Lite0.

    uv run docs/gallery.py        # about six minutes on two cores

What is drawn is exactly what the callbacks log; nothing is touched up.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from lit_viz.cli import LitVizCLI

ROOT = Path(__file__).parents[1]
IMAGES = Path(__file__).parent / "images"

# Name in docs/images: configuration, tag, and whether the first picture of the run is wanted rather than the last.
PICTURES = {
    "filters-before": ("quickstart", "filters/network.conv1", True),
    "filters": ("quickstart", "filters/network.conv1", False),
    "occlusion": ("analyze_efficientnet_lite0", "occlusion/probe", False),
    "embeddings": ("quickstart", "embeddings/network.head", False),
    "embeddings-map": ("quickstart", "embeddings/network.head/map", False),
    "patches": ("quickstart", "patches/network.conv3", False),
    "saliency": ("analyze_efficientnet_lite0", "saliency/probe", False),
}


def run(config: str, folder: Path) -> None:
    """Runs a configuration and has every callback write PNG files."""
    args = ["--config", str(ROOT / "configs" / f"{config}.yaml"), "--trainer.logger=false"]
    cli = LitVizCLI(args=args, run=False)
    for callback in cli.trainer.callbacks:
        if hasattr(callback, "folder"):
            callback.folder = folder / config
    (cli.trainer.fit if config == "quickstart" else cli.trainer.validate)(cli.model, datamodule=cli.datamodule)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for config in dict.fromkeys(config for config, _, _ in PICTURES.values()):
            run(config, folder)
        for name, (config, tag, first) in PICTURES.items():
            steps = sorted((folder / config / tag).glob("step_*.png"))
            Image.open(steps[0 if first else -1]).save(IMAGES / f"{name}.webp", quality=90, method=6)
            print(f"{name}.webp  {(IMAGES / f'{name}.webp').stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
