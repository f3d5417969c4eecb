import io
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.convert import Options, SplitReport, convert, publish
from shards.errors import DataError
from shards.manifest import read_index, read_manifest
from shards.prepare import Resize, load_sample
from shards.reader import ShardReader
from shards.seen import Seen
from shards.sources.record import Record, Skipped, Source
from shards.sources.tars import read_tars
from shards.staging import Staging
from shards.tarwalk import everything, samples_of
from shards.tools.index import Plan, index_tars
from shards.tools.locate import find_tars
from tests.shards.foreign import (
    as_json,
    fingerprint,
    img2dataset_members,
    picture,
    write_img2dataset,
    write_ours,
    write_tar,
)

AS_IT_IS = Options()
Itm = Callable[..., subprocess.CompletedProcess[str]]


def write(source: Source, out: Path, options: Options = AS_IT_IS, processes: int = 1) -> dict[str, SplitReport]:
    names = [split.name for split in source.splits]
    with Staging(out) as staging:
        staging.claim(names, {**source.identity, **options.as_dict()})
        convert(source, staging, options, processes=processes)
        return publish(staging, source.dataset, names)


def records(source: Source) -> Iterator[Record]:
    (split,) = source.splits
    for item in split.items:
        assert isinstance(item, Record), item
        yield item


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header(text: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


CUT_HEADER = header(b"{'descr': (((((      ")
HUGE = header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 2048), }\n")


def test_our_own_shards_come_out_as_they_went_in(tmp_path: Path) -> None:
    write_ours(tmp_path / "train", samples=12, per_shard=5)
    write(read_tars([str(tmp_path / "train")]), tmp_path / "again", Options(5))
    assert fingerprint(tmp_path / "again" / "train") == fingerprint(tmp_path / "train")


def test_shards_of_other_sizes_hold_the_same_samples(tmp_path: Path) -> None:
    write_ours(tmp_path / "train", samples=12, per_shard=5)
    write(read_tars([str(tmp_path / "train")]), tmp_path / "again", Options(4), processes=2)
    manifest = read_manifest(tmp_path / "again" / "train")
    assert manifest.samples.tolist() == [4, 4, 4]
    before, after = ShardReader(read_manifest(tmp_path / "train")), ShardReader(manifest)
    for number in range(12):
        assert before.read(*divmod(number, 5)) == after.read(*divmod(number, 4))
        was, now = before.index(number // 5), after.index(number // 4)
        assert was.key(number % 5) == now.key(number % 4)
        assert was.image_ids[number % 5] == now.image_ids[number % 4]


@pytest.mark.parametrize("indexed", [True, False])
def test_everything_a_sample_has_is_kept(tmp_path: Path, indexed: bool) -> None:
    stream = io.BytesIO()
    np.save(stream, np.arange(8, dtype=np.float32).reshape(2, 4))
    label = {"captions": ["one", "two"], "caption_ids": [7, 8], "image_id": -3, "url": "http://host"}
    members = [("a.regions.npy", stream.getvalue()), ("a.jpg", picture(1)), ("a.json", as_json(**label))]
    write_tar(tmp_path / "t" / "0.tar", members)
    if indexed:
        index_tars(Plan(find_tars([str(tmp_path / "t")]), tmp_path / "t", "d", "t"))
    write(read_tars([str(tmp_path / "t")]), tmp_path / "out")
    manifest = read_manifest(tmp_path / "out" / "t")
    assert manifest.holds == ("image", "regions")
    (sample,) = samples_of(manifest.shard_location(0), everything)
    parts = dict(sample.members)
    assert (parts["jpg"], parts["regions.npy"]) == (picture(1), stream.getvalue())
    assert json.loads(parts["json"]) == {key: value for key, value in label.items() if key != "url"}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_plain_and_compressed_tars_give_the_same_shards(tmp_path: Path, mode: str) -> None:
    for shard in range(2):
        name = f"{shard}.tar" + (".gz" if mode == "w:gz" else "")
        write_tar(tmp_path / "t" / name, img2dataset_members(shard * 5, 5), mode=mode)
    write(read_tars([str(tmp_path / "t")]), tmp_path / "out", Options(3), processes=2)
    reader = ShardReader(read_manifest(tmp_path / "out" / "t"))
    assert reader.manifest.samples.tolist() == [3, 3, 3, 1]
    for number in range(10):
        sample = reader.read(*divmod(number, 3))
        assert (sample.image, sample.captions) == (picture(number), [f"a picture called {number}"])


def test_images_of_plain_tars_are_read_in_the_workers(tmp_path: Path) -> None:
    folder = write_img2dataset(tmp_path / "t", shards=1)
    loads = [record.load for record in records(read_tars([str(folder)]))]
    data = (folder / "00000.tar").read_bytes()
    (folder / "00000.tar").write_bytes(bytes(len(data)))
    found = [load() for load in loads if load is not None]
    assert [set(image) for image in found] == [{0}] * 4, "nothing was read before it was asked for"


@pytest.mark.parametrize("cut", [None, 100])
def test_a_tar_that_goes_in_the_middle_ends_the_work_and_skips_nothing(tmp_path: Path, cut: int | None) -> None:
    folder = write_img2dataset(tmp_path / "t", shards=1)
    (load, *_) = [record.load for record in records(read_tars([str(folder)]))]
    path = folder / "00000.tar"
    if cut is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"00000\.tar: (cannot be opened|shorter than)"):
        load_sample(Record("key", 1, ("x",), load), Resize())


