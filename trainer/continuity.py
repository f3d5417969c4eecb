"""What may change, in recipe and data, between a checkpoint and the run that goes on from it."""

import re
from typing import Any

from shards.training import TrainingSet
from trainer.checkpoint import Checkpoint
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.recipe import flatten

FIXED = (
    "model.",
    "data.captions",
    "data.mix",
    "data.last_batch",
    "data.global_batch_size",
    "loss.prototypes.update",
    "run.seed",
    "run.init_from",
)
"""Settings that decide what a run's checkpoints mean, so a resumed run cannot change them."""

FREE = re.compile(
    r"framework|pretrained|norm_group|aahr\.dropout|consensus\.\w+|text\.transformer\.weights"
    r"|.*\.(freeze|gradient_checkpointing)|image\.size"
)
"""Settings of the model that may differ from those of the checkpoint whose weights are taken."""
PLACES = ("run.dir", "model.consensus.concepts")
"""Settings that say where something lies; what it is stands in the checkpoint."""


def identity(train: TrainingSet) -> list[dict[str, Any]]:
    """What makes a training set the same one wherever its folders lie."""
    return [
        {
            "dataset": part.manifest.dataset,
            "split": part.manifest.split,
            "fingerprint": part.manifest.fingerprint,
            "weight": part.weight,
            "captions": part.captions,
        }
        for part in train.parts
    ]


def changes_of(resume: Checkpoint, recipe: Recipe, train: TrainingSet) -> tuple[str, ...]:
    """Settings that differ from those of the checkpoint, as `key: before -> now`.

    Raises `RunError` for one that a resumed run cannot change, and for other data.
    """
    before, now = flatten(resume.recipe.model_dump()), flatten(recipe.model_dump())
    changed = [key for key in now if before[key] != now[key] and key not in PLACES]
    for key in changed:
        if key.startswith(FIXED):
            raise RunError(
                f"{key}={now[key]}: {resume.path} is of another run or model, with {key}={before[key]}; "
                "resume with the same, or give another run.dir"
            )
    if resume.progress.data != identity(train):
        raise RunError(
            f"data.train={train.name}: not the shards that {resume.path} was trained on; "
            "resume with the same, or give another run.dir"
        )
    return tuple(f"{key}: {before[key]} -> {now[key]}" for key in changed)


def check_model(recipe: Recipe, init_from: Checkpoint) -> None:
    """Raise `RunError` unless the model can start from the weights of `init_from`."""
    theirs, ours = flatten(init_from.recipe.model.model_dump()), flatten(recipe.model.model_dump())
    for key, value in ours.items():
        if not FREE.fullmatch(key) and theirs[key] != value:
            raise RunError(
                f"model.{key}={value}: {init_from.path} is a checkpoint of another model, with "
                f"model.{key}={theirs[key]}; use the model section of its recipe.yaml"
            )
