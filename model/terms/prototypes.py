"""L_proto with its bank of prototypes."""

import torch

from model.config import PrototypeConfig
from model.losses.prototypes import prototype_loss
from model.memory.bank import PrototypeBank, nearest_counts
from model.step import Step
from model.terms.term import Term


class PrototypeTerm(Term):
    """AAHR's prototype contrast over the global batch (`model.losses.prototypes`)."""

    def __init__(self, config: PrototypeConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.weights, self.start_steps = {"prototypes": config.weight}, {"prototypes": config.start_step}
        self.bank = PrototypeBank(config.count, embed_dim)
        self._counts: torch.Tensor | None = None

    def forward(self, step: Step) -> dict[str, torch.Tensor]:
        config, own = self.config, step.views[0].own
        scores = self.bank(torch.stack([own.images, own.texts]))
        loss = prototype_loss(
            scores[0], scores[1], own.valid, config.temperature, config.sinkhorn_epsilon, config.sinkhorn_iterations
        )
        self._counts = nearest_counts(scores, own.valid)
        step.logs["prototype_entropy"] = self.bank.usage_entropy()
        return {"prototypes": step.mean(loss)}

    def advance(self, step: int) -> None:
        if self._counts is not None:
            self.bank.record(self._counts, step)
            self._counts = None

    def restart(self) -> None:
        self.bank.usage.zero_()
        self.bank.last_used.zero_()
