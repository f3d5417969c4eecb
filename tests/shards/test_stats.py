import json
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import DataError
from shards.manifest import Manifest, read_manifest
from shards.tools.index import Plan, index_tars
from shards.tools.locate import find_tars
from shards.tools.stats import Stats, distribution, folder_stats
from shards.tools.stats_page import stats_page
from shards.tools.stats_text import significant, text
from shards.tools.tally import step_of, value_of, words_of
from tests.shards.foreign import as_json, picture, write_ours, write_tar

Itm = Callable[..., subprocess.CompletedProcess[str]]


def folder_of(
    root: Path, captions: list[list[str]], per_shard: int = 2, sizes: Sequence[tuple[int, int]] = ()
) -> Manifest:
    for first in range(0, len(captions), per_shard):
        members = []
        for number, texts in list(enumerate(captions))[first : first + per_shard]:
            size = sizes[number] if sizes else (30, 20)
            members += [
                (f"{number}.jpg", picture(number % 4, size=size)),
                (f"{number}.json", as_json(captions=texts)),
            ]
        write_tar(root / f"{first:03d}.tar", members)
    index_tars(Plan(find_tars([str(root)]), root, "synthetic", "train"))
    return read_manifest(root)


CAPTIONS = [["A dog's ball.", "two Dogs"], ["a dog"], ["a dog"], ["the cat, a cat"], ["один Кот"]]


def test_captions_and_words_are_counted(tmp_path: Path) -> None:
    stats = folder_stats(folder_of(tmp_path / "t", CAPTIONS))
    assert (stats["samples"], stats["captions"], stats["shards"]) == (5, 6, 3)
    words = Counter(word for texts in CAPTIONS for caption in texts for word in words_of(caption))
    assert dict(stats["words"]) == words == {
        "a": 4, "dog's": 1, "ball": 1, "two": 1, "dogs": 1, "dog": 2, "the": 1, "cat": 2, "один": 1, "кот": 1
    }  # fmt: skip
    assert stats["words"][0] == ("a", 4)
    assert (stats["vocabulary"], stats["total_words"]) == (10, 15)
    assert stats["words_a_caption"]["mean"] == pytest.approx(15 / 6)
    assert stats["captions_a_sample"]["histogram"] == {"edges": [1.0, 2.0, 3.0], "counts": [4, 1]}


def test_copies_of_images_and_captions_are_counted(tmp_path: Path) -> None:
    stats = folder_stats(folder_of(tmp_path / "t", CAPTIONS))
    assert stats["duplicate_images"] == {"values": 1, "copies": 1, "most": 2}, "pictures 0 and 4 are the same"
    assert stats["duplicate_captions"] == {"values": 1, "copies": 1, "most": 2}


def test_sizes_are_within_a_thousandth(tmp_path: Path) -> None:
    sizes = [(10, 40), (33, 33), (64, 16), (50, 20), (200, 100)]
    manifest = folder_of(tmp_path / "t", CAPTIONS, sizes=sizes)
    stats = folder_stats(manifest)
    for name, values in {
        "width": [width for width, _ in sizes],
        "height": [height for _, height in sizes],
        "aspect": [width / height for width, height in sizes],
        "megapixels": [width * height / 1e6 for width, height in sizes],
    }.items():
        percentiles = stats[name]["percentiles"]
        assert percentiles["0"] == pytest.approx(min(values), rel=1e-3)
        assert percentiles["50"] == pytest.approx(sorted(values)[2], rel=1e-3)
        assert percentiles["100"] == pytest.approx(max(values), rel=1e-3)
        assert stats[name]["mean"] == pytest.approx(np.mean(values), rel=1e-3)


@pytest.mark.parametrize("processes", [1, 2])
def test_shards_add_up_to_the_same_whatever_their_size(tmp_path: Path, processes: int) -> None:
    results = []
    for per_shard in (2, 7):
        stats = folder_stats(folder_of(tmp_path / f"{per_shard}", CAPTIONS * 4, per_shard), processes=processes)
        assert stats["shard_samples"]["percentiles"]["100"] == per_shard
        results.append(
            {name: stats[name] for name in stats if name not in ("location", "shards", "shard_samples", "bytes")}
        )
    assert results[0] == results[1]


