"""The command line: `train.py` in a checkout, `lit-viz` where the package is installed."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

# Importing them is what makes short class names work: `--trainer.callbacks+=Saliency`, `class_path: Photographs`.
from lit_viz import draw
from lit_viz.budget import Budget
from lit_viz.callbacks import VisualizationCallback
from lit_viz.commands import COMMANDS, command_of, run_command
from lit_viz.commands.base import how_to_look, short_path
from lit_viz.errors import UsageError
from lit_viz.functional import format_layer_table, layer_table
from lit_viz.layers import first_convolution
from lit_viz.memory import keep_freed_memory
from lit_viz.modules import FastStyleTransfer
from lit_viz.pictures import whole
from lit_viz.probing import split_batch
from lit_viz.writer import encoded

CONFIG_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")


class LitVizTrainer(Trainer):
    """Lightning's trainer, which can also list a model's layers."""

    def layers(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        image_size: int | list[int] | None = None,
        containers: bool = False,
    ) -> None:
        """Lists a model's layers: name, output shape, receptive field, parameters.

        Args:
            model: The model.
            datamodule: Its data, to know the size of an image.
            image_size: Height and width of an image, or its side, instead.
            containers: Also list layers that hold other layers.
        """
        if image_size is not None:
            height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
            channels = first_convolution(model)[1].in_channels
            image = torch.zeros(1, channels, height, width)
        elif datamodule is not None:
            datamodule.prepare_data()
            datamodule.setup("validate")
            dataset = datamodule.val_dataloader().dataset
            image = split_batch(torch.utils.data.default_collate([dataset[0]]))[0]
        else:
            raise UsageError("give --data or --image_size, so that layers have a size to be listed with.")
        print(format_layer_table(layer_table(model, image, containers=containers)))


_FACTS = {"num_classes", "in_channels"}  # that models take from the data


class SaveConfigBesideLogs(SaveConfigCallback):
    """Keeps the configuration of a run beside its logs; without a logger it would lie about in the working folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


class SummaryAfterInterrupt(Callback):
    """Whoever stops a run by hand wants to see what came of it."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            print(summary(trainer), flush=True)


class WriteStylized(BasePredictionWriter):
    """Writes what a style network makes of the data as `predicted/<number in the data>.png`, beside the logs.

    Attributes:
        written: Files.
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self.written: list[Path] = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "predicted"
        for number, colors in zip(batch_indices or (), prediction, strict=True):
            path = folder / f"{number:05d}.png"
            with whole(path) as partial:
                partial.write_bytes(encoded(draw.to_uint8(colors[None])[0]))
            self.written.append(path)


