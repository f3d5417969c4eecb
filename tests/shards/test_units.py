import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards.units
from shards.errors import DataError
from shards.sources.record import Record, Skipped
from shards.staging import UNITS
from shards.units import Item, Options, Unit, cut, note_path, write_unit
from tests.shards.pictures import contents, convert_all, good, record, skipped_names, source_of, with_regions


def unit(root: Path, items: list[Item], options: Options = Options(), number: int = 0) -> Unit:  # noqa: B008
    (root / UNITS).mkdir(parents=True, exist_ok=True)
    return Unit(root, "val", number, items, options)


RECORD = record(0, b"")
SKIPPED = Skipped("a", "b")


@given(st.lists(st.sampled_from([RECORD, SKIPPED])), st.integers(1, 5))
def test_units_are_consecutive_and_have_equally_many_records(items: list[Item], size: int) -> None:
    pieces = list(cut(iter(items), size))
    assert [item for piece in pieces for item in piece] == items
    counts = [sum(isinstance(item, Record) for item in piece) for piece in pieces]
    assert all(count == size for count in counts[:-1])
    assert not counts or counts[-1] <= size


def test_a_unit_ends_where_much_was_skipped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.units, "MOST_SKIPPED", 3)
    pieces = list(cut(iter([SKIPPED, RECORD, *[SKIPPED] * 7, RECORD, RECORD, SKIPPED]), 2))
    kinds = ["".join("r" if isinstance(item, Record) else "s" for item in piece) for piece in pieces]
    assert kinds == ["srss", "sss", "ssrr", "s"]


def test_units_of_which_all_was_skipped_are_joined_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards.units, "MOST_SKIPPED", 3)
    report = convert_all(source_of(val=[*good(5), *[SKIPPED] * 8, record(5)]), tmp_path)["val"]
    assert (report.samples, report.shards, report.skipped) == (6, 3, 8)
    assert skipped_names(tmp_path / "val") == ["a"] * 8


def test_a_unit_is_noted_when_its_shard_stands(tmp_path: Path) -> None:
    assert write_unit(unit(tmp_path, [*good(3), SKIPPED], number=12)) == ("val", 3)
    assert sorted(contents(tmp_path)) == [".units/000012.json", "val-000012.index.arrow", "val-000012.tar"]
    note = json.loads(note_path(tmp_path, 12).read_bytes())
    assert [shard["name"] for shard in note["shards"]] == ["val-000012"]
    assert note["skipped"] == [["a", "b"]]


def test_more_than_a_million_units_have_names(tmp_path: Path) -> None:
    write_unit(unit(tmp_path, list(good(1)), number=1_234_567))
    assert sorted(contents(tmp_path)) == [".units/1234567.json", "val-1234567.index.arrow", "val-1234567.tar"]


def test_writing_again_gives_the_same_files(tmp_path: Path) -> None:
    write_unit(unit(tmp_path, list(good(3))))
    before = contents(tmp_path)
    write_unit(unit(tmp_path, list(good(3))))
    assert contents(tmp_path) == before


def test_two_samples_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split val: two samples are named same; names must be unique"):
        write_unit(unit(tmp_path, [record(0, key="same"), record(1, key="same")]))
    assert contents(tmp_path) == {UNITS: "empty"}


@pytest.mark.parametrize("odd", [with_regions(1), with_regions(1, image=True)])
def test_samples_that_hold_different_things_are_refused(tmp_path: Path, odd: Record) -> None:
    with pytest.raises(
        DataError, match=r"split val: sample key-000 has image, sample key-001 has (image and )?regions"
    ):
        write_unit(unit(tmp_path, [record(0), odd]))
    assert contents(tmp_path) == {UNITS: "empty"}


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DataError, match=rf"^{tmp_path}/val-000000.tar: cannot be written \(No space left on device\); make room"
    ):
        write_unit(unit(tmp_path, list(good(3))))
    assert contents(tmp_path) == {UNITS: "empty"}


def test_a_note_that_cannot_be_written_leaves_the_unit_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_note(_root: Path, _number: int) -> Path:
        return tmp_path / "nowhere" / "note.json"

    monkeypatch.setattr(shards.units, "note_path", no_note)
    with pytest.raises(DataError, match="No such file or directory"):
        write_unit(unit(tmp_path, list(good(3))))
    assert not list((tmp_path / UNITS).iterdir())