@given(st.lists(st.integers(0, 500), min_size=1, max_size=200))
def test_percentiles_and_histogram_of_whole_numbers_are_those_of_the_values(values: list[int]) -> None:
    found = distribution(Counter(values))
    ordered = sorted(values)
    for percent, value in found["percentiles"].items():
        assert value == ordered[max(1, -(-len(values) * int(percent) // 100)) - 1], "nearest rank"
    edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
    assert len(edges) == len(counts) + 1 <= 43
    assert sum(counts) == len(values)
    for low, high, count in list(zip(edges, edges[1:], counts, strict=False))[:-1]:
        assert count == sum(low <= value < high for value in values)


@given(st.floats(1e-6, 1e12))
def test_a_step_is_a_thousandth(value: float) -> None:
    assert value_of(step_of(value)) == pytest.approx(value, rel=6e-4)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.0501, "0.0501"), (1, "1.00"), (9.999, "10.00"), (12.34, "12.3"), (1234.5, "1,234")],
)
def test_three_digits_are_shown(value: float, shown: str) -> None:
    assert significant(value) == shown


class _Tags(HTMLParser):
    """Checks that what is opened is closed, and collects what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "rect", "line"):
            self.open.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(page: bytes) -> _Tags:
    tags = _Tags()
    tags.feed(page.decode())
    assert tags.open == []
    return tags


def test_the_page_stands_alone_and_escapes_what_it_shows(tmp_path: Path) -> None:
    stats = folder_stats(folder_of(tmp_path / "<i>", [["<script>alert(1)</script> a & b"], ["x"]]))
    page = stats_page({**stats, "dataset": "<b>bold</b>", "words": [("<u>", 3)]})
    tags = parsed(page)
    assert tags.links == []
    assert b"<script" not in page and b"<b>bold" not in page and b"<u>" not in page
    assert any("<b>bold</b>" in word for word in tags.words)


def test_a_folder_of_one_sample_has_a_text_and_a_page(tmp_path: Path) -> None:
    stats: Stats = folder_stats(folder_of(tmp_path / "t", [["one"]]))
    assert "1 shard, " in text(stats)
    parsed(stats_page(stats))


def test_copies_are_told_in_words(tmp_path: Path) -> None:
    assert "repeated captions none word for word" in text(folder_stats(folder_of(tmp_path / "a", [["one"]])))
    shown = text(folder_stats(folder_of(tmp_path / "b", [["one"], ["one"]])))
    assert "repeated captions 1 copy, word for word, of 1 caption\n" in shown
    shown = text(folder_stats(folder_of(tmp_path / "c", [["one"], ["one"], ["one"], ["two"], ["two"]])))
    assert "repeated captions 3 copies, word for word, of 2 captions (up to 2 of one)\n" in shown


def test_the_command_prints_a_table_and_writes_files(tmp_path: Path, itm: Itm) -> None:
    write_ours(tmp_path / "train", samples=12, per_shard=5, captions=3)
    done = itm("shards", "stats", "train", "--out", "stats.json")
    assert done.returncode == 0, done.stderr
    assert "36, 180 words" in done.stdout
    assert "picture 20.0%" in done.stdout
    stats = json.loads((tmp_path / "stats.json").read_bytes())
    assert (stats["samples"], stats["captions"], stats["vocabulary"]) == (12, 36, 3 + 12)
    done = itm("shards", "stats", "train", "--out", "stats.html")
    assert done.returncode == 0, done.stderr
    assert "words a caption" in "".join(parsed((tmp_path / "stats.html").read_bytes()).words)
    done = itm("shards", "stats", "train", "--out", "stats.pdf")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "itm: error: --out stats.pdf: give a file that ends in .json or .html\n"


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    write_ours(tmp_path / "train", samples=4, per_shard=2)
    path = tmp_path / "train" / "train-000001.tar"
    data = path.read_bytes()
    path.write_bytes(data[:1000] + bytes(len(data) - 1000))
    with pytest.raises(DataError, match=r"train-000001\.tar: .*itm shards verify"):
        folder_stats(read_manifest(tmp_path / "train"))
