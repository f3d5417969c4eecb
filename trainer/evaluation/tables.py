"""Results as tables: plain text, Markdown and LaTeX, with the published rows beside ours."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from trainer.evaluation.measure import Measured
from trainer.evaluation.measures import RANKS
from trainer.evaluation.published import published

RECALL_HEADS = tuple(f"R@{k}" for k in RANKS)
HEADS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "map_at_r": "mAP@R", "r_precision": "R-P"}
RSUM = "rSum"
DAGGER = "†"
DIRECTIONS = ("image to text", "text to image")


@dataclass(frozen=True)
class Row:
    """A name and its numbers, those of image to text first, rSum last; None prints as a dash."""

    name: str
    values: Sequence[float | None]
    mark: str = ""
    """Of a footnote, after the last number."""
    own: bool = False
    """Whether it is what was measured here."""


@dataclass(frozen=True)
class Table:
    """A protocol's results."""

    title: str
    heads: tuple[str, ...]
    """Of one direction."""
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    @property
    def has_sum(self) -> bool:
        return self.heads == RECALL_HEADS


def table_of(measured: Measured, name: str, more: Sequence[Row] = ()) -> Table:
    """The published rows of the protocol, `more`, and ours with its interval."""
    rows, notes = [], []
    for one in published().get(measured.key, ()):
        mark = DAGGER if one.remark else ""
        notes += [f"{DAGGER} {one.remark}"] if one.remark else []
        total = [] if measured.rsum is None else [one.rsum]
        rows.append(Row(one.name, (*one.i2t, *one.t2i, *total), mark))
    ways = (measured.i2t, measured.t2i)
    values = [value for way in ways for value in way.values.values()]
    ends = [end for way in ways for end in way.intervals.values()]
    if measured.rsum is not None and measured.rsum_interval is not None:
        values.append(measured.rsum)
        ends.append(measured.rsum_interval)
    rows += [
        *more,
        Row(name, values, own=True),
        Row("  95 % from", [end[0] for end in ends]),
        Row("  95 % to", [end[1] for end in ends]),
    ]
    ranks = "; ".join(
        f"{direction} {way.median_rank:g} and {way.mean_rank:.1f} over {way.num_queries:,} queries"
        for direction, way in zip(DIRECTIONS, ways, strict=True)
    )
    notes.append(f"median and mean rank: {ranks}")
    return Table(measured.title, tuple(HEADS[key] for key in measured.i2t.values), rows, notes)


def sources(tables: Sequence[Table], keys: Sequence[str]) -> list[str]:
    """Where the published rows of the protocols come from, a line each."""
    shown = {row.name for table in tables for row in table.rows}
    rows = [one for key in keys for one in published().get(key, ()) if one.name in shown]
    return list(dict.fromkeys(f"{one.name}: {one.source}" for one in rows))


def as_text(table: Table) -> str:
    """For a terminal."""
    width = max(len(row.name) for row in table.rows)
    side = 7 * len(table.heads)
    lines = [
        table.title,
        f"{'':{width}} " + "".join(f"{direction:>{side}}" for direction in DIRECTIONS),
        f"{'':{width}} "
        + 2 * "".join(f"{head:>7}" for head in table.heads)
        + (f"{RSUM:>9}" if table.has_sum else ""),
    ]
    for row in table.rows:
        cells = [_number(value) for value in row.values]
        end = f"{cells.pop():>9}" if table.has_sum else ""
        lines.append(f"{row.name:{width}} " + "".join(f"{cell:>7}" for cell in cells) + end + row.mark)
    return "\n".join([*lines, *table.notes])


def as_markdown(table: Table) -> str:
    """A table of GitHub's Markdown under a heading."""
    heads = ["", *(f"{short} {head}" for short in ("i2t", "t2i") for head in table.heads)]
    heads += [RSUM] if table.has_sum else []
    lines = [f"### {table.title}", "", _bars(heads), _bars(["---", *["---:"] * (len(heads) - 1)])]
    for row in table.rows:
        name, cells = row.name.strip(), [_number(value) for value in row.values]
        cells[-1] += row.mark
        bold = "**" if row.own else ""
        lines.append(_bars([f"{bold}{cell}{bold}" for cell in (name, *cells)]))
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes), ""])


def as_latex(table: Table) -> str:
    """A `tabular` for the package booktabs."""
    columns = len(table.heads)
    sums = int(table.has_sum)
    over = " & ".join(rf"\multicolumn{{{columns}}}{{c}}{{{direction}}}" for direction in DIRECTIONS)
    heads = [_escape(head) for head in 2 * table.heads] + [RSUM] * sums
    lines = [
        f"% {table.title}",
        rf"\begin{{tabular}}{{l{'r' * (2 * columns + sums)}}}",
        r"\toprule",
        f" & {over}{' &' * sums} \\\\",
        rf"\cmidrule(lr){{2-{1 + columns}}}\cmidrule(lr){{{2 + columns}-{1 + 2 * columns}}}",
        " & ".join(["", *heads]) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        if row.own:
            lines.append(r"\midrule")
        cells = [_number(value) for value in row.values]
        cells = [_escape(row.name.strip()), *(rf"\textbf{{{cell}}}" if row.own else cell for cell in cells)]
        lines.append(" & ".join(cells) + (r"$^\dagger$" if row.mark else "") + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, *(f"% {note}" for note in table.notes), ""])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _bars(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _escape(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text.replace("∞", r"$\infty$")
