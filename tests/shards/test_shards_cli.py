import io
import json
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shards.manifest import read_index, read_manifest
from shards.reader import ShardReader
from tests.conftest import ENVIRONMENT, itm_command
from tests.shards.sourced import jpeg

Itm = Callable[..., subprocess.CompletedProcess[str]]
KARPATHY = ("shards", "convert", "karpathy", "--annotations", "a.json", "--images", "images", "--out", "out")
KARPATHY += ("--processes", "1")


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
        (("shards", "--help"), ("demo", "convert", "merge", "WebDataset")),
        (("shards", "convert", "--help"), ("karpathy", "coco", "flickr30k", "table", "folder", "scan")),
        *(
            (("shards", "convert", form, "--help"), (*own, "--out", "--shard-bytes", "--part", "--dry-run"))
            for form, own in {
                "coco": ("--annotations", "--images", "--karpathy", "2014"),
                "flickr30k": ("--token", "--val-list"),
                "table": ("--image-column", "--no-quotes", "Parquet"),
                "folder": ("--root", "--splits", "0001.jpg"),
                "scan": ("--root", "--captions-each", "id_mapping.json"),
            }.items()
        ),
        (("shards", "merge", "--help"), ("out", "--part", "--dry-run")),
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
        *(f"skipped {number}" for number in (1, 2, 3, 4)),
        "skipped 5.jpg caption 0",
    ]
    listed = [json.loads(line) for line in (data_set / "out" / "train" / "skipped.jsonl").read_text().splitlines()]
    assert [f"skipped {item['name']}: {item['reason']}" for item in listed] == lines
    assert read_index(read_manifest(data_set / "out" / "train"), 0).keys.to_pylist() == ["0", "5", "6"]
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


def nothing_usable(folder: Path) -> None:
    for number in range(9):
        (folder / "images" / f"{number}.jpg").write_bytes(b"broken")


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
        (duplicate_name, ("a.json: a second image named 0 in split train",)),
        (val_without_captions, ("split val", "no usable sample", "7.jpg: the image has no usable caption")),
        (out_exists, ("out/val: exists already, and is no folder of shards",)),
        (out_is_a_file, ("--out out: cannot be written to",)),
        (nothing_usable, ("split train", "no usable sample", "the first of 7: 0: the image does not decode")),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    itm: Itm, data_set: Path, spoil: Callable[[Path], None], phrases: tuple[str, ...]
) -> None:
    spoil(data_set)
    before = listing(data_set)
    refused(itm(*KARPATHY), *phrases)
    assert listing(data_set) == before


def test_a_split_of_which_nothing_is_usable_keeps_the_others_work(itm: Itm, data_set: Path) -> None:
    val_unusable(data_set)
    phrases = ("split val: no usable sample; the first of 2: 7: the image does not decode", "kept in out/.partial")
    refused(itm(*KARPATHY), *phrases)
    assert [path.name for path in (data_set / "out").iterdir()] == [".partial"]
    for number in (7, 8):
        (data_set / "images" / f"{number}.jpg").write_bytes(jpeg(number))
    result = itm(*KARPATHY)
    assert (result.returncode, result.stderr) == (
        0,
        "going on with out/.partial: 1 units of work were found finished\n",
    )
    assert sorted(path.name for path in (data_set / "out").iterdir()) == ["train", "val"]
    assert read_manifest(data_set / "out" / "val").num_samples == 2


def test_a_dry_run_tells_what_would_be_written_and_writes_nothing(itm: Itm, data_set: Path) -> None:
    before = listing(data_set)
    result = itm(*KARPATHY, "--samples-per-shard", 3, "--dry-run")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "would write out/train: 7 samples in 3 shards",
        "would write out/val: 2 samples in 1 shard",
    ]
    assert listing(data_set) == before


