"""L_rel and L_reg: what the relations within a group of pairs are trained by."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from model.aahr.relations import distance_relevance
from model.aahr.relevance import CrossRelevance

GroupHinge = Callable[[torch.Tensor, torch.Tensor, slice, int], torch.Tensor]
"""`(anchors, partners, rows, term)` -> the weighted mean over the anchors of one group.

Both (n, D): row i of the partners is anchor i's match and a candidate of the others; both are of pair
`rows.start + i` of the rank. `term` numbers the six terms, for a hinge that draws at random.
"""


def relation_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    enhanced_image: torch.Tensor,
    enhanced_text: torch.Tensor,
    group: int,
    hinge: GroupHinge,
) -> torch.Tensor:
    """L_rel: the triplet loss on (image, text'), (image', text) and (image', text'), both directions.

    All (b, D) of length 1. The primed ones know their neighbours; `image` and `text` are the embeddings used for
    retrieval, which are what the loss should shape (ours: the reference code takes the local ones). Negatives are
    the group's own, so the mean over ranks is the value over the global batch. Returns the mean over this rank's
    anchors of the sum of the six terms.
    """
    pairs = ((image, enhanced_text), (enhanced_image, text), (enhanced_image, enhanced_text))
    spans = list(_groups(len(image), group))
    losses = []
    for number, (left, right) in enumerate(pairs):
        for rows in spans:
            losses.append(hinge(left[rows], right[rows], rows, 2 * number))
            losses.append(hinge(right[rows], left[rows], rows, 2 * number + 1))
    return torch.stack(losses).sum() / len(spans)


def _groups(rows: int, group: int) -> Iterator[slice]:
    assert rows % group == 0, "a rank's batch must hold whole groups; the recipe check ensures it"
    return (slice(begin, begin + group) for begin in range(0, rows, group))


def relevance_divergence(
    cross: CrossRelevance, local_image: torch.Tensor, local_text: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """L_reg of every pair: (b,), the divergence of its image's row and that of its text's row.

    `KL(softmax(relevance) || softmax(exp(-distance)))` over the valid pairs of the group; the distances, of (b, D)
    local embeddings of length 1, have no gradient. HREM's direction: the relevance is the first argument. 0 for a
    pair that is not valid.
    """
    groups, n, _ = cross.i2t.shape
    ignored = ~valid.reshape(groups, 1, n)
    with torch.no_grad():
        guide = distance_relevance(local_image.reshape(groups, n, -1), local_text.reshape(groups, n, -1))
    per_pair = _divergence(cross.i2t, guide, ignored) + _divergence(cross.t2i, guide.mT, ignored)
    return per_pair.flatten().masked_fill(~valid, 0)


def _divergence(relevance: torch.Tensor, guide: torch.Tensor, ignored: torch.Tensor) -> torch.Tensor:
    """(G, n, n) each, (G, 1, n) columns left out -> (G, n) KL of the rows."""
    # not -inf: its difference with itself, and a row without any column, would be NaN
    nothing = torch.finfo(relevance.dtype).min / 2
    first, second = (side.masked_fill(ignored, nothing).log_softmax(dim=-1) for side in (relevance, guide))
    return F.kl_div(second, first, reduction="none", log_target=True).sum(dim=-1)
