"""Recalls on val in the middle of a run, given up when the run is asked to stop."""

from collections.abc import Callable
from typing import Any

import torch

from model.encoders import DualEncoder
from shards.evaluation import EvaluationDataset
from trainer.config import Recipe
from trainer.distributed import World
from trainer.embed import embed_split
from trainer.metrics import retrieval


class _StoppedError(Exception):
    """The run was asked to stop; a resumed run makes up for the evaluation."""


def validate(
    encoders: DualEncoder,
    val: EvaluationDataset,
    recipe: Recipe,
    world: World,
    device: torch.device,
    on_batch: Callable[[int], bool],
) -> dict[str, Any] | None:
    """Recalls of the encoders on val, the same on every rank; None where `on_batch` said to stop.

    All ranks call it together. `on_batch` is told how many images this rank has just embedded, and must answer
    the same on all ranks, which have equally many batches. The encoders are left in evaluation mode.
    """

    def embedded(images: int) -> None:
        if on_batch(images):
            raise _StoppedError

    try:
        embeddings = embed_split(
            encoders,
            val,
            world,
            device,
            batch_size=recipe.evaluation.batch_size,
            precision=recipe.engine.precision,
            workers=recipe.data.workers,
            on_batch=embedded,
        )
    except _StoppedError:
        return None
    return retrieval(embeddings.images, embeddings.texts, embeddings.caption_image).as_dict()
