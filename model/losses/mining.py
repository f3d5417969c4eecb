"""AHRL's view of the batch and the queue: hardest negatives, candidates, soft positives, without gradient.

One pass over tiles of keys finds them all, so memory does not grow with the queue. The keys of a pair are its
momentum embeddings.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from model.config import AhrlConfig
from model.losses.keyed_draw import draw, keys_of
from model.losses.pairs import Memory, Pairs
from model.losses.running_quantile import BINS, count_in_bins
from model.losses.streaming import Hardest, MostSimilar, SoftTargets

TILE_ENTRIES = 2**22
"""Of one (b, T) matrix; some ten of them are held at once, 16 MiB each in float32."""


@dataclass(frozen=True)
class Found:
    """What one side's anchors found on the other side."""

    hardest: torch.Tensor
    """(b,) int64 row of the batch."""
    has_hardest: torch.Tensor
    """(b,) bool."""
    candidate: torch.Tensor | None = None
    """(b,) int64 row of the queue; None where candidates are not asked for."""
    has_candidate: torch.Tensor | None = None
    """(b,) bool."""
    soft: SoftTargets | None = None
    """None where soft positives are not asked for."""


@dataclass(frozen=True)
class Mined:
    """What the anchors of both sides found."""

    by_images: Found
    by_texts: Found
    soft_positives: torch.Tensor
    """(b,) int64, how many were mined: the same for a pair's image and text."""
    agreement_counts: torch.Tensor
    """(BINS,) int64 histogram of the agreement of this rank's pairs with all others."""


class _Side:
    def __init__(self, anchors: torch.Tensor, matches: torch.Tensor, memory: Memory | None, config: AhrlConfig):
        self.anchors = anchors
        self.hardest = Hardest(anchors)
        self.similar: MostSimilar | None = None
        self.soft: SoftTargets | None = None
        if memory is not None and config.draws_candidates and len(memory.queue):
            self.similar = MostSimilar(anchors, min(config.candidates, len(memory.queue)))
        if memory is not None and config.mining:
            self.soft = SoftTargets(anchors, matches, config.temperature)

    def look_at_batch(self, items: torch.Tensor, no_negative: torch.Tensor, first: int) -> None:
        self.hardest.add((self.anchors @ items.T).masked_fill(no_negative, -torch.inf), first)

    def look_at_keys(
        self, keys: torch.Tensor, excluded: torch.Tensor, agreement: torch.Tensor | None, first: int | None
    ) -> None:
        """`agreement` (b, T) is 0 but for soft positives; `first` is the keys' row in the queue, if there."""
        similarity = (self.anchors @ keys.T).masked_fill(excluded, -torch.inf)
        if self.soft is not None and agreement is not None:
            self.soft.add(similarity, agreement, keys)
            similarity = similarity.masked_fill(agreement > 0, -torch.inf)
        if self.similar is not None and first is not None:
            self.similar.add(similarity, first)

    def found(self, keys: torch.Tensor) -> Found:
        candidate, has_candidate = None, None
        if self.similar is not None:
            candidate, has_candidate = draw(keys, self.similar.rows, self.similar.found)
        return Found(self.hardest.row, self.hardest.found, candidate, has_candidate, self.soft)


class _Agreement:
    """How the momentum towers see this rank's pairs and others: `min(s_k(t_i, t_j), s_k(v_i, v_j))`."""

    def __init__(self, own: Pairs, own_keys: Pairs, threshold: torch.Tensor, dtype: torch.dtype) -> None:
        self.anchors, self.valid = own_keys.part(0, len(own), dtype), own.valid.unsqueeze(1)
        self.threshold = threshold
        self.mined = torch.zeros_like(own.ids)
        self.counts = torch.zeros(BINS, dtype=torch.int64, device=own.ids.device)

    def soft_positives(self, keys: Pairs, excluded: torch.Tensor) -> torch.Tensor:
        """(b, T): the agreement with soft positives, 0 with all others."""
        agreement = torch.minimum(self.anchors.images @ keys.images.T, self.anchors.texts @ keys.texts.T)
        agreement = agreement.clamp(-1, 1)
        others = self.valid & ~excluded
        self.counts += count_in_bins(agreement, others)
        soft = agreement.masked_fill(~(others & (agreement >= self.threshold) & (agreement > 0)), 0)
        self.mined += (soft > 0).sum(dim=1)
        return soft


def _tiles(rows: int, anchors: int, entries: int) -> Iterator[tuple[int, int]]:
    size = max(1, entries // max(1, anchors))
    return ((first, min(first + size, rows)) for first in range(0, rows, size))


@torch.no_grad()
def mine(
    own: Pairs,
    batch: Pairs,
    memory: Memory | None,
    positions: torch.Tensor,
    config: AhrlConfig,
    threshold: torch.Tensor,
    seed: int,
    step: int | torch.Tensor,
    tile_entries: int = TILE_ENTRIES,
) -> Mined:
    """Find the negatives, candidates and soft positives of this rank's pairs; see `model.losses.ahrl.ahrl`."""
    assert tile_entries <= 2**24, "the bound of count_in_bins"
    dtype = torch.promote_types(own.images.dtype, torch.float32)
    own = own.part(0, len(own), dtype)
    matches = own if memory is None else memory.own.part(0, len(own), dtype)
    by_images = _Side(own.images, matches.texts, memory, config)
    by_texts = _Side(own.texts, matches.images, memory, config)
    agreed: _Agreement | None = None
    if memory is not None and config.mining:
        lowest = threshold.to(dtype).clamp(min=config.min_agreement)
        agreed = _Agreement(own, memory.own, torch.where(memory.queue.valid.any(), lowest, torch.inf), dtype)

    for first, last in _tiles(len(batch), len(own), tile_entries):
        items = batch.part(first, last, dtype)
        excluded = (own.ids.unsqueeze(1) == items.ids) | ~items.valid
        no_negative = excluded
        if memory is not None and agreed is not None:
            keys = memory.batch.part(first, last, dtype)
            soft = agreed.soft_positives(keys, excluded)
            no_negative = excluded | (soft > 0)
            by_images.look_at_keys(keys.texts, excluded, soft, None)
            by_texts.look_at_keys(keys.images, excluded, soft, None)
        by_images.look_at_batch(items.texts, no_negative, first)
        by_texts.look_at_batch(items.images, no_negative, first)

    if memory is not None and (agreed is not None or config.draws_candidates):
        for start, block in memory.queue.blocks():
            for first, last in _tiles(len(block), len(own), tile_entries):
                keys = block.part(first, last, dtype)
                excluded = (own.ids.unsqueeze(1) == keys.ids) | ~keys.valid
                soft_or_none = None if agreed is None else agreed.soft_positives(keys, excluded)
                by_images.look_at_keys(keys.texts, excluded, soft_or_none, start + first)
                by_texts.look_at_keys(keys.images, excluded, soft_or_none, start + first)

    return Mined(
        by_images.found(keys_of(positions, seed, step, 0)),
        by_texts.found(keys_of(positions, seed, step, 1)),
        torch.zeros_like(own.ids) if agreed is None else agreed.mined,
        torch.zeros(BINS, dtype=torch.int64, device=own.ids.device) if agreed is None else agreed.counts,
    )
