import errno
import hashlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import DataError
from shards.images import open_image
from shards.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    SHARD_TABLE,
    Manifest,
    read_index,
    read_manifest,
    write_manifest,
)
from shards.shard_index import content_hash, image_id_of, index_name
from shards.tarsample import parse_sample


@pytest.fixture
def folder(tmp_path: Path, make_shards: Callable[..., Manifest]) -> Path:
    """Twelve samples in shards of 5, 5 and 2."""
    return Path(make_shards(tmp_path / "train", 12).location)


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
    assert manifest.holds == ("image",)
    assert Path(manifest.shard_location(2)) == folder / "train-000002.tar"
    assert [hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in manifest.paths] == [
        *manifest.sha256
    ]
    indexes = [hashlib.sha256((folder / index_name(name)).read_bytes()).hexdigest() for name in manifest.names]
    assert indexes == [*manifest.index_sha256]


def test_the_header_repeats_the_totals_for_human_readers(folder: Path) -> None:
    header = json.loads((folder / MANIFEST).read_bytes())
    assert (header["shards"], header["samples"], header["captions"]) == (3, 12, 36)


def test_an_index_tells_each_sample(folder: Path) -> None:
    index = read_index(read_manifest(folder), 1)
    assert index.keys.to_pylist() == [f"picture-{number:04d}" for number in range(5, 10)]
    assert index.image_ids.tolist() == [105, 106, 107, 108, 109]
    assert index.captions.tolist() == [3] * 5
    assert np.array_equal(index.offsets[1:], (index.offsets + index.sizes)[:-1])
    assert len(index) == 5
    assert index.key(3) == "picture-0008"


def test_an_index_tells_the_content_of_each_sample(folder: Path) -> None:
    manifest = read_manifest(folder)
    index, shard = read_index(manifest, 0), (folder / manifest.paths[0]).read_bytes()
    spans = zip(index.offsets, index.sizes, strict=True)
    samples = [shard[offset : offset + size] for offset, size in spans]
    assert [zlib.crc32(sample) for sample in samples] == index.crc32.tolist()
    images = [parse_sample(sample).image or b"" for sample in samples]
    assert [content_hash(image) for image in images] == index.content.tolist()
    assert [open_image(image).size for image in images] == [*zip(index.widths, index.heights, strict=True)]


def test_an_index_is_mapped_and_not_read(folder: Path) -> None:
    index = read_index(read_manifest(folder), 0)
    before = pa.total_allocated_bytes()
    again = read_index(read_manifest(folder), 0)
    assert again.offsets.tolist() == index.offsets.tolist()
    assert pa.total_allocated_bytes() - before < 4096
    assert not again.offsets.flags.owndata


def test_an_image_id_is_the_content_as_int64() -> None:
    assert content_hash(b"picture") == int(hashlib.sha256(b"picture").hexdigest()[:16], 16)
    assert image_id_of(2**64 - 1) == 2**63 - 1
    assert image_id_of(content_hash(b"one")) != image_id_of(content_hash(b"two"))


def test_the_fingerprint_is_of_the_samples_and_not_of_the_place(
    folder: Path, tmp_path: Path, make_shards: Callable[..., Manifest]
) -> None:
    here = read_manifest(folder).fingerprint
    assert make_shards(tmp_path / "again" / "train", 12).fingerprint == here
    assert make_shards(tmp_path / "longer" / "train", 13).fingerprint != here


def three_shards(**changes: list[object]) -> dict[str, list[object]]:
    columns: dict[str, list[object]] = {
        "name": ["a", "b", "c"],
        "path": ["a.tar", "b.tar", "c.tar"],
        "samples": [2, 0, 3],
        "captions": [2, 0, 3],
        "bytes": [0] * 3,
        "sha256": [""] * 3,
        "index_sha256": [""] * 3,
    }
    return {**columns, **changes}


