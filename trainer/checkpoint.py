"""Checkpoints: one directory each, committed by one rename, that load at any world size and ZeRO stage.

    checkpoints/step-00000460/weights.safetensors     parameters and buffers, float32, by name
                              optimizer.safetensors   AdamW's moments, `NAME/exp_avg` and `NAME/exp_avg_sq`
                              state.json              step, loader position, recalls on val, versions
                              recipe.yaml             the resolved recipe
                              concepts.json           the concept vocabulary, where the model has one

Nothing in it is pickled, so loading one executes no code.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shards.errors import told
from shards.loader import Position
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.partitions import MOMENTS, set_moments, whole_moment, whole_weight
from trainer.recipe import dump_recipe, load_recipe

FORMAT_VERSION = 1
STATE, WEIGHTS, OPTIMIZER, RECIPE = "state.json", "weights.safetensors", "optimizer.safetensors", "recipe.yaml"
CONCEPTS = "concepts.json"


@dataclass(frozen=True)
class Progress:
    """How far a run has come; a checkpoint's `state.json` holds it."""

    step: int
    """Applied optimiser steps."""
    loader: Position
    data: list[dict[str, Any]]
    """The data sets that the position counts in; see `trainer.plan.identity`."""
    val: dict[str, Any] | None = None
    """Recalls on val, where they were measured at this step."""


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint on disk."""

    path: Path
    progress: Progress

    @property
    def step(self) -> int:
        return self.progress.step

    @property
    def val(self) -> dict[str, Any] | None:
        return self.progress.val

    @cached_property
    def recipe(self) -> Recipe:
        """As it was trained, with the vocabulary that lies beside it."""
        recipe, concepts = load_recipe(self.path / RECIPE), self.path / CONCEPTS
        return with_concepts(recipe, concepts) if concepts.is_file() else recipe


def with_concepts(recipe: Recipe, path: Path) -> Recipe:
    """The recipe with another place of the concept file."""
    consensus = recipe.model.consensus.model_copy(update={"concepts": str(path)})
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"consensus": consensus})})


def save_checkpoint(folder: Path, engine: Any, recipe: Recipe, progress: Progress) -> None:
    """Write `folder`/step-N. All ranks call it together; rank 0 writes."""
    main = engine.global_rank == 0
    weights: dict[str, torch.Tensor] = {}
    moments: dict[str, torch.Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        weight = whole_weight(engine, parameter)
        if not torch.isfinite(weight).all():
            raise RunError(
                f"step {progress.step}: {name} is not finite, so it is not saved; lower optimizer.lr, or resume"
            )
        if main:
            weights[name] = weight.cpu().contiguous()
        for moment in MOMENTS if parameter.requires_grad else ():
            whole = whole_moment(engine, parameter, moment)
            if main:
                moments[f"{name}/{moment}"] = whole.cpu()
    if main:
        persistent = engine.module.state_dict()
        weights |= {name: b.cpu() for name, b in engine.module.named_buffers() if name in persistent}
        state = {
            "format_version": FORMAT_VERSION,
            **asdict(progress),
            "versions": {name: version(name) for name in ("itm-scale", "torch", "deepspeed", "open_clip_torch")},
        }
        _commit(folder / f"step-{progress.step:08d}", weights, moments, state, recipe)
    torch.distributed.barrier()


def _commit(
    path: Path,
    weights: dict[str, torch.Tensor],
    moments: dict[str, torch.Tensor],
    state: dict[str, Any],
    recipe: Recipe,
) -> None:
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file(weights, partial / WEIGHTS)
        save_file(moments, partial / OPTIMIZER)
        (partial / RECIPE).write_text(dump_recipe(recipe))
        if recipe.model.has_consensus:
            shutil.copyfile(str(recipe.model.consensus.concepts), partial / CONCEPTS)
        (partial / STATE).write_text(json.dumps(state, indent=2) + "\n")
        for file in partial.iterdir():
            file.chmod((partial / STATE).stat().st_mode)  # safetensors makes its files private
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        if path.exists():  # the same step, written again by a run that resumed before it
            _remove(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """All whole checkpoints in a run's `checkpoints/`, oldest first."""
    return [read_checkpoint(path) for path in sorted(folder.glob("step-*")) if (path / STATE).is_file()]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint's state. Raises `RunError` when it is damaged or of another version."""
    try:
        state = json.loads((path / STATE).read_text())
        if state["format_version"] != FORMAT_VERSION:
            raise RunError(
                f"{path}: checkpoint format {state['format_version']}, this program reads {FORMAT_VERSION}"
            )
        progress = Progress(state["step"], Position(**state["loader"]), state["data"], state["val"])
        return Checkpoint(path, progress)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path / STATE}: not a checkpoint's state ({told(error)})") from None


