"""The statistics of a folder as lines for a terminal; the page has the same rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from shards.progress import counted
from shards.tools.stats import Stats

COLUMNS = {"0": "min", "5": "5%", "25": "25%", "50": "median", "75": "75%", "95": "95%", "100": "max"}
"""Percentiles shown, with their headings."""
_SHOWN = 12


@dataclass(frozen=True)
class Row:
    """One distribution of the statistics, as it is shown."""

    name: str
    title: str
    show: Callable[[float], str]
    scale: float = 1.0
    """Of a value in the statistics, one in the unit of the title."""


def significant(value: float) -> str:
    """Three significant digits, never an exponent."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{digits}f}"


def whole(value: float) -> str:
    """A whole number."""
    return f"{value:,.0f}"


ROWS = (
    Row("captions_a_sample", "captions a sample", whole),
    Row("words_a_caption", "words a caption", whole),
    Row("width", "width, pixels", whole),
    Row("height", "height, pixels", whole),
    Row("aspect", "width / height", significant),
    Row("megapixels", "megapixels", significant),
    Row("sample_bytes", "kB a sample", significant, 1e-3),
    Row("shard_samples", "samples a shard", whole),
)


def rows_of(stats: Stats) -> list[Row]:
    """The distributions that the statistics have."""
    return [row for row in ROWS if row.name in stats]


def cells(stats: Stats, row: Row) -> list[str]:
    """The mean and the percentiles of `COLUMNS`."""
    values = stats[row.name]
    mean = significant(values["mean"] * row.scale)
    return [mean, *(row.show(values["percentiles"][place] * row.scale) for place in COLUMNS)]


def summary(stats: Stats) -> list[tuple[str, str]]:
    """Titles and values of what is a single number."""
    return [
        ("samples", f"{stats['samples']:,}"),
        ("size", f"{counted(stats['shards'], 'shard')}, {stats['bytes'] / 1e6:,.1f} MB"),
        ("captions", f"{stats['captions']:,}, {stats['total_words']:,} words"),
        ("vocabulary", f"{stats['vocabulary']:,} different words"),
        ("repeated images", _repeats(stats["duplicate_images"], "image", "byte for byte")),
        ("repeated captions", _repeats(stats["duplicate_captions"], "caption", "word for word")),
    ]


def _repeats(counts: dict[str, int], what: str, how: str) -> str:
    if not counts["copies"]:
        return f"none {how}"
    copies = f"{counts['copies']:,} {'copies' if counts['copies'] > 1 else 'copy'}"
    most = f" (up to {counts['most'] - 1:,} of one)" if counts["values"] > 1 else ""
    return f"{copies}, {how}, of {counted(counts['values'], what)}{most}"


def text(stats: Stats) -> str:
    """All of it, for a terminal."""
    lines = [f"{stats['dataset']} / {stats['split']}, {stats['location']}", ""]
    lines += [f"{title:<18}{value}" for title, value in summary(stats)]
    total = stats["total_words"]
    frequent = ", ".join(f"{word} {count / total:.1%}" for word, count in stats["words"][:_SHOWN])
    lines += [f"{'frequent words':<18}{frequent}", ""]
    lines.append(f"{'':<18}" + "".join(f"{heading:>9}" for heading in ["mean", *COLUMNS.values()]))
    for row in rows_of(stats):
        lines.append(f"{row.title:<18}" + "".join(f"{cell:>9}" for cell in cells(stats, row)))
    return "\n".join(lines)
