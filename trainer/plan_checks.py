"""Whether a recipe fits its data and the processes, key by key."""

from contextlib import closing, suppress

import torch

from model.config import ModelConfig
from model.memory.clustering import check_points
from model.memory.queue import check_queue_size
from model.terms.build import build_terms, clusters, needs_memory, relates, relation_group
from shards.errors import SampleError
from shards.manifest import Manifest
from shards.progress import counted
from shards.reader import ShardReader
from shards.training import TrainingSet
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.inputs import not_held


def check_splits(train: TrainingSet, val: Manifest | None, model: ModelConfig) -> None:
    """Raise `RunError` for a test split, and for data that do not hold what the model reads."""
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
        if model.reads_regions:
            _check_region_width(key, manifest, model.image.region_width)


def _check_region_width(key: str, manifest: Manifest, wanted: int) -> None:
    shard = int(manifest.samples.argmax())
    # a damaged sample says nothing of the others
    with closing(ShardReader(manifest)) as reader, suppress(SampleError):
        regions = reader.read(shard, 0).regions
        if regions is not None and regions.shape[1] != wanted:
            raise RunError(
                f"model.image.region_width={wanted}: the regions of {key}={manifest.location} have "
                f"{regions.shape[1]} features; set it to that"
            )


def check_terms(recipe: Recipe) -> None:
    """Raise `RunError` or `ModelError` for a loss without a term, at all or in the first step."""
    model = recipe.model
    with torch.device("meta"):
        terms = build_terms(model, recipe.loss, model.embed_dim, steps_per_epoch=1).values()
    starts = {name: term.start_steps[name] for term in terms for name, weight in term.weights.items() if weight}
    if not starts:
        raise RunError(f"loss: every term of model.framework={model.framework} has weight 0; give one a weight")
    levels = recipe.loss.ahrl
    if "ahrl" in starts and not (levels.hard or levels.candidate or levels.pair or levels.mining):
        raise RunError("loss.ahrl: every level is off; leave hard, candidate, pair or mining on")
    first = min(starts, key=starts.__getitem__)
    if starts[first]:
        raise RunError(f"loss.{first}.start_step={starts[first]}: no term counts before; start one at step 0")


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
