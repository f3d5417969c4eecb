"""Soft positives: pairs that nobody annotated as a match and that AHRL's level 5 would take for one.

As `model.losses.mining` defines them, on a split in the place of batch and queue: both momentum encoders agree that
two pairs are alike, `min(s_k(t_i, t_j), s_k(v_i, v_j))` at the running quantile of training or above.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from model.losses.running_quantile import quantile_of_bins
from shards.manifest import Manifest
from trainer.checkpoint import Checkpoint
from trainer.config import Recipe
from trainer.distributed import World, device_of
from trainer.embed import Embeddings, embed_split
from trainer.inference import trained_of
from trainer.inputs import evaluation_set
from trainer.report.contest import blocks
from trainer.report.tensors import read_tensors

SHOWN = 8
PAIRS = 10_000
"""Pairs that are compared with each other: the first ones of the split."""
_KEPT = 256
"""Of both ends, so many are looked through for pairs of pictures not shown yet."""
_HISTOGRAM = "terms.ranking.rankers.0.agreement.histogram"


@dataclass(frozen=True)
class SoftPositive:
    """Two pairs, each a picture with its first caption, that are taken for matches of each other."""

    images: tuple[int, int]
    captions: tuple[int, int]
    agreement: float
    image_similarity: float
    text_similarity: float
    """By the momentum encoders, as the agreement is."""
    scores: tuple[float, float]
    """By the encoders: the first picture with the second caption, and the second with the first."""


@dataclass(frozen=True)
class SoftPositives:
    """What would be mined on a split."""

    threshold: float
    """Infinite where the checkpoint has seen no step with mining."""
    pairs: int
    compared: int
    """Pairs of pairs of different images."""
    count: int
    """Of these, at the threshold or above."""
    surest: list[SoftPositive]
    barely: list[SoftPositive]
    """Nearest to the threshold."""


def mines(recipe: Recipe) -> bool:
    """Whether a run's loss looks for soft positives."""
    ahrl = recipe.loss.ahrl
    return recipe.model.framework in ("amsps", "aahr+amsps") and ahrl.weight > 0 and ahrl.mining


def is_embedded_again(checkpoint: Checkpoint) -> bool:
    """Whether `soft_positives` will embed the split: where there is a threshold."""
    return mines(checkpoint.recipe) and math.isfinite(threshold_of(checkpoint))


def soft_positives(
    checkpoint: Checkpoint,
    manifest: Manifest,
    online: Embeddings,
    *,
    batch_size: int = 128,
    workers: int = 0,
    on_batch: Callable[[int], None] = lambda _images: None,
) -> SoftPositives:
    """Embed the split with the momentum encoders, and mine it; of three kinds of embeddings, the fused one.

    Nothing is embedded where the checkpoint has no threshold yet.

    `online` are the encoders' own embeddings.
    """
    threshold = threshold_of(checkpoint)
    if not math.isfinite(threshold):
        return SoftPositives(threshold, 0, 0, 0, [], [])
    device = device_of(World())
    keys = embed_split(
        trained_of(checkpoint, momentum=True).encoders.to(device),
        evaluation_set(checkpoint.recipe.model, manifest),
        World(),
        device,
        batch_size=batch_size,
        precision=checkpoint.recipe.engine.precision,
        workers=workers,
        on_batch=on_batch,
    )
    return mine_split(keys, online, threshold, checkpoint.recipe.loss.ahrl.min_agreement)


def threshold_of(checkpoint: Checkpoint) -> float:
    """The running quantile of the agreement at the checkpoint's step; infinity before any mining."""
    histogram = read_tensors(checkpoint, [_HISTOGRAM])[_HISTOGRAM]
    return float(quantile_of_bins(histogram, checkpoint.recipe.loss.ahrl.quantile))


@torch.no_grad()
def mine_split(
    keys: Embeddings, online: Embeddings, threshold: float, min_agreement: float, shown: int = SHOWN
) -> SoftPositives:
    """Mine the pairs of each image with its first caption; what has one image id is annotated, and left out."""
    owners, first = np.unique(keys.caption_image.cpu().numpy(), return_index=True)
    device = keys.images.device
    images, captions = (torch.from_numpy(rows[:PAIRS]).to(device) for rows in (owners, first))
    ids = keys.image_ids[images]
    views, texts = keys.images[images], keys.texts[captions]
    lowest = max(threshold, min_agreement)
    count = compared = 0
    ends: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for rows in blocks(len(ids), len(ids)):
        agreement = torch.minimum(views[rows] @ views.T, texts[rows] @ texts.T).clamp(-1, 1)
        # each two once
        after = torch.arange(rows.start, rows.stop, device=device)[:, None] < torch.arange(len(ids), device=device)
        others = after & (ids[rows, None] != ids)
        mined = others & (agreement >= lowest) & (agreement > 0)
        compared += int(others.sum())
        row, column = mined.nonzero(as_tuple=True)
        count += len(row)
        found = torch.stack([agreement[row, column].double(), (row + rows.start).double(), column.double()])
        for largest, kept in ends.items():
            kept.append(found)
            together = torch.cat(kept, dim=1)
            order = together[0].topk(min(_KEPT, together.shape[1]), largest=largest).indices
            kept[:] = [together[:, order]]

    def pair(agreement: float, i: int, j: int) -> SoftPositive:
        (a, b), (c, d) = images[[i, j]].tolist(), captions[[i, j]].tolist()
        crossed = float(online.images[a] @ online.texts[d]), float(online.images[b] @ online.texts[c])
        alike = float(views[i] @ views[j]), float(texts[i] @ texts[j])
        return SoftPositive((a, b), (c, d), agreement, *alike, crossed)

    seen: set[int] = set()

    def choose(found: torch.Tensor, most: int) -> list[SoftPositive]:
        chosen: list[SoftPositive] = []
        for agreement, i, j in found.T.tolist():
            if len(chosen) < most and not seen & {i, j}:
                seen.update((i, j))
                chosen.append(pair(agreement, int(i), int(j)))
        return chosen

    surest = choose(ends[True][0], -(-shown // 2))
    barely = choose(ends[False][0], shown // 2)
    return SoftPositives(threshold, len(ids), compared, count, surest, barely[::-1])