def best_checkpoint(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The one with the largest rSum on val; the newest where none was evaluated."""
    evaluated = [(float(checkpoint.val["rsum"]), checkpoint) for checkpoint in checkpoints if checkpoint.val]
    return max(evaluated, key=lambda pair: pair[0])[1] if evaluated else checkpoints[-1]


def find_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint given by its own folder, or the best one of a run's folder.

    Raises `RunError` when there is none.
    """
    if (path / STATE).is_file():
        return read_checkpoint(path)
    if not path.exists():
        raise RunError(f"{path}: no such run or checkpoint")
    checkpoints = list_checkpoints(path / "checkpoints")
    if not checkpoints:
        raise RunError(f"{path}: holds no checkpoint; give a run's folder or one of its checkpoints/step-*")
    return best_checkpoint(checkpoints)


def prune(folder: Path, keep_last: int) -> None:
    """Remove all checkpoints but the newest `keep_last` and the best."""
    for leftover in folder.glob(".step-*.removed"):  # of a run that was killed here
        shutil.rmtree(leftover)
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return
    best = best_checkpoint(checkpoints)
    for checkpoint in checkpoints[:-keep_last]:
        if checkpoint.path != best.path:
            _remove(checkpoint.path)


def _remove(path: Path) -> None:
    # renamed first: a half-removed folder must not look like a checkpoint
    doomed = path.with_name(f".{path.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


OF_PAST_BATCHES = ("momentum.", "queue.")
"""What a framework keeps that means nothing on other data."""


def load_weights(
    module: torch.nn.Module, checkpoint: Checkpoint, prefix: str = "", *, fine_tunes: bool = False
) -> list[str]:
    """Copy the weights whose names start with `prefix` into a module that is not yet in an engine.

    To fine-tune a framework, `OF_PAST_BATCHES` is left out, and of the loss terms what has another shape.
    Returns the names that have no counterpart, on either side. Raises `RunError` for a file that cannot be
    read, when nothing matches, and when a weight has another shape: the checkpoint is of another model.
    """
    own = module.state_dict()
    theirs = {
        name.removeprefix(prefix): tensor
        for name, tensor in _load(checkpoint.path / WEIGHTS).items()
        if name.startswith(prefix)
    }
    if fine_tunes:
        own, theirs = (
            {name: value for name, value in side.items() if not name.startswith(OF_PAST_BATCHES)}
            for side in (own, theirs)
        )
        for name in [name for name in theirs if name.startswith("terms.") and name in own]:
            if own[name].shape != theirs[name].shape:
                del theirs[name]
    other = [name for name in own.keys() & theirs.keys() if own[name].shape != theirs[name].shape]
    if other:
        name = min(other)
        raise RunError(
            f"{checkpoint.path}: a checkpoint of another model: {name} is {list(theirs[name].shape)} there and "
            f"{list(own[name].shape)} here ({len(other)} such); use the model section of its recipe.yaml"
        )
    if not own.keys() & theirs.keys():
        raise RunError(f"{checkpoint.path}: a checkpoint of another model: no weight has a name that is known here")
    module.load_state_dict(theirs, strict=False)
    return sorted(own.keys() ^ theirs.keys())


def load_optimizer(engine: Any, checkpoint: Checkpoint) -> None:
    """Fill a new engine's optimiser state. All ranks call it together."""
    saved = _load(checkpoint.path / OPTIMIZER)
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in saved.items():
        name, _, moment = key.rpartition("/")
        moments.setdefault(name, {})[moment] = tensor
    wanted = {name for name, parameter in engine.module.named_parameters() if parameter.requires_grad}
    if missing := wanted - moments.keys():
        raise RunError(f"{checkpoint.path / OPTIMIZER}: holds no state of {min(missing)} ({len(missing)} such)")
    set_moments(engine, moments, checkpoint.step)


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error}); remove this checkpoint to use an older one") from None
