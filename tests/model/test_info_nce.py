"""InfoNCE in tiles against a version written with loops, in float64."""

import math

import pytest
import torch

from model.losses.info_nce import info_nce
from model.losses.tiles import Keys
from tests.model.pairs import assert_same_gradients, keys_of, unit_rows

IDS = [0, 5, 2, 5, 9]
BATCH_IDS, BATCH_VALID = [0, 5, 2, 5, 9, 7, 2], [True, True, True, True, True, False, True]
QUEUE_IDS, QUEUE_VALID = [5, 1, 2, 3, 5, 6, 9, 8], [True, True, False, True, True, True, True, False]
WEIGHT = torch.tensor([1.0, 2.0, 0.0, -1.0, 0.5], dtype=torch.float64)


def info_nce_with_loops(
    anchors: torch.Tensor, positives: torch.Tensor, keys: list[Keys], scale: torch.Tensor
) -> torch.Tensor:
    losses = []
    for i, anchor in enumerate(anchors):
        match = torch.exp(scale * torch.dot(anchor, positives[i]))
        total = match
        for block in keys:
            for vector, identity, valid in zip(*block, strict=True):
                if valid and identity != IDS[i]:
                    total = total + torch.exp(scale * torch.dot(anchor, vector))
        losses.append(-torch.log(match / total))
    return torch.stack(losses)


def batch(scale: float = 5.0) -> tuple[torch.Tensor, torch.Tensor, list[Keys], torch.Tensor]:
    anchors, positives = (unit_rows(5, 4, seed).requires_grad_() for seed in (0, 1))
    gathered = keys_of(unit_rows(7, 4, 2).requires_grad_(), BATCH_IDS, BATCH_VALID)
    queue = keys_of(unit_rows(8, 4, 3), QUEUE_IDS, QUEUE_VALID)
    return anchors, positives, [gathered, queue], torch.tensor(scale, dtype=torch.float64, requires_grad=True)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("scale", [0.1, 5.0, 100.0])
def test_values_and_gradients_are_those_of_the_loops(scale: float) -> None:
    anchors, positives, keys, factor = batch(scale)
    ours = info_nce(anchors, torch.tensor(IDS), positives, keys, factor)
    expected = info_nce_with_loops(anchors, positives, keys, factor)
    torch.testing.assert_close(ours, expected)
    inputs = [anchors, positives, keys[0].vectors, factor]
    assert_same_gradients(torch.dot(ours, WEIGHT), torch.dot(expected, WEIGHT), inputs)


@pytest.mark.usefixtures("tile")
def test_soft_targets_are_a_cross_entropy_with_their_weights() -> None:
    anchors, positives, keys, scale = batch()
    # each anchor's share of its positive, and of two keys of other ids
    own, first, second = 0.5, 0.3, 0.2
    rows = [(6, 3), (2, 5), (4, 1), (0, 3), (1, 5)]  # in the gathered batch, in the queue
    targets = torch.stack(
        [
            own * positives[i] + first * keys[0].vectors[g] + second * keys[1].vectors[q]
            for i, (g, q) in enumerate(rows)
        ]
    )
    ours = info_nce(anchors, torch.tensor(IDS), positives, keys, scale, targets)
    expected = []
    for i, anchor in enumerate(anchors):
        logits = [scale * torch.dot(anchor, positives[i])]
        weights = [own]
        for block, soft, share in zip(keys, rows[i], (first, second), strict=True):
            for j, (vector, identity, valid) in enumerate(zip(*block, strict=True)):
                if valid and identity != IDS[i]:
                    logits.append(scale * torch.dot(anchor, vector))
                    weights.append(share if j == soft else 0.0)
        assert sum(weights) == pytest.approx(1)
        log_softmax = torch.log_softmax(torch.stack(logits), dim=0)
        expected.append(-torch.dot(torch.tensor(weights, dtype=torch.float64), log_softmax))
    inputs = [anchors, positives, keys[0].vectors, scale]
    assert_same_gradients(torch.dot(ours, WEIGHT), torch.dot(torch.stack(expected), WEIGHT), inputs)


