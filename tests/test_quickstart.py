"""What the README promises of the quickstart, run as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_viz import functional
from lit_viz.cli import LitVizCLI

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


@pytest.mark.reproduction
def test_the_quickstart_learns_filters_worth_looking_at(tmp_path: Path) -> None:
    quiet = ["--trainer.enable_progress_bar=false", f"--trainer.logger.init_args.save_dir={tmp_path}"]
    cli = LitVizCLI(args=["--config", str(QUICKSTART), *quiet], run=False)
    before = functional.filters(cli.model)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    after = functional.filters(cli.model)

    # Ten classes: chance is 0.1.
    assert cli.trainer.callback_metrics["val_acc"] >= 0.6
    # Noise has gone: total variation relative to the norm, against the random start.
    start = functional.roughness(before).mean()
    assert functional.roughness(after).nanmean() <= 0.4 * start
    # Colour blobs alone don't count: what is left of a filter without its mean colour holds a fair share of it, and
    # is as smooth as the whole.
    shape = after - after.mean(dim=(2, 3), keepdim=True)
    share = shape.flatten(1).norm(dim=1) / after.flatten(1).norm(dim=1)
    assert ((share > 0.5) & (functional.roughness(shape) <= 0.6 * start)).float().mean() >= 1 / 3

    tags = {path.parent.name for path in tmp_path.rglob("events*")}
    assert tags == {"version_0"}
    written = {tag for callback in cli.trainer.callbacks for tag in getattr(callback, "written", ())}
    assert {"filters/network.conv1", "saliency/probe", "occlusion/probe", "embeddings/network.head"} <= written
    assert {"patches/network.conv1", "patches/network.conv2", "patches/network.conv3"} <= written
