"""What can be evaluated: a run's checkpoint, or an exported model."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from shards.manifest import Manifest, read_manifest
from shards.storage.cache import default_directory
from trainer.checkpoint import WEIGHTS, Checkpoint, check_hashes
from trainer.checkpoint_folder import find_checkpoint
from trainer.export.model_folder import Trained, is_model_folder, read_model_folder
from trainer.inference import trained_of
from trainer.plan import cache_of


@dataclass(frozen=True)
class Subject:
    """A model on disk."""

    path: Path
    checkpoint: Checkpoint | None
    """None for an exported model."""

    def trained(self) -> Trained:
        """Its encoders. Raises `RunError` when they cannot be read or are not what was written."""
        if self.checkpoint is None:
            return read_model_folder(self.path)
        check_hashes(self.checkpoint, [WEIGHTS])
        return trained_of(self.checkpoint)

    def as_dict(self) -> dict[str, str | int]:
        if self.checkpoint is None:
            return {"model": str(self.path)}
        return {"checkpoint": str(self.path), "step": self.checkpoint.step}


def find_subject(path: Path) -> Subject:
    """An exported model's folder, a checkpoint's, or the best checkpoint of a run's.

    Raises `RunError` when there is none.
    """
    if is_model_folder(path):
        return Subject(path, None)
    checkpoint = find_checkpoint(path)
    return Subject(checkpoint.path, checkpoint)


def read_split(checkpoint: Checkpoint | None, data: str | Path) -> Manifest:
    """The manifest of a folder of shards, given by its path or URL.

    What lies behind a URL is kept as the checkpoint's recipe says, but in $ITM_CACHE where that is set: the recipe
    names a folder of the machine that trained. Raises `DataError` when it cannot be read.
    """
    if checkpoint is None:
        return read_manifest(data)
    cache = cache_of(checkpoint.recipe.data)
    if os.environ.get("ITM_CACHE"):
        cache = replace(cache, directory=default_directory())
    return read_manifest(data, cache)
