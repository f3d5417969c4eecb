import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shards.convert import merge, write_split
from shards.errors import DataError
from shards.manifest import MANIFEST, SHARD_TABLE, read_index, read_manifest
from shards.publish import NAMED, missing_units
from shards.sources.record import Skipped
from shards.staging import Staging
from tests.shards.pictures import (
    FOUR,
    contents,
    convert_all,
    convert_part,
    good,
    mixed,
    record,
    skipped_names,
    source_of,
    with_regions,
)


def test_the_manifest_and_the_report_tell_what_was_written(tmp_path: Path) -> None:
    report = write_split(good(10), tmp_path / "val", dataset="d", split="val", options=FOUR)
    table = pq.read_table(tmp_path / "val" / SHARD_TABLE).to_pydict()
    paths = sorted((tmp_path / "val").glob("*.tar"))
    indexes = sorted((tmp_path / "val").glob("*.index.arrow"))
    assert table["name"] == [path.stem for path in paths] == ["val-000000", "val-000001", "val-000002"]
    assert table["path"] == [path.name for path in paths]
    assert table["samples"] == [4, 4, 2]
    assert table["captions"] == [1 + 2 + 3 + 1, 2 + 3 + 1 + 2, 3 + 1]
    assert table["bytes"] == [path.stat().st_size for path in paths]
    for column, files in (("sha256", paths), ("index_sha256", indexes)):
        assert table[column] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert (report.samples, report.captions, report.shards) == (10, sum(table["captions"]), 3)
    assert report.bytes == sum(table["bytes"])
    assert (report.skipped, report.first_skipped) == (0, [])
    assert not (tmp_path / "val" / "skipped.jsonl").exists()


def test_one_name_in_two_units_is_refused_and_the_split_is_read_anew(tmp_path: Path) -> None:
    records = [*good(6), record(6, key="key-001")]
    with pytest.raises(
        DataError, match="split val: two samples are named key-001, in val-000000 and in val-000001"
    ):
        convert_all(source_of(val=records, train=list(good(5))), tmp_path)
    assert (tmp_path / ".partial/train").exists()
    assert not (tmp_path / ".partial/val").exists()
    assert convert_all(source_of(val=list(good(6)), train=list(good(5))), tmp_path)["val"].samples == 6


@pytest.mark.parametrize("processes", [1, 2])
def test_what_was_skipped_is_listed_in_order_and_counted(tmp_path: Path, processes: int) -> None:
    reports = convert_all(source_of(val=mixed(40)), tmp_path, processes=processes)
    expected = [
        name
        for number in range(40)
        for name, skipped in ((f"left-out-{number:03d}", number % 5 == 4), (f"key-{number:03d}", number % 7 == 3))
        if skipped
    ]
    assert skipped_names(tmp_path / "val") == expected
    assert reports["val"].skipped == len(expected) > NAMED
    assert [item.name for item in reports["val"].first_skipped] == expected[:NAMED]
    assert reports["val"].samples == 40 - sum(name.startswith("key") for name in expected)
    first = json.loads((tmp_path / "val/skipped.jsonl").read_text().splitlines()[0])
    assert first == {
        "name": "key-003",
        "reason": "the image does not decode (not an image, or of an unknown format)",
    }


def test_units_without_a_usable_sample_have_no_shard(tmp_path: Path) -> None:
    convert_all(source_of(val=[*good(4), *(record(n, b"x") for n in range(4)), record(9)]), tmp_path)
    manifest = read_manifest(tmp_path / "val")
    assert manifest.names == ("val-000000", "val-000002")
    assert read_index(manifest, 1).keys.to_pylist() == ["key-009"]


NOTHING = [record(0, b"x"), record(1, b"y")]


def test_a_split_with_nothing_usable_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        DataError, match=r"^split val: no usable sample; the first of 2: key-000: the image does not decode"
    ):
        convert_all(source_of(val=NOTHING), out)
    assert not out.exists()
    convert_all(source_of(val=list(good(2))), out)  # the images mended, their list as it was