def test_samples_that_an_index_leaves_out_stay_out(tmp_path: Path) -> None:
    members = [
        ("a.jpg", picture(1)),
        ("a.txt", b"one"),
        ("b.jpg", picture(2, size=(99, 99))[:900]),
        ("b.txt", b"two"),
    ]
    write_tar(tmp_path / "t" / "0.tar", members)
    index_tars(Plan(find_tars([str(tmp_path / "t")]), tmp_path / "t", "d", "t", decode=True))
    assert [record.key for record in records(read_tars([str(tmp_path / "t")]))] == ["a"]
    (tmp_path / "t" / "manifest.json").unlink()
    assert [record.key for record in records(read_tars([str(tmp_path / "t")]))] == ["a", "b"]


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    members = [("a.jpg", picture(1)), ("a.txt", b"one"), ("b.txt", b"two"), ("c.jpg", picture(3)), ("c.json", b"{")]
    write_tar(tmp_path / "t" / "0.tar", [*members, ("d.jpg", picture(4))])
    (split,) = read_tars([str(tmp_path / "t")]).splits
    skipped = [item for item in split.items if isinstance(item, Skipped)]
    assert [item.name for item in skipped] == ["0.tar: sample b", "0.tar: sample c", "0.tar: sample d"]
    assert [item.reason.partition(" (")[0] for item in skipped] == [
        "no image",
        "the JSON cannot be decoded",
        "no caption",
    ]


@pytest.mark.parametrize(
    "bad", [b"", b"PK\x03\x04" + bytes(40), CUT_HEADER, HUGE], ids=["none", "zip", "cut", "huge"]
)
def test_regions_that_are_no_array_are_named_and_the_others_kept(tmp_path: Path, bad: bytes) -> None:
    regions = {"a": npy(np.ones((3, 4))), "b": bad, "c": npy(np.ones((3, 4)))}
    members = [m for key in "abc" for m in ((f"{key}.regions.npy", regions[key]), (f"{key}.txt", b"words"))]
    write_tar(tmp_path / "t" / "0.tar", members)
    report = write(read_tars([str(tmp_path / "t")]), tmp_path / "out")["t"]
    assert (report.samples, report.skipped, report.first_skipped[0].name) == (2, 1, "b")
    assert "the regions cannot be read" in report.first_skipped[0].reason


def test_keys_become_unique_and_fit_for_names(tmp_path: Path) -> None:
    for shard in range(2):
        members = []
        for number, key in enumerate(["a.b/c d", "0", "../x", "0", "bell\a"]):
            members += [(f"{key}.jpg", picture(10 * shard + number)), (f"{key}.txt", b"words")]
        write_tar(tmp_path / "t" / f"{shard}.tar", members)
    keys = [record.key for record in records(read_tars([str(tmp_path / "t")]))]
    assert keys[:3] == ["a_b_c_d", "0", "___x"]
    assert len(set(keys)) == len(keys) == 10
    assert not any(set("./\\ \t\n\a") & set(key) for key in keys)
    assert keys == [record.key for record in records(read_tars([str(tmp_path / "t")]))], "each time the same"


