import io
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.manifest import read_index, read_manifest
from shards.reader import ShardReader

Itm = Callable[..., subprocess.CompletedProcess[str]]
KARPATHY = ("shards", "convert", "karpathy", "--annotations", "a.json", "--images", "images", "--out", "out")
KARPATHY += ("--processes", "1")


def jpeg(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """`a.json` and `images/` with nine good pictures: seven of train, two of val."""
    (tmp_path / "images").mkdir()
    entries = []
    for number in range(9):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(jpeg(number))
        split = "train" if number < 7 else "val"
        sentences = [{"raw": f"Picture {number} ."}, {"raw": f"Again {number} ."}]
        entries.append({"filename": f"{number}.jpg", "split": split, "imgid": number, "sentences": sentences})
    (tmp_path / "a.json").write_text(json.dumps({"dataset": "nine", "images": entries}))
    return tmp_path


def edit_entry(folder: Path, number: int, **changes: object) -> None:
    document = json.loads((folder / "a.json").read_text())
    document["images"][number].update(changes)
    (folder / "a.json").write_text(json.dumps(document))


def listing(folder: Path) -> list[tuple[str, bytes]]:
    return sorted((str(path), path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*"))


def refused(result: subprocess.CompletedProcess[str], *phrases: str) -> None:
    """One line that says what is wrong, exit code 1, and nothing else."""
    assert result.returncode == 1
    assert result.stderr.startswith("itm: error: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")
    assert result.stdout == ""
    for phrase in phrases:
        assert phrase in result.stderr


def test_help_is_instant(itm: Itm) -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert itm("--help").returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        (("shards", "--help"), ("demo", "convert", "WebDataset")),
        (("shards", "convert", "--help"), ("karpathy",)),
        (
            ("shards", "convert", "karpathy", "--help"),
            ("--annotations", "--images", "--out", "--dry-run", "restval"),
        ),
        (("shards", "demo", "--help"), ("--pretrain", "--seed", "--out", "--overwrite")),
    ],
)
def test_help_tells_the_commands_and_options(
    itm: Itm, arguments: tuple[str, ...], phrases: tuple[str, ...]
) -> None:
    result = itm(*arguments)
    assert result.returncode == 0
    assert result.stderr == ""
    for phrase in phrases:
        assert phrase in result.stdout


def test_a_conversion_writes_the_splits_and_says_so(itm: Itm, data_set: Path) -> None:
    result = itm(*KARPATHY, "--samples-per-shard", 3)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0].startswith("out/train: 7 images, 14 captions, 3 shards, ")
    assert result.stdout.splitlines()[1].startswith("out/val: 2 images, 4 captions, 1 shard, ")
    assert sorted(path.name for path in (data_set / "out").iterdir()) == ["train", "val"]
    manifest = read_manifest(data_set / "out" / "train")
    assert (manifest.dataset, manifest.split, manifest.samples.tolist()) == ("nine", "train", [3, 3, 1])
    assert ShardReader(manifest).read(1, 1).image == jpeg(4)


def test_what_is_left_out_is_named_counted_and_listed(itm: Itm, data_set: Path) -> None:
    (data_set / "images" / "1.jpg").write_bytes(jpeg(1)[:200])
    (data_set / "images" / "2.jpg").write_bytes(b"no image")
    (data_set / "images" / "3.jpg").write_bytes(b"")
    (data_set / "images" / "4.jpg").unlink()
    edit_entry(data_set, 5, sentences=[{"raw": ""}, {"raw": "Good ."}])
    result = itm(*KARPATHY)
    assert result.returncode == 0
    assert "out/train: 3 images, 5 captions" in result.stdout
    assert "5 skipped (see skipped.jsonl)" in result.stdout
    lines = result.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "skipped 5.jpg caption 0",
        *(f"skipped {number}" for number in (1, 2, 3, 4)),
    ]
    listed = [json.loads(line) for line in (data_set / "out" / "train" / "skipped.jsonl").read_text().splitlines()]
    assert [f"skipped {item['name']}: {item['reason']}" for item in listed] == lines
    assert read_index(read_manifest(data_set / "out" / "train"), 0).keys == ["0", "5", "6"]
    assert not (data_set / "out" / "val" / "skipped.jsonl").exists()


def test_only_the_first_few_of_many_are_named(itm: Itm, data_set: Path) -> None:
    edit_entry(data_set, 0, sentences=[{"raw": ""}] * 14 + [{"raw": "Good ."}])
    result = itm(*KARPATHY)
    lines = result.stderr.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "skipped 4 more"
    assert len((data_set / "out" / "train" / "skipped.jsonl").read_text().splitlines()) == 14


