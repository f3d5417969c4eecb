"""L_base against a version written with loops, in float64."""

import pytest
import torch
from torch.nn.functional import normalize

from model.losses.hinge import hinge_loss

MARGIN = 0.2


def hinge_with_loops(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    candidates: torch.Tensor,
    anchor_ids: list[int],
    candidate_ids: list[int],
    hardest: bool,
) -> torch.Tensor:
    per_anchor = []
    for i, anchor in enumerate(anchors):
        match = torch.dot(anchor, positives[i])
        terms = []
        for j, candidate in enumerate(candidates):
            if anchor_ids[i] == candidate_ids[j]:
                continue
            term = MARGIN + torch.dot(anchor, candidate) - match
            terms.append(term if term > 0 else term * 0)
        if not terms:
            per_anchor.append(match * 0)
        elif hardest:
            per_anchor.append(max(terms))
        else:
            per_anchor.append(torch.stack(terms).sum() / len(terms))
    return torch.stack(per_anchor).sum() / len(per_anchor)


def unit_rows(rows: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, width, dtype=torch.float64, generator=generator), dim=1)


def mask(anchor_ids: list[int], candidate_ids: list[int]) -> torch.Tensor:
    return torch.tensor(anchor_ids).unsqueeze(1) == torch.tensor(candidate_ids)


IDS = {
    "all different": ([0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]),
    "repeated ids": ([5, 5, 2, 5], [5, 5, 2, 5, 2, 9, 5, 9]),
    "a row without negatives": ([1, 1, 1, 2], [1, 1, 1, 1, 1, 1, 1, 1]),
}


@pytest.mark.parametrize("hardest", [True, False], ids=["hardest", "all"])
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
@pytest.mark.parametrize("width", [2, 24], ids=["violated and satisfied", "mostly violated"])
def test_value_and_gradients_are_those_of_the_loops(
    hardest: bool, ids: tuple[list[int], list[int]], width: int
) -> None:
    anchors, positives, candidates = (unit_rows(rows, width, seed) for rows, seed in ((4, 0), (4, 1), (8, 2)))
    tensors = [t.requires_grad_() for t in (anchors, positives, candidates)]
    ours = hinge_loss(*tensors, mask(*ids), MARGIN, hardest)
    ours_grads = torch.autograd.grad(ours, tensors)
    expected = hinge_with_loops(*tensors, *ids, hardest=hardest)
    expected_grads = torch.autograd.grad(expected, tensors)
    assert expected > 0
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)
    for mine, theirs in zip(ours_grads, expected_grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("hardest", [True, False], ids=["hardest", "all"])
def test_gradient_is_that_of_finite_differences(hardest: bool) -> None:
    anchors, positives, candidates = (unit_rows(5, 3, seed).requires_grad_() for seed in range(3))
    same = mask([0, 1, 1, 2, 3], [0, 1, 1, 2, 3])
    torch.autograd.gradcheck(
        lambda a, p, c: hinge_loss(a, p, c, same, MARGIN, hardest), (anchors, positives, candidates)
    )


@pytest.mark.parametrize("hardest", [True, False], ids=["hardest", "all"])
def test_candidates_of_the_anchors_image_change_nothing(hardest: bool) -> None:
    anchors, candidates = unit_rows(2, 6, 0), unit_rows(5, 6, 1)
    same = mask([0, 0], [0, 1, 0, 2, 0])
    before = hinge_loss(anchors, anchors, candidates, same, MARGIN, hardest)
    candidates[[0, 2, 4]] = anchors[0]  # the hardest negatives there could be
    assert hinge_loss(anchors, anchors, candidates, same, MARGIN, hardest) == before
    candidates[1] = anchors[0]
    assert hinge_loss(anchors, anchors, candidates, same, MARGIN, hardest) > before


@pytest.mark.parametrize("hardest", [True, False], ids=["hardest", "all"])
def test_without_any_negative_loss_and_gradient_are_zero(hardest: bool) -> None:
    anchors = unit_rows(3, 4, 0).requires_grad_()
    loss = hinge_loss(
        anchors, anchors.detach(), anchors.detach(), torch.ones(3, 3, dtype=torch.bool), MARGIN, hardest
    )
    loss.backward()
    assert loss.item() == 0
    assert anchors.grad is not None
    assert not anchors.grad.any()


def test_loss_is_zero_once_every_negative_is_beyond_the_margin() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    assert hinge_loss(eye, eye, eye, torch.eye(4, dtype=torch.bool), 0.99, hardest=True) == 0
    assert hinge_loss(eye, eye, eye, torch.eye(4, dtype=torch.bool), 1.5, hardest=True) == 0.5


@pytest.mark.parametrize("hardest", [True, False], ids=["hardest", "all"])
def test_an_anchor_counts_by_its_weight(hardest: bool) -> None:
    rows = unit_rows(4, 3, 0)
    same = torch.eye(4, dtype=torch.bool)
    one_by_one = [
        hinge_loss(rows, rows, rows, same, MARGIN, hardest, 4.0 * (torch.arange(4) == place)) for place in range(4)
    ]
    weighted = hinge_loss(rows, rows, rows, same, MARGIN, hardest, torch.tensor([2.0, 0.0, 1.0, 1.0]))
    expected = (2 * one_by_one[0] + one_by_one[2] + one_by_one[3]) / 4
    torch.testing.assert_close(weighted, expected)
