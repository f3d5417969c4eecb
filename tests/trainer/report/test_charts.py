"""Charts: well-formed SVG that draws what it is given, whatever that is."""

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.report.conftest import Page
from trainer.report.charts import MOST_POINTS, Line, line_chart, mirrored_bars, shown_number, thinned, ticks

numbers = st.floats(-1e12, 1e12)


@given(numbers, numbers, st.integers(1, 8))
def test_ticks_are_evenly_spaced_round_numbers_around_the_values(a: float, b: float, wanted: int) -> None:
    low, high = min(a, b), max(a, b)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        return
    marks = ticks(low, high, wanted)
    step = marks[1] - marks[0]
    assert marks[0] <= low + 1e-6 * step and high - 1e-6 * step <= marks[-1]
    assert marks[0] > low - step * 1.001 and marks[-1] < high + step * 1.001
    assert all(math.isclose(after - before, step, rel_tol=1e-6) for before, after in pairwise(marks))
    assert 2 <= len(marks) <= wanted + 3
    assert float(f"{step:.1g}") == pytest.approx(step)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (5e-4, "5e-4"), (6.0744e-06, "6.07e-6"), (0.25, "0.25"), (430.28, "430.3"), (12500, "12.5k"),
     (3.2e6, "3.2M"), (-1.5, "-1.5")],
)  # fmt: skip
def test_numbers_are_short(value: float, shown: str) -> None:
    assert shown_number(value) == shown


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000))
def test_thinning_keeps_the_ends_and_the_extremes_in_order(values: list[float]) -> None:
    points = [(float(step), value) for step, value in enumerate(values)]
    kept = thinned(points)
    assert len(kept) <= max(MOST_POINTS, 1)
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert {min(values), max(values)} <= {value for _, value in kept}
    steps = [step for step, _ in kept]
    assert steps == sorted(set(steps))


def drawn(svg: str) -> list[str]:
    return re.findall(r'class="line [^"]*" d="([^"]*)"', svg)


def test_what_is_no_number_leaves_a_gap_and_a_mark_and_is_told() -> None:
    line = Line("run", range(1, 7), [1.0, 2.0, math.nan, 3.0, math.inf, 2.0])
    svg = line_chart("loss", [line], 6)
    Page(svg)
    assert len(drawn(svg)) == 1  # 1 and 2; what stands alone is a dot
    assert svg.count("<circle") == 4
    assert svg.count('class="bad"') == 2
    assert "step 3: nan" in svg and "step 5: inf" in svg
    assert "2 not finite" in svg


def test_every_point_lies_in_the_frame() -> None:
    lines = [Line("a", [1, 50, 100], [-3.0, 17.0, 5.5]), Line("b", [10], [1e-3])]
    svg = line_chart("x", lines, 100)
    xs, ys = zip(*((float(x), float(y)) for x, y in re.findall(r'cx="([\d.-]+)" cy="([\d.-]+)"', svg)), strict=True)
    assert len(xs) == 4
    assert min(xs) >= 44 and max(xs) <= 332
    assert min(ys) >= 10 and max(ys) <= 130
    # the first point is the lowest value, and lies lowest
    assert ys[0] == max(ys) and ys[1] == min(ys)


@pytest.mark.parametrize("values", [[], [math.nan], [0.0, 0.0], [5.0], [-2.0, -2.0]])
def test_lines_of_nothing_or_of_one_value_are_drawn(values: list[float]) -> None:
    Page(line_chart("loss", [Line("run", range(len(values)), values)], 0))


def test_names_are_text() -> None:
    svg = line_chart("<b>", [Line('a" onload="x', [1, 2], [1.0, 2.0])], 2)
    page = Page(svg)
    assert page.all("b") == []
    assert all("onload" not in attributes for _, attributes in page.elements)


def test_bars_are_as_high_as_their_shares() -> None:
    svg = mirrored_bars("use", [0.5, 0.25], [0.0, 1.0])
    Page(svg)
    up, down = re.findall(r'd="M0 60(V[^"]*)"', svg)
    assert [60 - float(value) for value in re.findall(r"V([\d.]+)h", up)] == [30, 15]
    assert [float(value) - 60 for value in re.findall(r"V([\d.]+)h", down)] == [0, 60]
