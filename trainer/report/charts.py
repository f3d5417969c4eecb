"""Charts as inline SVG: a few kilobytes each, drawn in the page's own colours and type, also where it is dark."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

COLOURS = 6
"""Classes `s0`, `s1`, ... of the page's style, each of another colour and another dash."""
MOST_POINTS = 240
"""Of a line; of more, the lowest and the highest of each stretch are drawn."""
DOTTED = 40
"""Up to so many points are marked, each with its value on hover."""
_BAD = 20  # marks of values that are no numbers
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 340.0, 150.0, 44.0, 8.0, 10.0, 20.0


@dataclass(frozen=True)
class Line:
    """One run's curve; values that are no finite numbers leave a gap, and a mark at the top."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


def shown_number(value: float) -> str:
    """Short: `0.0005` is `5e-4`, `12500` is `12.5k`."""
    size = abs(value)
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            divisor = 1e3 if letter == "k" else unit
            return f"{value / divisor:.4g}{letter}"
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.3g}".split("e") if "e" in f"{value:.3g}" else f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers from `low` or just below to `high`, which is larger, or just above; about `wanted` steps."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [number * step for number in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def line_chart(title: str, lines: Sequence[Line], last: float) -> Markup:
    """The lines over the steps 0 to `last`, and what they say in words, for who does not see them."""
    ys = [y for line in lines for y in line.ys if math.isfinite(y)]
    frame = _Frame.around(last, ys or [0.0, 1.0])
    parts = [*frame.axes()]
    for place, line in enumerate(lines):
        parts += frame.line(line, place)
    words = "; ".join(_in_words(line) for line in lines if len(line.xs))
    return _svg(f"{title}: {words}", parts)


@dataclass(frozen=True)
class _Frame:
    last: float
    marks: list[float]

    @classmethod
    def around(cls, last: float, ys: Sequence[float]) -> "_Frame":
        low, high = min(ys), max(ys)
        if low >= 0 and low < high / 2:
            low = 0.0  # a curve that falls by half is seen against nothing
        if low == high:
            low, high = (0.0, 1.0) if low == 0 else sorted((low * 0.9, low * 1.1))
        return cls(max(last, 1.0), ticks(low, high, 3))

    def x(self, value: float) -> float:
        return _LEFT + value / self.last * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.marks[0], self.marks[-1]
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self) -> Iterable[str]:
        for value in self.marks:
            height = self.y(value)
            yield f'<path class="grid" d="M{_LEFT:g} {height:.1f}H{_WIDTH - _RIGHT:g}"/>'
            yield f'<text x="{_LEFT - 6:g}" y="{height + 3.5:.1f}" text-anchor="end">{shown_number(value)}</text>'
        for value in (value for value in ticks(0.0, self.last, 4) if value <= self.last):
            place = self.x(value)
            anchor = "end" if place > _WIDTH - _RIGHT - 12 else "middle"
            yield f'<text x="{place:.1f}" y="{_HEIGHT - 5:g}" text-anchor="{anchor}">{shown_number(value)}</text>'

    def line(self, line: Line, place: int) -> Iterable[str]:
        style = f"s{place % COLOURS}"
        for stretch in _stretches(line):
            points = "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in thinned(stretch))
            if len(stretch) > 1:
                yield f'<path class="line {style}" d="M{points}"/>'
            if len(line.xs) <= DOTTED or len(stretch) == 1:
                for x, y in thinned(stretch):
                    told = escape(f"{line.name}, step {x:,.0f}: {shown_number(y)}")
                    yield (
                        f'<circle class="dot {style}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="2.2">'
                        f"<title>{told}</title></circle>"
                    )
        bad = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if not math.isfinite(y)]
        for x, y in bad[:_BAD]:
            told = escape(f"{line.name}, step {x:,.0f}: {y}")
            yield f'<path class="bad" d="M{self.x(x):.1f} {_TOP:g}l-4 -7h8z"><title>{told}</title></path>'


def _stretches(line: Line) -> list[list[tuple[float, float]]]:
    """The points between those that are no numbers."""
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.xs, line.ys, strict=True):
        if math.isfinite(y):
            found[-1].append((x, y))
        elif found[-1]:
            found.append([])
    return [stretch for stretch in found if stretch]


def thinned(points: list[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points, with both ends and every stretch's lowest and highest: no spike is lost."""
    if len(points) <= most:
        return points
    buckets = most // 2 - 1
    inner = points[1:-1]
    kept = [points[0]]
    for number in range(buckets):
        part = inner[number * len(inner) // buckets : (number + 1) * len(inner) // buckets]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return [*kept, points[-1]]


def _in_words(line: Line) -> str:
    bad = sum(not math.isfinite(y) for y in line.ys)
    finite = [y for y in line.ys if math.isfinite(y)]
    warning = f", {bad} not finite" if bad else ""
    if not finite:
        return f"{line.name}{warning}"
    ends = f"{shown_number(finite[0])} to {shown_number(finite[-1])}"
    return f"{line.name} from {ends} over steps {line.xs[0]:,.0f} to {line.xs[-1]:,.0f}{warning}"


def mirrored_bars(title: str, above: Sequence[float], below: Sequence[float]) -> Markup:
    """Two rows of bars to one scale, upwards and downwards, each pair one item."""
    width, height = 1000.0, 120.0
    middle, most, each = height / 2, max(*above, *below, 1e-9), width / len(above)
    parts = [f'<path class="grid" d="M0 {middle:g}H{width:g}"/>']
    for row, sign, style in ((above, -1, "s0"), (below, 1, "s1")):
        bars = "".join(f"V{middle + sign * middle * share / most:.1f}h{each:.3f}" for share in row)
        parts.append(f'<path class="bar {style}" d="M0 {middle:g}{bars}V{middle:g}z"/>')
    return _svg(title, parts, width, height, ' class="bars" preserveAspectRatio="none"')


def _svg(
    label: str, parts: Iterable[str], width: float = _WIDTH, height: float = _HEIGHT, attributes: str = ""
) -> Markup:
    # all parts are ours but for names, which are escaped where they enter
    inside = f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}"{attributes}'
    return Markup(f"<svg {inside}>{''.join(parts)}</svg>")
