"""Whether a recipe fits its data and the processes, key by key."""

from model.config import ModelConfig
from model.memory.clustering import check_points
from model.memory.queue import check_queue_size
from model.terms.build import clusters, needs_memory, relates, relation_group
from shards.manifest import Manifest
from shards.progress import counted
from shards.training import TrainingSet
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.inputs import not_held


def check_splits(train: TrainingSet, val: Manifest | None, model: ModelConfig) -> None:
    """Raise `RunError` for a test split, and for data without what the model reads."""
    manifests = [("data.train", part.manifest) for part in train.parts]
    for key, manifest in manifests + ([("data.val", val)] if val else []):
        if manifest.split == "test":
            raise RunError(
                f"{key}={manifest.location}: a test split; models are trained on train and chosen on val"
            )
        for what in not_held(model, manifest):
            raise RunError(
                f"{key}={manifest.location}: holds no {what}, which model.image.inputs={model.image.inputs} reads"
            )


def check_batch(recipe: Recipe, train: TrainingSet, processes: int) -> None:
    """Raise `RunError` for a global batch that the data do not fill, or as `check_share` does."""
    batch = recipe.data.global_batch_size
    if processes > train.num_visits:
        raise RunError(
            f"{processes} processes for {counted(train.num_visits, 'sample')} in {train.name}; start fewer"
        )
    if batch > train.num_visits:
        raise RunError(
            f"data.global_batch_size={batch}: {train.name} has only {counted(train.num_visits, 'sample')}; lower it"
        )
    check_share(recipe, processes)


def check_share(recipe: Recipe, processes: int) -> None:
    """Raise `RunError` or `ModelError` for a batch that processes, groups, queue or clusters do not fit."""
    batch = recipe.data.global_batch_size
    if batch % processes:
        raise RunError(f"data.global_batch_size={batch}: does not divide among {processes} processes")
    groups = {"model.norm_group": recipe.model.norm_group} if recipe.model.has_aahr else {}
    if relates(recipe.model, recipe.loss):
        groups["loss.relations.group"] = relation_group(recipe.model, recipe.loss)
    for key, group in groups.items():
        if (batch // processes) % group:
            raise RunError(
                f"{key}={group}: does not divide the {counted(batch // processes, 'pair')} a process of "
                f"data.global_batch_size={batch} on {counted(processes, 'process')}; give a divisor"
            )
    _check_micro_batch(recipe, batch // processes)
    if needs_memory(recipe.model, recipe.loss):
        check_queue_size(recipe.loss.queue.size, batch)
        if clusters(recipe.model, recipe.loss):
            check_points(recipe.loss.queue.size, recipe.loss.prototypes.count)


def _check_micro_batch(recipe: Recipe, share: int) -> None:
    size, group = recipe.engine.micro_batch_size, recipe.model.norm_group
    if size is None or size >= share:
        return
    if share % size:
        raise RunError(
            f"engine.micro_batch_size={size}: does not divide the {share} pairs a process; give a divisor, or null"
        )
    if recipe.model.has_aahr and size % group:
        raise RunError(
            f"engine.micro_batch_size={size}: does not hold whole groups of model.norm_group={group}, which share "
            "batch-norm statistics; give a multiple, or null"
        )
