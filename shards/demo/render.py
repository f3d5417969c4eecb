"""Drawing a scene as a small picture.

Everything a caption can name is drawn the same way in every picture of it; the scene's render seed decides
the rest: a little of the place, size, turn and shade of each thing, and the light on the background.
"""

import io
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from shards.demo.scene import Scene, Thing
from shards.demo.shapes import Points, outline

Rgb = tuple[int, int, int]

SUPERSAMPLE = 3
SHORTEST_SIDE = 16
RADIUS = {"small": 0.112, "large": 0.174}
"""Of the circle around a thing, as a fraction of the side; large things in diagonal cells do not touch."""
GRID = (0.22, 0.5, 0.78)
"""Where the rows and columns of cells have their centres, as fractions of the side."""
PLACE_JITTER = 0.008
"""Most by which a thing is off its centre on either axis, as a fraction of the side."""
SCALE_JITTER = (0.95, 1.04)
STRIPE_PERIOD = 0.062
DOT_PERIOD = 0.068

FILL: dict[str, Rgb] = {
    "red": (220, 38, 44),
    "orange": (247, 134, 24),
    "yellow": (250, 212, 36),
    "green": (44, 158, 68),
    "turquoise": (30, 190, 184),
    "blue": (40, 92, 214),
    "purple": (128, 52, 176),
    "pink": (250, 128, 180),
    "brown": (128, 78, 42),
}
GROUND: dict[str, Rgb] = {
    "white": (252, 252, 252),
    "beige": (236, 220, 190),
    "grey": (200, 203, 208),
    "mint": (204, 240, 216),
    "lilac": (220, 208, 244),
    "dark": (44, 48, 60),
}


def render(scene: Scene, side: int = 96) -> bytes:
    """The scene as a square RGB JPEG of `side` x `side` pixels; the same bytes for equal arguments.

    Raises `ValueError` where `side` is under 16 pixels, and `KeyError` for a scene with unknown words.
    """
    if side < SHORTEST_SIDE:
        raise ValueError(f"side must be {SHORTEST_SIDE} pixels or more, not {side}")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([scene.render_seed])))
    # Brighter or darker as a whole and hardly another hue: a tinted white would pass for mint.
    ground = _shaded(GROUND[scene.background], rng.uniform(-6, 6) + rng.uniform(-2, 2, 3))
    canvas = _backdrop(ground, side * SUPERSAMPLE, int(rng.integers(4)))
    for thing in scene.things:
        _draw(canvas, thing, _mixed(ground, (0, 0, 0), 0.22), scene.background == "dark", rng)
    encoded = io.BytesIO()
    canvas.reduce(SUPERSAMPLE).save(encoded, "JPEG", quality=90, subsampling=0)
    return encoded.getvalue()


def _shaded(colour: Rgb, shift: np.ndarray) -> Rgb:
    red, green, blue = np.clip(np.asarray(colour) + shift, 0, 255).astype(int).tolist()
    return red, green, blue


def _mixed(colour: Rgb, other: Rgb, share: float) -> Rgb:
    return _shaded(colour, (np.asarray(other) - np.asarray(colour)) * share)


@cache
def _gradient(size: int, quarter_turns: int) -> Image.Image:
    return Image.linear_gradient("L").rotate(90 * quarter_turns).resize((size, size))


def _backdrop(ground: Rgb, size: int, quarter_turns: int) -> Image.Image:
    lit, dim = _mixed(ground, (255, 255, 255), 0.10), _mixed(ground, (0, 0, 0), 0.07)
    canvas = Image.new("RGB", (size, size), lit)
    canvas.paste(dim, (0, 0), _gradient(size, quarter_turns))
    return canvas


def _draw(canvas: Image.Image, thing: Thing, shadow: Rgb, on_dark: bool, rng: np.random.Generator) -> None:
    size = canvas.width
    row, column = thing.cell
    centre = size * (np.array([GRID[column], GRID[row]]) + rng.uniform(-PLACE_JITTER, PLACE_JITTER, 2))
    radius = size * RADIUS[thing.size] * rng.uniform(*SCALE_JITTER)
    fill = _shaded(FILL[thing.colour], rng.uniform(-10, 10, 3))
    shape = outline(thing.shape)
    turn = rng.uniform(-0.2, 0.2)
    place = radius * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])

    # A tile of the canvas, a little larger than the thing, so that masks stay small and fast.
    half = int(radius * 1.2) + 2
    left, top = (int(c) - half for c in centre)
    offset = centre - np.array([left, top])
    rim = shape.rim @ place + offset
    hole = None if shape.hole is None else shape.hole @ place + offset
    box = (2 * half, 2 * half)

    mask = _mask(box, rim, hole)
    drop = max(1, size // 90)
    canvas.paste(shadow, (left + drop, top + drop), mask)
    canvas.paste(_pattern(thing, fill, box, size, rng), (left, top), mask)
    edge = _mixed(fill, (255, 255, 255), 0.45) if on_dark else _mixed(fill, (0, 0, 0), 0.40)
    pen = ImageDraw.Draw(canvas)
    for line in (rim, hole):
        if line is not None:
            closed = np.concatenate([line, line[:2]]) + np.array([left, top])
            joint = "curve" if shape.cornered else None
            pen.line(closed.ravel().tolist(), fill=edge, width=max(2, size // 84), joint=joint)


def _mask(box: tuple[int, int], rim: Points, hole: Points | None) -> Image.Image:
    mask = Image.new("L", box)
    pen = ImageDraw.Draw(mask)
    pen.polygon(rim.ravel().tolist(), fill=255)
    if hole is not None:
        pen.polygon(hole.ravel().tolist(), fill=0)
    return mask


def _pattern(thing: Thing, fill: Rgb, box: tuple[int, int], size: int, rng: np.random.Generator) -> Image.Image:
    tile = Image.new("RGB", box, fill)
    if thing.texture == "plain":
        return tile
    # Marks are light on strong colours and dark on yellow, where white would hardly show.
    dark_marks = thing.colour == "yellow"
    mark = _mixed(fill, (120, 70, 0), 0.62) if dark_marks else _mixed(fill, (255, 255, 255), 0.8)
    pen = ImageDraw.Draw(tile)
    phase = rng.uniform(0, 1)
    if thing.texture == "striped":
        step = size * STRIPE_PERIOD
        lean = box[1] * rng.uniform(0.75, 1.1)
        for x in np.arange(-lean + (phase - 1) * step, box[0], step):
            pen.line((x, box[1], x + lean, 0), fill=mark, width=int(step * 0.34))
        return tile
    step, dot = size * DOT_PERIOD, size * DOT_PERIOD * 0.29
    for i, y in enumerate(np.arange((phase - 1) * step, box[1] + step, step * 0.8)):
        for x in np.arange((phase - 1 + 0.5 * (i % 2)) * step, box[0] + step, step):
            pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=mark)
    return tile
