"""The demo data set as a source: the scenes of a split as records, drawn when they are loaded.

"train", "val" and "test" have five clean captions a picture. "pretrain" imitates web data instead: one
noisy caption a picture (see `shards.demo.web`), and for about 5 % of the pictures the caption is that of
another scene of the split. Which scenes stand in a split, the purposeful near-duplicates among them, and why
no two splits share an arrangement of things is told in `shards.demo.splits`.
"""

from collections.abc import Iterator
from functools import partial

from shards.demo.caption import captions
from shards.demo.render import SHORTEST_SIDE, render
from shards.demo.splits import SPLITS, keyed_rng, placed_at
from shards.demo.web import web_caption
from shards.sources.record import Record

MISMATCHED = 0.05
"""Share of pretrain pictures with the caption of another scene."""
MISMATCH_REACH = 1000
"""That other scene stands at most this many indices further on; it need not be within the count asked for."""


def demo_records(split: str, count: int, seed: int, side: int = 96) -> Iterator[Record]:
    """The first `count` records of `split` ("pretrain", "train", "val" or "test") made from `seed`.

    Equal arguments give equal records, and a larger count only adds to the end. The image id is the index;
    the key is such as "test-000123". `Record.load` draws a JPEG of `side` x `side` pixels. Raises
    `ValueError` at the call for an unknown split, a negative count or seed, or a side under 16 pixels.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    if count < 0 or seed < 0:
        raise ValueError(f"count and seed must not be negative: {count}, {seed}")
    if side < SHORTEST_SIDE:
        raise ValueError(f"side must be {SHORTEST_SIDE} pixels or more, not {side}")
    return (_record(split, seed, index, side) for index in range(count))


def caption_owner(seed: int, index: int) -> int:
    """The index of the pretrain scene that the caption of the picture at `index` was written for."""
    rng = keyed_rng("pretrain", seed, index, purpose=3)
    return index + 1 + int(rng.integers(MISMATCH_REACH)) if rng.random() < MISMATCHED else index


def _record(split: str, seed: int, index: int, side: int) -> Record:
    scene = placed_at(split, seed, index).scene
    texts: tuple[str, ...]
    if split == "pretrain":
        owner = caption_owner(seed, index)
        told = scene if owner == index else placed_at(split, seed, owner).scene
        texts = (web_caption(told, keyed_rng(split, seed, index, purpose=4)),)
    else:
        texts = captions(scene)
    return Record(f"{split}-{index:06d}", index, texts, partial(render, scene, side))
