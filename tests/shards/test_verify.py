import io
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import DataError
from shards.manifest import read_index, read_index_table, read_manifest
from shards.shard_index import write_index
from shards.tools.duplicates import count_duplicates
from shards.tools.index import Plan, index_tars
from shards.tools.locate import find_tars
from shards.tools.verify import Verification, verify
from tests.shards.foreign import picture, write_img2dataset, write_ours, write_tar

Itm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "train"
    write_ours(root, samples=12, per_shard=5)
    return root


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to be damaged: shards of 5, 5 and 2 samples."""
    shutil.copytree(whole, tmp_path / "train")
    return tmp_path / "train"


def problems(found: Verification) -> list[tuple[str, str | None, str]]:
    return [(Path(fault.shard).name, fault.sample, fault.problem) for fault in found.faults]


def change(path: Path, place: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[place : place + len(data)] = data
    path.write_bytes(content)


def rewrite_index(folder: Path, shard: int, column: str, row: int, value: object) -> None:
    """Change one value of an index, and have the shard table agree with the index's new hash."""
    manifest = read_manifest(folder)
    rows = read_index_table(manifest, shard).to_pydict()
    rows[column][row] = value
    table = pq.read_table(folder / "shards.parquet").to_pydict()
    table["index_sha256"][shard] = write_index(folder, manifest.names[shard], rows)
    pq.write_table(pa.table(table, schema=pq.read_schema(folder / "shards.parquet")), folder / "shards.parquet")


@pytest.mark.parametrize("decode", [True, False])
def test_what_was_written_is_whole(folder: Path, decode: bool) -> None:
    found = verify(str(folder), decode=decode, processes=2)
    assert (found.faults, found.warnings) == ([], [])
    assert found.as_dict()["samples"] == 12


def test_tars_of_others_are_verified_where_they_lie(tmp_path: Path) -> None:
    write_img2dataset(tmp_path / "web")
    index_tars(Plan(find_tars([str(tmp_path / "web")]), tmp_path / "manifest", "d", "s"))
    assert verify(str(tmp_path / "manifest")).faults == []
    change(tmp_path / "web" / "00001.tar", 700, b"\xff")
    assert [(tar, key) for tar, key, _ in problems(verify(str(tmp_path / "manifest")))] == [
        ("00001.tar", None),
        ("00001.tar", f"{12:09d}"),
    ]


def test_every_changed_byte_of_a_sample_is_found_and_the_sample_named(folder: Path) -> None:
    index = read_index(read_manifest(folder), 1)
    tar = folder / "train-000001.tar"
    for row in range(5):
        for place in (0, 600, int(index.sizes[row]) - 1):
            position = int(index.offsets[row]) + place
            before = tar.read_bytes()[position]
            change(tar, position, bytes([before ^ 1]))
            assert problems(verify(str(folder), decode=False)) == [
                ("train-000001.tar", None, "another SHA-256 than the manifest says"),
                ("train-000001.tar", index.key(row), "damaged: another checksum"),
            ]
            change(tar, position, bytes([before]))


def test_a_changed_byte_outside_of_all_samples_is_found(folder: Path) -> None:
    size = (folder / "train-000002.tar").stat().st_size
    change(folder / "train-000002.tar", size - 1, b"\1")
    assert problems(verify(str(folder))) == [("train-000002.tar", None, "another SHA-256 than the manifest says")]


def test_every_broken_shard_is_told_at_once(folder: Path) -> None:
    (folder / "train-000000.tar").unlink()
    data = (folder / "train-000001.tar").read_bytes()
    cut = int(read_index(read_manifest(folder, check_shards=False), 1).offsets[3]) + 10
    (folder / "train-000001.tar").write_bytes(data[:cut])
    (folder / "train-000002.index.arrow").write_bytes(b"nonsense")
    found = problems(verify(str(folder)))
    assert [(tar, key) for tar, key, _ in found] == [
        ("train-000000.tar", None),
        ("train-000001.tar", None),
        ("train-000001.tar", "picture-0008"),
        ("train-000001.tar", "picture-0009"),
        ("train-000002.tar", None),
    ]
    assert found[0][2] == "the shard is missing"
    assert found[1][2] == f"{cut} bytes, but the manifest says {len(data)}"
    assert found[2][2] == "the shard ends before it does"
    assert "its index: " in found[4][2]


def test_an_index_of_the_same_layout_with_other_content_is_found(folder: Path) -> None:
    manifest = read_manifest(folder)
    rows = read_index_table(manifest, 0).to_pydict()
    write_index(folder, manifest.names[0], {**rows, "image_id": [1] * 5})
    assert problems(verify(str(folder))) == [
        ("train-000000.tar", None, "its index has another SHA-256, so its samples were not checked")
    ]


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("key", "other", "at its place stands picture-0001"),
        ("captions", 2, "3 captions, but the index says 2"),
        ("image_id", 7, "image id 101, but the index says 7"),
        ("content", 7, "another content hash than the index has"),
        ("width", 25, "24 x 24 pixels, but the index says 25 x 24"),
        ("crc32", 7, "damaged: another checksum"),
        ("offset", 0, "the index has it at byte 0, within another sample"),
        ("offset", 2**40, "the shard ends before it does"),
        ("size", 100, "the index has it at byte"),
    ],
)
def test_an_index_that_its_tar_contradicts_is_found(folder: Path, column: str, value: object, problem: str) -> None:
    rewrite_index(folder, 0, column, 1, value)
    key = str(value) if column == "key" else "picture-0001"
    found = [(sample, text) for _, sample, text in problems(verify(str(folder))) if sample == key]
    assert len(found) == 1
    assert found[0][1].startswith(problem)


