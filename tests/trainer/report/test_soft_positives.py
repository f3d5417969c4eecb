"""Soft positives of a split are those that the loss itself mines, given the split as its batch."""

import math

import pytest
import torch
import torch.nn.functional as F

from model.config import AhrlConfig
from model.losses.mining import mine
from model.losses.pairs import Memory, Pairs
from trainer.embed import Embeddings
from trainer.report.soft_positives import SoftPositives, mine_split

THRESHOLD = 0.6


@pytest.fixture
def keys() -> Embeddings:
    """30 images near 6 centres, two captions each; the last two images are one, by their id."""
    random = torch.Generator().manual_seed(1)

    def near(count: int, centres: torch.Tensor) -> torch.Tensor:
        return F.normalize(centres + 0.3 * torch.randn(count, 8, generator=random), dim=1)

    centres = F.normalize(torch.randn(6, 8, generator=random), dim=1).repeat(5, 1)
    owner = torch.arange(30).repeat_interleave(2)
    ids = torch.arange(30)
    ids[29] = 28
    images, texts = near(30, centres), near(60, centres[owner])
    images[29], texts[58] = images[28], texts[56]
    return Embeddings(images, texts, owner, [f"caption {place}" for place in range(60)], ids)


def found_in(keys: Embeddings, threshold: float = THRESHOLD, min_agreement: float = 0.0) -> SoftPositives:
    return mine_split(keys, keys, threshold, min_agreement, shown=1000)


def test_as_many_are_mined_as_by_the_loss(keys: Embeddings) -> None:
    pairs = Pairs(keys.images, keys.texts[::2], keys.image_ids, torch.ones(30, dtype=torch.bool))
    # one slot of an id of its own, far from all: without a filled queue nothing is mined
    far = -F.normalize(keys.images.sum(dim=0, keepdim=True), dim=1)
    queue = Pairs(far, far, torch.tensor([1000]), torch.tensor([True]))
    config = AhrlConfig()
    mined = mine(pairs, pairs, Memory(pairs, pairs, queue), torch.arange(30), config, torch.tensor(THRESHOLD), 0, 0)
    found = found_in(keys)
    assert found.count == int(mined.soft_positives.sum()) // 2 > 10
    assert found.compared == 30 * 29 // 2 - 1
    assert found.pairs == 30


def test_those_shown_are_alike_in_both_ways_and_each_image_is_shown_once(keys: Embeddings) -> None:
    found = found_in(keys)
    shown = [*found.surest, *found.barely]
    assert len(shown) > 3
    images = [image for one in shown for image in one.images]
    assert len(set(images)) == len(images)
    assert {28, 29} not in [set(one.images) for one in shown]  # one picture, annotated as a match
    agreements = torch.minimum(keys.images @ keys.images.T, keys.texts[::2] @ keys.texts[::2].T).triu(1)
    agreements[28, 29] = 0
    assert found.surest[0].agreement == pytest.approx(float(agreements.max()), abs=1e-6)
    for one in shown:
        (a, b), (c, d) = one.images, one.captions
        assert (c, d) == (2 * a, 2 * b)
        assert one.image_similarity == pytest.approx(float(keys.images[a] @ keys.images[b]), abs=1e-6)
        assert one.text_similarity == pytest.approx(float(keys.texts[c] @ keys.texts[d]), abs=1e-6)
        assert one.agreement == pytest.approx(min(one.image_similarity, one.text_similarity), abs=1e-6)
        assert one.agreement >= THRESHOLD
        assert one.scores[0] == pytest.approx(float(keys.images[a] @ keys.texts[d]), abs=1e-6)
        assert one.scores[1] == pytest.approx(float(keys.images[b] @ keys.texts[c]), abs=1e-6)
    for side in (found.surest, found.barely):
        order = [one.agreement for one in side]
        assert order == sorted(order, reverse=True)


def test_nothing_is_mined_without_a_threshold_or_with_one_pair(keys: Embeddings) -> None:
    assert found_in(keys, math.inf).count == 0
    assert found_in(keys, min_agreement=1.0).count == 0
    one = Embeddings(keys.images[:1], keys.texts[:2], keys.caption_image[:2], ["a", "b"], keys.image_ids[:1])
    found = found_in(one)
    assert (found.pairs, found.compared, found.count, found.surest) == (1, 0, 0, [])
