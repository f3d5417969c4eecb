"""The tables that are printed and written."""

from trainer.evaluation.measure import Measured, OneWay
from trainer.evaluation.tables import Row, as_latex, as_markdown, as_text, sources, table_of


def one_way(names: tuple[str, ...], first: float) -> OneWay:
    values = {name: first + place for place, name in enumerate(names)}
    return OneWay(values, {name: (value - 1, value + 1) for name, value in values.items()}, 2.0, 3.25, 1000)


RECALLS = Measured(
    "coco_5k",
    "COCO 5K",
    one_way(("r1", "r5", "r10"), 50.04),
    one_way(("r1", "r5", "r10"), 40.0),
    (270.0, 280.0),
)
PRECISIONS = Measured(
    "eccv_caption",
    "ECCV Caption",
    one_way(("map_at_r", "r_precision", "r1"), 30.0),
    one_way(("map_at_r", "r_precision", "r1"), 20.0),
    None,
)
OURS = ["50.0", "51.0", "52.0", "40.0", "41.0", "42.0", "276.1"]


def test_a_terminal_shows_published_rows_chance_and_ours_with_its_interval() -> None:
    chance = Row("chance", [0.1] * 7)
    title, directions, heads, *rows = as_text(table_of(RECALLS, "this model", [chance])).splitlines()
    assert title == "COCO 5K"
    assert directions.split() == ["image", "to", "text", "text", "to", "image"]
    assert heads.split() == ["R@1", "R@5", "R@10", "R@1", "R@5", "R@10", "rSum"]
    by_name = {row[:22].strip(): row[22:].split() for row in rows if not row.startswith(("†", "median"))}
    assert by_name["AAHR"] == ["66.6", "89.8", "94.7", "49.0", "77.3", "86.2", "463.6†"]
    assert by_name["CHAN (regions, BERT)"] == ["59.8", "87.2", "–", "44.9", "74.5", "–", "–"]
    assert by_name["chance"] == ["0.1"] * 7
    assert by_name["this model"] == OURS
    assert by_name["95 % from"][0::6] == ["49.0", "270.0"]
    assert by_name["95 % to"][0::6] == ["51.0", "280.0"]
    assert rows[-2] == "† AAHR: the source prints rSum 463.4, its recalls add up to 463.6 (rounding)"
    assert rows[-1].endswith(
        "image to text 2 and 3.2 over 1,000 queries; text to image 2 and 3.2 over 1,000 queries"
    )
    assert {len(row.rstrip("†")) for row in [heads, *rows[:-2]]} == {len(heads)}


def test_measures_that_nobody_sums_have_no_sum() -> None:
    table = table_of(PRECISIONS, "this model")
    assert as_text(table).splitlines()[2].split() == ["mAP@R", "R-P", "R@1"] * 2
    for text in (as_text(table), as_markdown(table), as_latex(table)):
        assert "rSum" not in text
        assert "34.2" in text


def test_markdown_is_a_table_with_ours_in_bold() -> None:
    lines = as_markdown(table_of(RECALLS, "a|b")).splitlines()
    assert lines[0] == "### COCO 5K"
    table = [line for line in lines if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {9}
    assert f"| **a\\|b** | {' | '.join(f'**{cell}**' for cell in OURS)} |" in table
    assert any(line.startswith("- † AAHR") for line in lines)


def test_latex_has_a_cell_a_column_and_no_bare_specials() -> None:
    text = as_latex(table_of(RECALLS, "50%_of & more"))
    assert r"\begin{tabular}{lrrrrrrr}" in text
    assert r"\multicolumn{3}{c}{image to text}" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in body[1:]} == {7}
    assert r"50\%\_of \& more & \textbf{50.0}" in text
    assert r"463.6$^\dagger$ \\" in text


def test_the_sources_are_those_of_the_rows_that_are_shown() -> None:
    named = sources([table_of(RECALLS, "x")], ["coco_5k"])
    assert [line.partition(":")[0] for line in named] == [
        "AAHR",
        "RCAR",
        "CHAN (regions, BERT)",
        *(
            f"CLIP {towers}"
            for towers in ("B/32, LAION-400M", "B/16, LAION-400M", "L/14, LAION-400M", "B/32, LAION-2B")
        ),
    ]
    assert sources([table_of(PRECISIONS, "x")], ["whole_split"]) == []
