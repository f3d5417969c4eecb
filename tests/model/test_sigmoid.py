"""SigLIP's loss in tiles against a version written with loops, in float64."""

import math

import pytest
import torch

from model.losses.sigmoid import sigmoid_loss
from model.losses.tiles import Keys
from tests.model.pairs import assert_same_gradients, keys_of, unit_rows

IDS = [0, 5, 2, 5]
KEY_IDS, KEY_VALID = [0, 5, 2, 5, 9, 7, 2, 3], [True, True, True, True, True, False, True, True]
WEIGHT = torch.tensor([1.0, 2.0, 0.0, -0.5], dtype=torch.float64)


def sigmoid_with_loops(
    anchors: torch.Tensor, positives: torch.Tensor, keys: Keys, scale: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    losses = []
    for i, anchor in enumerate(anchors):
        loss = torch.log(1 + torch.exp(-(scale * torch.dot(anchor, positives[i]) + bias)))
        for vector, identity, valid in zip(*keys, strict=True):
            if valid and identity != IDS[i]:
                loss = loss + torch.log(1 + torch.exp(scale * torch.dot(anchor, vector) + bias))
        losses.append(loss)
    return torch.stack(losses)


def batch(scale: float, bias: float) -> tuple[torch.Tensor, torch.Tensor, Keys, torch.Tensor, torch.Tensor]:
    anchors, positives = (unit_rows(4, 4, seed).requires_grad_() for seed in (0, 1))
    keys = keys_of(unit_rows(8, 4, 2).requires_grad_(), KEY_IDS, KEY_VALID)
    learnt = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (scale, bias))
    return anchors, positives, keys, *learnt


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (3.0, 1.0), (60.0, 5.0)])
def test_values_and_gradients_are_those_of_the_loops(scale: float, bias: float) -> None:
    anchors, positives, keys, factor, shift = batch(scale, bias)
    ours = sigmoid_loss(anchors, torch.tensor(IDS), positives, keys, factor, shift)
    expected = sigmoid_with_loops(anchors, positives, keys, factor, shift)
    torch.testing.assert_close(ours, expected)
    inputs = [anchors, positives, keys.vectors, factor, shift]
    assert_same_gradients(torch.dot(ours, WEIGHT), torch.dot(expected, WEIGHT), inputs)


@pytest.mark.usefixtures("tile")
def test_gradient_is_that_of_finite_differences() -> None:
    anchors, positives, keys, scale, bias = batch(4.0, -1.0)
    torch.autograd.gradcheck(
        lambda a, p, k, s, b: sigmoid_loss(a, torch.tensor(IDS), p, keys._replace(vectors=k), s, b),
        (anchors, positives, keys.vectors, scale, bias),
    )


@pytest.mark.usefixtures("tile")
def test_keys_that_are_masked_change_nothing() -> None:
    anchors, positives, keys, scale, bias = batch(4.0, -1.0)
    before = sigmoid_loss(anchors, torch.tensor(IDS), positives, keys, scale, bias)
    changed = keys.vectors.detach().clone()
    changed[5] = 9.0  # invalid
    again = sigmoid_loss(anchors, torch.tensor(IDS), positives, keys._replace(vectors=changed), scale, bias)
    assert torch.equal(again, before)
    changed[1] = 9.0  # of the ids of the second and the last anchor
    after = sigmoid_loss(anchors, torch.tensor(IDS), positives, keys._replace(vectors=changed), scale, bias)
    assert (after != before).tolist() == [True, False, True, False]


def test_saturated_logits_in_float32_are_finite() -> None:
    anchors, positives, keys, _, _ = batch(1.0, 0.0)
    narrow = [rows.detach().float().requires_grad_() for rows in (anchors, positives, keys.vectors)]
    loss = sigmoid_loss(
        narrow[0], torch.tensor(IDS), narrow[1], keys._replace(vectors=narrow[2]), torch.tensor(1e4), -10.0
    )
    expected = sigmoid_loss(anchors, torch.tensor(IDS), positives, keys, 1e4, -10.0)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-2)
    loss.sum().backward()
    assert all(rows.grad is not None and rows.grad.isfinite().all() for rows in narrow)


def test_orthogonal_pairs_cost_what_the_bias_says() -> None:
    eye = torch.eye(3, dtype=torch.float64)
    loss = sigmoid_loss(eye, torch.arange(3), eye, keys_of(eye, [0, 1, 2]), 10.0, -10.0)
    expected = math.log(2) + 2 * math.log1p(math.exp(-10))
    assert loss.tolist() == pytest.approx([expected] * 3)
