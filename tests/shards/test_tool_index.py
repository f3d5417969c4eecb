import hashlib
import io
import json
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import webdataset

from shards.commands.tars import index as index_command
from shards.errors import DataError
from shards.evaluation import EvaluationDataset, Span
from shards.images import center_crop
from shards.manifest import read_index, read_manifest
from shards.publish import NAMED, SplitReport
from shards.reader import ShardReader
from shards.shard_index import content_hash, image_id_of
from shards.tarwalk import samples_of
from shards.tools.index import STAGING, Plan, index_tars
from shards.tools.locate import find_tars, unique_names
from tests.conftest import ENVIRONMENT
from tests.shards.foreign import (
    as_json,
    fingerprint,
    img2dataset_members,
    picture,
    write_img2dataset,
    write_ours,
    write_tar,
)

Itm = Callable[..., subprocess.CompletedProcess[str]]


def index(folder: Path, out: Path | None = None, processes: int = 1, **options: object) -> SplitReport:
    plan = Plan(find_tars([str(folder)]), out or folder, "web", "train", **options)  # type: ignore[arg-type]
    return index_tars(plan, processes=processes)


def reasons(report: SplitReport) -> dict[str, str]:
    assert report.skipped == len(report.first_skipped) < NAMED
    return {item.name: item.reason for item in report.first_skipped}


def indexed(path: Path, members: list[tuple[str, bytes]], **options: object) -> tuple[ShardReader, SplitReport]:
    write_tar(path / "t" / "0.tar", members)
    report = index(path / "t", **options)
    return ShardReader(read_manifest(path / "t")), report


def test_the_output_of_img2dataset_is_read_as_it_is(tmp_path: Path) -> None:
    folder = write_img2dataset(tmp_path / "web")
    before = fingerprint(folder)
    report = index(folder)
    assert (report.samples, report.captions, report.shards, report.skipped) == (12, 12, 3, 0)
    assert {name: value for name, value in fingerprint(folder).items() if name in before} == before
    manifest = read_manifest(folder)
    assert manifest.holds == ("image",)
    reader = ShardReader(manifest)
    for number in range(12):
        shard, row = divmod(number, 4)
        sample = reader.read(shard, row)
        assert (sample.image, sample.captions) == (picture(number), [f"a picture called {number}"])
        rows = reader.index(shard)
        assert rows.key(row) == f"{number * 3:09d}"
        assert rows.image_ids[row] == image_id_of(content_hash(picture(number)))
        assert (rows.widths[row], rows.heights[row]) == (30, 20)


def test_the_output_of_webdataset_is_read_as_it_is_and_gives_batches(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "s-%06d.tar"), maxcount=3, verbose=0) as sink:
        for number in range(8):
            sample = {"__key__": f"dir/{number}", "json": {"captions": [f"{number}", "b"], "image_id": -number}}
            sink.write({**sample, "jpg": picture(number)})
    report = index(tmp_path)
    assert (report.samples, report.captions, report.shards) == (8, 16, 3)
    dataset = EvaluationDataset(
        read_manifest(tmp_path), center_crop(16), lambda texts: torch.zeros(len(texts), 1, dtype=torch.int64)
    )
    batch = dataset[Span(0, 8)]
    assert batch.images is not None
    assert batch.images.shape == (8, 16, 16, 3)
    assert batch.image_ids.tolist() == [-number for number in range(8)]
    assert batch.captions == [text for number in range(8) for text in (f"{number}", "b")]