def test_an_empty_shard_takes_no_numbers(tmp_path: Path) -> None:
    write_manifest(tmp_path, "d", "s", ("image",), three_shards())
    for name in "abc":
        (tmp_path / f"{name}.tar").touch()
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
    edit_header(folder, format_version=1)
    refused(folder, folder / MANIFEST, "format version 1", f"reads {FORMAT_VERSION}", "itm shards index")


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"3", b"{}", b"\xff\xfe{}", b'{"format_version": 2}'])
def test_a_damaged_manifest_is_named(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    refused(folder, folder / MANIFEST, "not a manifest", "convert the data set again")


@pytest.mark.parametrize("asked", ["is_file", "read_bytes"])
def test_a_manifest_that_may_not_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    def forbidden(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, asked, forbidden)  # root may read everything
    with pytest.raises(DataError, match=rf"^{folder}/manifest.json: cannot be read \(Permission denied\); get the"):
        read_manifest(folder)


def test_a_damaged_or_missing_shard_table_is_named(folder: Path) -> None:
    damage(folder / SHARD_TABLE)
    refused(folder, folder / SHARD_TABLE, "cannot be read")
    (folder / SHARD_TABLE).unlink()
    refused(folder, folder / SHARD_TABLE, "cannot be read")


def test_a_shard_table_with_other_types_is_named(folder: Path) -> None:
    table = pq.read_table(folder / SHARD_TABLE)
    pq.write_table(table.set_column(1, "samples", [["five", "five", "two"]]), folder / SHARD_TABLE)
    refused(folder, folder / SHARD_TABLE, "cannot be read")


def test_a_shard_table_that_lacks_numbers_is_named(tmp_path: Path) -> None:
    write_manifest(tmp_path, "d", "s", ("image",), three_shards(bytes=[0, None, 0]))
    refused(tmp_path, tmp_path / SHARD_TABLE, "cannot be read")


def test_what_samples_hold_must_be_known(folder: Path) -> None:
    for holds in ([], ["video"]):
        edit_header(folder, holds=holds)
        refused(folder, folder / MANIFEST, "not a manifest")


def test_files_of_two_conversions_are_not_taken_together(folder: Path) -> None:
    edit_header(folder, samples=13)
    refused(folder, folder / SHARD_TABLE, "does not belong to the manifest.json beside it")


def test_a_folder_of_tars_hints_at_indexing(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    refused(folder, folder, "itm shards index")


def test_shards_may_lie_elsewhere(tmp_path: Path) -> None:
    """The tars of somebody else, some behind a URL, which is not looked at."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "here").mkdir()
    paths = [str(tmp_path / "theirs" / "a.tar"), "../theirs/b.tar", "https://example.org/c.tar"]
    write_manifest(tmp_path / "here", "d", "s", ("image",), three_shards(path=paths))
    for name in "ab":
        (tmp_path / "theirs" / f"{name}.tar").touch()
    manifest = read_manifest(tmp_path / "here")
    assert manifest.shard_location(0) == paths[0]
    assert Path(manifest.shard_location(1)).resolve() == tmp_path / "theirs" / "b.tar"
    assert manifest.shard_location(2) == paths[2]


def test_shards_need_not_be_there_where_only_the_manifest_is_read(folder: Path) -> None:
    (folder / "train-000001.tar").unlink()
    assert read_manifest(folder, check_shards=False).num_samples == 12


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
    path = folder / index_name("train-000001")
    path.unlink()
    refused_index(folder, path, "missing")


def test_a_damaged_index_is_named(folder: Path) -> None:
    path = folder / index_name("train-000001")
    damage(path)
    refused_index(folder, path, "cannot be read")


def rewrite_index(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = change(pa.ipc.open_file(path.read_bytes()).read_all())
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def test_an_index_with_another_number_of_rows_is_named(folder: Path) -> None:
    path = folder / index_name("train-000001")
    rewrite_index(path, lambda table: table.slice(0, 4))
    refused_index(folder, path, "4 samples, but the manifest says 5")


def test_an_index_with_other_columns_is_named(folder: Path) -> None:
    path = folder / index_name("train-000001")
    rewrite_index(path, lambda table: table.drop_columns(["width"]))
    refused_index(folder, path, "another layout")
