"""AHRL where its parts come near their limits: pairs of candidates, agreement at and below 0 and beyond 1."""

import pytest
import torch

from tests.model.test_ahrl import CONFIG, Case, ahrl_with_loops


@pytest.mark.parametrize(("ids", "counts"), [((50, 50), False), ((50, 51), True)], ids=["one id", "two ids"])
def test_candidates_of_one_id_are_no_pair_also_from_two_slots(ids: tuple[int, int], counts: bool) -> None:
    case = Case(own=1)
    queue = case.memory.queue
    # each side's most similar entry, in a slot of its own
    queue.texts[20], queue.images[21] = case.own.images[0].detach(), case.own.texts[0].detach()
    queue.ids[20], queue.ids[21] = ids
    config = CONFIG.model_copy(update={"candidates": 1, "candidate_margin": 0.3, "mining": False})
    # the two are as similar as the true pair, so that the margin alone is violated, once a direction
    torch.testing.assert_close(case.ours(config).pair, torch.tensor([0.6 * counts], dtype=torch.float64))


@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_only_what_agrees_is_mined_however_low_the_threshold(threshold: float) -> None:
    case = Case()
    result = case.ours(threshold=torch.tensor(threshold))
    values, mined = ahrl_with_loops(case, CONFIG, threshold)
    assert result.soft_positives.tolist() == mined
    assert 0 < sum(mined) < int(result.agreement_counts.sum())
    torch.testing.assert_close(result.loss, torch.stack(values), rtol=0, atol=1e-12)


def test_a_duplicate_that_rounding_takes_beyond_1_is_counted() -> None:
    case = Case()
    before = case.ours().agreement_counts
    length = 1 + torch.finfo(torch.float32).eps
    for keys in (case.memory.own, case.memory.queue):
        keys.images[1] = keys.texts[1] = torch.tensor([length, 0, 0, 0], dtype=torch.float64)
    after = case.ours().agreement_counts
    assert after.sum() == before.sum()
    assert after[-1] == before[-1] + 1
