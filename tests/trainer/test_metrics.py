"""Recalls against a version written with loops that sorts the scores of one query at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.evaluation import similarities
from trainer.metrics import Retrieval, chance, recall_at_k, retrieval, retrieval_ranks


def rank_by_sorting(scores: list[float], right: list[bool]) -> int:
    """Place of the first right item; of equal scores the wrong items come first."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], right[item]))
    return next(place for place, item in enumerate(order) if right[item])


def ranks_with_loops(
    images: torch.Tensor, texts: torch.Tensor, caption_image: list[int]
) -> tuple[list[int], list[int]]:
    def score(image: int, text: int) -> float:
        return sum(a * b for a, b in zip(images[image].tolist(), texts[text].tolist(), strict=True))

    i2t = [
        rank_by_sorting([score(i, t) for t in range(len(texts))], [owner == i for owner in caption_image])
        for i in range(len(images))
        if i in caption_image
    ]
    t2i = [
        rank_by_sorting([score(i, t) for i in range(len(images))], [i == owner for i in range(len(images))])
        for t, owner in enumerate(caption_image)
    ]
    return i2t, t2i


@st.composite
def splits(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Images with 1 to 6 captions each, some with none; few distinct embeddings, so there are ties.

    Coordinates are small integers: all scores are exact in float32, so ties are ties.
    """
    counts = draw(st.lists(st.integers(1, 6), min_size=1, max_size=9))
    counts += draw(st.lists(st.just(0), max_size=2))
    owners = draw(st.permutations([image for image, count in enumerate(counts) for _ in range(count)]))
    width = draw(st.integers(1, 4))
    vector = st.lists(st.integers(-2, 2), min_size=width, max_size=width)
    rows = [draw(st.lists(vector, min_size=n, max_size=n)) for n in (len(counts), len(owners))]
    images, texts = (torch.tensor(part, dtype=torch.float32) for part in rows)
    return images, texts, list(owners)


@given(split=splits())
@settings(max_examples=150, deadline=None)
def test_ranks_and_recalls_are_those_of_sorting_every_query(
    split: tuple[torch.Tensor, torch.Tensor, list[int]],
) -> None:
    images, texts, owners = split
    i2t, t2i = ranks_with_loops(images, texts, owners)
    ours = retrieval_ranks(images, texts, torch.tensor(owners))
    assert (ours[0].tolist(), ours[1].tolist()) == (i2t, t2i)
    result = retrieval(images, texts, torch.tensor(owners))
    for recalls, ranks in ((result.i2t, i2t), (result.t2i, t2i)):
        expected = {f"r{k}": 100 * sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
        assert recalls == pytest.approx(expected)
        assert recalls["r1"] <= recalls["r5"] <= recalls["r10"]
    assert result.rsum == pytest.approx(sum(result.i2t.values()) + sum(result.t2i.values()))


@given(split=splits(), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_captions_changes_nothing(
    split: tuple[torch.Tensor, torch.Tensor, list[int]], seed: int
) -> None:
    images, texts, owners = split
    shuffled = torch.randperm(len(owners), generator=torch.Generator().manual_seed(seed))
    owner = torch.tensor(owners)
    assert retrieval(images, texts, owner) == retrieval(images, texts[shuffled], owner[shuffled])


@given(split=splits(), block=st.integers(1, 40), held=st.sampled_from([0, 2**27]))
@settings(max_examples=40, deadline=None)
def test_the_size_of_a_block_changes_nothing(
    split: tuple[torch.Tensor, torch.Tensor, list[int]], block: int, held: int
) -> None:
    images, texts, owners = split
    whole = retrieval(images, texts, torch.tensor(owners))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarities, "BLOCK", block)
        patch.setattr(similarities, "HELD", held)
        assert retrieval(images, texts, torch.tensor(owners)) == whole


def test_more_queries_than_a_block_are_all_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarities, "BLOCK", 50)
    eye = torch.eye(8)
    i2t, t2i = retrieval_ranks(eye, eye.repeat_interleave(2, dim=0), torch.arange(8).repeat_interleave(2))
    assert i2t.tolist() == [0] * 8
    assert t2i.tolist() == [0] * 16


def test_own_captions_do_not_stand_in_each_others_way() -> None:
    image, other = torch.tensor([1.0, 0]), torch.tensor([0.0, 1])
    texts = torch.stack([image, 0.9 * image, 0.5 * image, other])
    i2t, _ = retrieval_ranks(torch.stack([image, other]), texts, torch.tensor([0, 0, 0, 1]))
    assert i2t.tolist() == [0, 0]


def test_an_image_without_a_caption_is_no_query_but_can_be_found() -> None:
    images = torch.eye(3)
    texts = images[[2, 1]]  # the first caption, of image 0, looks like image 2, which has none
    i2t, t2i = retrieval_ranks(images, texts, torch.tensor([0, 1]))
    assert len(i2t) == 2
    assert t2i.tolist() == [2, 0]


@pytest.mark.parametrize("value", [1.0, 0.0, float("nan")])
def test_a_model_that_gives_everything_one_score_finds_nothing(value: float) -> None:
    images, texts = torch.full((40, 8), value), torch.full((80, 8), value)
    result = retrieval(images, texts, torch.arange(80) // 2)
    assert result.rsum == 0


def test_a_collapsed_model_with_rounded_scores_finds_nothing() -> None:
    direction = torch.nn.functional.normalize(torch.randn(97, generator=torch.Generator().manual_seed(0)), dim=0)
    result = retrieval(direction.repeat(101, 1), direction.repeat(303, 1), torch.arange(303) // 3)
    assert result.rsum == 0


def test_recall_at_k_counts_ranks_below_k() -> None:
    assert recall_at_k(np.array([0, 4, 5, 10])) == {"r1": 25.0, "r5": 50.0, "r10": 75.0}


def test_as_dict_holds_what_evaluations_are_chosen_and_reported_by() -> None:
    result = Retrieval({"r1": 1.0, "r5": 2.0, "r10": 3.0}, {"r1": 4.0, "r5": 5.0, "r10": 6.0}, 7, 8)
    assert result.as_dict() == {
        "i2t": {"r1": 1.0, "r5": 2.0, "r10": 3.0},
        "t2i": {"r1": 4.0, "r5": 5.0, "r10": 6.0},
        "rsum": 21.0,
        "num_images": 7,
        "num_captions": 8,
    }


@pytest.mark.parametrize("counts", [[2] * 30, [1, 6, 3, 1, 2, 4] * 3, [1, 1, 2], [0, 3, 1, 0, 5, 20]])
def test_chance_is_the_mean_of_random_rankings(counts: list[int]) -> None:
    owners = np.repeat(np.arange(len(counts)), counts)
    generator = np.random.default_rng(5)
    draws = 4000
    i2t, t2i = [], []
    for _ in range(draws):
        captions = generator.permutation(owners)
        i2t.append([np.flatnonzero(captions == image)[0] for image in range(len(counts)) if counts[image]])
        t2i.append(generator.permutation(len(counts))[:1])
    expected = chance(owners, len(counts))
    for ranks, recalls in ((np.array(i2t), expected.i2t), (np.array(t2i), expected.t2i)):
        for k in (1, 5, 10):
            spread = 100 * 0.5 / draws**0.5
            assert recalls[f"r{k}"] == pytest.approx(100 * np.mean(ranks < k), abs=5 * spread)


def test_chance_has_no_more_than_a_hundred_percent() -> None:
    assert chance(np.array([0, 0, 1]), 2).t2i == {"r1": 50.0, "r5": 100.0, "r10": 100.0}
    assert chance(np.array([0]), 1).rsum == 600
