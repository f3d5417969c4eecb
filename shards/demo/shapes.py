"""The outlines of the shapes as closed polygons around the origin, about as large as the unit circle.

The axes are those of a picture: x to the right, y downwards.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
"""Shape (n, 2), the corners in order; the last joins the first."""

EXTENT = 1.03
"""No corner lies farther from the origin."""
ARC = 40
"""Corners of a whole circle: no edge can be seen at the sizes in use."""


@dataclass(frozen=True, slots=True)
class Outline:
    """One shape: its rim, a hole in it or none, and whether its corners are to be rounded off."""

    rim: Points
    hole: Points | None = None
    cornered: bool = True


def _arc(start: float, stop: float, radius: float, count: int = ARC) -> Points:
    turn = np.linspace(start, stop, count, endpoint=False)
    points: Points = radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return points


def _regular(corners: int, radius: float, start: float) -> Points:
    return _arc(start, start + 2 * np.pi, radius, corners)


def _star() -> Points:
    tips, dents = _regular(5, 1.0, -np.pi / 2), _regular(5, 0.46, -np.pi / 2 + np.pi / 5)
    points: Points = np.stack([tips, dents], axis=1).reshape(10, 2)
    return points


def _cross() -> Points:
    arm, end = 0.31, 0.92
    quarter = np.array([[arm, -end], [arm, -arm], [end, -arm]])
    turns = [np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) for a in np.arange(4) * np.pi / 2]
    corners: Points = np.concatenate([quarter @ turn for turn in turns])
    return corners


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, ARC, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    points: Points = np.stack([x, y - 2.5], axis=1) / 17.7
    return points


def _crescent() -> Points:
    outer, bite, shift = 0.98, 0.80, 0.46
    # The bite's circle meets the outer one at this angle; both arcs start and end there.
    meet = np.arccos((outer**2 + shift**2 - bite**2) / (2 * outer * shift))
    tip = outer * np.array([np.cos(meet), np.sin(meet)])
    inner_meet = np.arctan2(tip[1], tip[0] - shift)
    outside = _arc(meet, 2 * np.pi - meet, outer)
    inside = _arc(2 * np.pi - inner_meet, inner_meet, bite) + np.array([shift, 0.0])
    points: Points = np.concatenate([outside, inside]) + np.array([0.06, 0.0])
    return points


@cache
def outline(shape: str) -> Outline:
    """The outline of a shape of `shards.demo.scene.SHAPES`; raises `KeyError` for any other name.

    The radii are such that all shapes of one size look equally large.
    """
    whole = (0.0, 2 * np.pi)
    return {
        "circle": lambda: Outline(_arc(*whole, 0.86), cornered=False),
        "square": lambda: Outline(_regular(4, 1.02, np.pi / 4)),
        "triangle": lambda: Outline(_regular(3, 0.99, -np.pi / 2) + np.array([0.0, 0.06])),
        "star": lambda: Outline(_star() * EXTENT),
        "ring": lambda: Outline(_arc(*whole, 0.94), hole=_arc(*whole, 0.42), cornered=False),
        "cross": lambda: Outline(_cross()),
        "heart": lambda: Outline(_heart()),
        "crescent": lambda: Outline(_crescent()),
    }[shape]()