def test_indexing_our_own_tars_gives_the_index_that_conversion_wrote(tmp_path: Path) -> None:
    write_ours(tmp_path / "ours")
    index(tmp_path / "ours", tmp_path / "again")
    for path in (tmp_path / "ours").glob("*.arrow"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    tables = [pq.read_table(tmp_path / name / "shards.parquet").drop(["path"]) for name in ("ours", "again")]
    assert tables[0].equals(tables[1])


def test_the_manifest_names_every_byte(tmp_path: Path) -> None:
    folder = write_img2dataset(tmp_path / "web")
    index(folder)
    table = pq.read_table(folder / "shards.parquet").to_pydict()
    tars = sorted(folder.glob("*.tar"))
    assert table["path"] == [tar.name for tar in tars]
    assert table["sha256"] == [hashlib.sha256(tar.read_bytes()).hexdigest() for tar in tars]
    assert table["bytes"] == [tar.stat().st_size for tar in tars]
    rows = read_index(read_manifest(folder), 0)
    assert rows.offsets[0] == 0
    assert (rows.offsets[1:] == rows.offsets[:-1] + rows.sizes[:-1]).all()


def test_a_manifest_elsewhere_points_to_the_tars(tmp_path: Path) -> None:
    write_img2dataset(tmp_path / "web")
    index(tmp_path / "web", tmp_path / "else" / "where")
    index(tmp_path / "web", tmp_path)
    assert ShardReader(read_manifest(tmp_path / "else" / "where")).read(1, 1).image == picture(5)
    assert read_manifest(tmp_path / "else" / "where").paths[0] == str(tmp_path / "web" / "00000.tar")
    assert read_manifest(tmp_path).paths[0] == "web/00000.tar"
    assert not list((tmp_path / "web").glob("*.arrow"))


def test_what_cannot_be_used_is_named_counted_and_left_out(tmp_path: Path) -> None:
    text = ("txt", b"words")
    parts = {
        "good": [("jpg", picture(1)), text],
        "no-image": [text, ("cls", b"3")],
        "no-caption": [("jpg", picture(2)), ("json", as_json(caption=None))],
        "empty": [("jpg", picture(2)), ("txt", b" \n")],
        "bad-json": [("jpg", picture(3)), ("json", b"{'captions'"), text],
        "bad-text": [("jpg", picture(3)), ("txt", b"\xff\xff")],
        "html": [("jpg", b"<html>404</html>"), text],
        "twice": [("jpg", picture(4)), ("JPG", picture(5)), text],
        "cut": [("jpg", picture(6, size=(200, 200))[:5000]), text],
        "last": [text, ("png", picture(7, "PNG"))],
    }
    members = [(f"{key}.{extension}", data) for key, each in parts.items() for extension, data in each]
    reader, report = indexed(tmp_path, members)
    assert reader.index(0).keys.to_pylist() == ["good", "cut", "last"], "nothing is decoded by default"
    assert reasons(report) == {
        "0.tar: sample no-image": "no image",
        "0.tar: sample no-caption": "no caption",
        "0.tar: sample empty": "no caption",
        "0.tar: sample bad-json": reasons(report)["0.tar: sample bad-json"],
        "0.tar: sample bad-text": "the text is not UTF-8 (invalid start byte at byte 0)",
        "0.tar: sample html": "the image does not decode (not an image, or of an unknown format)",
        "0.tar: sample twice": "several members named .jpg",
    }
    assert "cannot be decoded" in reasons(report)["0.tar: sample bad-json"]
    assert reader.read(0, 2).image == picture(7, "PNG")
    lines = [json.loads(line) for line in (tmp_path / "t" / "skipped.jsonl").read_text().splitlines()]
    assert {line["name"]: line["reason"] for line in lines} == reasons(report)
    decoded = index(tmp_path / "t", tmp_path / "decoded", decode=True)
    assert "does not decode" in reasons(decoded)["0.tar: sample cut"]
    assert decoded.skipped == report.skipped + 1


def test_names_that_point_elsewhere_are_only_names(tmp_path: Path) -> None:
    keys = ["/etc/passwd", "../../escape", "a/../b", "C:\\x", "\udcff\udcfe"]
    before = set(tmp_path.parent.rglob("escape*"))
    members = [
        member
        for number, key in enumerate(keys)
        for member in ((f"{key}.jpg", picture(number)), (f"{key}.txt", b"words"))
    ]
    reader, report = indexed(tmp_path, members)
    assert report.skipped == 0
    assert reader.index(0).keys.to_pylist() == [*keys[:-1], "\ufffd\ufffd"]
    assert [reader.read(0, row).image for row in range(5)] == [picture(number) for number in range(5)]
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "0.index.arrow",
        "0.tar",
        "manifest.json",
        "shards.parquet",
        "t",
    ]
    assert set(tmp_path.parent.rglob("escape*")) == before


