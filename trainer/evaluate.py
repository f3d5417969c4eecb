"""A checkpoint on a split: load, embed once, measure."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shards.evaluation import EvaluationDataset
from shards.images import center_crop
from shards.manifest import Manifest, read_manifest
from shards.storage.cache import default_directory
from trainer.checkpoint import WEIGHTS, Checkpoint, check_hashes, find_checkpoint, load_weights
from trainer.distributed import World, device_of
from trainer.embed import Embeddings, embed_split
from trainer.engine import build_encoders
from trainer.errors import RunError
from trainer.inputs import caption_tokenizer, image_side
from trainer.metrics import RANKS, Retrieval, chance, retrieval
from trainer.plan import cache_of


@dataclass(frozen=True)
class Evaluation:
    """The measurement, and what it was taken from."""

    checkpoint: Checkpoint
    manifest: Manifest
    embeddings: Embeddings
    result: Retrieval
    chance: Retrieval

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.result.as_dict(),
            "chance": self.chance.as_dict(),
            "checkpoint": str(self.checkpoint.path),
            "step": self.checkpoint.step,
            "dataset": self.manifest.dataset,
            "split": self.manifest.split,
        }


def read_split(checkpoint: Checkpoint, data: str | Path) -> Manifest:
    """The manifest of a folder of shards, given by its path or URL.

    What lies behind a URL is kept as the checkpoint's recipe says, but in $ITM_CACHE where that is set: the recipe
    names a folder of the machine that trained. Raises `DataError` when it cannot be read.
    """
    cache = cache_of(checkpoint.recipe.data)
    if os.environ.get("ITM_CACHE"):
        cache = replace(cache, directory=default_directory())
    return read_manifest(data, cache)


def evaluation_set(checkpoint: Checkpoint, manifest: Manifest) -> EvaluationDataset:
    """The split as this checkpoint's model takes it."""
    model = checkpoint.recipe.model
    return EvaluationDataset(manifest, center_crop(image_side(model)), caption_tokenizer(model))


def evaluate(
    path: Path,
    data: str | Path,
    *,
    batch_size: int = 128,
    workers: int = 0,
    on_batch: Callable[[int], None] = lambda _images: None,
) -> Evaluation:
    """Evaluate a checkpoint, or a run's best one on val, on a folder of shards, in this process.

    `workers` processes load the images, this one where it is 0. Raises `RunError` or `DataError` when either
    cannot be read.
    """
    checkpoint = find_checkpoint(path)
    check_hashes(checkpoint, [WEIGHTS])
    manifest = read_split(checkpoint, data)
    world = World()
    device = device_of(world)
    encoders = build_encoders(checkpoint.recipe.model, seed=0, pretrained=False)
    if unmatched := load_weights(encoders, checkpoint, prefix="encoders."):
        raise RunError(f"{checkpoint.path}: a checkpoint of another model: {unmatched[0]} ({len(unmatched)} such)")
    embeddings = embed_split(
        encoders.to(device),
        evaluation_set(checkpoint, manifest),
        world,
        device,
        batch_size=batch_size,
        precision=checkpoint.recipe.engine.precision,
        workers=workers,
        on_batch=on_batch,
    )
    if not torch.isfinite(embeddings.images).all() or not torch.isfinite(embeddings.texts).all():
        raise RunError(f"{checkpoint.path}: its embeddings are not finite numbers; take an older checkpoint")
    result = retrieval(embeddings.images, embeddings.texts, embeddings.caption_image)
    expected = chance(embeddings.caption_image.cpu().numpy(), len(embeddings.images))
    return Evaluation(checkpoint, manifest, embeddings, result, expected)


def table(rows: dict[str, Retrieval]) -> str:
    """Named results as a plain-text table."""
    width = max(map(len, rows))
    lines = [
        f"{'':{width}} {'image to text':>21}{'text to image':>21}",
        f"{'':{width}} " + 2 * "".join(f"{f'R@{k}':>7}" for k in RANKS) + f"  {'rSum':>7}",
    ]
    for name, row in rows.items():
        recalls = [*row.i2t.values(), *row.t2i.values()]
        lines.append(f"{name:{width}} " + "".join(f"{value:7.1f}" for value in recalls) + f"  {row.rsum:7.1f}")
    return "\n".join(lines)
