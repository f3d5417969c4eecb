"""Near-duplicates: the scenes that differ from a given one in nothing, or in exactly one attribute.

A *soft positive* has the same description and another rendering, so the captions of each fit both, although
an evaluation by image id counts the other one as wrong. A *soft negative* has one attribute changed: one
thing's colour, texture, size or shape, or the places of two things swapped, which turns their relation
round. Both make the ambiguity that a matching method has to handle.
"""

from dataclasses import replace
from itertools import combinations

from shards.demo.scene import COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing

VALUES = {"colour": COLOURS, "texture": TEXTURES, "size": SIZES, "shape": SHAPES}
ATTRIBUTES = (*VALUES, "place")
"""What a soft negative can differ in; "place" is the swap of two things."""


def soft_positive(scene: Scene, render_seed: int) -> Scene:
    """The same description, rendered and worded from `render_seed` instead."""
    return replace(scene, render_seed=render_seed)


def soft_negatives(scene: Scene, attribute: str, render_seed: int) -> tuple[Scene, ...]:
    """Every scene that differs from `scene` in `attribute` alone, in a fixed order; may be empty.

    Scenes in which two things would share colour and shape are left out. Raises `KeyError` for an
    attribute that is not among `ATTRIBUTES`.
    """
    variants = _swapped(scene) if attribute == "place" else _changed(scene, attribute)
    return tuple(
        Scene(tuple(sorted(things)), scene.background, render_seed)
        for things in variants
        if len({(thing.colour, thing.shape) for thing in things}) == len(things)
    )


def _changed(scene: Scene, attribute: str) -> list[list[Thing]]:
    return [
        [_with(other, attribute, value) if other is thing else other for other in scene.things]
        for thing in scene.things
        for value in VALUES[attribute]
        if value != getattr(thing, attribute)
    ]


def _with(thing: Thing, attribute: str, value: str) -> Thing:
    return Thing(
        cell=thing.cell,
        shape=value if attribute == "shape" else thing.shape,
        colour=value if attribute == "colour" else thing.colour,
        size=value if attribute == "size" else thing.size,
        texture=value if attribute == "texture" else thing.texture,
    )


def _swapped(scene: Scene) -> list[list[Thing]]:
    return [
        [
            replace(a, cell=b.cell) if thing is a else replace(b, cell=a.cell) if thing is b else thing
            for thing in scene.things
        ]
        for a, b in combinations(scene.things, 2)
    ]
