"""What a tower hands to a head."""

from dataclasses import dataclass

import torch


@dataclass
class Features:
    """One modality's features. B items, n tokens."""

    pooled: torch.Tensor
    """(B, d_global) the tower's own global feature."""
    tokens: torch.Tensor
    """(B, n, d_token) patches or words."""
    valid: torch.Tensor | None
    """(B, n) bool, True where a token is real; None when all are. Every item has at least one."""


@dataclass
class Encoded:
    """What a head makes of one modality's features. B items, n tokens."""

    embedding: torch.Tensor
    """(B, D) float32 of length 1: the embedding used for retrieval."""
    local: torch.Tensor
    """(B, D) float32 of length 1: the local path alone, before the global is mixed in."""
    tokens: torch.Tensor
    """(B, n, D) projected regions, patches or words, in the arithmetic of the encoders."""
    valid: torch.Tensor | None
    """(B, n) bool, True where a token is real; None when all are. Every item has at least one."""
