"""Scenes: one to three flat things on a 3 x 3 grid, and the drawing of random ones.

A scene is what can be *said* about a picture (its description) plus the seed of what cannot (the jitter of
the rendering). No two things of a scene stand in edge-adjacent cells, so that they are large and never
touch; no two share both colour and shape, so that "the red star" always names one thing.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Option = TypeVar("Option")

Cell = tuple[int, int]
"""(row, column), each 0 to 2, counted from the top left."""

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "crescent")
COLOURS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "brown")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("white", "beige", "grey", "mint", "lilac", "dark")
CELLS: tuple[Cell, ...] = tuple((row, column) for row in range(3) for column in range(3))

COUNT_ODDS = (0.12, 0.5, 0.38)
"""How likely a scene holds one, two or three things. Few lone things: they have the fewest descriptions."""


@dataclass(frozen=True, slots=True, order=True)
class Thing:
    """One object. The cell comes first so that sorting things sorts them by place."""

    cell: Cell
    shape: str
    colour: str
    size: str
    texture: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture. Raises `ValueError` where the things break the rules of the module docstring."""

    things: tuple[Thing, ...]
    """One to three, sorted by cell."""
    background: str
    render_seed: int
    """Non-negative; decides the jitter of the picture and the wording of the captions, no described fact."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.things) <= len(COUNT_ODDS) or list(self.things) != sorted(self.things):
            raise ValueError("a scene holds one to three things, sorted by cell")
        if not _apart([thing.cell for thing in self.things]):
            raise ValueError("two things of a scene stand in the same cell or in adjacent ones")
        if len({(thing.colour, thing.shape) for thing in self.things}) < len(self.things):
            raise ValueError("two things of a scene share colour and shape")


def _apart(cells: list[Cell]) -> bool:
    return all(abs(a[0] - b[0]) + abs(a[1] - b[1]) > 1 for i, a in enumerate(cells) for b in cells[i + 1 :])


def arrangement(scene: Scene) -> str:
    """The things and their places as one line of text, without the background; equal for equal things."""
    return "; ".join(f"{t.size} {t.texture} {t.colour} {t.shape} at {t.cell[0]},{t.cell[1]}" for t in scene.things)


def description(scene: Scene) -> str:
    """Everything a caption can say: the arrangement and the background. Free of the render seed."""
    return f"{arrangement(scene)}; on {scene.background}"


def relation(a: Thing, b: Thing) -> str:
    """Where `a` stands, seen from `b`: "left", "right", "above", "below" or, on an exact diagonal, both.

    The longer axis of the grid decides; a diagonal gives "above left", "above right", "below left" or
    "below right". Swapping the two gives the opposite. Raises `ValueError` where both share a cell.
    """
    down, across = a.cell[0] - b.cell[0], a.cell[1] - b.cell[1]
    if down == across == 0:
        raise ValueError("no relation within one cell")
    vertical = "above" if down < 0 else "below"
    horizontal = "left" if across < 0 else "right"
    if abs(down) == abs(across):
        return f"{vertical} {horizontal}"
    return vertical if abs(down) > abs(across) else horizontal


def pick(rng: np.random.Generator, options: tuple[Option, ...]) -> Option:
    """One of `options`, all equally likely."""
    return options[int(rng.integers(len(options)))]


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random scene; draws a varying number of times from `rng`."""
    count = 1 + int(np.searchsorted(np.cumsum(COUNT_ODDS)[:-1], rng.random(), side="right"))
    cells: list[Cell] = []
    while len(cells) < count:
        # A set that cannot be completed starts over: every set of free-standing cells can then come up.
        free = tuple(cell for cell in CELLS if _apart([*cells, cell]))
        cells = [*cells, pick(rng, free)] if free else []
    kinds: list[tuple[str, str]] = []
    while len(kinds) < count:
        kind = (pick(rng, SHAPES), pick(rng, COLOURS))
        if kind not in kinds:
            kinds.append(kind)
    things = tuple(
        Thing(cell, shape, colour, pick(rng, SIZES), pick(rng, TEXTURES))
        for cell, (shape, colour) in zip(sorted(cells), kinds, strict=True)
    )
    return Scene(things, pick(rng, BACKGROUNDS), int(rng.integers(2**31)))