def missing_annotations(folder: Path) -> None:
    (folder / "a.json").unlink()


def missing_images(folder: Path) -> None:
    (folder / "images").rename(folder / "pictures")


def not_utf8(folder: Path) -> None:
    (folder / "a.json").write_bytes(b'{"\xff": 1}')


def not_json(folder: Path) -> None:
    (folder / "a.json").write_text("images")


def another_layout(folder: Path) -> None:
    (folder / "a.json").write_text('[{"image": "1.jpg", "caption": "A dog"}]')


def unknown_split(folder: Path) -> None:
    edit_entry(folder, 8, split="holdout")


def duplicate_name(folder: Path) -> None:
    edit_entry(folder, 1, filename="0.jpg")


def val_unusable(folder: Path) -> None:
    for number in (7, 8):
        (folder / "images" / f"{number}.jpg").write_bytes(b"broken\nbytes")


def val_without_captions(folder: Path) -> None:
    for number in (7, 8):
        edit_entry(folder, number, sentences=[])


def out_exists(folder: Path) -> None:
    (folder / "out" / "val").mkdir(parents=True)
    (folder / "out" / "val" / "mine.txt").write_text("mine")


def out_is_a_file(folder: Path) -> None:
    (folder / "out").write_text("mine")


@pytest.mark.parametrize(
    ("spoil", "phrases"),
    [
        (missing_annotations, ("--annotations a.json", "no such file")),
        (missing_images, ("--images images", "no such folder")),
        (not_utf8, ("a.json", "not UTF-8 at byte 2")),
        (not_json, ("a.json", "not JSON at line 1, column 1")),
        (another_layout, ("a.json", "not the Karpathy layout", "found a list")),
        (unknown_split, ("images[8] (8.jpg)", "'holdout'")),
        (duplicate_name, ("images[1]", "a second image named 0")),
        (val_unusable, ("split val", "no usable sample", "the first of 2: 7: the image does not decode")),
        (val_without_captions, ("split val", "no usable sample", "7.jpg: the image has no usable caption")),
        (out_exists, ("out/val: exists already", "--overwrite")),
        (out_is_a_file, ("--out out: cannot be written to",)),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    itm: Itm, data_set: Path, spoil: Callable[[Path], None], phrases: tuple[str, ...]
) -> None:
    spoil(data_set)
    before = listing(data_set)
    refused(itm(*KARPATHY), *phrases)
    assert listing(data_set) == before


def test_a_dry_run_tells_what_would_be_written_and_writes_nothing(itm: Itm, data_set: Path) -> None:
    before = listing(data_set)
    result = itm(*KARPATHY, "--samples-per-shard", 3, "--dry-run")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "would write out/train: 7 samples in 3 shards",
        "would write out/val: 2 samples in 1 shard",
    ]
    assert listing(data_set) == before


def test_a_dry_run_refuses_what_the_run_would_refuse(itm: Itm, data_set: Path) -> None:
    out_exists(data_set)
    refused(itm(*KARPATHY, "--dry-run"), "out/val: exists already")
    assert itm(*KARPATHY, "--dry-run", "--overwrite").returncode == 0


def test_overwrite_replaces_an_earlier_conversion(itm: Itm, data_set: Path) -> None:
    assert itm(*KARPATHY, "--samples-per-shard", 1).returncode == 0
    refused(itm(*KARPATHY), "exists already")
    assert itm(*KARPATHY, "--overwrite").returncode == 0
    assert read_manifest(data_set / "out" / "train").samples.tolist() == [7]
    assert len(list((data_set / "out" / "train").glob("*.tar"))) == 1


def test_real_photos_are_converted(itm: Itm, test_data: Path, tmp_path: Path) -> None:
    """Forty photos of Flickr8K, byte for byte."""
    document = json.loads((test_data / "flickr8k" / "dataset_flickr8k.json").read_text())
    document["images"] = document["images"][:40]
    (tmp_path / "a.json").write_text(json.dumps(document))
    images = test_data / "flickr8k" / "images"
    result = itm("shards", "convert", "karpathy", "--annotations", "a.json", "--images", images, "--out", "out")
    assert (result.returncode, result.stderr) == (0, "")
    splits = {path.name: read_manifest(path) for path in (tmp_path / "out").iterdir()}
    assert sum(manifest.num_samples for manifest in splits.values()) == 40
    assert sum(manifest.num_captions for manifest in splits.values()) == 200
    first = document["images"][0]
    sample = ShardReader(splits[first["split"]]).read(0, 0)
    assert sample.image == (images / first["filename"]).read_bytes()
    assert sample.captions == [" ".join(sentence["raw"].split()) for sentence in first["sentences"]]
