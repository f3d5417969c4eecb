from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.augment import drop_regions, mask_words
from shards.keyed_random import key_of

MASK = 103
RANDOM = np.arange(1000, 3000)
WORDS = st.lists(st.lists(st.integers(200, 900), min_size=1, max_size=4), max_size=12)
SEED = st.integers(0, 2**32)


def masked(words: list[list[int]], seed: int, share: float = 0.2) -> list[list[int]]:
    return mask_words(words, key_of(seed), MASK, RANDOM, share)


@given(st.integers(1, 100), SEED, st.floats(0, 1))
def test_an_image_keeps_a_region(num_regions: int, seed: int, probability: float) -> None:
    keep = drop_regions(num_regions, key_of(seed), probability)
    assert keep.shape == (num_regions,)
    assert keep.dtype == np.bool_
    assert keep.any()


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.7])
def test_regions_are_dropped_with_the_probability(probability: float) -> None:
    keep = np.array([drop_regions(36, key_of(draw), probability) for draw in range(2000)])
    assert abs(1 - keep.mean() - probability) < 0.01
    assert np.abs(1 - keep.mean(axis=0) - probability).max() < 0.05, "each region alike"


def test_all_but_one_are_dropped_at_probability_one() -> None:
    kept = [np.flatnonzero(drop_regions(5, key_of(draw), 1.0)).tolist() for draw in range(50)]
    assert all(len(one) == 1 for one in kept)
    assert len({one[0] for one in kept}) == 5


def test_a_key_always_drops_the_same_regions() -> None:
    assert np.array_equal(drop_regions(36, key_of(4)), drop_regions(36, key_of(4)))
    assert not np.array_equal(drop_regions(36, key_of(4)), drop_regions(36, key_of(5)))


@given(WORDS.filter(bool), SEED, st.floats(0, 1))
def test_a_caption_is_never_empty(words: list[list[int]], seed: int, share: float) -> None:
    assert list(chain(*masked(words, seed, share)))


@given(WORDS, SEED, st.floats(0, 1))
def test_what_is_left_are_words_whole_masked_or_replaced(words: list[list[int]], seed: int, share: float) -> None:
    rest = list(words)
    for word in masked(words, seed, share):
        # each one stands for a word of the caption, in the caption's order
        while not (
            word == rest[0]
            or (len(word) == len(rest[0]) and (set(word) == {MASK} or all(piece in RANDOM for piece in word)))
        ):
            rest.pop(0)
        rest.pop(0)


@given(WORDS, SEED)
def test_nothing_is_touched_at_share_zero(words: list[list[int]], seed: int) -> None:
    assert masked(words, seed, 0) == words


def test_words_that_would_all_be_deleted_stay() -> None:
    results = [masked([[200, 201]], draw, share=1.0) for draw in range(200)]
    assert results.count([[200, 201]]) == pytest.approx(80, abs=25)
    assert results.count([[MASK, MASK]]) == pytest.approx(100, abs=25)


def test_the_shares_are_those_of_the_paper() -> None:
    words = [[200 + place, 300 + place] for place in range(20)]
    counts = dict.fromkeys(("whole", "masked", "replaced"), 0)
    draws = 4000
    replacements = []
    for draw in range(draws):
        for word in masked(words, draw):
            if word == [MASK, MASK]:
                counts["masked"] += 1
            elif word in words:
                counts["whole"] += 1
            else:
                counts["replaced"] += 1
                replacements += word
    total = draws * len(words)
    assert counts["whole"] / total == pytest.approx(0.8, abs=0.006)
    assert counts["masked"] / total == pytest.approx(0.1, abs=0.005)
    assert counts["replaced"] / total == pytest.approx(0.02, abs=0.003)
    assert 1 - sum(counts.values()) / total == pytest.approx(0.08, abs=0.005), "deleted"
    assert min(replacements) < 1020
    assert max(replacements) >= 2980
    assert len(set(replacements)) > 1000, "each piece is drawn for itself"


def test_a_key_always_masks_the_same_words() -> None:
    words = [[number] for number in range(200, 230)]
    assert masked(words, 4) == masked(words, 4)
    assert masked(words, 4) != masked(words, 5)


def test_the_words_given_are_left_as_they_are() -> None:
    words = [[200, 201], [202]]
    for draw in range(50):
        for word in masked(words, draw, share=0.5):
            word.append(0)
    assert words == [[200, 201], [202]]