@pytest.mark.usefixtures("tile")
def test_gradient_is_that_of_finite_differences() -> None:
    anchors, positives, (gathered, queue), scale = batch()
    torch.autograd.gradcheck(
        lambda a, p, k, s: info_nce(a, torch.tensor(IDS), p, [gathered._replace(vectors=k), queue], s),
        (anchors, positives, gathered.vectors, scale),
    )


@pytest.mark.usefixtures("tile")
def test_keys_that_are_masked_change_nothing() -> None:
    anchors, positives, (_, queue), scale = batch()

    def loss(queue_vectors: torch.Tensor) -> torch.Tensor:
        return info_nce(anchors, torch.tensor(IDS), positives, [queue._replace(vectors=queue_vectors)], scale)

    vectors = queue.vectors.clone().requires_grad_()
    before = loss(vectors)
    changed = queue.vectors.clone()
    changed[[2, 7]] = 50 * anchors.detach()[:2]  # invalid
    assert torch.equal(loss(changed), before)
    changed[6] = 50 * anchors.detach()[4]  # of the last anchor's id alone
    after = loss(changed)
    assert after[4] == before[4]
    assert (after[:4] != before[:4]).all()
    (grad,) = torch.autograd.grad(before[4], vectors)
    assert grad.any(dim=1).tolist() == [True, True, False, True, True, True, False, False]


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("blocks", [0, 1], ids=["no block", "a block of masked keys"])
def test_without_any_negative_loss_and_gradients_are_zero(blocks: int) -> None:
    anchors, positives = (unit_rows(3, 4, seed).requires_grad_() for seed in (0, 1))
    keys = [keys_of(unit_rows(4, 4, 2).requires_grad_(), [1, 1, 1, 2], [True, True, True, False])][:blocks]
    loss = info_nce(anchors, torch.tensor([1, 1, 1]), positives, keys, 14.0)
    loss.sum().backward()
    assert loss.tolist() == [0, 0, 0]
    for rows in (anchors, positives, *(block.vectors for block in keys)):
        assert rows.grad is not None
        assert not rows.grad.any()


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("scale", [1e-4, 1e4], ids=["flat", "steep"])
def test_extreme_scales_in_float32_agree_with_float64(scale: float) -> None:
    anchors, positives, keys, _ = batch()
    expected = info_nce(anchors, torch.tensor(IDS), positives, keys, scale)
    narrow = [rows.detach().float().requires_grad_() for rows in (anchors, positives, keys[0].vectors)]
    blocks = [keys[0]._replace(vectors=narrow[2]), keys[1]._replace(vectors=keys[1].vectors.float())]
    ours = info_nce(narrow[0], torch.tensor(IDS), narrow[1], blocks, scale)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(
        torch.autograd.grad(ours.sum(), narrow),
        torch.autograd.grad(expected.sum(), [anchors, positives, keys[0].vectors]),
        strict=True,
    ):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-3)


def test_loss_of_equal_similarities_is_the_logarithm_of_their_number() -> None:
    row = unit_rows(1, 4, 0)
    loss = info_nce(row, torch.tensor([0]), row, [keys_of(row.expand(9, 4), [1, 2, 3, 4, 5, 6, 7, 8, 9])], 1e3)
    assert loss.item() == pytest.approx(math.log(10))


def test_half_precision_is_summed_in_float32() -> None:
    anchors, positives, keys, _ = batch()
    half = [rows.detach().bfloat16().requires_grad_() for rows in (anchors, positives, keys[0].vectors)]
    ours = info_nce(half[0], torch.tensor(IDS), half[1], [keys[0]._replace(vectors=half[2])], 5.0)
    wide = [rows.detach().double() for rows in half]
    expected = info_nce(wide[0], torch.tensor(IDS), wide[1], [keys[0]._replace(vectors=wide[2])], 5.0)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)
    ours.sum().backward()
    assert all(rows.grad is not None and rows.grad.dtype == torch.bfloat16 for rows in half)
