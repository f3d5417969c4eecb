import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from shards.convert import SplitReport, Staging, write_split
from shards.demo.source import demo_records
from shards.errors import DataError
from shards.images import MAX_PIXELS
from shards.manifest import MANIFEST, SHARD_TABLE, index_path, read_index, read_manifest
from shards.reader import ShardReader
from shards.sources.record import Record, Skipped
from shards.tarsample import parse_sample


def encoded(number: int = 0, form: str = "JPEG", size: tuple[int, int] = (30, 20)) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def record(
    number: int, data: bytes | None = None, key: str = "", captions: tuple[str, ...] = ("one", "two")
) -> Record:
    data = encoded(number) if data is None else data
    return Record(key or f"key-{number:03d}", 50 + number, captions, partial(bytes, data))


def good(count: int) -> Iterator[Record]:
    return (
        record(number, captions=tuple(f"text {n} of {number}" for n in range(1 + number % 3)))
        for number in range(count)
    )


def write(
    records: Iterator[Record] | list[Record], root: Path, processes: int = 1, **options: object
) -> SplitReport:
    return write_split(records, root, dataset="d", split="val", samples_per_shard=4, processes=processes, **options)


def fingerprint(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def skipped_lines(root: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (root / "skipped.jsonl").read_text().splitlines()]


def test_plain_webdataset_reads_the_shards(tmp_path: Path) -> None:
    write(good(10), tmp_path / "val")
    urls = [str(path) for path in sorted((tmp_path / "val").glob("*.tar"))]
    assert len(urls) == 3
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"key-{number:03d}" for number in range(10)]
    for number, (sample, source) in enumerate(zip(samples, good(10), strict=True)):
        assert sample["jpg"] == encoded(number)
        assert json.loads(sample["json"]) == {"image_id": 50 + number, "captions": list(source.captions)}


def test_the_index_spans_each_sample_with_its_headers(tmp_path: Path) -> None:
    write(good(10), tmp_path / "val")
    manifest = read_manifest(tmp_path / "val")
    number = 0
    for shard in range(3):
        data, index = manifest.shard_path(shard).read_bytes(), read_index(manifest, shard)
        assert index.offsets[0] == 0
        for key, image_id, captions, offset, size in zip(
            index.keys, index.image_ids, index.captions, index.offsets, index.sizes, strict=True
        ):
            alone = data[offset : offset + size]
            with tarfile.open(fileobj=io.BytesIO(alone)) as tar:
                assert tar.getnames() == [f"{key}.jpg", f"{key}.json"]
            sample = parse_sample(alone, "here")
            assert sample.image == encoded(number)
            assert (image_id, captions) == (50 + number, len(sample.captions))
            number += 1
        assert set(data[offset + size :]) == {0}, "after the last sample only the end of the archive"
    assert number == 10


def test_the_index_tells_the_pixels(tmp_path: Path) -> None:
    write([record(0, encoded(0, size=(33, 21)))], tmp_path / "val")
    table = pq.read_table(index_path(tmp_path / "val", "val-000000"))
    assert (table["width"].to_pylist(), table["height"].to_pylist()) == ([33], [21])


def test_the_manifest_and_the_report_tell_what_was_written(tmp_path: Path) -> None:
    report = write(good(10), tmp_path / "val")
    table = pq.read_table(tmp_path / "val" / SHARD_TABLE).to_pydict()
    paths = sorted((tmp_path / "val").glob("*.tar"))
    assert table["name"] == [path.stem for path in paths] == ["val-000000", "val-000001", "val-000002"]
    assert table["samples"] == [4, 4, 2]
    assert table["captions"] == [1 + 2 + 3 + 1, 2 + 3 + 1 + 2, 3 + 1]
    assert table["bytes"] == [path.stat().st_size for path in paths]
    assert table["sha256"] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert (report.samples, report.captions, report.shards) == (10, sum(table["captions"]), 3)
    assert report.bytes == sum(table["bytes"])
    assert report.skipped == []
    assert not (tmp_path / "val" / "skipped.jsonl").exists()


def with_broken_ones() -> list[Record]:
    records = list(good(40))
    records[3] = record(3, b"no image at all")
    records[20] = record(20, encoded(20)[:300])
    return records


def test_one_and_two_processes_and_repeated_runs_write_the_same_bytes(tmp_path: Path) -> None:
    for name, processes in (("first", 1), ("again", 1), ("two", 2)):
        write(with_broken_ones(), tmp_path / name, processes)
        time.sleep(1.1 if name == "first" else 0)  # times in a tar are whole seconds
    first = fingerprint(tmp_path / "first")
    assert fingerprint(tmp_path / "again") == first
    assert fingerprint(tmp_path / "two") == first
    assert len(first) == 2 * 10 + 3