@pytest.mark.parametrize("skipped", [[], [Skipped("a", "b")]])
def test_a_split_of_no_records_is_an_error(tmp_path: Path, skipped: list[Skipped]) -> None:
    with pytest.raises(DataError, match=r"^split val: no usable sample"):
        convert_all(source_of(val=skipped), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_split_that_fails_keeps_the_others_back_and_their_work(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        convert_all(source_of(train=list(good(3)), val=NOTHING), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".partial"]
    tar = tmp_path / ".partial/train/train-000000.tar"
    written = tar.stat().st_mtime_ns
    convert_all(source_of(train=list(good(3)), val=list(good(3))), tmp_path)
    assert (tmp_path / "train/train-000000.tar").stat().st_mtime_ns == written
    assert read_manifest(tmp_path / "val").num_samples == 3


def test_units_that_hold_different_things_are_refused(tmp_path: Path) -> None:
    items = [*good(4), *(with_regions(number, image=True) for number in range(4, 8))]
    with pytest.raises(
        DataError, match=r"^split val: sample key-000 has image, sample key-004 has image and regions"
    ):
        convert_all(source_of(val=items), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_killed_writers_left_is_not_published(tmp_path: Path) -> None:
    """Also shards of a unit that had more of them when it was begun first."""
    source = source_of(val=mixed(13))
    convert_all(source, tmp_path / "expected")
    convert_part(source, tmp_path / "out", (1, 2))
    left = tmp_path / "out/.partial/val"
    (left / ".val-000001.tar.0a1b2c3d.partial").write_bytes(b"half a")
    (left / "val-000001-002.tar").write_bytes(b"not in any note")
    (left / ".units/.000001.json.0a1b2c3d.partial").write_bytes(b"{")
    convert_all(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_merge_without_all_parts_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    source = source_of(train=list(good(13)), val=mixed(9))
    out = tmp_path / "out"
    convert_part(source, out, (1, 3))
    assert missing_units(out / ".partial/train") == [1, 2]
    before = contents(out)
    with pytest.raises(
        DataError, match=r"2 units of split train are not written yet; the first is 1: of N parts, part 1 % N"
    ):
        merge(out)
    assert contents(out) == before
    convert_part(source, out, (2, 3))
    convert_part(source, out, (3, 3))
    assert merge(out)["train"].samples == 13
    assert sorted(path.name for path in out.iterdir()) == ["train", "val"]


def test_a_merge_of_a_part_that_never_came_to_the_end_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert_part(source_of(train=list(good(13))), out, (1, 2))
    (out / ".partial/train/.units/total.json").unlink()
    with pytest.raises(DataError, match="no part has come to the end of split train; convert all parts first"):
        merge(out)


@pytest.mark.parametrize("exists", [False, True])
def test_a_merge_of_nothing_is_refused_and_leaves_nothing(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="no unfinished conversion is there; convert with --part first"):
        merge(tmp_path / "out")
    assert list(tmp_path.rglob("*")) == ([tmp_path / "out"] if exists else [])


def test_a_merge_replaces_a_split_only_when_told_to(tmp_path: Path) -> None:
    source = source_of(train=list(good(5)))
    convert_part(source, tmp_path, (1, 1))
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="exists already"):
        merge(tmp_path)
    assert merge(tmp_path, overwrite=True)["train"].samples == 5
    assert (tmp_path / "train" / MANIFEST).is_file()


def test_the_manifest_stands_in_place_only_with_its_shards(tmp_path: Path) -> None:
    source = source_of(train=list(good(5)), val=list(good(3)))
    with Staging(tmp_path):
        pass
    convert_part(source, tmp_path, (1, 1))
    assert [path.name for path in tmp_path.iterdir()] == [".partial"]
    assert not list(tmp_path.rglob(MANIFEST))
    merge(tmp_path)
    assert read_manifest(tmp_path / "train").num_samples == 5
