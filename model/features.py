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
