"""What a loss term is to a framework."""

from abc import abstractmethod

import torch
from torch import nn

from model.step import Step


class Term(nn.Module):
    """A part of the loss, of one or more values that are logged by name."""

    weights: dict[str, float]
    """Of each value in the loss."""
    start_steps: dict[str, int]
    """Optimiser steps before each value counts; before the first of them the term is not computed."""

    @abstractmethod
    def forward(self, step: Step) -> dict[str, torch.Tensor]:
        """The values by name, each () the rank's mean over its pairs; their mean over the ranks is the value."""

    def advance(self, step: int) -> None:
        """Bring the term's own state up to date, after the optimiser's step number `step` was applied."""

    def restart(self) -> None:
        """Forget what was learned of other data; weights stay."""
