"""One negative an anchor, chosen over tiles, without gradient."""

from collections.abc import Callable

import torch

from model.losses.keyed_noise import PairNoise
from model.losses.tiles import Keys, full_precision, spans, tile_shape, tiles_of_row

MIN_DISTANCE, MAX_DISTANCE = 0.5, 1.99


def hardest_negative(anchors: torch.Tensor, ids: torch.Tensor, keys: Keys) -> tuple[torch.Tensor, torch.Tensor]:
    """The most similar key of another id: its row (b,) int64, and (b,) bool, False where there is none."""
    return _best(anchors, ids, keys, lambda tile, _rows, _columns: tile)


def distance_weighted_negative(
    anchors: torch.Tensor,
    ids: torch.Tensor,
    keys: Keys,
    noise: PairNoise,
    cutoff: float,
    dimension: int = 512,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A key of another id, drawn by its distance: its row (b,) int64, and (b,) bool, False where there is none.

    Wu et al., "Sampling Matters in Deep Embedding Learning" (ICCV 2017, eq. 5): on the unit sphere of `dimension`
    dimensions distances r have density `r^(d-2) (1 - r^2/4)^((d-3)/2)`; keys are drawn with its inverse as
    their weight, r kept within [0.5, 1.99], but none with r above `cutoff`. Drawn as the largest of the weights'
    logarithms plus Gumbel noise, so weights are neither normalised nor exponentiated.

    Args:
        anchors: (b, D) normalised.
        ids: (b,) int64.
        keys: (K, D) normalised.
        noise: of these anchors with these keys.
        cutoff: a Euclidean distance, 2 for none.
        dimension: of the density; the papers' 512 also where D is another.
    """
    closest, farthest = (1 - distance**2 / 2 for distance in (MIN_DISTANCE, MAX_DISTANCE))
    # opposite vectors may by rounding be farther than 2; -2 is between them and excluded keys
    too_far = 1 - cutoff**2 / 2 if cutoff < 2 else -2.0

    def score(tile: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
        forbidden = tile < too_far
        tile.clamp_(farthest, closest)
        # r^2 = 2 - 2s and 1 - r^2/4 = (1 + s)/2, less what is the same for all
        drawn = tile.neg().log1p_().mul_((dimension - 2) / 2).add_(noise.log_exponential(rows, columns, tile.dtype))
        drawn.add_(tile.log1p_(), alpha=(dimension - 3) / 2)
        return drawn.neg_().masked_fill_(forbidden, -torch.inf)

    return _best(anchors, ids, keys, score)


@torch.no_grad()
def _best(
    anchors: torch.Tensor,
    ids: torch.Tensor,
    keys: Keys,
    score: Callable[[torch.Tensor, slice, slice], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first of the rows with the highest score, which may be written over the tile of similarities."""
    anchors = full_precision(anchors)
    rows_size, columns_size = tile_shape(anchors.device)
    highest = anchors.new_full((len(anchors),), -torch.inf)
    row = torch.zeros_like(highest, dtype=torch.int64)
    for rows in spans(len(anchors), rows_size):
        for columns, _, tile in tiles_of_row(anchors[rows], ids[rows], keys, columns_size):
            value, place = score(tile, rows, columns).max(dim=1)
            row[rows] = torch.where(value > highest[rows], place + columns.start, row[rows])
            highest[rows] = torch.maximum(highest[rows], value)
    return row, highest > -torch.inf
