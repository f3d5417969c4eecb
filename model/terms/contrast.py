"""The baselines' only term."""

from typing import Literal

import torch

from model.config import ContrastConfig
from model.losses.contrast import Contrast
from model.step import Step
from model.terms.term import Term


class ContrastTerm(Term):
    """CLIP's or SigLIP's loss over the global batch (`model.losses.contrast`)."""

    def __init__(self, kind: Literal["clip", "siglip"], config: ContrastConfig) -> None:
        super().__init__()
        self.name = kind
        self.weights, self.start_steps = {self.name: 1.0}, {self.name: 0}
        self.contrast = Contrast(kind, config)

    def forward(self, step: Step) -> dict[str, torch.Tensor]:
        own, batch = step.views[0].own, step.views[0].batch
        loss = self.contrast(own.images, own.texts, own.ids, batch.image_keys, batch.text_keys)
        return {self.name: step.mean(loss)}