def test_the_parent_of_several_splits_gives_them_all(tmp_path: Path) -> None:
    write_ours(tmp_path / "data" / "a", samples=3)
    write_ours(tmp_path / "data" / "b", samples=2)
    with pytest.raises(DataError, match="two folders of one split, train"):
        read_tars([str(tmp_path / "data")])
    header = json.loads((tmp_path / "data" / "b" / "manifest.json").read_bytes())
    (tmp_path / "data" / "b" / "manifest.json").write_text(json.dumps({**header, "split": "val"}))
    reports = write(read_tars([str(tmp_path / "data")]), tmp_path / "out")
    assert {name: report.samples for name, report in reports.items()} == {"train": 3, "val": 2}
    with pytest.raises(DataError, match="--split x: there are 2 splits"):
        read_tars([str(tmp_path / "data")], split="x")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_damaged_tar_stops_the_work_or_gives_what_stands_before_the_damage(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "t" / f"0.tar{suffix}"
    write_tar(path, img2dataset_members(0, 6), mode=f"w:{suffix[1:]}" if suffix else "w")
    path.write_bytes(path.read_bytes()[: -len(path.read_bytes()) // 3])
    with pytest.raises(DataError, match=r"0\.tar.*--skip-damaged"):
        write(read_tars([str(tmp_path / "t")]), tmp_path / "out")
    assert not (tmp_path / "out" / "t").exists()
    report = write(read_tars([str(tmp_path / "t")], skip_damaged=True), tmp_path / "kept")["t"]
    assert 0 < report.samples < 6
    assert report.skipped == 1
    (skipped,) = report.first_skipped
    assert skipped.name == str(path)
    assert "damaged from here on" in skipped.reason


def test_an_index_that_does_not_fit_its_tar_is_an_error(tmp_path: Path) -> None:
    write_ours(tmp_path / "train", samples=4, per_shard=4)
    data = bytearray((tmp_path / "train" / "train-000000.tar").read_bytes())
    offset = int(read_index(read_manifest(tmp_path / "train"), 0).offsets[2])
    (tmp_path / "train" / "train-000000.tar").write_bytes(data[:offset] + bytes(len(data) - offset))
    with pytest.raises(DataError, match="2 samples are not where the index says"):
        list(records(read_tars([str(tmp_path / "train")])))


@given(st.lists(st.text("abc", max_size=3), max_size=200), st.integers(1, 9))
def test_what_was_seen_is_known(texts: list[str], recent: int) -> None:
    from shards import seen as module

    before, module._RECENT = module._RECENT, recent
    try:
        seen = Seen()
        assert [seen.add(text) for text in texts] == [text not in texts[:place] for place, text in enumerate(texts)]
        assert len(seen._sorted) <= 1 + len(texts).bit_length()
    finally:
        module._RECENT = before


def test_the_command_makes_images_smaller_shuffles_and_limits_shards(tmp_path: Path, itm: Itm) -> None:
    members = []
    for number in range(12):
        members += [(f"{number}.jpg", picture(number, size=(60, 40))), (f"{number}.txt", b"words")]
    write_tar(tmp_path / "web" / "0.tar.gz", members, mode="w:gz")
    arguments = ["web", "--out", "out", "--split", "train", "--resize", "16", "--format", "png"]
    done = itm("shards", "reshard", *arguments, "--dry-run")
    assert (done.returncode, done.stdout) == (0, "would write out/train: 12 samples in 1 shard\n"), done.stderr
    assert not (tmp_path / "out").exists()
    more = ["--seed", "1", "--shard-bytes", "9000", "--processes", "1"]
    done = itm("shards", "reshard", *arguments, *more)
    assert done.returncode == 0, done.stderr
    assert "out/train: 12 images, 12 captions, " in done.stdout
    manifest = read_manifest(tmp_path / "out" / "train")
    assert len(manifest.names) > 1
    keys = [key for shard in range(len(manifest.names)) for key in read_index(manifest, shard).keys.to_pylist()]
    assert sorted(keys, key=int) == [f"{number}" for number in range(12)]
    assert keys != sorted(keys, key=int)
    assert {int(width) for width in read_index(manifest, 0).widths} == {24}
    assert ShardReader(manifest).read(0, 0).image.startswith(b"\x89PNG")
    done = itm("shards", "reshard", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert "out/train: exists already" in done.stderr
