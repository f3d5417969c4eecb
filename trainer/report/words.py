"""The words that set a group of captions apart from all others."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shards.tools.words import words

PRIOR = 10.0
"""Captions that the prior is worth: they hold each word as often as all captions do."""
LEAST = 2
"""Captions of a group that must hold a word."""
LEAST_SCORE, LEAST_LIFT = 1.96, 1.5
"""Standard deviations of the log-odds from 0, and the ratio of the shares, that a word must have."""


@dataclass(frozen=True)
class Word:
    """A word of a group."""

    word: str
    here: float
    """Share of the group's captions that hold it."""
    elsewhere: float
    """Share of the other captions."""


def telling_words(captions: Sequence[str], groups: Iterable[int], count: int, top: int) -> list[list[Word]]:
    """The `top` words of each of `count` groups, the most telling first; `groups` says whose each caption is.

    Ranked by the log-odds ratio of a word in the group's captions and in all others, with a prior of all captions,
    over its standard deviation (Monroe, Colaresi, Quinn, "Fightin' Words", Political Analysis 2008). Ours is to
    count the captions that hold a word, not how often it occurs, and to leave out words that may be chance or are
    hardly more frequent in the group than elsewhere, as words such as `the` mostly are.
    """
    held = [Counter[str]() for _ in range(count)]
    sizes = [0] * count
    for caption, group in zip(captions, groups, strict=True):
        held[group].update(set(words(caption)))
        sizes[group] += 1
    total = Counter[str]()
    for one in held:
        total.update(one)
    return [_telling(one, size, total, sum(sizes), top) for one, size in zip(held, sizes, strict=True)]


def _telling(held: Counter[str], size: int, total: Counter[str], captions: int, top: int) -> list[Word]:
    others = captions - size
    if not others:
        return []
    ranked: list[tuple[float, Word]] = []
    for word, here in held.items():
        elsewhere = total[word] - here
        prior = PRIOR * total[word] / captions
        odds, deviation = 0.0, 0.0
        for sign, hits, of in ((1, here, size), (-1, elsewhere, others)):
            # half a caption more, as a word that all captions hold would have infinite odds
            odds += sign * (math.log(hits + prior) - math.log(of + PRIOR - hits - prior + 0.5))
            deviation += 1 / (hits + prior)
        score = odds / math.sqrt(deviation)
        found = Word(word, here / size, elsewhere / others)
        if score >= LEAST_SCORE and here >= LEAST and found.here >= LEAST_LIFT * found.elsewhere:
            ranked.append((score, found))
    ranked.sort(key=lambda pair: (-pair[0], pair[1].word))
    return [word for _, word in ranked[:top]]
