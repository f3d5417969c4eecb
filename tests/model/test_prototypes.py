"""L_proto against a version written with loops, in float64, and the bank of prototypes."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import normalize

from model.config import PrototypeConfig
from model.errors import ModelError
from model.losses.prototypes import prototype_loss
from model.memory.bank import USAGE_DECAY, PrototypeBank, assigned_sums, cosines, nearest_counts
from model.sinkhorn import sinkhorn
from tests.model.test_sinkhorn import sinkhorn_with_loops

TEMPERATURE, EPSILON, ITERATIONS = 0.1, 0.07, 3
VALID = torch.tensor([True, True, False, True, True, False])


def loss_with_loops(
    images: torch.Tensor, texts: torch.Tensor, prototypes: torch.Tensor, valid: list[bool]
) -> torch.Tensor:
    """(b,) from embeddings and prototypes that are not normalised yet."""
    unit = [row / row.square().sum().sqrt() for row in prototypes]
    scores = [torch.stack([torch.stack([torch.dot(e, c) for c in unit]) for e in side]) for side in (images, texts)]
    assigned = [sinkhorn_with_loops(side.detach(), valid, EPSILON, ITERATIONS) for side in scores]
    per_anchor = []
    for i, good in enumerate(valid):
        total = images.new_zeros(())
        for predicted, other in ((0, 1), (1, 0)):
            logits = scores[predicted][i] / TEMPERATURE
            normaliser = sum(torch.exp(logit) for logit in logits)
            for k, logit in enumerate(logits):
                total = total - assigned[other][i, k] * torch.log(torch.exp(logit) / normaliser)
        per_anchor.append(total if good else total * 0)
    return torch.stack(per_anchor)


def unit_rows(rows: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, width, dtype=torch.float64, generator=generator), dim=1)


def bank_of(prototypes: torch.Tensor) -> PrototypeBank:
    bank = PrototypeBank(*prototypes.shape).to(prototypes.dtype)
    with torch.no_grad():
        bank.prototypes.copy_(prototypes)
    return bank


def scores_of(bank: PrototypeBank, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    return torch.stack([cosines(side, bank()) for side in (images, texts)])


def loss_of(bank: PrototypeBank, images: torch.Tensor, texts: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    scores = scores_of(bank, images, texts)
    return prototype_loss(scores, sinkhorn(scores, valid, EPSILON, ITERATIONS), TEMPERATURE)


@pytest.mark.parametrize("valid", [torch.ones(6, dtype=torch.bool), VALID], ids=["all valid", "some"])
@pytest.mark.parametrize("count", [1, 4, 9])
def test_value_and_gradients_are_those_of_the_loops(valid: torch.Tensor, count: int) -> None:
    images, texts = (unit_rows(6, 5, seed).requires_grad_() for seed in (0, 1))
    lengths = torch.linspace(0.3, 2, count, dtype=torch.float64).unsqueeze(1)
    bank = bank_of(unit_rows(count, 5, 2) * lengths)
    tensors = [images, texts, bank.prototypes]
    anchors = torch.linspace(1, 2, 6, dtype=torch.float64)
    ours = loss_of(bank, images, texts, valid)
    expected = loss_with_loops(images, texts, bank.prototypes, valid.tolist())
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert count == 1 or (ours[valid] > 0).all()
    ours_grads = torch.autograd.grad((ours * anchors).sum(), tensors)
    expected_grads = torch.autograd.grad((expected * anchors).sum(), tensors)
    for mine, theirs in zip(ours_grads, expected_grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_invalid_pairs_change_nothing_and_get_no_gradient() -> None:
    images, texts = (unit_rows(6, 5, seed).requires_grad_() for seed in (0, 1))
    bank = bank_of(unit_rows(4, 5, 2))
    before = loss_of(bank, images, texts, VALID)
    before.sum().backward()
    assert images.grad is not None
    assert not images.grad[~VALID].any()
    assert images.grad[VALID].any(dim=1).all()
    with torch.no_grad():
        images[~VALID], texts[~VALID] = unit_rows(2, 5, 8), unit_rows(2, 5, 9)
    assert torch.equal(loss_of(bank, images, texts, VALID), before)
    assert not before[~VALID].any()


def test_pairs_that_agree_on_their_prototypes_cost_less() -> None:
    bank = bank_of(torch.eye(4, dtype=torch.float64))
    rows, valid = torch.eye(4, dtype=torch.float64), torch.ones(4, dtype=torch.bool)
    agreed = loss_of(bank, rows, rows, valid)
    assert (agreed < loss_of(bank, rows, rows.roll(1, 0), valid)).all()
    assert agreed.max() < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_extreme_scores_stay_finite(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (1e4 * torch.randn(2, 8, 3, generator=generator)).to(dtype).requires_grad_()
    loss = prototype_loss(scores, sinkhorn(scores, torch.ones(8, dtype=torch.bool), 0.1, 3), 0.1)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def test_the_bank_gives_cosines_in_float32() -> None:
    bank = bank_of(3 * unit_rows(4, 5, 0).float())
    rows = unit_rows(2, 5, 1)
    expected = rows.float() @ unit_rows(4, 5, 0).float().T
    torch.testing.assert_close(cosines(rows.float(), bank()), expected)
    low = cosines(rows.bfloat16(), bank.bfloat16()())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, expected, rtol=0, atol=0.03)


def test_a_bank_without_prototypes_is_a_users_error() -> None:
    with pytest.raises(ModelError, match=r"prototypes\.count: 0"):
        PrototypeBank(0, 8)
    with pytest.raises(ValidationError, match="count"):
        PrototypeConfig(count=0)


def test_nearest_counts_are_those_of_the_loops() -> None:
    scores = torch.stack([unit_rows(6, 4, 0), unit_rows(6, 4, 1)])
    expected = [0, 0, 0, 0]
    for side in scores:
        for row, good in zip(side.tolist(), VALID.tolist(), strict=True):
            expected[row.index(max(row))] += good
    assert sum(expected) == 8
    assert nearest_counts(scores, VALID).tolist() == expected


def test_usage_and_last_use_follow_the_counts() -> None:
    bank = PrototypeBank(3, 2)
    assert bank.usage_entropy() == 0
    usage = [0.0, 0.0, 0.0]
    for step, counts in ((3, [4, 0, 12]), (5, [0, 0, 2]), (6, [1, 0, 1])):
        bank.record(torch.tensor(counts), step)
        usage = [USAGE_DECAY * u + (1 - USAGE_DECAY) * c / sum(counts) for u, c in zip(usage, counts, strict=True)]
    torch.testing.assert_close(bank.usage, torch.tensor(usage))
    assert bank.last_used.tolist() == [6, 0, 6]
    shares = [u / sum(usage) for u in usage if u]
    assert bank.usage_entropy().item() == pytest.approx(-sum(s * math.log(s) for s in shares))
    assert bank.dead(7, 2).tolist() == [False, True, False]
    assert bank.dead(8, 2).tolist() == [True, True, True]
    bank.renew(torch.tensor([False, True, False]), 8)
    assert bank.dead(8, 2).tolist() == [True, False, True]
    assert set(bank.state_dict()) == {"prototypes", "usage", "last_used"}


def test_a_step_without_any_sample_is_recorded_as_none() -> None:
    bank = PrototypeBank(3, 2)
    bank.record(torch.zeros(3, dtype=torch.int64), 4)
    assert not bank.usage.any()
    assert not bank.last_used.any()


def test_none_is_dead_before_the_start() -> None:
    bank = PrototypeBank(3, 2, start_step=100)
    assert not bank.dead(104, 5).any()
    bank.record(torch.tensor([1, 0, 1]), 104)
    assert bank.dead(105, 5).tolist() == [False, True, False]
    bank.clear()
    assert bank.last_used.tolist() == [100] * 3
    assert not bank.usage.any()


def test_averaged_prototypes_are_those_of_the_loops() -> None:
    sides = [unit_rows(6, 5, seed) for seed in (0, 1)]
    decay = 0.7
    bank = PrototypeBank(8, 5, decay).double()
    assert not list(bank.parameters()), "no optimiser sees them"
    bank.prototypes.copy_(bank())
    expected = list(bank.prototypes.clone())
    for _ in range(3):
        scores = torch.stack([cosines(side, bank()) for side in sides])
        assignments = sinkhorn(scores, VALID, EPSILON, ITERATIONS)
        bank.follow(*assigned_sums(sides, assignments, VALID))
        members: list[list[torch.Tensor]] = [[] for _ in expected]
        for side, embeddings in enumerate(sides):
            shares = sinkhorn_with_loops(scores[side], VALID.tolist(), EPSILON, ITERATIONS).tolist()
            for i, good in enumerate(VALID.tolist()):
                if good:
                    members[shares[i].index(max(shares[i]))].append(embeddings[i])
        assert sum(map(len, members)) == 8
        for k, group in enumerate(members):
            if group:
                mean = torch.stack(group).sum(dim=0)
                moved = decay * expected[k] + (1 - decay) * mean / mean.norm()
                expected[k] = moved / moved.norm()
    assert min(len(group) for group in members) == 0, "one that stays where it is"
    torch.testing.assert_close(bank.prototypes, torch.stack(expected), rtol=0, atol=1e-12)


def test_averaged_prototypes_find_the_clusters_that_samples_come_from() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(6)
    torch.manual_seed(0)
    bank = PrototypeBank(6, 6, decay=0.9)
    for _ in range(200):
        drawn = torch.randint(6, (64,), generator=generator)
        rows = normalize(centres[drawn] + 0.1 * torch.randn(64, 6, generator=generator), dim=1)
        valid = torch.ones(64, dtype=torch.bool)
        assignments = sinkhorn(cosines(rows, bank()).unsqueeze(0), valid, 0.1, 3)
        bank.follow(*assigned_sums([rows], assignments, valid))
    found = (bank() @ centres.T).amax(dim=0)
    assert (found > 0.95).all(), found


def test_a_step_compiles_without_a_break() -> None:
    """A break is where Python would wait for a value."""
    images, texts = unit_rows(6, 5, 0), unit_rows(6, 5, 1)
    bank, compiled = bank_of(unit_rows(4, 5, 2)), bank_of(unit_rows(4, 5, 2))

    def step(bank: PrototypeBank) -> torch.Tensor:
        scores = scores_of(bank, images, texts)
        bank.record(nearest_counts(scores, VALID), 7)
        assignments = sinkhorn(scores, VALID, EPSILON, ITERATIONS)
        return prototype_loss(scores, assignments, TEMPERATURE) + bank.usage_entropy()

    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="eager")(compiled), step(bank))
    assert torch.equal(compiled.last_used, bank.last_used)