def test_a_dry_run_names_what_the_run_leaves_out(itm: Itm, tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number) if number else b"no image")
        (tmp_path / f"{number}.txt").write_text(" " if number == 1 else "a picture")
    (tmp_path / "orphan.txt").write_text("of no image")
    command = ("shards", "convert", "folder", "--root", ".", "--out", "out")
    dry = itm(*command, "--dry-run")
    assert dry.stdout == "would write out/train: 4 samples in 1 shard, 3 skipped\n"
    named = {line.split(":")[0] for line in dry.stderr.splitlines()}
    assert named == {"skipped 0.jpg", "skipped 1.jpg", "skipped orphan.txt"} or "skipped 0" in named
    done = itm(*command)
    assert done.stdout.startswith("out/train: 4 images, 4 captions, 1 shard, ")
    assert sorted(done.stderr.splitlines()) == sorted(dry.stderr.splitlines())


def test_a_dry_run_of_much_says_that_it_saw_a_part(itm: Itm, tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "t.csv").write_text(
        "image,caption\n" + "".join(f"0.jpg,caption {n}\n0.jp,no\n" for n in range(120))
    )
    dry = itm("shards", "convert", "table", "--table", "t.csv", "--out", "out", "--dry-run")
    assert dry.stdout == (
        "would write out/train: up to 190 samples in 1 shard; 50 of the first 240 skipped, 100 images tried\n"
    )
    assert dry.stderr.endswith("skipped 40 more\n")


def test_what_an_input_that_was_mended_needs_is_what_the_message_said(itm: Itm, data_set: Path) -> None:
    """Nothing of `val` is usable: the annotations are mended, then the same command with --overwrite."""
    annotations = json.loads((data_set / "a.json").read_text())
    mended = json.dumps(annotations)
    for entry in annotations["images"]:
        if entry["split"] == "val":
            entry["filename"] = "missing.jpg" + entry["filename"]
    (data_set / "a.json").write_text(json.dumps(annotations))
    refused(
        itm(*KARPATHY),
        "split val: no usable sample",
        "with --overwrite, which discards",
    )
    (data_set / "a.json").write_text(mended)
    refused(itm(*KARPATHY), "an unfinished conversion of other input", "--overwrite to discard it")
    assert itm(*KARPATHY, "--overwrite").returncode == 0
    assert read_manifest(data_set / "out" / "val").num_samples == 2


def test_a_dry_run_refuses_what_the_run_would_refuse(itm: Itm, data_set: Path) -> None:
    (data_set / "out" / "val").mkdir(parents=True)
    refused(itm(*KARPATHY, "--dry-run"), "out/val: exists already; give another --out, or --overwrite")
    assert itm(*KARPATHY, "--dry-run", "--overwrite").returncode == 0


def test_overwrite_replaces_an_earlier_conversion(itm: Itm, data_set: Path) -> None:
    assert itm(*KARPATHY, "--samples-per-shard", 1).returncode == 0
    refused(itm(*KARPATHY), "exists already")
    assert itm(*KARPATHY, "--overwrite").returncode == 0
    assert read_manifest(data_set / "out" / "train").samples.tolist() == [7]
    assert len(list((data_set / "out" / "train").glob("*.tar"))) == 1


def test_overwrite_spares_the_photos_and_tars_that_are_read(itm: Itm, data_set: Path) -> None:
    for number in range(9):
        (data_set / f"images/{number}.txt").write_text("A picture")
    folder = ("shards", "convert", "folder", "--root", ".", "--splits", "images")
    assert itm(*folder, "--out", "in", "--processes", 1).returncode == 0
    before = listing(data_set)
    refused(itm(*folder, "--out", ".", "--overwrite"), "images: is, or holds, what is read, images")
    refused(
        itm("shards", "reshard", "in", "--out", "in", "--overwrite"),
        "in/images: is, or holds, what is read, in/images",
    )
    assert listing(data_set) == before


def test_a_seed_beyond_64_bits_is_refused_as_an_option(itm: Itm, data_set: Path) -> None:
    result = itm(*KARPATHY, "--seed", 2**64)
    assert result.returncode == 2
    assert "--seed" in result.stderr
    assert "Traceback" not in result.stderr
    assert itm(*KARPATHY, "--seed", 2**64 - 1).returncode == 0


