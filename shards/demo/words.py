"""The words for the parts of a scene: synonyms, noun phrases, places and relations.

Every function draws its wording from the generator it is given and says only what is true of the scene.
"""

import numpy as np

from shards.demo.scene import Scene, Thing, pick, relation

SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "donut"),
    "cross": ("cross", "plus sign"),
    "heart": ("heart",),
    "crescent": ("crescent", "moon"),
}
COLOUR_WORDS = {"turquoise": ("turquoise", "teal"), "purple": ("purple", "violet")}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
TEXTURE_WORDS = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted", "polka-dot"),
}
SIZE_PREDICATES = {"small": ("small", "tiny"), "large": ("large", "big")}
TEXTURE_PREDICATES = {"plain": ("plain",), "striped": ("striped",), "dotted": ("dotted", "spotted")}
BACKGROUND_WORDS = {"beige": ("beige", "cream"), "grey": ("light grey",), "lilac": ("lilac", "lavender")}
BACKDROP_WORDS = ("background", "backdrop")

CORNER_WORDS = ("in the {} {} corner", "in the {} {}", "at the {} {}")
EDGE_WORDS = {
    (0, 1): ("at the top", "at the top centre", "in the top middle"),
    (1, 0): ("on the left", "on the left side", "at the left edge"),
    (1, 1): ("in the middle", "in the centre"),
    (1, 2): ("on the right", "on the right side", "at the right edge"),
    (2, 1): ("at the bottom", "at the bottom centre", "in the bottom middle"),
}
RELATION_WORDS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("higher up than", "above"),
    "below": ("lower down than", "below"),
    "above left": ("above and to the left of", "to the upper left of"),
    "above right": ("above and to the right of", "to the upper right of"),
    "below left": ("below and to the left of", "to the lower left of"),
    "below right": ("below and to the right of", "to the lower right of"),
}


def with_article(phrase: str) -> str:
    """The phrase behind "a" or "an", by its first letter."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def sentence(text: str) -> str:
    """The text with a capital first letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def enumeration(parts: list[str]) -> str:
    """The parts, at least one, joined as "a", "a and b" or "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def shuffled(scene: Scene, rng: np.random.Generator) -> list[Thing]:
    """The things of the scene in random order."""
    return [scene.things[i] for i in rng.permutation(len(scene.things)).tolist()]


def colour(thing: Thing, rng: np.random.Generator) -> str:
    """The colour in a word."""
    return pick(rng, COLOUR_WORDS.get(thing.colour, (thing.colour,)))


def shape(thing: Thing, rng: np.random.Generator) -> str:
    """The shape in a word."""
    return pick(rng, SHAPE_WORDS[thing.shape])


def size(thing: Thing, rng: np.random.Generator) -> str:
    """The size in a word."""
    return pick(rng, SIZE_WORDS[thing.size])


def texture(thing: Thing, rng: np.random.Generator) -> str:
    """The texture in a word."""
    return pick(rng, TEXTURE_WORDS[thing.texture])


def name(thing: Thing, rng: np.random.Generator) -> str:
    """Colour and shape, which together name one thing of its scene: "red disc"."""
    return f"{colour(thing, rng)} {shape(thing, rng)}"


def textured_name(thing: Thing, rng: np.random.Generator) -> str:
    """The name behind its texture; a plain thing goes without a word for it half of the time."""
    if thing.texture == "plain" and rng.random() < 0.5:
        return name(thing, rng)
    return f"{texture(thing, rng)} {name(thing, rng)}"


def place(thing: Thing, rng: np.random.Generator) -> str:
    """Where in the picture, in two to five words: "in the top left corner", "on the right"."""
    row, column = thing.cell
    if thing.cell in EDGE_WORDS:
        return pick(rng, EDGE_WORDS[thing.cell])
    vertical = pick(rng, ("top", "upper") if row == 0 else ("bottom", "lower"))
    return pick(rng, CORNER_WORDS).format(vertical, "left" if column == 0 else "right")


def short_place(thing: Thing) -> str:
    """Where in the picture, in at most four words and always the same ones: "at the top left"."""
    row, column = thing.cell
    if thing.cell in EDGE_WORDS:
        return EDGE_WORDS[thing.cell][0]
    return f"at the {'top' if row == 0 else 'bottom'} {'left' if column == 0 else 'right'}"


def related(a: Thing, b: Thing, rng: np.random.Generator) -> str:
    """The preposition for where `a` stands seen from `b`; "<a> is <this> <b>" is true."""
    return pick(rng, RELATION_WORDS[relation(a, b)])


def short_related(a: Thing, b: Thing) -> str:
    """As `related`, in at most five words and always the same ones, to stand twice in one sentence."""
    return RELATION_WORDS[relation(a, b)][-1]


def predicate(thing: Thing, rng: np.random.Generator) -> str:
    """Size, texture and colour to follow "is": "small, striped and red"."""
    looks = f"{pick(rng, SIZE_PREDICATES[thing.size])}, {pick(rng, TEXTURE_PREDICATES[thing.texture])}"
    return f"{looks} and {colour(thing, rng)}"


def background(scene: Scene, rng: np.random.Generator) -> str:
    """The background in a word or two, without article."""
    return pick(rng, BACKGROUND_WORDS.get(scene.background, (scene.background,)))
