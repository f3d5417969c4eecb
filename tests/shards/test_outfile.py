import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.commands.outfile import check_file, write_json
from shards.errors import DataError
from shards.manifest import Manifest


def refused(path: Path, phrase: str, *, overwrite: bool = False) -> None:
    with pytest.raises(DataError) as raised:
        check_file(path, overwrite, suffixes=(".json", ".html"))
    assert str(raised.value).startswith(f"--out {path}: ")
    assert phrase in str(raised.value)


def test_what_stands_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    place = tmp_path / "page.html"
    check_file(place, False)
    place.write_text("mine")
    refused(place, "exists already; give another, or --overwrite to replace it")
    check_file(place, True)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"], "looking leaves nothing"


def test_a_place_that_takes_no_file_is_told_before_the_work(tmp_path: Path) -> None:
    refused(tmp_path / "page.pdf", "give a file that ends in .json or .html")
    (tmp_path / "a.json").mkdir()
    refused(tmp_path / "a.json", "is a folder; give a file name", overwrite=True)
    (tmp_path / "file").touch()
    refused(tmp_path / "file/b.json", f"{tmp_path}/file cannot be written to (Not a directory)")
    refused(Path("/proc/none/b.json"), "/proc cannot be written to")  # where even root has no say
    (tmp_path / "device.json").symlink_to("/dev/null")
    refused(tmp_path / "device.json", "is no file", overwrite=True)


def test_json_has_no_noise_of_adding_up_and_makes_its_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "new/x.json", {"a": 0.6 + 0.6 + 0.6, "b": [{"c": 1 / 3}], "d": (2**60 + 1, "e", None)})
    text = (tmp_path / "new/x.json").read_text()
    assert "1.7999999999999998" not in text
    assert json.loads(text) == {"a": 1.8, "b": [{"c": 0.333333333333}], "d": [2**60 + 1, "e", None]}


def test_the_commands_keep_the_rule(
    tmp_path: Path, make_shards: Callable[..., Manifest], itm: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    make_shards(tmp_path / "train", 3)
    for command, name in (("inspect", "x.html"), ("stats", "x.json"), ("verify", "x.json")):
        (tmp_path / name).write_text("mine")
        done = itm("shards", command, "train", "--out", name)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"itm: error: --out {name}: exists already; give another, or --overwrite")
        assert (tmp_path / name).read_text() == "mine"
    dry = itm("shards", "inspect", "train", "--out", "x.html", "--samples", 2, "--overwrite", "--dry-run")
    assert dry.stdout == "would write x.html with 2 samples\n"
    assert (tmp_path / "x.html").read_text() == "mine"
    done = itm("shards", "inspect", "train", "--out", "x.html", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.html").read_text().startswith("<!doctype html>")