@pytest.mark.parametrize("finished", [0, 3])
def test_a_full_disk_is_told_once_and_what_is_kept_only_where_there_is_something(
    data_set: Path, finished: int
) -> None:
    for number in range(finished, 9):
        (data_set / "images" / f"{number}.jpg").write_bytes(jpeg(number, (400, 400)))
    command = shlex.join(itm_command(*KARPATHY, "--samples-per-shard", 1))
    result = subprocess.run(
        ["bash", "-c", f"ulimit -f 40; exec {command}"],  # kilobytes of a file: as good as a full disk
        cwd=data_set,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    refused(result, f"/train-{finished:06d}.tar: cannot be written (File too large); make room")
    assert result.stderr.count("finished shards are kept in out/.partial") == (finished > 0)
    assert (data_set / "out").exists() == (finished > 0)


def test_images_within_parquet_are_not_shuffled_but_their_shards_are(itm: Itm, tmp_path: Path) -> None:
    table = pa.table({"image": [jpeg(number) for number in range(9)], "caption": [f"n {n}" for n in range(9)]})
    pq.write_table(table, tmp_path / "t.parquet")
    convert = ("shards", "convert", "table", "--table", "t.parquet", "--processes", 1, "--out")
    refused(itm(*convert, "out", "--seed", 1), "--seed: images within Parquet", "itm shards reshard out --seed 1")
    assert itm(*convert, "out").returncode == 0
    assert itm("shards", "reshard", "out", "--seed", 1, "--processes", 1, "--out", "mixed").returncode == 0
    keys = [read_index(read_manifest(tmp_path / where / "train"), 0).keys.to_pylist() for where in ("out", "mixed")]
    assert keys[0] == sorted(keys[1]) != keys[1]


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


Convert = tuple[str, ...]


def as_coco(folder: Path) -> Convert:
    images = [{"id": 40 + number, "file_name": f"{number}.jpg"} for number in range(9)]
    captions = [{"id": 2 * n, "image_id": 40 + n, "caption": f"Picture {n} ."} for n in range(9)]
    (folder / "captions_val2014.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return ("coco", "--annotations", "captions_val2014.json", "--images", "images", "--split", "train")


def as_flickr30k(folder: Path) -> Convert:
    (folder / "t.token").write_text("".join(f"{n}.jpg#0\tPicture {n} .\n" for n in range(9)))
    return ("flickr30k", "--token", "t.token", "--images", "images")


def as_csv(folder: Path) -> Convert:
    rows = "".join(f"{number}.jpg,Picture {number} .\n" for number in range(9))
    (folder / "t.csv").write_text(f"path,title\n{rows}")
    return (
        "table",
        "--table",
        "t.csv",
        "--images",
        "images",
        "--image-column",
        "path",
        "--caption-column",
        "title",
    )


def as_json_lines(folder: Path) -> Convert:
    rows = [json.dumps({"image": f"images/{n}.jpg", "caption": [f"Picture {n} ."]}) for n in range(9)]
    (folder / "t.jsonl").write_text("\n".join(rows))
    return ("table", "--table", "t.jsonl")


def as_parquet(folder: Path) -> Convert:
    cells = [{"bytes": jpeg(number), "path": "x.jpg"} for number in range(9)]
    table = pa.table({"image": cells, "caption": [f"Picture {number} ." for number in range(9)]})
    (folder / "parts").mkdir()
    pq.write_table(table.slice(0, 4), folder / "parts" / "0.parquet", row_group_size=3)
    pq.write_table(table.slice(4), folder / "parts" / "1.parquet")
    return ("table", "--table", "parts")


def as_folder(folder: Path) -> Convert:
    for number in range(9):
        (folder / "images" / f"{number}.txt").write_text(f"Picture {number} .")
    return ("folder", "--root", "images")


def as_scan(folder: Path) -> Convert:
    np.save(folder / "train_ims.npy", np.full((9, 3, 4), 0.5, np.float32) * np.arange(9).reshape(9, 1, 1))
    (folder / "train_caps.txt").write_text("".join(f"Picture {number} .\n" for number in range(9)))
    (folder / "id_mapping.json").write_text(json.dumps({str(number): f"{number}.jpg" for number in range(9)}))
    return ("scan", "--root", ".", "--images", "images", "--captions-each", "1")


@pytest.mark.parametrize("prepare", [as_coco, as_flickr30k, as_csv, as_json_lines, as_parquet, as_folder, as_scan])
def test_every_format_becomes_shards_of_the_same_photos(
    itm: Itm, data_set: Path, prepare: Callable[[Path], Convert]
) -> None:
    command = ("shards", "convert", *prepare(data_set), "--out", "out", "--processes", 2, "--samples-per-shard", 4)
    before = listing(data_set)
    dry = itm(*command, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert dry.stdout.startswith("would write out/train: ")
    assert listing(data_set) == before
    result = itm(*command)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("out/train: 9 images, 9 captions, 3 shards, ")
    manifest = read_manifest(data_set / "out" / "train")
    reader = ShardReader(manifest)
    samples = [reader.read(shard, row) for shard in range(3) for row in range(manifest.samples[shard])]
    assert [sample.captions for sample in samples] == [[f"Picture {number} ."] for number in range(9)]
    assert [sample.image for sample in samples] == [jpeg(number) for number in range(9)]
    assert manifest.holds == (("image", "regions") if prepare is as_scan else ("image",))


def test_features_alone_become_shards(itm: Itm, tmp_path: Path) -> None:
    np.save(
        tmp_path / "dev_ims.npy",
        np.ones((2, 36, 8), np.float32).repeat(5, 0) * np.arange(2).repeat(5).reshape(10, 1, 1),
    )
    (tmp_path / "dev_caps.txt").write_text("".join(f"{number} .\n" for number in range(10)))
    result = itm("shards", "convert", "scan", "--root", ".", "--out", "out", "--processes", 1)
    assert (result.returncode, result.stderr) == (0, "val: 2 images, 5 equal rows each, with 5 captions each\n")
    manifest = read_manifest(tmp_path / "out" / "val")
    assert (manifest.num_samples, manifest.num_captions, manifest.holds) == (2, 10, ("regions",))


def test_a_dry_run_finds_a_wrong_folder_of_images(itm: Itm, data_set: Path) -> None:
    arguments = [one if one != "images" else "parts" for one in as_csv(data_set)]
    (data_set / "parts").mkdir()
    result = itm("shards", "convert", *arguments, "--out", "out", "--dry-run")
    refused(result, "split train: none of the first 9 samples is usable", "000000000: the image file is missing")


def test_the_published_annotations_without_images_are_one_clear_line(
    itm: Itm, test_data: Path, tmp_path: Path
) -> None:
    published = test_data / "annotations" / "dataset_coco_karpathy_test.json"
    (tmp_path / "images").mkdir()
    command = ("shards", "convert", "karpathy", "--annotations", published, "--images", "images", "--out", "out")
    missing = "COCO_val2014_000000391895: the image file is missing"
    refused(itm(*command, "--dry-run"), "split test: none of the first 100 samples is usable", missing)
    refused(itm(*command), f"split test: no usable sample; the first of 5,000: {missing}")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_images_are_resized_and_converted(itm: Itm, data_set: Path) -> None:
    result = itm(*KARPATHY, "--resize", 16, "--format", "webp", "--quality", 50)
    assert result.returncode == 0
    image = ShardReader(read_manifest(data_set / "out" / "train")).read(0, 0).image
    with Image.open(io.BytesIO(image)) as opened:
        assert (opened.format, opened.size) == ("WEBP", (24, 16))


def test_shards_stay_within_their_size(itm: Itm, data_set: Path) -> None:
    assert itm(*KARPATHY, "--shard-bytes", "12kB").returncode == 0
    manifest = read_manifest(data_set / "out" / "train")
    assert manifest.num_samples == 7
    assert len(manifest.names) > 1
    refused(itm(*KARPATHY, "--shard-bytes", "many"), "--shard-bytes many: not a size; write one such as 300MB")


def test_a_seed_shuffles_and_is_repeatable(itm: Itm, data_set: Path) -> None:
    keys = []
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert itm(*KARPATHY, "--out", out, "--seed", seed).returncode == 0
        keys.append(read_index(read_manifest(data_set / out / "train"), 0).keys.to_pylist())
    assert keys[0] == keys[1] != keys[2]
    assert sorted(keys[0]) == sorted(keys[2]) == [str(number) for number in range(7)]


def test_parts_are_joined_when_all_are_there(itm: Itm, data_set: Path) -> None:
    whole = itm(*KARPATHY, "--out", "whole", "--samples-per-shard", 2)
    assert whole.returncode == 0
    command = (*KARPATHY, "--samples-per-shard", 2)
    refused(itm("shards", "merge", "out"), "out: no unfinished conversion is there")
    assert not (data_set / "out").exists()
    first = itm(*command, "--part", "1/2")
    assert first.returncode == 0
    assert first.stdout == "part 1 of 2 is written; when all are, join them: itm shards merge out\n"
    for flags in ((), ("--dry-run",)):
        missing = itm("shards", "merge", "out", *flags)
        refused(missing, "2 units of split train are not written yet; the first is 1: of N parts, part 1 % N + 1")
    assert itm(*command, "--part", "2/2").returncode == 0
    dry = itm("shards", "merge", "out", "--dry-run")
    assert (
        dry.stdout
        == "would write out/train: 4 units of work, all there\nwould write out/val: 1 units of work, all there\n"
    )
    assert [path.name for path in (data_set / "out").iterdir()] == [".partial"]
    merged = itm("shards", "merge", "out")
    assert (merged.returncode, merged.stderr) == (0, "")
    assert merged.stdout == whole.stdout.replace("whole/", "out/")
    found = [
        [(Path(name).relative_to(data_set / out), data) for name, data in listing(data_set / out)]
        for out in ("whole", "out")
    ]
    assert found[0] == found[1]
    refused(itm(*command, "--part", "3/2"), "--part 3/2: write I/N with I from 1 to N")


def test_parts_that_start_together_do_not_disturb_each_other(data_set: Path, itm: Itm) -> None:
    commands = [itm_command(*KARPATHY, "--samples-per-shard", 1, "--part", f"{part}/4") for part in (1, 2, 3, 4)]
    running = [
        subprocess.Popen(command, cwd=data_set, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for command in commands
    ]
    ends = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * 4, ends
    assert itm("shards", "merge", "out").returncode == 0
    assert read_manifest(data_set / "out" / "train").num_samples == 7


def start_long(folder: Path) -> "subprocess.Popen[str]":
    """The demo data set, in many small units, until the first is finished."""
    counts = ("--pretrain", 200, "--train", 200, "--val", 1, "--test", 1, "--side", 16)
    command = itm_command("shards", "demo", "--out", "out", *counts, "--samples-per-shard", 5, "--processes", 1)
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("out/.partial/pretrain/.units/*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_conversion_that_was_stopped_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    stopped = start_long(tmp_path)
    stopped.send_signal(how)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode != 0
    if how == signal.SIGINT:
        assert stopped.returncode == 130
        assert errors == (
            "itm: interrupted; finished shards are kept in out/.partial: repeat the command to go on, or, when "
            "input or options have changed, with --overwrite, which discards them\n"
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".partial"]
    again = subprocess.run(stopped.args, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert "going on with out/.partial: " in again.stderr
    assert "units of work were found finished" in again.stderr
    assert read_manifest(tmp_path / "out" / "pretrain").num_samples == 200
