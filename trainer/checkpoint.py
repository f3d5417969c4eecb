"""Checkpoints: one directory each, committed by one rename, that load at any world size and ZeRO stage.

    checkpoints/step-00000460/weights.safetensors     parameters and buffers by name, as they are
                              optimizer-*.safetensors AdamW's moments in spans, `NAME/exp_avg@START`; a file a rank
                              state.json              step, loader position, recalls on val, versions; size and
                                                      hash of every file
                              recipe.yaml             the resolved recipe
                              concepts.json           the concept vocabulary, where the model has one

Random numbers are keyed by the seed and the step, which are their whole state. Nothing is pickled, so loading
executes no code. Written by `trainer.checkpoint_writer`.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from model.frameworks import Framework
from shards.atomic import replacing
from shards.errors import told
from shards.loader import Position
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.partitions import MOMENTS, set_moments
from trainer.recipe import load_recipe
from trainer.tensor_files import TensorFiles, Written

FORMAT_VERSION = 2
STATE, WEIGHTS, OPTIMIZER, RECIPE = "state.json", "weights.safetensors", "optimizer-*.safetensors", "recipe.yaml"
CONCEPTS = "concepts.json"
STEPS, SET_ASIDE = "step-*", "damaged-"


class DamagedError(RunError):
    """A checkpoint that is not what was written."""


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
    skipped_steps: int = 0
    """Steps that were not applied, so far."""
    gradient_scale: dict[str, float] | None = None
    """State of the loss scaling, in float16."""


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint on disk."""

    path: Path
    progress: Progress
    files: dict[str, Written]

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


def seal(state: dict[str, Any]) -> bytes:
    """A `state.json` that shows whether a byte of it was changed."""
    return json.dumps(state | {"sha256": _fingerprint(state)}, indent=2).encode() + b"\n"


def add_val(path: Path, val: dict[str, Any]) -> None:
    """Put recalls that were measured later into a checkpoint."""
    state = json.loads((path / STATE).read_text())
    del state["sha256"]
    with replacing(path / STATE) as stream:
        stream.write(seal(state | {"val": val}))


