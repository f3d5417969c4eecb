"""Which scene stands at which index of which split.

Every arrangement of things belongs to one split for good, by a hash of its text, whatever the seed: no test
picture shows the same things in the same places as a training picture, even where the two were made from
different seeds or stand on different backgrounds. Arrangements of the same things in the same cells, whoever
stands where, go together, so that a swap of two things stays in its split. Each split gets about a quarter
of all arrangements.

Of the scenes of a split about 5 % are soft positives and about 10 % soft negatives (see `shards.demo.kin`)
of an earlier scene of the same split; the others are originals. Beyond these, originals can coincide by
chance, nearly always scenes of one thing: a split has about 970 different lone things before backgrounds.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from shards.demo.kin import ATTRIBUTES, soft_negatives, soft_positive
from shards.demo.scene import Scene, pick, sample_scene

SPLITS = ("pretrain", "train", "val", "test")
SOFT_POSITIVES = 0.05
SOFT_NEGATIVES = 0.10


@dataclass(frozen=True, slots=True)
class Placed:
    """A scene of a split and how it came about."""

    scene: Scene
    kind: str
    """"original", "soft positive" or "soft negative"."""
    partner: int | None = None
    """The index of the earlier original that a soft positive or soft negative was made from."""
    attribute: str | None = None
    """What a soft negative changed, one of `shards.demo.kin.ATTRIBUTES`."""


def split_of(scene: Scene) -> str:
    """The one split in which the scene's arrangement may stand."""
    cells = [thing.cell for thing in scene.things]
    looks = sorted((t.shape, t.colour, t.size, t.texture) for t in scene.things)
    digest = hashlib.blake2b(f"{cells} {looks}".encode(), digest_size=8).digest()
    return SPLITS[int.from_bytes(digest, "big") % len(SPLITS)]


def keyed_rng(split: str, seed: int, index: int, purpose: int) -> np.random.Generator:
    """A generator that depends on its four arguments alone; `purpose` parts independent uses of one index.

    Raises `ValueError` for an unknown split and for a negative seed or index.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    key = [seed, SPLITS.index(split), index, purpose]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def placed_at(split: str, seed: int, index: int) -> Placed:
    """The scene at `index` of `split`: a pure function of its three arguments.

    Raises `ValueError` for an unknown split and for a negative seed or index.
    """
    kind = _kind(split, seed, index)
    rng = keyed_rng(split, seed, index, purpose=2)
    partner = int(rng.integers(index)) if kind != "original" else -1
    while partner >= 0:
        if _kind(split, seed, partner) == "original":
            base = _original(split, seed, partner)
            if kind == "soft positive":
                return Placed(soft_positive(base, int(rng.integers(2**31))), kind, partner)
            if (found := _soft_negative(base, rng)) is not None:
                return Placed(found[0], kind, partner, found[1])
        # Now and then every one-attribute change of a lone thing belongs to other splits.
        partner -= 1
    return Placed(_original(split, seed, index), "original")


def _kind(split: str, seed: int, index: int) -> str:
    if index == 0:
        return "original"
    draw = keyed_rng(split, seed, index, purpose=1).random()
    if draw < SOFT_POSITIVES:
        return "soft positive"
    return "soft negative" if draw < SOFT_POSITIVES + SOFT_NEGATIVES else "original"


def _original(split: str, seed: int, index: int) -> Scene:
    rng = keyed_rng(split, seed, index, purpose=0)
    while split_of(scene := sample_scene(rng)) != split:
        pass
    return scene


def _soft_negative(base: Scene, rng: np.random.Generator) -> tuple[Scene, str] | None:
    home = split_of(base)
    render_seed = int(rng.integers(2**31))
    # The attribute is drawn first: drawn among all variants, nearly all would differ in colour or shape.
    for attribute in rng.permutation(np.array(ATTRIBUTES)).tolist():
        variants = tuple(v for v in soft_negatives(base, attribute, render_seed) if split_of(v) == home)
        if variants:
            return pick(rng, variants), str(attribute)
    return None
