"""Sinkhorn-Knopp against a version written with loops, in float64."""

import math

import pytest
import torch

from model.sinkhorn import sinkhorn


def sinkhorn_with_loops(scores: torch.Tensor, valid: list[bool], epsilon: float, iterations: int) -> torch.Tensor:
    """The matrix of masses itself, prototypes to 1 / P and samples to 1 / n, and at the end samples to 1."""
    kept = [i for i, good in enumerate(valid) if good]
    columns = range(scores.shape[1])
    mass = {(i, k): math.exp(scores[i, k].item() / epsilon) for i in kept for k in columns}
    for _ in range(iterations):
        for k in columns:
            total = sum(mass[i, k] for i in kept)
            for i in kept:
                mass[i, k] /= total * scores.shape[1]
        for i in kept:
            total = sum(mass[i, k] for k in columns)
            for k in columns:
                mass[i, k] /= total * len(kept)
    assignments = torch.zeros_like(scores)
    for (i, k), value in mass.items():
        assignments[i, k] = value * len(kept)
    return assignments


def cosines(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(rows, columns, dtype=torch.float64, generator=generator) - 1


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
@pytest.mark.parametrize(("rows", "columns"), [(7, 4), (4, 7), (5, 1), (1, 5)])
def test_assignments_are_those_of_the_loops(iterations: int, rows: int, columns: int) -> None:
    scores, valid = cosines(rows, columns), torch.ones(rows, dtype=torch.bool)
    expected = sinkhorn_with_loops(scores, valid.tolist(), 0.1, iterations)
    torch.testing.assert_close(sinkhorn(scores, valid, 0.1, iterations), expected, rtol=1e-12, atol=0)


def test_three_iterations_are_not_those_of_scores_shifted_a_sample() -> None:
    scores, valid = cosines(7, 4), torch.ones(7, dtype=torch.bool)
    shifted = scores - scores.amax(dim=1, keepdim=True)
    difference = sinkhorn(scores, valid, 0.1, 3) - sinkhorn(shifted, valid, 0.1, 3)
    assert difference.abs().max() > 1e-3
    torch.testing.assert_close(sinkhorn(scores + 50, valid, 0.1, 3), sinkhorn(scores, valid, 0.1, 3))


def test_after_many_iterations_both_marginals_are_right() -> None:
    scores, valid = cosines(12, 5), torch.arange(12) != 3
    assignments = sinkhorn(scores, valid, 0.1, 500)
    torch.testing.assert_close(assignments.sum(dim=0), torch.full((5,), 11 / 5, dtype=torch.float64))
    torch.testing.assert_close(assignments.sum(dim=1), valid.double())


def test_after_three_iterations_each_sample_sums_to_one_and_each_prototype_nearly_to_its_share() -> None:
    scores, valid = cosines(40, 5), torch.ones(40, dtype=torch.bool)
    assignments = sinkhorn(scores, valid, 0.1, 3)
    torch.testing.assert_close(assignments.sum(dim=1), torch.ones(40, dtype=torch.float64), rtol=0, atol=1e-14)
    # and the more iterations, the nearer they come
    off = [(sinkhorn(scores, valid, 0.1, n).sum(dim=0) / 8 - 1).abs().max().item() for n in (1, 3, 9, 27)]
    assert off == sorted(off, reverse=True)
    assert off[0] > 2 * off[1] > 1e-3


def test_invalid_rows_have_no_part() -> None:
    scores, valid = cosines(9, 4), torch.tensor([True, False, True, True, False, True, True, True, False])
    assignments = sinkhorn(scores, valid, 0.1, 3)
    torch.testing.assert_close(assignments, sinkhorn_with_loops(scores, valid.tolist(), 0.1, 3))
    torch.testing.assert_close(assignments[valid], sinkhorn(scores[valid], torch.ones(6, dtype=torch.bool), 0.1, 3))
    for value in (1e4, -1e4, torch.nan, torch.inf):
        scores[~valid] = value
        assert torch.equal(sinkhorn(scores, valid, 0.1, 3), assignments)
    assert not assignments[~valid].any()


def test_a_batch_without_valid_rows_has_no_assignments() -> None:
    assert not sinkhorn(cosines(3, 4), torch.zeros(3, dtype=torch.bool), 0.1, 3).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_extreme_scores_stay_finite(dtype: torch.dtype) -> None:
    scores = (1e4 * cosines(16, 6)).to(dtype)
    scores[3] = 1e4
    scores[4] = -1e4
    scores[:, 5] = -1e4  # a prototype that is far from all
    assignments = sinkhorn(scores, torch.ones(16, dtype=torch.bool), 0.1, 3)
    assert assignments.dtype == torch.float32
    assert torch.isfinite(assignments).all()
    torch.testing.assert_close(assignments.sum(dim=1), torch.ones(16))
    assert assignments[:, 5].sum() > 0.5, "a far prototype has its share, too"


def test_modalities_are_assigned_apart() -> None:
    both, valid = torch.stack([cosines(6, 4, 1), cosines(6, 4, 2)]), torch.arange(6) != 5
    together = sinkhorn(both, valid, 0.1, 3)
    for part, alone in zip(together, both, strict=True):
        torch.testing.assert_close(part, sinkhorn(alone, valid, 0.1, 3))


def test_there_is_no_gradient() -> None:
    assert not sinkhorn(cosines(3, 2).requires_grad_(), torch.ones(3, dtype=torch.bool), 0.1, 3).requires_grad
