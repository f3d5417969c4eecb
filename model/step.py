"""One training step as the loss terms see it."""

from dataclasses import dataclass, field

import torch

from model.features import Encoded
from model.losses.pairs import Memory, Pairs


@dataclass(frozen=True)
class View:
    """One kind of embedding of the step's pairs; a method without consensus has one kind."""

    own: Pairs
    """b pairs of this rank, with gradient."""
    batch: Pairs
    """G pairs of all ranks, with gradient."""
    memory: Memory | None
    """What the momentum encoders made of them, and of past batches; None where the method has no queue."""


@dataclass
class Step:
    """b pairs of this rank among the G of all ranks."""

    number: int
    """Optimiser steps applied before this one."""
    seed: int
    """Of the run: with the number and the positions all that a draw may depend on."""
    positions: torch.Tensor
    """(b,) int64: the pairs' places in the global batch."""
    weight: torch.Tensor
    """(b,) of each pair in a mean over the rank, such that the ranks' mean is that over the valid pairs."""
    image: Encoded
    text: Encoded
    views: list[View]
    """The embedding used for retrieval first; with consensus then the instance's and the consensus's."""
    concepts: tuple[torch.Tensor, torch.Tensor] | None
    """(b, q) log distributions of the images and of the texts over the concepts."""
    queue_ready: torch.Tensor | None
    """() bool, whether every slot of the queue is filled."""
    logs: dict[str, torch.Tensor] = field(default_factory=dict)
    """Further scalars for the log; the mean over the ranks is what is shown."""

    def mean(self, per_pair: torch.Tensor) -> torch.Tensor:
        """(b,) -> (): this rank's share of the mean over the global batch."""
        return (per_pair * self.weight).mean()

    @property
    def valid(self) -> torch.Tensor:
        """(b,) bool."""
        return self.views[0].own.valid