def test_images_that_do_not_decode_are_named_counted_and_left_out(tmp_path: Path) -> None:
    jpeg = encoded(1, size=(200, 200))
    broken = {
        "truncated": partial(bytes, jpeg[: len(jpeg) // 2]),
        "text": partial(bytes, b"<html>404 not found</html>"),
        "empty": partial(bytes, b""),
        "missing": (tmp_path / "nowhere.jpg").read_bytes,
        "folder": tmp_path.read_bytes,
    }
    records = [record(0), *(Record(key, 9, ("text",), load) for key, load in broken.items()), record(1)]
    counted: list[int] = []
    report = write(records, tmp_path / "val", on_record=counted.append)
    assert sum(counted) == 7
    assert report.samples == 2
    assert [item.name for item in report.skipped] == list(broken)
    reasons = {item.name: item.reason for item in report.skipped}
    assert reasons["missing"] == "the image file is missing"
    assert "cannot be read" in reasons["folder"]
    assert all("does not decode" in reasons[name] for name in ("truncated", "text", "empty"))
    assert skipped_lines(tmp_path / "val") == [
        {"name": item.name, "reason": item.reason} for item in report.skipped
    ]
    assert read_index(read_manifest(tmp_path / "val"), 0).keys == ["key-000", "key-001"]


def test_what_the_source_left_out_is_listed_too(tmp_path: Path) -> None:
    report = write([record(0), record(1, b"")], tmp_path / "val", skipped=[Skipped("a.jpg caption 2", "empty")])
    assert [item.name for item in report.skipped] == ["a.jpg caption 2", "key-001"]
    assert [line["name"] for line in skipped_lines(tmp_path / "val")] == ["a.jpg caption 2", "key-001"]


def test_a_decompression_bomb_is_left_out(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("1", (MAX_PIXELS // 8000 + 1, 8000)).save(stream, "PNG")
    report = write([record(0), record(1, stream.getvalue())], tmp_path / "val")
    assert [item.name for item in report.skipped] == ["key-001"]
    assert "64,000,000" in report.skipped[0].reason


@pytest.mark.parametrize(
    ("form", "extension"),
    [("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tiff"), ("PPM", "img")],
)
def test_an_image_keeps_its_format_and_bytes(tmp_path: Path, form: str, extension: str) -> None:
    data = encoded(0, form)
    write([record(0, data)], tmp_path / "val")
    with tarfile.open(tmp_path / "val" / "val-000000.tar") as tar:
        assert set(tar.getnames()) == {f"key-000.{extension}", "key-000.json"}
    assert ShardReader(read_manifest(tmp_path / "val")).read(0, 0).image == data


def test_long_and_non_ascii_keys_and_captions_survive(tmp_path: Path) -> None:
    keys = [
        "k" * 99,
        "l" * 101,
        "m" * 240,
        "Straße_café",
        "東京" * 40,
        "عربي",
        "🐈" * 60,
        "e\u0301_accent",
    ]
    texts = ("Eine Katze läuft über die Straße.", "東京の猫 🐈", 'a "quoted" \\ caption\t', "x" * 5000)
    write([record(number, key=key, captions=texts) for number, key in enumerate(keys)], tmp_path / "val")
    manifest = read_manifest(tmp_path / "val")
    reader = ShardReader(manifest)
    for number in range(len(keys)):
        sample = reader.read(number // 4, number % 4)
        assert sample.captions == list(texts)
        assert sample.image == encoded(number)
    assert [*reader.index(0).keys, *reader.index(1).keys] == keys
    urls = [str(manifest.shard_path(shard)) for shard in range(2)]
    assert [sample["__key__"] for sample in webdataset.WebDataset(urls, shardshuffle=False)] == keys


def test_a_split_with_nothing_usable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="split val: no usable sample; the first of 2: key-000: the image does not decode"
    ):
        write([record(0, b"x"), record(1, b"y")], tmp_path / "val")
    assert not (tmp_path / "val" / MANIFEST).exists()


def test_a_split_of_no_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"split val: no usable sample$"):
        write([], tmp_path / "val")


def test_splits_appear_together_at_the_commit(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Staging(out) as staging:
        for split in ("train", "val"):
            write(good(3), staging.path(split))
            assert not (out / split).exists()
        staging.commit()
    assert sorted(path.name for path in out.iterdir()) == ["train", "val"]
    assert read_manifest(out / "train").num_samples == 3


def test_a_failure_in_a_later_split_leaves_no_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError), Staging(out) as staging:
        write(good(3), staging.path("train"))
        write([], staging.path("val"))
        staging.commit()
    assert not out.exists()


def test_a_failure_leaves_what_stood_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RuntimeError), Staging(tmp_path) as staging:
        write(good(3), staging.path("train"))
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_split_that_exists_is_refused_without_overwrite(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train: exists already; give another --out, or --overwrite"):
        Staging(tmp_path).check("train")
    Staging(tmp_path).check("val")
    Staging(tmp_path, overwrite=True).check("train")


def test_overwrite_replaces_the_whole_split_and_no_other(tmp_path: Path) -> None:
    write(good(9), tmp_path / "train")
    write(good(2), tmp_path / "val")
    with Staging(tmp_path, overwrite=True) as staging:
        write(good(3), staging.path("train"))
        assert read_manifest(tmp_path / "train").num_samples == 9
        staging.commit()
    assert read_manifest(tmp_path / "train").num_samples == 3
    assert not (tmp_path / "train" / "val-000002.tar").exists()
    assert read_manifest(tmp_path / "val").num_samples == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train", "val"]


def test_overwrite_replaces_a_link_and_leaves_what_it_points_to(tmp_path: Path) -> None:
    write(good(9), tmp_path / "elsewhere")
    out = tmp_path / "out"
    out.mkdir()
    (out / "train").symlink_to(tmp_path / "elsewhere")
    with Staging(out, overwrite=True) as staging:
        write(good(3), staging.path("train"))
        staging.commit()
    assert read_manifest(out / "train").num_samples == 3
    assert read_manifest(tmp_path / "elsewhere").num_samples == 9


@pytest.mark.parametrize("below", [".", "deeper"])
def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(DataError, match=f"--out {file / below}: cannot be written to"), Staging(file / below):
        pass
    assert file.read_text() == "mine"


def test_a_killed_conversion_leaves_no_data_set_and_the_next_one_works(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "trainer.cli", "shards", "demo", "--out", out, "--processes", 1]
    command += ["--val", 10, "--test", 10, "--side", 16, "--samples-per-shard", 20]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def start(pretrain: int, train: int) -> subprocess.Popen[bytes]:
        counts = ["--pretrain", pretrain, "--train", train]
        return subprocess.Popen(list(map(str, command + counts)), env=environment, stdout=subprocess.PIPE)

    with start(30, 100_000) as running:
        deadline = time.monotonic() + 120
        while not list(out.glob(".partial/train/*.tar")):  # in the second split, when the first is whole
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    assert [path.name for path in out.iterdir()] == [".partial"]
    with pytest.raises(DataError, match=r"no manifest\.json in this folder; shards are made"):
        read_manifest(out)

    with start(30, 20) as running:
        assert running.wait(120) == 0
    assert sorted(path.name for path in out.iterdir()) == ["pretrain", "test", "train", "val"]
    assert read_manifest(out / "train").num_samples == 20


def test_a_killed_replacement_leaves_the_old_split_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every state of the folder between two steps of a commit that replaces a split."""
    write(good(9), tmp_path / "train")
    states: list[int | None] = []

    def look() -> None:
        whole = (tmp_path / "train" / MANIFEST).exists()
        states.append(read_manifest(tmp_path / "train").num_samples if whole else None)

    rename, unlink = Path.rename, os.unlink

    def watched_rename(path: Path, target: Path) -> Path:
        look()
        return rename(path, target)

    def watched_unlink(*arguments: object, **options: object) -> None:
        look()
        unlink(*arguments, **options)  # type: ignore[arg-type]

    with Staging(tmp_path, overwrite=True) as staging:
        write(good(3), staging.path("train"))
        monkeypatch.setattr(Path, "rename", watched_rename)
        monkeypatch.setattr(os, "unlink", watched_unlink)
        staging.commit()
    assert states[0] == 9
    assert set(states[2:]) == {3}, "files of the old split were deleted before the new one stood"


def test_the_demo_data_set_is_the_same_for_any_number_of_processes(tmp_path: Path) -> None:
    for processes in (1, 2):
        write(demo_records("pretrain", 40, 3, 16), tmp_path / f"with-{processes}", processes)
    assert fingerprint(tmp_path / "with-1") == fingerprint(tmp_path / "with-2")
    assert read_manifest(tmp_path / "with-1").num_samples == 40
