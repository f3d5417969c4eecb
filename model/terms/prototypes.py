"""L_proto with its bank of prototypes."""

import torch

from model.config import PrototypeConfig
from model.losses.prototypes import prototype_loss
from model.memory.bank import PrototypeBank, assigned_sums, cosines, nearest_counts
from model.sinkhorn import sinkhorn
from model.step import Step
from model.terms.term import Term

DEAD_AFTER = 200
"""Steps without a nearest sample after which a prototype is logged as dead, where none is set anew."""


class PrototypeTerm(Term):
    """AAHR's prototype contrast over the global batch (`model.losses.prototypes`).

    Every rank assigns the whole batch, whose embeddings it has: no exchange, and the same bits on all of them.
    """

    def __init__(self, config: PrototypeConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.weights, self.start_steps = {"prototypes": config.weight}, {"prototypes": config.start_step}
        decay = config.decay if config.update == "average" else None
        self.bank = PrototypeBank(config.count, embed_dim, decay, config.start_step)
        self._counts: torch.Tensor | None = None
        self._assigned: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, step: Step) -> dict[str, torch.Tensor]:
        config, own, batch = self.config, step.views[0].own, step.views[0].batch
        prototypes = self.bank()
        scores = torch.stack([cosines(side, prototypes) for side in (own.images, own.texts)])
        with torch.no_grad():
            all_scores = torch.stack([cosines(side, prototypes) for side in (batch.images, batch.texts)])
            assignments = sinkhorn(all_scores, batch.valid, config.sinkhorn_epsilon, config.sinkhorn_iterations)
            self._counts = nearest_counts(all_scores, batch.valid)
            if config.update == "average":
                self._assigned = assigned_sums((batch.images, batch.texts), assignments, batch.valid)
        loss = prototype_loss(scores, assignments.index_select(1, step.positions), config.temperature)
        step.logs["prototype_entropy"] = self.bank.usage_entropy()
        step.logs["prototype_dead"] = self.bank.dead(step.number, config.reseed_after or DEAD_AFTER).sum().float()
        return {"prototypes": step.mean(loss)}

    def advance(self, step: int) -> None:
        if self._counts is not None:
            self.bank.record(self._counts, step)
            self._counts = None
        if self._assigned is not None:
            self.bank.follow(*self._assigned)
            self._assigned = None

    def restart(self) -> None:
        self.bank.clear()
