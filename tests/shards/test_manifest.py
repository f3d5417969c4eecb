import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards.errors import DataError
from shards.manifest import MANIFEST, SHARD_TABLE, Manifest, index_path, read_index, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path, make_shards: Callable[..., Manifest]) -> Path:
    """Twelve samples in shards of 5, 5 and 2."""
    return make_shards(tmp_path / "train", 12).root


def refused(root: Path, named: Path, *phrases: str) -> None:
    with pytest.raises(DataError) as raised:
        read_manifest(root)
    message = str(raised.value)
    assert message.startswith(str(named))
    for phrase in phrases:
        assert phrase in message


def edit_header(root: Path, **changes: object) -> None:
    header = json.loads((root / MANIFEST).read_bytes())
    (root / MANIFEST).write_text(json.dumps({**header, **changes}))


def damage(path: Path) -> None:
    """Cut the file in half: the size stays plausible, the footer is gone."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_a_manifest_tells_what_was_written(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert (manifest.dataset, manifest.split) == ("synthetic", "train")
    assert manifest.names == ("train-000000", "train-000001", "train-000002")
    assert manifest.samples.tolist() == [5, 5, 2]
    assert manifest.captions.tolist() == [15, 15, 6]
    assert (manifest.num_samples, manifest.num_captions) == (12, 36)
    assert manifest.first_sample.tolist() == [0, 5, 10]
    assert manifest.shard_path(2) == folder / "train-000002.tar"
    assert manifest.shard_path(2).is_file()


def test_the_header_repeats_the_totals_for_human_readers(folder: Path) -> None:
    header = json.loads((folder / MANIFEST).read_bytes())
    assert (header["shards"], header["samples"], header["captions"]) == (3, 12, 36)


def test_an_index_tells_each_sample(folder: Path) -> None:
    index = read_index(read_manifest(folder), 1)
    assert index.keys == [f"picture-{number:04d}" for number in range(5, 10)]
    assert index.image_ids.tolist() == [105, 106, 107, 108, 109]
    assert index.captions.tolist() == [3] * 5
    assert np.array_equal(index.offsets[1:], (index.offsets + index.sizes)[:-1])


def test_an_empty_shard_takes_no_numbers(tmp_path: Path) -> None:
    columns = {
        "name": ["a", "b", "c"],
        "samples": [2, 0, 3],
        "captions": [2, 0, 3],
        "bytes": [0] * 3,
        "sha256": [""] * 3,
    }
    for name in "abc":
        (tmp_path / f"{name}.tar").touch()
    write_manifest(tmp_path, "d", "s", columns)
    assert read_manifest(tmp_path).first_sample.tolist() == [0, 2, 2]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", tmp_path / "nowhere", "no such folder")


def test_a_folder_without_a_manifest_is_named(tmp_path: Path) -> None:
    refused(tmp_path, tmp_path, MANIFEST, "itm shards convert")


def test_the_folder_above_the_splits_hints_at_them(folder: Path, make_shards: Callable[..., Manifest]) -> None:
    make_shards(folder.parent / "val", 2)
    (folder.parent / "notes").mkdir()
    refused(folder.parent, folder.parent, "did you mean one of its splits, train, val?")


def test_another_format_version_is_refused(folder: Path) -> None:
    edit_header(folder, format_version=2)
    refused(folder, folder / MANIFEST, "format version 2", "reads 1")


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"3", b"{}", b"\xff\xfe{}", b'{"format_version": 1}'])
def test_a_damaged_manifest_is_named(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    refused(folder, folder / MANIFEST, "not a manifest", "convert the data set again")


def test_a_damaged_or_missing_shard_table_is_named(folder: Path) -> None:
    damage(folder / SHARD_TABLE)
    refused(folder, folder / SHARD_TABLE, "cannot be read")
    (folder / SHARD_TABLE).unlink()
    refused(folder, folder / SHARD_TABLE, "cannot be read")


def test_a_shard_table_with_other_types_is_named(folder: Path) -> None:
    table = pq.read_table(folder / SHARD_TABLE)
    pq.write_table(table.set_column(1, "samples", [["five", "five", "two"]]), folder / SHARD_TABLE)
    refused(folder, folder / SHARD_TABLE, "cannot be read")


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "train-000001.tar").unlink()
    refused(folder, folder / "train-000001.tar", "missing")


def test_a_first_shard_of_another_size_is_named(folder: Path) -> None:
    path = folder / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:-512])
    refused(folder, path, "bytes, but the manifest says", "copy it again")


def refused_index(folder: Path, named: Path, *phrases: str) -> None:
    with pytest.raises(DataError) as raised:
        read_index(read_manifest(folder), 1)
    assert str(raised.value).startswith(str(named))
    assert all(phrase in str(raised.value) for phrase in phrases)


def test_a_missing_index_is_named(folder: Path) -> None:
    path = index_path(folder, "train-000001")
    path.unlink()
    refused_index(folder, path, "missing")


def test_a_damaged_index_is_named(folder: Path) -> None:
    path = index_path(folder, "train-000001")
    damage(path)
    refused_index(folder, path, "cannot be read")


def test_an_index_with_another_number_of_rows_is_named(folder: Path) -> None:
    path = index_path(folder, "train-000001")
    pq.write_table(pq.read_table(path).slice(0, 4), path)
    refused_index(folder, path, "4 samples, but the manifest says 5")