def test_totals_that_do_not_add_up_are_found(folder: Path) -> None:
    rewrite_index(folder, 2, "captions", 0, 4)
    found = problems(verify(str(folder)))
    assert ("train-000002.tar", None, "7 captions in the index, 6 in the shard table") in found
    header = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps({**header, "samples": 13}))
    with pytest.raises(DataError, match=r"shards\.parquet: does not belong to the manifest\.json beside it"):
        verify(str(folder))


def test_images_that_do_not_decode_are_found_only_by_decoding(tmp_path: Path) -> None:
    broken = picture(2, size=(200, 200))[:-3000]
    write_tar(
        tmp_path / "t" / "0.tar", [("a.jpg", picture(1)), ("a.txt", b"1"), ("b.jpg", broken), ("b.txt", b"2")]
    )
    index_tars(Plan(find_tars([str(tmp_path / "t")]), tmp_path / "t", "d", "s"))
    assert verify(str(tmp_path / "t"), decode=False).faults == []
    ((tar, key, problem),) = problems(verify(str(tmp_path / "t")))
    assert (tar, key) == ("0.tar", "b")
    assert problem.startswith("the image does not decode")


def test_regions_that_cannot_be_read_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = io.BytesIO()
    np.save(bad, np.zeros((2, 4), np.int64))
    write_tar(
        tmp_path / "t" / "0.tar", [("a.jpg", picture(1)), ("a.txt", b"one"), ("a.regions.npy", bad.getvalue())]
    )
    monkeypatch.setattr("shards.tools.scan.decode_regions", lambda _content: None)  # an index that did not look
    index_tars(Plan(find_tars([str(tmp_path / "t")]), tmp_path / "t", "d", "t"))
    ((_, sample, problem),) = problems(verify(str(tmp_path / "t")))
    assert sample == "a"
    assert problem == "cannot be parsed (regions of shape (2, 4) and type int64)"


def test_copies_of_images_and_stray_tars_are_warnings(tmp_path: Path) -> None:
    for shard, pictures in enumerate(([1, 2, 1], [3, 1, 2])):
        members = []
        for place, number in enumerate(pictures):
            members += [(f"{place}.jpg", picture(number)), (f"{place}.txt", b"words")]
        write_tar(tmp_path / "t" / f"{shard}.tar", members)
    index_tars(Plan(find_tars([str(tmp_path / "t")]), tmp_path / "t", "d", "s"))
    write_tar(tmp_path / "t" / "stray.tar", [])
    found = verify(str(tmp_path / "t"))
    assert found.faults == []
    assert found.duplicates.values == 2 and found.duplicates.copies == 3 and found.duplicates.most == 3
    assert found.examples == [["0: sample 0", "0: sample 2", "1: sample 1"], ["0: sample 1", "1: sample 2"]]
    assert len(found.warnings) == 2
    assert found.warnings[0].endswith("stray.tar: a tar that the manifest does not list")


@given(st.lists(st.lists(st.integers(0, 6), max_size=20), max_size=5))
def test_duplicates_are_counted_as_by_hand(parts: list[list[int]]) -> None:
    values = [value for part in parts for value in part]
    counts = {value: values.count(value) for value in values}
    found = count_duplicates([np.array(part, np.uint64) for part in parts])
    assert found.values == sum(count > 1 for count in counts.values())
    assert found.copies == sum(count - 1 for count in counts.values())
    assert found.most == max(counts.values(), default=1)
    assert [counts[value] for value in found.examples] == sorted(
        (c for c in counts.values() if c > 1), reverse=True
    )[:5]


def test_the_command_names_the_faults_and_fails(folder: Path, itm: Itm, tmp_path: Path) -> None:
    done = itm("shards", "verify", folder, "--out", "found.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{folder}: 3 shards, 12 samples, 36 captions: whole\n"
    assert json.loads((tmp_path / "found.json").read_bytes())["whole"] is True
    tar = folder / "train-000000.tar"
    change(tar, 600, b"\xff\xff")
    done = itm("shards", "verify", folder, "--no-decode", "--out", "found.json", "--overwrite")
    assert done.returncode == 1
    assert done.stdout == f"{folder}: 3 shards, 12 samples, 36 captions: 2 faults, images not decoded\n"
    assert f"{tar}: sample picture-0000: damaged: another checksum" in done.stderr.splitlines()
    faults = json.loads((tmp_path / "found.json").read_bytes())["faults"]
    assert faults[1] == {"shard": str(tar), "sample": "picture-0000", "problem": "damaged: another checksum"}


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        verify(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="only folders on a local disk"):
        verify("s3://bucket/train")
