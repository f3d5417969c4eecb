"""L_base against a version written with loops, in float64."""

import pytest
import torch

from model.losses.hinge import distance_weighted_hinge, hinge_loss, number_of_negatives
from model.losses.keyed_noise import PairNoise
from model.losses.negatives import distance_weighted_negative
from tests.model.pairs import assert_same_gradients, keys_of, unit_rows

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


IDS = {
    "all different": ([0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]),
    "repeated ids": ([5, 5, 2, 5], [5, 5, 2, 5, 2, 9, 5, 9]),
    "a row without negatives": ([1, 1, 1, 2], [1, 1, 1, 1, 1, 1, 1, 1]),
}


def loss_of(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    candidates: torch.Tensor,
    ids: tuple[list[int], list[int]],
    hardest: bool,
    margin: float = MARGIN,
) -> torch.Tensor:
    return hinge_loss(anchors, torch.tensor(ids[0]), positives, keys_of(candidates, ids[1]), margin, hardest)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("hardest", [True, False], ids=["hardest", "all"])
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
@pytest.mark.parametrize("width", [2, 24], ids=["violated and satisfied", "mostly violated"])
def test_value_and_gradients_are_those_of_the_loops(
    hardest: bool, ids: tuple[list[int], list[int]], width: int
) -> None:
    anchors, positives, candidates = (unit_rows(rows, width, seed) for rows, seed in ((4, 0), (4, 1), (8, 2)))
    tensors = [t.requires_grad_() for t in (anchors, positives, candidates)]
    ours = loss_of(anchors, positives, candidates, ids, hardest).mean()
    expected = hinge_with_loops(anchors, positives, candidates, *ids, hardest=hardest)
    assert expected > 0
    assert_same_gradients(ours, expected, tensors)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("hardest", [True, False], ids=["hardest", "all"])
def test_gradient_is_that_of_finite_differences(hardest: bool) -> None:
    anchors, positives, candidates = (unit_rows(5, 3, seed).requires_grad_() for seed in range(3))
    ids = [0, 1, 1, 2, 3]
    torch.autograd.gradcheck(
        lambda a, p, c: loss_of(a, p, c, (ids, ids), hardest), (anchors, positives, candidates)
    )


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("hardest", [True, False], ids=["hardest", "all"])
def test_candidates_of_the_anchors_image_and_invalid_ones_change_nothing(hardest: bool) -> None:
    anchors, candidates = unit_rows(2, 6, 0), unit_rows(6, 6, 1)
    keys = keys_of(candidates, [0, 1, 0, 2, 0, 3], [True, True, True, True, True, False])
    ids = torch.tensor([0, 0])
    before = hinge_loss(anchors, ids, anchors, keys, MARGIN, hardest)
    candidates[[0, 2, 4, 5]] = anchors[0]  # the hardest negatives there could be
    assert torch.equal(hinge_loss(anchors, ids, anchors, keys, MARGIN, hardest), before)
    candidates[1] = anchors[0]
    assert hinge_loss(anchors, ids, anchors, keys, MARGIN, hardest)[0] > before[0]


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("hardest", [True, False], ids=["hardest", "all"])
def test_without_any_negative_loss_and_gradient_are_zero(hardest: bool) -> None:
    anchors = unit_rows(3, 4, 0).requires_grad_()
    keys = keys_of(unit_rows(4, 4, 1).requires_grad_(), [1, 1, 1, 2], [True, True, True, False])
    loss = hinge_loss(anchors, torch.tensor([1, 1, 1]), anchors.detach(), keys, MARGIN, hardest)
    loss.sum().backward()
    assert not loss.any()
    for rows in (anchors, keys.vectors):
        assert rows.grad is not None
        assert not rows.grad.any()


def test_loss_is_zero_once_every_negative_is_beyond_the_margin() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    ids = [0, 1, 2, 3]
    assert not loss_of(eye, eye, eye, (ids, ids), hardest=True, margin=0.99).any()
    assert (loss_of(eye, eye, eye, (ids, ids), hardest=True, margin=1.5) == 0.5).all()


@pytest.mark.parametrize("hardest", [True, False], ids=["hardest", "all"])
def test_half_precision_is_summed_in_float32(hardest: bool) -> None:
    rows = [unit_rows(4, 24, seed).bfloat16() for seed in range(3)]
    ids = ([0, 1, 2, 3], [0, 1, 2, 3])
    ours = loss_of(*rows, ids, hardest)
    assert ours.dtype == torch.float32
    expected = loss_of(*(part.double() for part in rows), ids, hardest)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("tile")
def test_number_of_negatives_is_counted_over_valid_keys_of_other_ids() -> None:
    keys = keys_of(torch.zeros(6, 1), [7, -3, 7, 7, 2**40, 0], [True, True, False, True, True, False])
    assert number_of_negatives(torch.tensor([7, 0, -3, 99, 2**40]), keys).tolist() == [2, 4, 3, 4, 3]


def test_distance_weighted_hinge_is_against_the_drawn_key() -> None:
    anchors, positives, candidates = (unit_rows(rows, 4, seed) for rows, seed in ((4, 0), (4, 1), (8, 2)))
    tensors = [t.requires_grad_() for t in (anchors, positives, candidates)]
    ids, keys = torch.tensor([0, 1, 2, 9]), keys_of(candidates, [0, 1, 2, 3, 4, 5, 6, 7])
    noise = PairNoise(torch.arange(4), 8, seed=0, step=0)
    row, _ = distance_weighted_negative(anchors, ids, keys, noise, 1.7, 4)
    ours = distance_weighted_hinge(anchors, ids, positives, keys, MARGIN, noise, 1.7, 4)
    terms = []
    for i, drawn in enumerate(row.tolist()):
        negative = torch.dot(anchors[i], candidates[drawn])
        terms.append((MARGIN + negative - torch.dot(anchors[i], positives[i])).clamp(min=0))
    assert sum(terms) > 0
    assert_same_gradients(ours.sum(), torch.stack(terms).sum(), tensors)


def test_distance_weighted_hinge_is_zero_where_no_key_is_near_enough() -> None:
    anchors, candidates = unit_rows(3, 4, 0).requires_grad_(), unit_rows(3, 4, 0).neg().requires_grad_()
    keys = keys_of(candidates, [0, 1, 2])
    noise = PairNoise(torch.arange(3), 3, seed=0, step=0)
    loss = distance_weighted_hinge(anchors, torch.tensor([5, 6, 7]), -anchors.detach(), keys, 9.0, noise, 0.1, 4)
    loss.sum().backward()
    assert not loss.any()
    assert anchors.grad is not None
    assert not anchors.grad.any()
