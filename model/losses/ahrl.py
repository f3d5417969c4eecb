"""AHRL, the adaptive hierarchical reinforcement loss of AMSPS (arXiv 2311.05425), in the triplet's place.

The paper's abstract names the parts; their formulas are ours, after the adaptive offline quintuplet loss AOQ
(Chen et al., ECCV 2020, arXiv 2003.03669). docs/algorithm.md says what is whose.
"""

from dataclasses import dataclass

import torch

from model.config import AhrlConfig
from model.losses.mining import TILE_ENTRIES, Found, mine
from model.losses.pairs import Memory, Pairs, Slots


@dataclass(frozen=True)
class AhrlResult:
    """Values of b anchors, each the sum of both directions; zeros where a pair is not valid."""

    loss: torch.Tensor
    """(b,) `w l1 + l2 + l3 + mining_weight * l4`, the one with gradient."""
    hard: torch.Tensor
    """(b,) `w l1`, as all that follows for the log."""
    candidate: torch.Tensor
    """(b,) `l2`."""
    pair: torch.Tensor
    """(b,) `l3`."""
    mining: torch.Tensor
    """(b,) `l4`."""
    penalty: torch.Tensor
    """(b,) `w`, the mean of both directions."""
    soft_positives: torch.Tensor
    """(b,) float, how many were mined for the pair."""
    agreement_counts: torch.Tensor
    """(BINS,) int64, for `RunningQuantile.update` once the step is applied."""


def ahrl(
    own: Pairs,
    batch: Pairs,
    positions: torch.Tensor,
    memory: Memory | None,
    threshold: torch.Tensor,
    config: AhrlConfig,
    *,
    seed: int,
    step: int | torch.Tensor,
    tile_entries: int = TILE_ENTRIES,
) -> AhrlResult:
    """AHRL over the global batch and the queue, both directions; all ranks call it together.

    For the image v_i of a pair, s+ its similarity with its text, and the same for the text:

    1. hard: `l1 = [margin + s(v_i, t_h) - s+]_+`, h the hardest negative of the batch (VSE++);
    2. candidate: `l2 = [candidate_margin + s(v_i, t_c) - s+]_+`, c drawn from the queue's most similar entries;
    3. pair: `l3 = [candidate_margin + s(v_d, t_c) - s+]_+`, d the image candidate of t_i; 0 where c and d have
       one id;
    4. adaptive: `w = clamp(beta - (s(v_i, t_c) - s(v_i, t_h)) / alpha, 0, max_penalty)`, no gradient; 1 without c;
    5. mining: an item j is a soft positive where both momentum towers agree that it is as i,
       `min(s_k(t_i, t_j), s_k(v_i, v_j)) >= threshold`, and above 0. It is no negative in 1 to 4, and
       `l4 = -sum_j q_ij log softmax_j(s(v_i, k_j) / temperature)` over the momentum keys k_j of the true match,
       of the batch and of the queue; q is the agreement with the soft positives and 1 with the true match,
       normalised. What has the anchor's id is annotated: it is neither mined nor in the softmax, but for the
       true match.

    With levels 2 to 5 off, or without `memory`, this is VSE++. While the queue holds no valid entry, levels 2,
    3 and 5 are 0, and w is 1.

    Args:
        own: this rank's b online pairs, with gradient.
        batch: the G pairs of all ranks, gathered with gradient.
        positions: (b,) int64 of the own pairs in the global batch.
        memory: momentum embeddings, which get no gradient; may be of lower precision.
        threshold: () the running quantile of the agreement.
        seed: of the run; with `step` and the position it is all that the draw of candidates depends on.
        step: the optimiser step.
        tile_entries: bounds the memory, and changes results by rounding alone.
    """
    mined = mine(own, batch, memory, positions, config, threshold, seed, step, tile_entries)
    dtype = torch.promote_types(own.images.dtype, torch.float32)
    images, texts = own.images.to(dtype), own.texts.to(dtype)
    match = (images * texts).sum(dim=1)
    queue = None if memory is None else memory.queue
    by_images, by_texts = mined.by_images, mined.by_texts
    image_candidates = text_candidates = None
    if queue is not None and by_images.candidate is not None and by_texts.candidate is not None:
        found = queue.look_up(by_texts.candidate, by_images.candidate)
        image_candidates, text_candidates = (rows.to(dtype) for rows in found)
    sides = (
        _levels(images, match, batch.texts, text_candidates, by_images, config),
        _levels(texts, match, batch.images, image_candidates, by_texts, config),
    )
    hard, candidate, penalty = (image + text for image, text in zip(*sides, strict=True))
    pair = mining = torch.zeros_like(match)
    if config.pair and queue is not None and image_candidates is not None and text_candidates is not None:
        # both directions compare the same two candidates
        between = (image_candidates * text_candidates).sum(dim=1)
        violation = (config.candidate_margin + between - match).clamp(min=0)
        pair = 2 * torch.where(_are_a_pair_of_candidates(queue, by_texts, by_images), violation, 0)
    if by_images.soft is not None and by_texts.soft is not None and queue is not None:
        mining = by_images.soft.loss(images) + by_texts.soft.loss(texts)
        mining = torch.where(queue.valid.any(), mining, 0)
    hard, candidate, pair, mining, penalty = (
        torch.where(own.valid, value, 0) for value in (hard, candidate, pair, mining, penalty)
    )
    return AhrlResult(
        hard + candidate + pair + config.mining_weight * mining,
        hard.detach(),
        candidate.detach(),
        pair.detach(),
        mining.detach(),
        penalty / 2,
        mined.soft_positives.to(dtype),
        mined.agreement_counts,
    )


def _levels(
    anchors: torch.Tensor,
    match: torch.Tensor,
    items: torch.Tensor,
    candidates: torch.Tensor | None,
    found: Found,
    config: AhrlConfig,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One direction's `w l1`, `l2` and `w`, each (b,); (b, D) candidates where they are asked for."""
    negative = _similarity(anchors, items, found.hardest)
    penalty = torch.ones_like(match)
    candidate = torch.zeros_like(match)
    if candidates is not None and found.has_candidate is not None:
        nearest = (anchors * candidates).sum(dim=1)
        if config.adaptive:
            weight = (config.beta - (nearest - negative) / config.alpha).clamp(0, config.max_penalty).detach()
            penalty = torch.where(found.has_candidate & found.has_hardest, weight, 1)
        if config.candidate:
            violation = (config.candidate_margin + nearest - match).clamp(min=0)
            candidate = torch.where(found.has_candidate, violation, 0)
    if not config.hard:
        return torch.zeros_like(match), candidate, penalty
    violation = (config.margin + negative - match).clamp(min=0)
    return penalty * torch.where(found.has_hardest, violation, 0), candidate, penalty


def _similarity(anchors: torch.Tensor, items: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return (anchors * items.index_select(0, rows).to(anchors.dtype)).sum(dim=1)


def _are_a_pair_of_candidates(queue: Slots, by_texts: Found, by_images: Found) -> torch.Tensor:
    """(b,) bool, where both sides have a candidate, and the two are not annotated as a match."""
    assert by_texts.candidate is not None
    assert by_images.candidate is not None
    assert by_texts.has_candidate is not None
    assert by_images.has_candidate is not None
    annotated = queue.ids.index_select(0, by_texts.candidate) == queue.ids.index_select(0, by_images.candidate)
    return by_texts.has_candidate & by_images.has_candidate & ~annotated
