"""Whether the data come fast enough, and how they are read: measured on them where they are local."""

import math
import time
from dataclasses import dataclass

import numpy as np

from shards.images import random_resized_crop
from shards.loader import Rank, TrainLoader
from shards.mixture import MixtureOrder
from shards.order import LANES
from shards.storage.location import is_remote
from shards.training import TrainDataset, TrainingSet
from trainer.config import Recipe
from trainer.inputs import caption_tokenizer, image_side, region_width

MEASURED_SECONDS = 1.5
PAIRS = 64
"""Pairs of a batch that the loader is timed with."""


@dataclass(frozen=True)
class Reading:
    """How one global batch, at an epoch's start, lies in the shards."""

    shards: int
    shards_a_worker: float
    """Of all workers of all processes."""
    bytes_a_shard: float
    """On average."""
    shards_a_batch: int
    """That a batch's samples come from."""
    shards_by_chance: float
    """That as many samples drawn at random would come from, on average: the best mixing there is."""
    run_length: float
    """Consecutive samples that are read together, on average."""
    run_bytes: float
    lanes_a_process: float
    """Of the order's lanes, those that one process reads from at a time."""


def images_per_second(recipe: Recipe, train: TrainingSet) -> float | None:
    """Of one loader worker on this machine, over a second or two; None where data lie behind URLs."""
    if any(is_remote(part.manifest.shard_location(0)) for part in train.parts):
        return None  # what was fetched would be left in the cache
    crop = random_resized_crop(image_side(recipe.model), recipe.data.min_crop_scale)
    tokenize = caption_tokenizer(recipe.model, recipe.data.mask_words)
    dataset = TrainDataset(
        train, crop, tokenize, recipe.run.seed, recipe.data.drop_regions, region_width(recipe.model)
    )
    batches = iter(TrainLoader(dataset, min(PAIRS, train.num_visits), Rank()))
    next(batches)
    begin, pairs = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < MEASURED_SECONDS:
        pairs += len(next(batches))
    return pairs / elapsed


def workers_needed(samples_per_second: float, gpus: int, rate: float) -> int:
    """Loader processes a GPU that keep up with it."""
    return math.ceil(samples_per_second / gpus / rate)


def reading(recipe: Recipe, train: TrainingSet, processes: int) -> Reading:
    """What the order of an epoch does with these shards; any number of shards works."""
    batch = recipe.data.global_batch_size
    order = MixtureOrder([part.sizes for part in train.parts], train.counts, recipe.run.seed)
    positions = order.batch_positions(0, 0, batch)
    located = order.locate(0, positions)
    drawn = len(set(zip(located.dataset.tolist(), located.shard.tolist(), strict=True)))
    by_chance = 0.0
    for part, count in zip(train.parts, train.counts, strict=True):
        share = part.sizes / part.sizes.sum() * (count / train.num_visits)
        by_chance += float((1 - np.power(1 - share, batch)).sum())
    runs = [one.runs for one in order.runs(0, positions)]
    lengths = np.concatenate([run.last_row - run.first_row for run in runs])
    shards = sum(len(part.manifest.names) for part in train.parts)
    size = sum(int(part.manifest.bytes.sum()) for part in train.parts)
    return Reading(
        shards=shards,
        shards_a_worker=shards / (processes * max(recipe.data.workers, 1)),
        bytes_a_shard=size / shards,
        shards_a_batch=drawn,
        shards_by_chance=by_chance,
        run_length=float(lengths.mean()),
        run_bytes=float(lengths.mean()) * size / train.num_samples,
        lanes_a_process=max(1.0, LANES / processes),
    )