def test_keys_may_repeat_within_a_shard_and_in_others(tmp_path: Path) -> None:
    for shard in range(2):
        members = []
        for number in (0, 1, 0):
            members += [(f"{number}.jpg", picture(10 * shard + len(members))), (f"{number}.txt", b"words")]
        write_tar(tmp_path / f"{shard}.tar", members)
    assert index(tmp_path).samples == 6
    reader = ShardReader(read_manifest(tmp_path))
    assert [reader.read(shard, row).image for shard in range(2) for row in range(3)] == [
        picture(10 * shard + 2 * row) for shard in range(2) for row in range(3)
    ]


LONG = "folder/" * 40 + "k" * 90  # beyond what a plain header holds


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_samples_with_long_names_are_read(tmp_path: Path, form: int) -> None:
    members = []
    for number, key in enumerate(["a", LONG, LONG + "x", "schlüssel-鍵", "z"]):
        members += [(f"{key}.jpg", picture(number)), (f"{key}.txt", f"words {number}".encode())]
    write_tar(tmp_path / "0.tar", members, form)
    assert index(tmp_path).samples == 5
    reader = ShardReader(read_manifest(tmp_path))
    for row in range(5):
        assert (reader.read(0, row).image, reader.read(0, row).captions) == (picture(row), [f"words {row}"])
    assert reader.index(0).key(1) == LONG


def test_what_else_stands_between_the_members_of_a_sample_is_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in [("a.jpg", picture()), ("jpg", b"no image"), ("._a.jpg", b"x"), ("a.txt", b"words")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo("a.json")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
            folder = tarfile.TarInfo("folder.png")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
    index(tmp_path)
    sample = ShardReader(read_manifest(tmp_path)).read(0, 0)
    assert (sample.image, sample.captions) == (picture(), ["words"])


def npy(rows: int) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.full((rows, 4), 0.5, np.float32))
    return stream.getvalue()


def test_what_the_samples_hold_is_found_or_demanded(tmp_path: Path) -> None:
    members = []
    for number in range(4):
        members += [(f"{number}.regions.npy", npy(1 + number)), (f"{number}.txt", b"words")]
        members += [(f"{number}.jpg", picture(number))] if number != 2 else []
    write_tar(tmp_path / "t" / "0.tar", members)
    report = index(tmp_path / "t", tmp_path / "found")
    assert read_manifest(tmp_path / "found").holds == ("image", "regions")
    assert reasons(report) == {"0.tar: sample 2": "no image"}
    report = index(tmp_path / "t", tmp_path / "demanded", holds=("regions",))
    manifest = read_manifest(tmp_path / "demanded")
    assert (manifest.holds, report.samples) == (("regions",), 4)
    assert read_index(manifest, 0).content.tolist() == [content_hash(npy(1 + number)) for number in range(4)]
    assert not read_index(manifest, 0).widths.any()


def test_regions_that_training_would_refuse_are_left_out(tmp_path: Path) -> None:
    archive = io.BytesIO()
    np.savez(archive, a=np.zeros((2, 4), np.float32))
    members = [("0.regions.npy", npy(2)), ("1.regions.npy", archive.getvalue()), ("2.regions.npy", npy(0))]
    write_tar(tmp_path / "t" / "0.tar", [one for m in members for one in (m, (f"{m[0][0]}.txt", b"words"))])
    report = index(tmp_path / "t", tmp_path / "found", holds=("regions",))
    assert report.samples == 1
    assert sorted(reasons(report)) == ["0.tar: sample 1", "0.tar: sample 2"]
    members = [("0.jpg", picture(0)), ("0.txt", b"words"), ("1.jpg", picture(1)), ("1.txt", b"words")]
    write_tar(tmp_path / "u" / "0.tar", [*members, ("1.regions.npy", b"unused, but parsed")])
    report = index(tmp_path / "u", tmp_path / "images", holds=("image",))
    assert sorted(reasons(report)) == ["0.tar: sample 1"]


def test_much_that_is_skipped_is_listed_and_only_its_beginning_held(tmp_path: Path) -> None:
    for tar in range(2):
        members = [(f"{number}.jpg", b"no caption") for number in range(15)]
        write_tar(tmp_path / "t" / f"{tar}.tar", [*members, ("x.jpg", picture(tar)), ("x.txt", b"words")])
    report = index(tmp_path / "t")
    assert (report.samples, report.skipped, len(report.first_skipped)) == (2, 30, NAMED)
    lines = [json.loads(line)["name"] for line in (tmp_path / "t" / "skipped.jsonl").read_text().splitlines()]
    assert lines == [f"{tar}.tar: sample {number}" for tar in range(2) for number in range(15)]
    assert not (tmp_path / "t" / STAGING).exists()


