"""Captions as a crawl of the web would bring them: one a picture, terse, partial or dressed up.

About a third are ordinary captions, the others a bare line behind a prefix ("photo of ..."), a part of what
can be seen, or a line with the sort of words that pages put behind a title. None is untrue of its scene;
the captions of *another* scene that the pretrain split also holds are dealt out by `shards.demo.source`.
"""

import numpy as np

from shards.demo import words
from shards.demo.caption import captions
from shards.demo.scene import Scene, pick

PREFIXES = ("photo of", "picture of", "image:", "stock image of", "download", "drawing of", "Pinterest:")
SUFFIXES = (
    "| free clip art",
    "- stock vector",
    "wallpaper hd",
    "icon set",
    "(cropped)",
    "- page 2",
    "vector illustration",
    "for kids",
)


def web_caption(scene: Scene, rng: np.random.Generator) -> str:
    """One noisy caption of 2 to 25 words for the scene."""
    draw = rng.random()
    if draw < 0.35:
        return pick(rng, captions(scene))
    names = [words.textured_name(thing, rng) for thing in words.shuffled(scene, rng)]
    if draw < 0.60:
        return f"{pick(rng, PREFIXES)} {words.enumeration([words.with_article(name) for name in names])}"
    if draw < 0.80:
        return f"{pick(rng, (', ', ' and ', ' ')).join(names)} {pick(rng, SUFFIXES)}"
    return _partial(scene, rng)


def _partial(scene: Scene, rng: np.random.Generator) -> str:
    things = words.shuffled(scene, rng)
    seen = things[0]
    ground = words.background(scene, rng)
    return pick(
        rng,
        (
            words.name(seen, rng),
            f"{words.size(seen, rng)} {words.textured_name(seen, rng)}",
            f"{words.shape(seen, rng)} on {words.with_article(ground)} background",
            " and ".join(words.with_article(words.shape(thing, rng)) for thing in things),
            f"{' and '.join(sorted({words.colour(thing, rng) for thing in things}))} shapes",
        ),
    )
