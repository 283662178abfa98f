"""`dream`: DeepDreams of photographs, and videos that fall into them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from lit_viz import draw, functional
from lit_viz.commands.base import Results, chosen_network, listed, output_paths, parser_for, short_path
from lit_viz.errors import UsageError, check_at_least
from lit_viz.networks import network_inputs
from lit_viz.pixels import PixelSpace
from lit_viz.showing import distinct_names
from lit_viz.video import FORMATS, check_video, write_video


def run(args: Sequence[str]) -> None:
    """Writes a dream of each image, its octaves to TensorBoard, and on request a video.

    Files that can't be read are named, and the rest goes on; the process then ends with status 1. Ctrl-C keeps what
    there is.
    """
    parser = _parser()
    given = parser.parse_args(args)
    if given.zoom is not None:
        check_at_least("zoom", given.zoom, 1, " frame")
    video = given.video or "gif"
    names = [Path(name).stem for name in distinct_names(given.images)]
    files = [f"{name}-dream{suffix}" for name in names for suffix in (".png", f".{video}")]
    output_paths(given, given.images, files)
    if given.zoom:
        check_video(f"dream.{video}")
    network, facts = chosen_network(given)
    if given.layer is None:
        side = facts.size or 224
        example = torch.zeros(1, facts.channels, side, side, dtype=facts.dtype, device=facts.device)
        given.layer = functional.dream_layer(network.module, example)
        print(f"layer {given.layer}; --layer names another one, `layers` lists them", flush=True)
    guide = None if given.guide is None else network_inputs(given.guide, replace(facts, crop=False))[0][0]
    own = replace(facts, size=given.size, crop=False)
    results, failed = Results(given.out), 0
    for file, name in zip(given.images, names, strict=True):
        try:
            image, space, _ = network_inputs(file, own)[0]
            dream = _Dreamer(given, network.module, name, space, guide, results)
            interrupted = dream.zoom(image, video) if given.zoom else dream.once(image)
        except UsageError as error:
            failed += 1
            print(f"lit_viz: {error}" if file in str(error) else f"lit_viz: {file}: {error}", file=sys.stderr)
            continue
        if interrupted:
            break
    results.close()
    if failed:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = parser_for("dream", "Amplifies what a layer sees in photographs (DeepDream).")
    parser.add_argument("images", nargs="+", help="image files; they keep their size and shape unless --size is given")
    parser.add_argument(
        "--layer", help="dotted name, as `layers` lists them; by default one at two thirds of the depth"
    )
    parser.add_argument("--channels", type=_channels, help="only these of the layer, with commas between")
    parser.add_argument("--guide", help="image file: dream of what is in it")
    parser.add_argument("--octaves", type=int, default=4, help="how many sizes (%(default)s)")
    parser.add_argument("--octave-scale", type=float, default=1.4, help="from each to the next (%(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="at each size (%(default)s)")
    parser.add_argument(
        "--lr", type=float, default=3.0, help="how far a step moves a pixel on average, of 255 (%(default)s)"
    )
    parser.add_argument("--jitter", type=int, default=32, help="random shifts of up to so many px (%(default)s)")
    parser.add_argument("--tile", type=int, help="side of tiles, px, for images that don't fit into memory")
    parser.add_argument("--seed", type=int, default=0, help="of the shifts (%(default)s)")
    parser.add_argument("--zoom", type=int, metavar="FRAMES", help="also a video of so many frames that falls into it")
    parser.add_argument("--zoom-factor", type=float, default=1.05, help="from one frame to the next (%(default)s)")
    parser.add_argument("--video", choices=FORMATS, help="its format; gif by default, mp4 with the extra `video`")
    parser.add_argument("--fps", type=float, default=10.0, help="its frames per second (%(default)s)")
    for action in parser._actions:
        if action.dest == "size":
            action.help = "shorter side that images are brought to, px; by default they keep theirs"
    return parser


def _channels(text: str) -> list[int]:
    try:
        return [int(word) for word in listed(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"channels are whole numbers with commas between, not {text!r}.") from None


class _Dreamer:
    """Dreams of one image, and where they go."""

    def __init__(
        self,
        given: argparse.Namespace,
        module: torch.nn.Module,
        name: str,
        space: PixelSpace,
        guide: Tensor | None,
        results: Results,
    ) -> None:
        self.given, self.module, self.name, self.space, self.results = given, module, name, space, results
        self.settings: dict[str, Any] = {
            "channels": given.channels,
            "octaves": given.octaves,
            "octave_scale": given.octave_scale,
            "steps": given.steps,
            "lr": given.lr,
            "jitter": given.jitter,
            "guide": guide,
            "tile": given.tile,
            "seed": given.seed,
            "pixels": space,
        }

    def once(self, image: Tensor) -> bool:
        """Whether it was stopped by hand."""
        dream = functional.deep_dream(
            self.module, image, self.given.layer, on_octave=self._octave(), progress=True, **self.settings
        )
        self._write(dream)
        return dream.interrupted

    def zoom(self, image: Tensor, video: str) -> bool:
        """Whether it was stopped by hand; the video then ends with that frame."""
        self.stopped = False
        path = self.results.folder / f"{self.name}-dream.{video}"
        write_video(path, self._frames(image), fps=self.given.fps)
        print(short_path(path), flush=True)
        return self.stopped

    def _frames(self, image: Tensor) -> Iterator[NDArray[np.uint8]]:
        given, settings = self.given, self.settings
        frames = functional.dream_zoom(
            self.module,
            image,
            given.layer,
            frames=given.zoom,
            zoom=given.zoom_factor,
            **settings,
        )
        for frame, dream in enumerate(tqdm(frames, total=given.zoom, desc=f"zoom into {self.name}", unit="frame")):
            if frame == 0:
                octave = self._octave()
                for one in dream.octaves:
                    octave(one)
                self._write(dream)
            picture = draw.to_uint8(self.space.to_color(dream.images))[0]
            self.results.writer.picture(f"dream/{self.name}/zoom", picture, frame)
            self.stopped = dream.interrupted
            yield picture

    def _octave(self) -> Any:
        """Writes octaves to TensorBoard, one step for each, as they are done."""
        done: list[functional.Octave] = []

        def write(octave: functional.Octave) -> None:
            picture = draw.to_uint8(self.space.to_color(octave.images))[0]
            self.results.writer.picture(f"dream/{self.name}/octaves", picture, len(done))
            for step, value in enumerate(octave.history[:, 0].tolist()):
                self.results.scalars({f"dream/{self.name}/objective": value}, len(done) * self.given.steps + step)
            done.append(octave)

        return write

    def _write(self, dream: functional.Dream) -> None:
        path = self.results.image(f"{self.name}-dream", dream.images[0], self.space, tag=f"dream/{self.name}")
        rises = [f"{float(o.history[0, 0]):.3g} → {float(o.objective[0]):.3g}" for o in dream.octaves]
        print(f"{short_path(path)}  objective {', '.join(rises)}", flush=True)
