"""What a recipe comes to on this data with these processes, checked before anything is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.manifest import Manifest, read_manifest
from trainer.checkpoint import Checkpoint, find_checkpoint, list_checkpoints
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.recipe import flatten

FIXED = ("model.", "data.captions", "data.global_batch_size", "run.seed", "run.init_from")
"""Settings that decide what a run's checkpoints mean, so a resumed run cannot change them."""

FREE = ("pretrained", "norm_group", "aahr.dropout")
"""Settings of the model that may differ from those of the checkpoint whose weights are taken."""


@dataclass(frozen=True)
class Plan:
    """A recipe that can run: its data, its length, and the checkpoint to go on from."""

    recipe: Recipe
    processes: int
    train: Manifest
    val: Manifest | None
    steps_per_epoch: int
    total_steps: int
    resume: Checkpoint | None
    init_from: Checkpoint | None
    changed: tuple[str, ...]
    """Settings that differ from those of the checkpoint, as `key: before -> now`."""

    @property
    def run_dir(self) -> Path:
        return Path(self.recipe.run.dir)

    @property
    def finished(self) -> bool:
        return self.resume is not None and self.resume.step >= self.total_steps

    def steps_between(self, epochs: float) -> int:
        return max(1, round(epochs * self.steps_per_epoch))

    def summary(self) -> list[str]:
        """What would be done, a line each."""
        recipe = self.recipe
        start = "random weights"
        if self.resume:
            start = f"{self.resume.path} (step {self.resume.step:,})"
        elif self.init_from:
            start = f"the weights of {self.init_from.path}"
        train = f"{self.train.location}: {self.train.num_samples:,} images, {self.train.num_captions:,} captions"
        val = f"val {self.val.location}: {self.val.num_samples:,}" if self.val else "no val"
        batch = recipe.data.global_batch_size
        return [
            f"run    {self.run_dir}, from {start}",
            f"data   {train}, {val}",
            f"model  {recipe.model.architecture}, embeddings of {recipe.model.embed_dim}",
            f"steps  {self.total_steps:,} of {batch:,} pairs, {self.steps_per_epoch:,} an epoch",
            f"engine {self.processes} process{'es' * (self.processes > 1)}, ZeRO-{recipe.engine.zero_stage}, "
            f"{recipe.engine.precision}",
        ]


def make_plan(recipe: Recipe, processes: int) -> Plan:
    """Check a recipe against its data, the processes and the run's folder.

    Raises `RunError` or `DataError` for what cannot run. Writes nothing.
    """
    if not recipe.run.dir:
        raise RunError("run.dir: not given; add run.dir=FOLDER, where the run is written and resumed")
    if Path(recipe.run.dir).is_file():
        raise RunError(f"run.dir={recipe.run.dir}: is a file; give a folder")
    if not recipe.data.train:
        raise RunError("data.train: not given; add data.train=FOLDER, a folder of shards")
    train = read_manifest(Path(recipe.data.train))
    val = read_manifest(Path(recipe.data.val)) if recipe.data.val else None
    _check_splits(train, val)
    _check_batch(recipe, train, processes)
    if val is not None and val.num_samples < processes:
        raise RunError(f"data.val={val.location}: {val.num_samples} samples for {processes} processes; start fewer")
    steps_per_epoch = train.num_samples // recipe.data.global_batch_size
    checkpoints = list_checkpoints(Path(recipe.run.dir) / "checkpoints")
    resume = checkpoints[-1] if checkpoints else None
    init_from = find_checkpoint(Path(recipe.run.init_from)) if recipe.run.init_from and not resume else None
    if init_from:
        _check_model(recipe, init_from)
    return Plan(
        recipe=recipe,
        processes=processes,
        train=train,
        val=val,
        steps_per_epoch=steps_per_epoch,
        total_steps=max(1, round(recipe.schedule.epochs * steps_per_epoch)),
        resume=resume,
        init_from=init_from,
        changed=_changes(resume, recipe, train) if resume else (),
    )


def _check_splits(train: Manifest, val: Manifest | None) -> None:
    for key, manifest in (("data.train", train), ("data.val", val)):
        if manifest is not None and manifest.split == "test":
            raise RunError(
                f"{key}={manifest.location}: a test split; models are trained on train and chosen on val"
            )


def _check_batch(recipe: Recipe, train: Manifest, processes: int) -> None:
    batch, group = recipe.data.global_batch_size, recipe.model.norm_group
    if processes > train.num_samples:
        raise RunError(f"{processes} processes for {train.num_samples:,} samples in {train.location}; start fewer")
    if batch > train.num_samples:
        raise RunError(
            f"data.global_batch_size={batch}: {train.location} has only {train.num_samples:,} samples; lower it"
        )
    if batch % processes:
        raise RunError(f"data.global_batch_size={batch}: does not divide among {processes} processes")
    if (batch // processes) % group:
        raise RunError(
            f"model.norm_group={group}: does not divide the {batch // processes} pairs a process of "
            f"data.global_batch_size={batch} on {processes} processes; give a divisor"
        )


def _check_model(recipe: Recipe, init_from: Checkpoint) -> None:
    theirs, ours = flatten(init_from.recipe.model.model_dump()), flatten(recipe.model.model_dump())
    for key, value in ours.items():
        if key not in FREE and theirs[key] != value:
            raise RunError(
                f"model.{key}={value}: {init_from.path} is a checkpoint of another model, with "
                f"model.{key}={theirs[key]}; use the model section of its recipe.yaml"
            )


def split_identity(manifest: Manifest) -> dict[str, Any]:
    """What makes a split the same one wherever its folder lies."""
    return {"dataset": manifest.dataset, "split": manifest.split, "fingerprint": manifest.fingerprint}


def _changes(resume: Checkpoint, recipe: Recipe, train: Manifest) -> tuple[str, ...]:
    if resume.progress.data != split_identity(train):
        raise RunError(
            f"data.train={train.location}: not the shards that {resume.path} was trained on; "
            "resume with the same, or give another run.dir"
        )
    before, now = flatten(resume.recipe.model_dump()), flatten(recipe.model_dump())
    changed = [key for key in now if before[key] != now[key] and key != "run.dir"]
    for key in changed:
        if key.startswith(FIXED):
            raise RunError(
                f"{key}={now[key]}: {resume.path} is of another run or model, with {key}={before[key]}; "
                "resume with the same, or give another run.dir"
            )
    return tuple(f"{key}: {before[key]} -> {now[key]}" for key in changed)
