"""The statistics of a folder as an HTML page."""

from shards.tools.charts import histogram_svg
from shards.tools.pages import render
from shards.tools.stats import Stats
from shards.tools.stats_text import COLUMNS, Row, cells, rows_of, summary, whole


def stats_page(stats: Stats) -> bytes:
    """The page, UTF-8."""
    rows = rows_of(stats)
    return render(
        "stats.html.j2",
        stats=stats,
        summary=summary(stats),
        headings=["mean", *COLUMNS.values()],
        rows=[(row.title, cells(stats, row)) for row in rows],
        charts=[(row.title, _chart(stats, row)) for row in rows if len(stats[row.name]["histogram"]["counts"]) > 1],
    )


def _chart(stats: Stats, row: Row) -> str:
    histogram = stats[row.name]["histogram"]
    edges = [edge * row.scale for edge in histogram["edges"]]
    return histogram_svg(edges, histogram["counts"], row.show, whole=row.show is whole)