class LitVizCLI(LightningCLI):
    """LightningCLI with TensorBoard on, numbers of classes and channels taken from the data, and a summary."""

    def __init__(self, **kwargs: Any) -> None:
        commands = ", ".join(f"`{name}`" for name in COMMANDS)
        super().__init__(
            trainer_class=LitVizTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            trainer_defaults={"callbacks": [SummaryAfterInterrupt()]},
            seed_everything_default=0,
            save_config_callback=SaveConfigBesideLogs,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"epilog": f"Without a trainer, for single images: {commands}; show --help."},
            **kwargs,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {**LightningCLI.subcommands(), "layers": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for fact in sorted(_FACTS, reverse=True):
            parser.link_arguments(f"data.{fact}", f"model.init_args.{fact}", apply_on="instantiate")
        logger = {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": "runs", "name": "", "default_hp_metric": False},
        }
        parser.set_defaults({"trainer.logger": logger})
        parser.add_argument(
            "--budget",
            type=float | None,
            default=None,
            help="Share of the training time that all visualizations together may take, 0.05 for 5 %%: they are drawn "
            "less often where they would take more. One that has a budget of its own keeps it.",
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        share = self._get(self.config_init, "budget")
        if share is not None:
            account = Budget(share)
            for callback in trainer.callbacks:
                if isinstance(callback, VisualizationCallback) and callback.budget is None:
                    callback.budget = account
        return trainer

    def _parse_ckpt_path(self) -> None:
        """Settings that a checkpoint tells; without facts about the data that its model doesn't ask for.

        Lightning parses anew with these settings, and then hands the facts to any model, as arguments unknown to it.
        """
        command = self.config.get("subcommand")

        def others() -> Any:
            return (self.config[command].get("model") or {}).get("dict_kwargs") or {}

        known = set(others()) if command else set()
        super()._parse_ckpt_path()
        for name in (set(others()) - known) & _FACTS if command else ():
            del others()[name]

    def after_fit(self) -> None:
        self._summarize()

    def before_predict(self) -> None:
        if isinstance(self.model, FastStyleTransfer):
            self.trainer.callbacks.append(WriteStylized())

    def after_predict(self) -> None:
        for callback in self.trainer.callbacks:
            if isinstance(callback, WriteStylized) and callback.written:
                print(f"{len(callback.written)} pictures in {short_path(callback.written[0].parent)}", flush=True)

    def after_validate(self) -> None:
        self._summarize()

    def after_test(self) -> None:
        self._summarize()

    def _summarize(self) -> None:
        if self.trainer.is_global_zero:
            print(summary(self.trainer), flush=True)


def summary(trainer: Trainer) -> str:
    """What a run logged, what it cost, and the command that shows it."""
    lines = []
    callbacks = [c for c in trainer.callbacks if isinstance(c, VisualizationCallback)]
    rows = [
        (f"{tag}", f"{count} ×", f"{callback.seconds:6.1f} s" if i == 0 else "")
        for callback in callbacks
        for i, (tag, count) in enumerate(sorted(callback.written.items()))
    ]
    # Modules that make images log them by themselves.
    rows += [(tag, f"{count} ×", "") for tag, count in getattr(trainer.lightning_module, "written", {}).items()]
    if rows:
        width = max(len(tag) for tag, *_ in rows)
        lines.append("\nPictures logged (and the time each visualization took):")
        lines += [f"  {tag:<{width}}  {count:>6}  {seconds}" for tag, count, seconds in rows]
        folders = [str(f) for f in dict.fromkeys(folder for c in callbacks for folder in c.writer(trainer).folders)]
        lines += [f"PNG files: {', '.join(folders)}"] if folders else []
    elif not callbacks:
        lines.append("\nNo visualization in this run; add some, for instance with -c configs/callbacks/saliency.yaml")
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    if metrics:
        lines.append("Metrics: " + ", ".join(f"{k} {v:.4g}" for k, v in sorted(metrics.items())))
    checkpoint = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if checkpoint:
        lines.append(f"Checkpoint: {short_path(checkpoint)}")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and rows:
            lines.append(how_to_look(logger.log_dir))
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        args: Arguments, by default those of the process. A configuration that is no file here is looked for among
            those that come with the package: `--config quickstart` works anywhere.
    """
    _quiet()
    asked = sys.argv[1:] if args is None else list(args)
    if args is None:
        keep_freed_memory()  # a process of one's own, which ends with it
        sys.argv[1:] = _with_known_configs(sys.argv[1:])
    try:
        if (command := command_of(asked)) is not None:
            run_command(command, asked[1:])
            return
        LitVizCLI(args=None if args is None else _with_known_configs(list(args)))
    except Exception as error:
        # The message of a usage error says it all; a traceback, or the parser's report of all it tried, would hide it.
        told: Exception | None = _usage_error(error)
        if isinstance(error, FileNotFoundError) and "Checkpoint file not found" in str(error):
            told = error
        if told is None:
            raise
        sys.exit(f"lit_viz: {told}")


def _usage_error(error: BaseException | None) -> UsageError | None:
    while error is not None and not isinstance(error, UsageError):
        error = error.__cause__ or error.__context__
    return error


def _quiet() -> None:
    """Leaves out what is no news to someone who runs a configuration."""
    # Small data are faster without workers, and the advice is repeated for every loader.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended to run from within Python.*")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    told = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    told.addFilter(lambda record: "Tip:" not in record.getMessage())


def _with_known_configs(args: list[str]) -> list[str]:
    out = list(args)
    for i, arg in enumerate(args):
        name, separator, value = arg.partition("=")
        if name in ("-c", "--config") and separator:
            out[i] = f"{name}={_config(value)}"
        elif i > 0 and args[i - 1] in ("-c", "--config"):
            out[i] = _config(arg)
    return out


def _config(name: str) -> str:
    if Path(name).exists():
        return name
    plain = name.removeprefix("configs/").removesuffix(".yaml")
    found = [folder / f"{plain}.yaml" for folder in CONFIG_FOLDERS if (folder / f"{plain}.yaml").exists()]
    return str(found[0]) if found else name
