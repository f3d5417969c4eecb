"""A checkpoint: one directory, committed by one rename, that loads at any world size and ZeRO stage.

    checkpoints/step-00000460/weights.safetensors     parameters and buffers by name, as they are
                              optimizer-*.safetensors AdamW's moments in spans, `NAME/exp_avg@START`; a file a rank
                              state.json              step, loader position, recalls on val, versions; size and
                                                      hash of every file
                              recipe.yaml             the resolved recipe
                              concepts.json           the concept vocabulary, where the model has one

Random numbers are keyed by the seed and the step, which are their whole state. Nothing is pickled, so loading
executes no code. Written by `trainer.checkpoint_writer`, loaded by `trainer.checkpoint_load`.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shards.atomic import replacing
from shards.errors import told
from shards.loader import Position
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.recipe import load_recipe
from trainer.tensor_files import Written

FORMAT_VERSION = 2
STATE, WEIGHTS, OPTIMIZER, RECIPE = "state.json", "weights.safetensors", "optimizer-*.safetensors", "recipe.yaml"
CONCEPTS = "concepts.json"


class DamagedError(RunError):
    """A checkpoint that is not what was written."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come; a checkpoint's `state.json` holds it."""

    step: int
    """Applied optimiser steps."""
    loader: Position
    data: list[dict[str, Any]]
    """The data sets that the position counts in; see `trainer.continuity.identity`."""
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

    Raises `DamagedError` when it is not what was written, `RunError` when it is of another version or the disk
    does not answer.
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
    except OSError as error:
        raise _unread(path / STATE, error) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path / STATE}: not a checkpoint's state ({told(error)})") from None
    if WEIGHTS not in files:
        raise DamagedError(f"{path / STATE}: names no {WEIGHTS}")
    for name, written in files.items():
        try:
            size = (path / name).stat().st_size if (path / name).is_file() else None
        except OSError as error:
            raise _unread(path / name, error) from None
        if size != written.bytes:
            found = "is missing" if size is None else f"has {size:,} bytes"
            raise DamagedError(f"{path / name}: damaged: {found}, {written.bytes:,} were written")
    checkpoint = Checkpoint(path, progress, files)
    check_hashes(checkpoint, (name for name in files if not name.endswith(".safetensors")))
    return checkpoint


def _unread(path: Path, error: OSError) -> RunError:
    """A file that is gone is damage; a disk that does not answer says nothing about the checkpoint."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return DamagedError(f"{path}: damaged: {error.strerror}")
    return RunError(
        f"{path}: cannot be read ({error.strerror}); nothing was changed: try again when the disk answers"
    )


def check_hashes(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Read these files of a checkpoint. Raises `DamagedError` when one is not what was written.

    Raises `RunError` when the disk does not answer.
    """
    for name in names:
        try:
            with (checkpoint.path / name).open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise _unread(checkpoint.path / name, error) from None
        if sha256 != checkpoint.files[name].sha256:
            raise DamagedError(f"{checkpoint.path / name}: damaged: not the bytes that were written")
