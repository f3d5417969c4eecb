"""AAHR: how relevant every image and every text of a group are to each other, from their regions and words.

The word-region similarities of SCAN (Lee et al., ECCV 2018) with the learned relevance of HREM (Fu et al., CVPR
2023). All pairs of a group are one matrix product a tile of texts, fragments leading and images last, so that
every reduction runs over whole rows of images (ours). The fragments are detached, so nothing before the
MLPs is kept for the backward pass: memory is one tile and the result, at any number of fragments.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from model.config import RelationsConfig

TOP = 10
"""Maxima that the learned relevance sees (HREM)."""
LEAK = 0.1
"""Slope of the leaky ReLU on a word-region cosine (SCAN)."""


class Maxima(NamedTuple):
    """What is kept of the word-region similarities of n images and m texts."""

    i2t_mean: torch.Tensor
    """(n, m) each region's best word, averaged over the valid regions."""
    i2t_largest: torch.Tensor
    """(n, m, top) the largest of the regions' best, descending; zeros where there are fewer valid regions."""
    t2i_mean: torch.Tensor
    """(m, n) each word's best region, averaged over the valid words."""
    t2i_largest: torch.Tensor
    """(m, n, top) the largest of the words' best, descending; zeros where there are fewer valid words."""


class CrossRelevance(NamedTuple):
    """Relevance between the images and the texts of G groups of n pairs; 0 where a pair is not valid."""

    i2t: torch.Tensor
    """(G, n, n) row: image, column: text. Has a gradient where it is learned."""
    t2i: torch.Tensor
    """(G, n, n) row: text, column: image."""
    i2t_mean: torch.Tensor
    """(G, n, n) the plain average, without gradient."""
    t2i_mean: torch.Tensor
    """(G, n, n)."""


@torch.no_grad()
def fragment_maxima(
    regions: torch.Tensor,
    words: torch.Tensor,
    region_valid: torch.Tensor | None,
    word_valid: torch.Tensor | None,
    tile: int,
    top: int = TOP,
) -> Maxima:
    """Best matches between the regions of every image and the words of every text.

    s = leaky ReLU of the cosine of a region and a word. t2i: s divided by the L2 norm of the region's s over the
    valid words of the text; a word's best is its maximum over the valid regions. i2t: s divided by the L2 norm
    of the word's s over the valid regions of the image; a region's best is its maximum over the valid words.

    Args:
        regions: (n, R, D), words: (m, T, D), of any length; cast to float32 at least.
        region_valid: (n, R) bool, word_valid: (m, T) bool; None: all valid. Every item has at least one.
        tile: texts compared at a time; the largest tensor has T * tile * R * n values.
        top: how many of the largest are returned.
    """
    (n, r, _), (m, t, _) = regions.shape, words.shape
    # everything below has its axes in the order (words, texts, regions, images)
    has_region = (regions.new_ones((n, r), dtype=torch.bool) if region_valid is None else region_valid).T
    has_word = (words.new_ones((m, t), dtype=torch.bool) if word_valid is None else word_valid).T
    region_columns = _unit_fragments(regions, has_region).flatten(0, 1).T
    word_rows = _unit_fragments(words, has_word)
    no_region, no_word = (
        torch.zeros_like(has, dtype=word_rows.dtype).masked_fill(~has, -torch.inf) for has in (has_region, has_word)
    )
    tiles = []
    for begin in range(0, m, tile):
        texts = slice(begin, min(begin + tile, m))
        cosines = word_rows[:, texts].flatten(0, 1) @ region_columns
        similarity = F.leaky_relu_(cosines, LEAK).view(t, -1, r, n)
        squares = similarity * similarity
        # similarity times its scale, and -inf where there is no fragment, in one pass
        word_best = torch.addcmul(no_region, similarity, _inverse_norm(squares, 0)).amax(dim=2)
        masked = no_word[:, texts, None, None]
        region_best = torch.addcmul(masked, similarity, _inverse_norm(squares, 2)).amax(dim=0)
        i2t = _summarise(region_best.transpose(0, 1), has_region.unsqueeze(1), top)
        t2i = _summarise(word_best, has_word[:, texts].unsqueeze(2), top)
        tiles.append((*i2t, *t2i))
    i2t_mean, i2t_largest, t2i_mean, t2i_largest = (torch.cat(parts) for parts in zip(*tiles, strict=True))
    return Maxima(i2t_mean.transpose(0, 1), i2t_largest.transpose(0, 1), t2i_mean, t2i_largest)


