"""Small batches of vectors for the tests of losses over pairs."""

import torch
from torch.nn.functional import normalize

from model.losses.tiles import Keys


def unit_rows(rows: int, width: int, seed: int) -> torch.Tensor:
    """(rows, width) float64 of length 1."""
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, width, dtype=torch.float64, generator=generator), dim=1)


def keys_of(vectors: torch.Tensor, ids: list[int], valid: list[bool] | None = None) -> Keys:
    return Keys(vectors, torch.tensor(ids), torch.tensor(valid or [True] * len(ids)))


def assert_same_gradients(ours: torch.Tensor, expected: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    """Values and gradients of two scalars, in float64."""
    torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-13)
    for mine, theirs in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)
