"""What towers have in common: their widths, a frozen part, and activations that are kept or computed again."""

from abc import abstractmethod

import torch
from torch import nn

from model.config import TowerConfig
from model.errors import ModelError


class Tower(nn.Module):
    """Whatever turns one modality's input into `Features`."""

    pooled_width: int
    """Width of `Features.pooled`."""
    token_width: int
    """Width of `Features.tokens`."""


class Backbone(Tower):
    """A network of which nothing, the first blocks or everything is frozen.

    What is frozen takes no gradient and always runs as in evaluation, without dropout.
    """

    frozen = False
    """Whether all of it is frozen."""

    @abstractmethod
    def depths(self) -> tuple[dict[str, int], int]:
        """Each parameter's block, from 1 on, and the number of blocks.

        0 is what comes before the first block: embeddings; one more than the last: what comes after it.
        """

    @abstractmethod
    def checkpoint_blocks(self) -> None:
        """Have the blocks' activations computed again in the backward pass. Raises `ModelError` where it cannot."""

    def configure(self, config: TowerConfig, where: str) -> None:
        """Freeze and checkpoint as configured; `where` is the section's name. Raises `ModelError`."""
        if config.freeze == "all":
            self.requires_grad_(False)
            self.frozen = True
        elif config.freeze is not None:
            depths, blocks = self.depths()
            if config.freeze > blocks:
                has = f"{blocks} block{'s' if blocks > 1 else ''}; all is a value, too"
                none = "no separate blocks (ALBERT's share their weights); give 0 for its embeddings, or all"
                raise ModelError(f"{where}.freeze: {config.freeze}, but the tower has {has if blocks else none}")
            for name, parameter in self.named_parameters():
                if depths[name] <= config.freeze:
                    parameter.requires_grad_(False)
        if config.gradient_checkpointing:
            self.checkpoint_blocks()
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        """As in `nn.Module`, but for frozen modules, which stay in evaluation mode."""
        super().train(mode)
        if mode:
            for module in self.modules():
                parameters = list(module.parameters())
                if parameters and not any(parameter.requires_grad for parameter in parameters):
                    module.eval()
        return self

    def gradient(self) -> torch.set_grad_enabled:
        """The context of the forward pass: nothing of a frozen tower is kept for a backward pass."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen)


def at_least_one(valid: torch.Tensor) -> torch.Tensor:
    """(B, n) bool -> the same, with the first token valid where an item had none."""
    first = torch.zeros_like(valid[:1])
    first[:, 0] = True
    return valid | (first & ~valid.any(dim=1, keepdim=True))