def _unit_fragments(fragments: torch.Tensor, has: torch.Tensor) -> torch.Tensor:
    """(n, F, D), (F, n) -> (F, n, D) of length 1, zero where there is none, so that it adds nothing to a norm."""
    floating = fragments.to(torch.promote_types(fragments.dtype, torch.float32))
    return F.normalize(floating, dim=-1).transpose(0, 1).masked_fill(~has.unsqueeze(-1), 0)


def _inverse_norm(squares: torch.Tensor, dim: int) -> torch.Tensor:
    return squares.sum(dim=dim, keepdim=True).clamp(min=1e-24).rsqrt()


def _summarise(best: torch.Tensor, valid: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(F, m, n) maxima -> (m, n) their mean and (m, n, top) the largest, over the valid ones."""
    mean = best.masked_fill(~valid, 0).sum(dim=0) / valid.sum(dim=0).clamp(min=1)
    ranked = best.masked_fill(~valid, -torch.inf).movedim(0, -1).topk(min(top, len(best))).values
    largest = ranked.masked_fill(ranked.isneginf(), 0)
    return mean, F.pad(largest, (0, top - largest.shape[-1]))


class FragmentRelevance(nn.Module):
    """Relevance between the images and the texts of each group: the average of the maxima, alone or with an MLP.

    Training only. `learned` is HREM's: 10 -> 10 -> 1 with ReLU on the ten largest maxima, one MLP a direction,
    added to the average. `average` has no parameters and no gradient, as in AAHR's reference code.
    """

    def __init__(self, config: RelationsConfig) -> None:
        super().__init__()
        self.group, self.tile = config.group, config.tile
        learned = config.relevance == "learned"
        self.i2t = _scorer() if learned else None
        self.t2i = _scorer() if learned else None

    def forward(
        self,
        regions: torch.Tensor,
        words: torch.Tensor,
        region_valid: torch.Tensor | None,
        word_valid: torch.Tensor | None,
        valid: torch.Tensor,
    ) -> CrossRelevance:
        """(b, R, D), (b, T, D), (b, R) and (b, T) bool or None, (b,) bool -> G = b / group groups.

        Nothing flows back into the fragments.
        """
        assert len(valid) % self.group == 0, "a rank's batch must hold whole groups; the recipe check ensures it"
        spans = [slice(begin, begin + self.group) for begin in range(0, len(valid), self.group)]
        groups = [
            fragment_maxima(
                regions[span],
                words[span],
                None if region_valid is None else region_valid[span],
                None if word_valid is None else word_valid[span],
                self.tile,
            )
            for span in spans
        ]
        ignored = ~both_valid(valid.reshape(-1, self.group))
        # before the MLPs, so that a filling pair cannot reach their gradient either
        i2t_mean, i2t_largest, t2i_mean, t2i_largest = (
            parts.masked_fill(ignored if parts.ndim == 3 else ignored.unsqueeze(-1), 0)
            for parts in map(torch.stack, zip(*groups, strict=True))
        )
        i2t = i2t_mean if self.i2t is None else i2t_mean + self.i2t(i2t_largest).squeeze(-1)
        t2i = t2i_mean if self.t2i is None else t2i_mean + self.t2i(t2i_largest).squeeze(-1)
        return CrossRelevance(i2t.masked_fill(ignored, 0), t2i.masked_fill(ignored, 0), i2t_mean, t2i_mean)


def _scorer() -> nn.Sequential:
    return nn.Sequential(nn.Linear(TOP, TOP), nn.ReLU(), nn.Linear(TOP, 1))


def both_valid(valid: torch.Tensor) -> torch.Tensor:
    """(G, n) bool -> (G, n, n), True where the row and the column are valid."""
    return valid.unsqueeze(-1) & valid.unsqueeze(-2)
