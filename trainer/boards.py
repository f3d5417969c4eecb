"""Where metrics are drawn: TensorBoard, and Weights & Biases."""

import importlib.util
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from shards.atomic import replacing
from trainer.config import LogConfig, Recipe
from trainer.errors import RunError
from trainer.recipe import flatten


class Board(Protocol):
    """Draws numbers over steps."""

    def draw(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self, failed: bool) -> None: ...


def check_boards(config: LogConfig) -> None:
    """Raises `RunError` where a package is missing."""
    if config.wandb and importlib.util.find_spec("wandb") is None:
        raise RunError(
            f"log.wandb={config.wandb}: the package wandb is not installed; pip install 'itm-scale[wandb]', "
            "or set log.wandb=null"
        )


def open_boards(recipe: Recipe, run_dir: Path, start_step: int) -> list[Board]:
    """Those that the recipe asks for; what a resumed run does again is drawn over where the board can."""
    boards: list[Board] = []
    if recipe.log.tensorboard:
        boards.append(_TensorBoard(run_dir, start_step))
    if recipe.log.wandb:
        boards.append(_WeightsAndBiases(recipe, run_dir))
    return boards


class _TensorBoard:
    def __init__(self, run_dir: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = SummaryWriter
        self._writer = writer(str(run_dir / "tensorboard"), purge_step=start_step + 1)

    def draw(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """One run on the board for a run's folder, however often it is resumed: its id lies in `wandb/id`."""

    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        import wandb

        known = run_dir / "wandb" / "id"
        if not known.is_file():
            known.parent.mkdir(exist_ok=True)
            with replacing(known) as stream:
                stream.write(secrets.token_hex(4).encode())
        online = recipe.log.wandb == "online"
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "itm-scale"),
                name=run_dir.name,
                id=known.read_text(),
                dir=run_dir,
                config=flatten(recipe.model_dump()),
                mode=recipe.log.wandb,
                resume="allow" if online else None,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise RunError(f"log.wandb={recipe.log.wandb}: {error}; log.wandb=offline needs no server") from None
        # an axis of our own: steps that a resumed run does again would be refused on the board's
        self._run.define_metric("*", step_metric="step")

    def draw(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({"step": step, **values})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
