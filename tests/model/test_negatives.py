"""Negatives chosen over tiles: the hardest, and draws whose frequencies follow the inverse density."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from model.losses.keyed_noise import PairNoise
from model.losses.negatives import distance_weighted_negative, hardest_negative
from model.losses.tiles import Keys
from tests.model.pairs import keys_of, unit_rows


def weights_with_loops(anchor: torch.Tensor, identity: int, keys: Keys, cutoff: float, d: int) -> list[float]:
    """The probabilities of the draw, from the density itself where it does not overflow."""
    weights = []
    for vector, other, valid in zip(*keys, strict=True):
        distance = math.dist(anchor.tolist(), vector.tolist())
        r = min(max(distance, 0.5), 1.99)
        density = r ** (d - 2) * (1 - r * r / 4) ** ((d - 3) / 2)
        weights.append(1 / density if valid and other != identity and distance <= cutoff else 0.0)
    return [weight / (sum(weights) or 1) for weight in weights]


@pytest.mark.usefixtures("tile")
def test_hardest_is_the_most_similar_valid_key_of_another_id() -> None:
    anchors, vectors = unit_rows(5, 4, 0), unit_rows(9, 4, 1)
    ids, key_ids = [0, 1, 1, 3, 4], [0, 1, 2, 3, 4, 0, 1, 2, 9]
    valid = [True] * 8 + [False]
    vectors[8] = anchors[0]
    vectors[0] = anchors[0]
    row, exists = hardest_negative(anchors, torch.tensor(ids), keys_of(vectors, key_ids, valid))
    for i, anchor in enumerate(anchors):
        allowed = [j for j in range(9) if valid[j] and key_ids[j] != ids[i]]
        assert row[i] == max(allowed, key=lambda j, a=anchor: torch.dot(a, vectors[j]).item())
    assert exists.all()


@pytest.mark.usefixtures("tile")
def test_an_anchor_without_negatives_is_told() -> None:
    anchors = unit_rows(3, 4, 0)
    keys = keys_of(unit_rows(4, 4, 1), [1, 1, 1, 2], [True, True, True, False])
    ids = torch.tensor([1, 5, 1])
    row, exists = hardest_negative(anchors, ids, keys)
    assert exists.tolist() == [False, True, False]
    assert ((row >= 0) & (row < 4)).all()
    noise = PairNoise(torch.arange(3), 4, seed=0, step=0)
    _, exists = distance_weighted_negative(anchors, ids, keys, noise, 2.0)
    assert exists.tolist() == [False, True, False]


@pytest.mark.parametrize(("dimension", "cutoff"), [(4, 1.7), (12, 1.7), (6, 2.0)])
def test_draws_follow_the_inverse_density(dimension: int, cutoff: float) -> None:
    anchors = unit_rows(2, 3, 0)
    vectors = torch.cat([unit_rows(9, 3, 1), anchors[:1] + 0.01, 0.3 - anchors[:1], anchors[:1]])
    keys = keys_of(normalize(vectors, dim=1), [7, 2, 3, 1, 5, 6, 7, 8, 9, 10, 11, 12], [True] * 11 + [False])
    ids = [3, 7]
    draws = 4000
    rows = []
    for position in range(2):
        # one anchor at many positions draws as often as there are positions
        many = anchors[position].expand(draws, 3)
        noise = PairNoise(torch.arange(draws), 12, seed=position, step=0)
        row, exists = distance_weighted_negative(
            many, torch.full((draws,), ids[position]), keys, noise, cutoff, dimension
        )
        assert exists.all()
        rows.append(row)
    for position, row in enumerate(rows):
        expected = weights_with_loops(anchors[position], ids[position], keys, cutoff, dimension)
        counts = torch.bincount(row, minlength=12).tolist()
        for count, probability in zip(counts, expected, strict=True):
            if probability == 0:
                assert count == 0
            # five standard deviations
            spread = math.sqrt(draws * probability * (1 - probability))
            assert abs(count - draws * probability) <= 5 * spread + 1
        assert sum(probability > 0.02 for probability in expected) >= 2


def test_draw_of_512_dimensions_in_float32_is_finite_and_that_of_float64() -> None:
    anchors = unit_rows(64, 512, 0)
    vectors = unit_rows(400, 512, 1)
    vectors[:64], vectors[64:128] = anchors, -anchors  # distances 0 and 2 from keys of other ids
    ids, keys = torch.arange(64), keys_of(vectors, [*range(1, 401)])
    noise = PairNoise(torch.arange(64), 400, seed=0, step=0)
    wide = distance_weighted_negative(anchors, ids, keys, noise, 2.0)
    narrow = distance_weighted_negative(anchors.float(), ids, keys._replace(vectors=vectors.float()), noise, 2.0)
    assert wide[1].all()
    assert torch.equal(wide[0], narrow[0])
    # no other key here is as rare on this sphere as the opposite point
    assert torch.equal(wide[0], torch.arange(64, 128))


def test_draw_is_the_same_on_any_number_of_ranks_and_in_any_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    anchors, ids = unit_rows(12, 8, 0), torch.arange(12)
    keys = keys_of(unit_rows(12, 8, 1), [*range(12)])

    def drawn(ranks: int) -> torch.Tensor:
        parts = []
        for positions in torch.arange(12).chunk(ranks):
            noise = PairNoise(positions, 12, seed=0, step=9)
            parts.append(distance_weighted_negative(anchors[positions], ids[positions], keys, noise, 1.9, 8)[0])
        return torch.cat(parts)

    whole = drawn(1)
    assert len(set(whole.tolist())) > 3
    monkeypatch.setattr("model.losses.negatives.tile_shape", lambda _device: (5, 7))
    for ranks in (1, 2, 3, 4):
        assert torch.equal(drawn(ranks), whole)
