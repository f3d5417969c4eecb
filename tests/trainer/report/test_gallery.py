"""Which queries and which confusions are shown, against plain loops over all similarities."""

import math

import pytest
import torch
import torch.nn.functional as F

from trainer.metrics import retrieval_ranks
from trainer.report import contest as contests
from trainer.report.confused import confused
from trainer.report.contest import Contest, contest
from trainer.report.gallery import Gallery, Query, gallery


@pytest.fixture
def split() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """12 images, the fifth without a caption, and 25 captions near to theirs, some nearer to others."""
    random = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(12, 6, generator=random), dim=1)
    owner = torch.tensor([image for image in range(12) if image != 4 for _ in range(2 + (image % 4 == 0))])
    texts = F.normalize(images[owner] + 0.45 * torch.randn(len(owner), 6, generator=random), dim=1)
    return images, texts, owner


def both_ways(split: tuple[torch.Tensor, ...]) -> tuple[Contest, Contest]:
    images, texts, owner = split
    own = torch.arange(len(images))
    return contest(images, texts, own, owner), contest(texts, images, owner, own)


@pytest.mark.parametrize("block", [1, 60, 2**24])
def test_a_contest_is_what_a_loop_over_all_pairs_finds(
    split: tuple[torch.Tensor, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contests, "BLOCK", block)
    images, texts, owner = split
    i2t, t2i = both_ways(split)
    assert i2t.query.tolist() == [image for image in range(12) if image != 4]
    for place, image in enumerate(i2t.query.tolist()):
        scores = [float(images[image] @ text) for text in texts]
        right = max((score, -row) for row, score in enumerate(scores) if owner[row] == image)
        wrong = max((score, -row) for row, score in enumerate(scores) if owner[row] != image)
        assert (i2t.right[place], i2t.wrong[place]) == (-right[1], -wrong[1])
        assert float(i2t.margin[place]) == pytest.approx(right[0] - wrong[0], abs=1e-6)
    ranks = retrieval_ranks(images, texts, owner)
    for found, expected in zip((i2t, t2i), ranks, strict=True):
        assert (found.rank - 1).tolist() == expected.tolist()


def test_a_split_of_one_pair_has_a_winner_without_an_opponent() -> None:
    one = torch.ones(1, 1)
    found = contest(one, one, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert (found.rank.tolist(), found.margin.tolist()) == ([1], [math.inf])
    shown = gallery(one, one, torch.tensor([0]), torch.tensor([0]), found)
    assert [len(kind) for kind in (shown.best, shown.drawn, shown.worst)] == [1, 0, 0]
    assert confused(found, [0]).shown == []


def made(split: tuple[torch.Tensor, ...], shown: int, seed: int = 0) -> Gallery:
    images, texts, owner = split
    return gallery(texts, images, owner, torch.arange(len(images)), both_ways(split)[1], shown, seed)


def test_best_and_worst_are_the_ends_of_all_queries(split: tuple[torch.Tensor, ...]) -> None:
    images, texts, owner = split
    shown = made(split, 3)
    scores = texts @ images.T
    own = scores[torch.arange(len(texts)), owner]
    rank = 1 + (scores > own[:, None]).sum(dim=1)
    assert int(rank.max()) > 1  # else there is no worst
    others = scores.clone()
    others[torch.arange(len(texts)), owner] = -2
    margin = own - others.max(dim=1).values
    assert shown.best[0].query == int(margin.argmax())
    assert shown.worst[0].rank == int(rank.max())
    assert [query.rank for query in shown.best] == [1, 1, 1]
    worst = [query.rank for query in shown.worst]
    assert worst == sorted(worst, reverse=True)
    everywhere = [query.query for kind in (shown.best, shown.drawn, shown.worst) for query in kind]
    assert len(set(everywhere)) == len(everywhere) == 9
    for kind in (shown.best, shown.worst):
        assert len({int(owner[query.query]) for query in kind}) == 3


def test_hits_are_the_nearest_and_the_right_one_is_marked_or_stands_apart(split: tuple[torch.Tensor, ...]) -> None:
    images, texts, owner = split
    shown = made(split, 9)
    queries: list[Query] = [*shown.best, *shown.drawn, *shown.worst]
    assert any(query.missed for query in queries)
    for query in queries:
        scores = images @ texts[query.query]
        assert [hit.item for hit in query.hits] == scores.argsort(descending=True)[:5].tolist()
        own = int(owner[query.query])
        assert [hit.right for hit in query.hits] == [hit.item == own for hit in query.hits]
        assert (query.missed is None) == (query.rank <= 5)
        if query.missed:
            assert (query.missed.item, query.missed.right) == (own, True)
            assert query.missed.score == pytest.approx(float(scores[own]), abs=1e-6)


def test_the_draw_changes_with_the_seed_alone(split: tuple[torch.Tensor, ...]) -> None:
    def drawn(seed: int) -> list[int]:
        return [query.query for query in made(split, 3, seed).drawn]

    assert drawn(0) == drawn(0)
    assert any(drawn(0) != drawn(seed) for seed in range(1, 5))


def test_confusions_are_the_pictures_that_lose_by_most(split: tuple[torch.Tensor, ...]) -> None:
    images, texts, owner = split
    i2t, _ = both_ways(split)
    found = confused(i2t, owner.tolist(), shown=2)
    leads = {}
    for image in set(owner.tolist()):
        scores = texts @ images[image]
        leads[image] = float(scores[owner != image].max() - scores[owner == image].max())
    assert found.images == 11
    assert found.count == sum(lead >= 0 for lead in leads.values()) > 2
    first = found.shown[0]
    assert first.image == max(leads, key=lambda image: leads[image])
    assert first.other_score - first.own_score == pytest.approx(max(leads.values()), abs=1e-6)
    assert owner[first.own] == first.image != owner[first.other]
    scores = texts @ images[first.image]
    assert first.above == int(((owner != first.image) & (scores >= first.own_score - 1e-7)).sum())
    pictures = [picture for one in found.shown for picture in (one.image, int(owner[one.other]))]
    assert len(set(pictures)) == len(pictures)
