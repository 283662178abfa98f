"""`stylize`: pictures, folders and videos in a style that a network was trained for; and that network as ONNX."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_viz.commands.base import short_path
from lit_viz.errors import UsageError
from lit_viz.networks.exporting import export_onnx
from lit_viz.networks.style_network import load_style_network
from lit_viz.networks.tiled_style import TILE
from lit_viz.stylizing import stylize
from lit_viz.video import FORMATS


def run(args: Sequence[str]) -> None:
    """Writes each picture and video in the style, and the network as ONNX where that is asked for.

    Files that can't be read are named, and the rest goes on; the process then ends with status 1. Ctrl-C keeps what
    is done by then.
    """
    given = _parser().parse_args(args)
    if not given.inputs and not given.onnx:
        raise UsageError("give files or folders to stylise, or --onnx for the network itself.")
    network = load_style_network(given.checkpoint)
    if given.onnx:
        if Path(given.onnx).suffix.lower() != ".onnx":
            raise UsageError(f"{given.onnx} has no ending of a network; call it {Path(given.onnx).stem}.onnx.")
        path = export_onnx(network.net, given.onnx)
        print(f"{short_path(path)}  styles: {', '.join(network.style_names)}", flush=True)
    if not given.inputs:
        return
    try:
        done = stylize(
            network,
            given.inputs,
            given.out,
            style=given.style,
            strength=given.strength,
            keep_colors=given.keep_colors,
            size=given.size,
            tile=given.tile,
            smooth=given.smooth,
            video=given.video,
            device=given.device,
            progress=sys.stderr.isatty(),
            on_file=_tell,
        )
    except KeyboardInterrupt:
        print("lit_viz: stopped by hand; what is listed above is done.", file=sys.stderr)
        sys.exit(130)
    if done.failed:
        print(f"lit_viz: {len(done.failed)} of {len(done.failed) + len(done.written)} failed:", file=sys.stderr)
        for _, fault in done.failed:
            print(f"  {fault}", file=sys.stderr)
        sys.exit(1)


def _tell(file: Path, result: Path | str) -> None:
    if isinstance(result, Path):
        print(short_path(result), flush=True)
    else:
        print(f"lit_viz: {result}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        f"{Path(sys.argv[0]).name} stylize",
        description="Stylises pictures, videos and folders of them with a network that FastStyleTransfer trained.",
    )
    parser.add_argument("inputs", nargs="*", help="pictures and videos of any size, and folders")
    parser.add_argument("--checkpoint", "--ckpt_path", required=True, help="of FastStyleTransfer, which tells all else")
    parser.add_argument("--style", help="name, number from 0, or a blend: waves:0.7,tissue:0.3; not where there is one")
    parser.add_argument("--strength", type=float, default=1.0, help="from 0, the picture as it is, to 1 (%(default)s)")
    parser.add_argument("--keep-colors", action="store_true", help="take over brightness alone")
    parser.add_argument("--size", type=int, help="longer side that pictures are brought to, px; by default their own")
    parser.add_argument(
        "--tile", type=int, default=TILE, help="side of tiles, px: smaller ones take less memory (%(default)s)"
    )
    parser.add_argument(
        "--smooth", type=float, default=0.0, help="against flicker of videos, from 0 to below 1 (%(default)s)"
    )
    parser.add_argument(
        "--video", choices=FORMATS, help="format of videos; by default GIF for GIF and MP4 for the rest (extra `video`)"
    )
    parser.add_argument("--onnx", metavar="FILE", help="also write the network as ONNX (extra `onnx`)")
    parser.add_argument("--out", default="pictures", help="folder for what is made (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 … (%(default)s)")
    return parser