def damaged(folder: Path) -> Path:
    write_img2dataset(folder, shards=4)
    data = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(data[: len(data) // 2])
    broken = bytearray((folder / "00002.tar").read_bytes())
    offset = list(samples_of(str(folder / "00002.tar"), lambda _: False))[2].offset
    broken[offset : offset + 512] = bytes(512)
    (folder / "00002.tar").write_bytes(broken)
    return folder


def test_damaged_tars_are_named_and_left_out_only_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = damaged(tmp_path / "web")
    with pytest.raises(
        DataError, match=r"2 of 4 tars cannot be indexed: .*00001\.tar: .*; .*00002\.tar: .*--skip-d"
    ):
        index(folder)
    assert not (folder / "manifest.json").exists()
    report = index(folder, skip_damaged=True)
    assert list(reasons(report)) == ["00001.tar", "00002.tar"]
    assert read_manifest(folder).names == ("00000", "00003")
    assert not list(folder.glob("0000[12].index.arrow"))
    assert not (folder / STAGING).exists()


def test_a_mended_tar_is_read_again_and_the_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = damaged(tmp_path / "web")
    with pytest.raises(DataError):
        index(folder)
    write_img2dataset(tmp_path / "whole", shards=4)
    for name in ("00001.tar", "00002.tar"):
        (folder / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    from shards.tools import index as module

    read: list[str] = []

    def counting(location: str, *arguments: object, **options: object) -> object:
        read.append(Path(location).name)
        return scan(location, *arguments, **options)

    scan = module.scan
    monkeypatch.setattr(module, "scan", counting)
    index(folder)
    assert read == ["00001.tar", "00002.tar"]
    index(tmp_path / "whole")
    assert fingerprint(folder) == fingerprint(tmp_path / "whole")


def test_one_and_two_processes_and_other_folders_give_the_same_bytes(tmp_path: Path) -> None:
    for name, processes in (("one", 1), ("two", 2)):
        index(write_img2dataset(tmp_path / name), processes=processes)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")


@pytest.mark.parametrize("scanned", [0, 1, 4])
def test_a_killed_call_goes_on_to_the_same_bytes(tmp_path: Path, scanned: int) -> None:
    whole, killed = (write_img2dataset(tmp_path / name, shards=5) for name in "ab")
    index(whole)
    program = (
        "import os, signal, sys; from pathlib import Path; import shards.tools.index as module\n"
        "from shards.tools.locate import find_tars\n"
        "left, scan = int(sys.argv[2]), module.scan\n"
        "def dying(*arguments, **options):\n"
        "    global left\n"
        "    left -= 1\n"
        "    if left < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return scan(*arguments, **options)\n"
        "module.scan = dying\n"
        "folder = Path(sys.argv[1])\n"
        "module.index_tars(module.Plan(find_tars([str(folder)]), folder, 'web', 'train'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, killed, str(scanned)], env=ENVIRONMENT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(killed.glob(f"{STAGING}/*.json"))) == scanned
    index(killed)
    assert fingerprint(killed) == fingerprint(whole)


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_a_call_killed_while_it_publishes_is_made_good(
    tmp_path: Path, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends before the index after `moves` others is moved."""
    whole, killed = write_img2dataset(tmp_path / "a"), write_img2dataset(tmp_path / "b")
    index(whole)
    program = (
        "import os, sys; from pathlib import Path; from shards.tools.index import *\n"
        "from shards.tools.locate import find_tars\n"
        "left, rename = int(sys.argv[2]), Path.rename\n"
        "def move(self, target):\n"
        "    global left\n"
        "    left -= 1\n"
        "    return os._exit(9) if left < 0 else rename(self, target)\n"
        "Path.rename = move\n"
        "import shards.tools.index as module\n"
        "module.write_manifest = lambda *_: os._exit(9)\n"
        "folder = Path(sys.argv[1])\n"
        "index_tars(Plan(find_tars([str(folder)]), folder, 'web', 'train'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, killed, str(moves)], env=ENVIRONMENT, check=False)
    assert done.returncode == 9
    assert not (killed / "manifest.json").exists()
    index(killed)
    assert fingerprint(killed) == fingerprint(whole)


def test_a_manifest_is_replaced_only_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = write_img2dataset(tmp_path / "web")
    index(folder)
    before = fingerprint(folder)
    with pytest.raises(DataError, match=r"has a manifest.json already; .*--overwrite"):
        index(folder)
    assert fingerprint(folder) == before
    (folder / "00000.tar").unlink()
    index(folder, overwrite=True)
    assert read_manifest(folder).names == ("00001", "00002")
    assert sorted(path.name for path in folder.glob("*.arrow")) == ["00001.index.arrow", "00002.index.arrow"]


def test_two_calls_at_once_do_not_write_the_same_folder(tmp_path: Path) -> None:
    import fcntl

    folder = write_img2dataset(tmp_path / "web")
    (folder / STAGING).mkdir()
    with (folder / STAGING / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another call is indexing"):
            index(folder)


def test_tars_of_one_name_in_several_folders_are_told_apart(tmp_path: Path) -> None:
    for part in ("a", "b"):
        write_tar(tmp_path / part / "0.tar", img2dataset_members(ord(part), 2))
    tars = find_tars([str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "a" / "0.tar")])
    assert unique_names(tars) == ["a-0", "b-0"]
    index_tars(Plan(tars, tmp_path / "both", "web", "train"))
    reader = ShardReader(read_manifest(tmp_path / "both"))
    assert [reader.read(shard, 0).image for shard in range(2)] == [picture(97), picture(98)]


def test_the_command_takes_folders_tars_and_brace_patterns(tmp_path: Path, itm: Itm) -> None:
    folder = write_img2dataset(tmp_path / "data" / "train", shards=5)
    done = itm("shards", "index", "data/train/{00001..00003}.tar", "--out", "part", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("would index 3 tars, ")
    assert not (tmp_path / "part").exists()
    done = itm("shards", "index", "data/train/{00001..00003}.tar", "--out", "part")
    assert done.returncode == 0, done.stderr
    assert "part: 12 samples, 12 captions, 3 shards" in done.stdout
    manifest = read_manifest(tmp_path / "part")
    assert (manifest.split, manifest.dataset, manifest.names) == ("train", "data", ("00001", "00002", "00003"))
    done = itm("shards", "index", folder / "00000.tar", "--split", "val", "--dataset", "d")
    assert done.returncode == 0, done.stderr
    assert (read_manifest(folder).split, read_manifest(folder).dataset) == ("val", "d")


def test_mistakes_are_one_line_and_nothing_is_written(
    tmp_path: Path, itm: Itm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_img2dataset(tmp_path / "web", shards=1)
    write_img2dataset(tmp_path / "other", shards=1)
    (tmp_path / "empty").mkdir()
    write_tar(tmp_path / "packed" / "0.tar.gz", img2dataset_members(0, 2), mode="w:gz")
    write_tar(tmp_path / "void" / "0.tar", [("README", b"nothing")])
    before = fingerprint(tmp_path)
    mistakes = {
        "nowhere": "nowhere: no such file or folder",
        "web/{00000..00002}.tar": "web/00001.tar: no such file",
        "web/{0": "not a brace pattern",
        "empty": "empty: no .tar in this folder",
        "packed": "no .tar in this folder; its compressed ones can be rewritten with `itm shards reshard`",
        "packed/0.tar.gz": "compressed by gzip, so its samples cannot be read at random; `itm shards reshard`",
        "https://host/0.tar": "tars behind URLs cannot be read here",
        "void": "no usable sample",
        "web/00000.parquet": "cannot be indexed",
    }
    for location, message in mistakes.items():
        with pytest.raises(DataError, match=re.escape(message)) as caught:
            index_command([location], processes=1)
        assert "\n" not in str(caught.value)
        assert fingerprint(tmp_path) == before, location
    with pytest.raises(DataError, match=r"several folders; give the manifest one of its own with --out"):
        index_command(["web", "other"])
    with pytest.raises(DataError, match=r"cannot be written to .*--out"):
        index_command(["web"], out=Path("web/00000.tar"))
    done = itm("shards", "index", "void")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "itm: error: 1 tars and no usable sample in them; 0.tar: no usable sample\n"
    assert fingerprint(tmp_path) == before
