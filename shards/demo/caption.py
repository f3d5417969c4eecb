"""Five captions for a scene, each with a focus of its own, in natural English of 5 to 25 words.

In order: the full description, the relation of the things, a terse web-like line, textures and sizes first,
and background and count first. The full description names every thing by its plain colour and shape words
and gives textures and sizes or places as well; the others draw on synonyms and may leave something out, but
say nothing untrue. Scenes with equal descriptions can swap captions.
"""

from collections.abc import Callable

import numpy as np

from shards.demo import words
from shards.demo.scene import Scene, Thing, pick

COUNT_WORDS = ("one", "two", "three")
CAPTION_SALT = 1
"""Parts the wording's draws from those of the rendering, which start from the same render seed."""

Rng = np.random.Generator


def captions(scene: Scene) -> tuple[str, str, str, str, str]:
    """The five captions of a scene, all different; a pure function of the scene with its render seed."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([scene.render_seed, CAPTION_SALT])))
    return (
        _full(scene, rng),
        _relational(scene, rng),
        _terse(scene, rng),
        _surface_first(scene, rng),
        _background_first(scene, rng),
    )


def _ground(scene: Scene, rng: Rng) -> str:
    return f"{words.with_article(words.background(scene, rng))} {pick(rng, words.BACKDROP_WORDS)}"


def _full(scene: Scene, rng: Rng) -> str:
    things = words.shuffled(scene, rng)

    def noun(thing: Thing, sized: bool) -> str:
        size = [words.size(thing, rng)] if sized else []
        surface = [] if thing.texture == "plain" and rng.random() < 0.3 else [words.texture(thing, rng)]
        return words.with_article(" ".join([*size, *surface, thing.colour, thing.shape]))

    if len(things) == 1:
        thing = things[0]
        opening = pick(rng, ("", "there is ", "the picture shows "))
        return words.sentence(f"{opening}{noun(thing, True)} {words.place(thing, rng)} on {_ground(scene, rng)}")
    if len(things) == 2:
        return words.sentence(words.enumeration([f"{noun(t, True)} {words.place(t, rng)}" for t in things]))
    if rng.random() < 0.5:
        return words.sentence(f"{words.enumeration([noun(t, True) for t in things])} on {_ground(scene, rng)}")
    return words.sentence(words.enumeration([f"{noun(t, False)} {words.short_place(t)}" for t in things]))


def _relational(scene: Scene, rng: Rng) -> str:
    a, *others = words.shuffled(scene, rng)
    if not others:
        noun = words.textured_name(a, rng)
        where = words.place(a, rng)
        return pick(
            rng,
            (
                words.sentence(f"the {noun} is {where} of the picture, all by itself"),
                words.sentence(f"{where} of the image is {words.with_article(noun)}"),
                words.sentence(f"{words.with_article(noun)} sits alone {where}"),
            ),
        )
    b = others[0]
    if len(others) == 1:
        first, second = words.textured_name(a, rng), words.textured_name(b, rng)
        forms = [
            f"the {first} is {words.related(a, b, rng)} the {second}",
            f"{words.with_article(first)} is placed {words.related(a, b, rng)} {words.with_article(second)}",
            f"{words.with_article(first)}, with {words.with_article(second)} {words.related(b, a, rng)} it",
        ]
        return words.sentence(pick(rng, tuple(forms)))
    c = others[1]
    first, second, third = (words.name(thing, rng) for thing in (a, b, c))
    forms = [
        f"the {first} is {words.short_related(a, b)} the {second} and {words.short_related(a, c)} the {third}",
        f"the {first} is {words.related(a, b, rng)} the {second}, and the {third} is {words.place(c, rng)}",
    ]
    for axis, opening in enumerate(("from top to bottom", "from left to right")):
        ordered = sorted(scene.things, key=lambda thing: thing.cell[axis])
        # Only where no two things share a row (a column) is there one order to read them in.
        if len({thing.cell[axis] for thing in ordered}) == len(ordered):
            listed = [words.with_article(words.textured_name(thing, rng)) for thing in ordered]
            forms.append(f"{opening}, {words.enumeration(listed)}")
    return words.sentence(pick(rng, tuple(forms)))


def _terse(scene: Scene, rng: Rng) -> str:
    things = words.shuffled(scene, rng)
    ground = words.background(scene, rng)
    if len(things) == 1:
        noun = f"{words.size(things[0], rng)} {words.textured_name(things[0], rng)}"
    else:
        noun = pick(rng, (", ", " and ", " + ")).join(words.textured_name(t, rng) for t in things)
    return pick(
        rng,
        (
            f"{noun} on {ground}",
            f"{noun}, {ground} background",
            f"{noun} | {ground} backdrop",
            f"flat shapes: {noun}, {ground}",
            f"{noun} clip art on {ground}",
        ),
    )


SURFACES = {
    "plain": ("no pattern on", "nothing printed on"),
    "striped": ("stripes on", "stripes across"),
    "dotted": ("dots on", "spots all over"),
}


def _surface_first(scene: Scene, rng: Rng) -> str:
    things = words.shuffled(scene, rng)

    def surface(thing: Thing) -> str:
        noun = f"{words.size(thing, rng)} {words.name(thing, rng)}"
        return f"{pick(rng, SURFACES[thing.texture])} {words.with_article(noun)}"

    def coloured_last(thing: Thing) -> str:
        noun = f"{words.size(thing, rng)} {words.texture(thing, rng)} {words.shape(thing, rng)}"
        return f"{words.with_article(noun)} in {words.colour(thing, rng)}"

    def stated(thing: Thing) -> str:
        return f"the {words.shape(thing, rng)} is {words.predicate(thing, rng)}"

    forms: list[Callable[[Thing], str]] = [surface, coloured_last]
    # "The star is plain" needs a shape that only one thing has.
    if len({thing.shape for thing in things}) == len(things) > 1:
        forms.append(stated)
    form = pick(rng, tuple(forms))
    text = words.enumeration([form(thing) for thing in things])
    return words.sentence(text if len(things) > 1 else f"{text}, seen {words.place(things[0], rng)}")


def _background_first(scene: Scene, rng: Rng) -> str:
    things = words.shuffled(scene, rng)
    count = COUNT_WORDS[len(things) - 1]
    ground = _ground(scene, rng)
    noun = pick(rng, ("shape", "object", "figure")) + ("" if len(things) == 1 else "s")
    verb = "is" if len(things) == 1 else "are"

    def listed(thing: Thing) -> str:
        if len(things) == 1:
            lone = f"{words.size(thing, rng)} {words.textured_name(thing, rng)}"
            return f"{words.with_article(lone)} {words.place(thing, rng)}"
        if len(things) == 2:
            return f"{words.with_article(words.name(thing, rng))} {words.short_place(thing)}"
        return words.with_article(f"{words.size(thing, rng)} {words.name(thing, rng)}")

    listing = words.enumeration([listed(thing) for thing in things])
    opening = pick(
        rng,
        (f"on {ground} there {verb} {count} {noun}:", f"{count} {noun} on {ground}:", f"against {ground},"),
    )
    return words.sentence(f"{opening} {listing}")
