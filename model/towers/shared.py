"""A tower that two pairs of encoders have in common: it is run once for both."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from model.features import Features
from model.towers.tower import Tower


class SharedTower(Tower):
    """In the place of a tower's copy: the features that the tower itself gave of the same inputs, without gradient.

    Has no weights. What the tower was given last is remembered for one use; anything else is run anew.
    """

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.pooled_width, self.token_width = tower.pooled_width, tower.token_width
        self._tower = (tower,)  # not as a part of this module: its weights are not counted twice
        self._inputs: tuple[torch.Tensor | None, ...] = ()
        self._features: Features | None = None
        tower.register_forward_hook(self._remember)

    def _remember(self, _tower: nn.Module, inputs: tuple[Any, ...], features: Features) -> None:
        self._inputs, self._features = inputs, _detached(features)

    def forward(self, *inputs: torch.Tensor | None) -> Features:
        """As the tower's, once for what it was given last."""
        features = self._features
        if features is None or len(inputs) != len(self._inputs) or not all(map(_same, inputs, self._inputs)):
            with torch.no_grad():
                return _detached(self._tower[0](*inputs))
        self._inputs, self._features = (), None
        return features


def _detached(features: Features) -> Features:
    return replace(features, pooled=features.pooled.detach(), tokens=features.tokens.detach())


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether both are the same memory; what is remembered holds it, so that nothing else can take its place."""
    if one is None or other is None:
        return one is other
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()