def _fingerprint(state: dict[str, Any]) -> str:
    rest = {key: value for key, value in state.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint's state, and see that its files are there with their sizes; of tensors no hash is taken.

    Raises `DamagedError` when it is not what was written, `RunError` when it is of another version.
    """
    try:
        state = json.loads((path / STATE).read_text())
        if state["format_version"] != FORMAT_VERSION:
            raise RunError(
                f"{path}: checkpoint format {state['format_version']}, this program reads {FORMAT_VERSION}"
            )
        if state["sha256"] != _fingerprint(state):
            raise ValueError("its hash is another")
        progress = Progress(
            state["step"],
            Position(**state["loader"]),
            state["data"],
            state["val"],
            state["skipped_steps"],
            state["gradient_scale"],
        )
        files = {name: Written(**written) for name, written in state["files"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path / STATE}: not a checkpoint's state ({told(error)})") from None
    if WEIGHTS not in files:
        raise DamagedError(f"{path / STATE}: names no {WEIGHTS}")
    for name, written in files.items():
        size = (path / name).stat().st_size if (path / name).is_file() else None
        if size != written.bytes:
            found = "is missing" if size is None else f"has {size:,} bytes"
            raise DamagedError(f"{path / name}: damaged: {found}, {written.bytes:,} were written")
    checkpoint = Checkpoint(path, progress, files)
    check_hashes(checkpoint, (name for name in files if not name.endswith(".safetensors")))
    return checkpoint


def check_hashes(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Read these files of a checkpoint. Raises `DamagedError` when one is not what was written."""
    for name in names:
        try:
            with (checkpoint.path / name).open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DamagedError(f"{checkpoint.path / name}: cannot be read ({error.strerror})") from None
        if sha256 != checkpoint.files[name].sha256:
            raise DamagedError(f"{checkpoint.path / name}: damaged: not the bytes that were written")


@dataclass(frozen=True)
class Found:
    """The checkpoints in a run's `checkpoints/`, by what `read_checkpoint` sees."""

    whole: list[Checkpoint]
    """Oldest first."""
    damaged: list[tuple[Path, str]]
    """Folders, and what is wrong with each."""


def look_for_checkpoints(folder: Path) -> Found:
    """Sort the checkpoints of a run's `checkpoints/` into whole and damaged ones."""
    found = Found([], [])
    for path in sorted(folder.glob(STEPS)):
        try:
            found.whole.append(read_checkpoint(path))
        except DamagedError as error:
            found.damaged.append((path, str(error)))
    return found


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, None where there never was one.

    Raises `RunError` where there are only damaged ones: to begin anew is for the user to say.
    """
    found = look_for_checkpoints(folder)
    if not found.whole and (found.damaged or any(folder.glob(f"{SET_ASIDE}*"))):
        reasons = [reason for _, reason in found.damaged]
        raise RunError(
            f"{folder}: no checkpoint is whole{f' ({reasons[-1]})' if reasons else ''}; bring one back from a "
            "copy, or give another run.dir to begin anew"
        )
    return found.whole[-1] if found.whole else None


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint so that it is none any more; returns where it lies now."""
    names = (f"{SET_ASIDE}{path.name}{again}" for again in ("", *(f"-{number}" for number in range(2, 1000))))
    return path.rename(next(place for place in map(path.with_name, names) if not place.exists()))


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """All checkpoints in a run's `checkpoints/`, oldest first. Raises `DamagedError` when one is damaged."""
    return [read_checkpoint(path) for path in sorted(folder.glob(STEPS))]


def best_checkpoint(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The one with the largest rSum on val; the newest where none was evaluated."""
    evaluated = [(float(checkpoint.val["rsum"]), checkpoint) for checkpoint in checkpoints if checkpoint.val]
    return max(evaluated, key=lambda pair: pair[0])[1] if evaluated else checkpoints[-1]


def find_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint given by its own folder, or the best one of a run's folder.

    Raises `RunError` when there is none.
    """
    if (path / STATE).is_file() or (path / WEIGHTS).is_file():
        return read_checkpoint(path)
    if not path.exists():
        raise RunError(f"{path}: no such run or checkpoint")
    checkpoints = list_checkpoints(path / "checkpoints")
    if not checkpoints:
        raise RunError(f"{path}: holds no checkpoint; give a run's folder or one of its checkpoints/step-*")
    return best_checkpoint(checkpoints)


def prune(folder: Path, keep_last: int) -> None:
    """Remove all whole checkpoints but the newest `keep_last` and the best."""
    checkpoints = look_for_checkpoints(folder).whole
    for checkpoint in checkpoints[:-keep_last]:
        if checkpoint.path != best_checkpoint(checkpoints).path:
            shutil.rmtree(retire(checkpoint.path))


def step_name(step: int) -> str:
    """The folder of a checkpoint."""
    return f"step-{step:08d}"


def retire(path: Path) -> Path:
    """Rename a checkpoint that is to be removed, since a half-removed folder must not look like one."""
    doomed = path.with_name(f".{path.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    return path.rename(doomed)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left half-written or half-removed; only for the owner of the run's folder."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


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
    if isinstance(module, Framework):
        theirs = module.own_part(theirs)
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
    """Fill a new engine's optimiser state; every rank reads its own part of it."""
    files = TensorFiles(sorted(checkpoint.path.glob(OPTIMIZER)))
    wanted = [name for name, parameter in engine.module.named_parameters() if parameter.requires_grad]
    if missing := [name for name in wanted if any(f"{name}/{moment}" not in files for moment in MOMENTS)]:
        raise RunError(f"{checkpoint.path}: holds no optimiser state of {min(missing)} ({len(missing)} such)")
    set_moments(engine, files.read, checkpoint.step)


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from None
