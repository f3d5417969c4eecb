"""L_rel and L_reg: they share the relations between the pairs of a group."""

import torch

from model.aahr.relations import Relations
from model.config import RegulariserConfig, RelationsConfig
from model.losses.relations import relation_loss, relevance_divergence
from model.losses.tiles import Keys
from model.step import Step
from model.terms.ranking import HingeRanker
from model.terms.term import Term

_FIRST_STREAM = 2  # of random draws; the ranking term has 0 and 1


class RelationsTerm(Term):
    """Embeddings enhanced by their neighbours, and the regulariser of the relevance that they are made with."""

    def __init__(
        self, config: RelationsConfig, regulariser: RegulariserConfig, embed_dim: int, ranker: HingeRanker
    ) -> None:
        """`ranker` is the triplet within a group. Raises `ModelError` for heads that do not divide the width."""
        super().__init__()
        self.group = config.group
        self.relations = Relations(embed_dim, config)
        self.ranker = ranker
        self.weights = {"relations": config.weight, "regulariser": regulariser.weight}
        self.start_steps = {"relations": config.start_step, "regulariser": regulariser.start_step}

    def forward(self, step: Step) -> dict[str, torch.Tensor]:
        own = step.views[0].own
        related = self.relations(step.image, step.text, own.valid)

        def hinge(anchors: torch.Tensor, partners: torch.Tensor, rows: slice, term: int) -> torch.Tensor:
            ids, positions = own.ids[rows], step.positions[rows]
            keys, stream = Keys(partners, ids, own.valid[rows]), _FIRST_STREAM + term
            losses = self.ranker.direction(anchors, partners, keys, ids, positions, step, stream)
            return (losses * step.weight[rows]).mean()

        ranked = relation_loss(own.images, own.texts, related.image, related.text, self.group, hinge)
        divergence = relevance_divergence(related.cross, step.image.local, step.text.local, own.valid)
        return {"relations": ranked, "regulariser": step.mean(divergence)}
