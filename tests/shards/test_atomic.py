import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.atomic import building, replacing
from shards.errors import DataError


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as stream:
        stream.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_leftover_of_a_killed_writer_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (tmp_path / ".file.partial").write_bytes(b"half a fi")
    with replacing(path) as stream:
        stream.write(b"x")
    assert path.read_bytes() == b"x"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_with_the_file(tmp_path: Path, number: int) -> None:
    path = tmp_path / "file"
    with pytest.raises(DataError, match=rf"^{path}: cannot be written \(.+\); make room"), replacing(path):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_that_shows_at_the_end_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(DataError, match=r"file: cannot be written \(Input/output error\)"),
        replacing(tmp_path / "file"),
    ):
        pass


def test_an_error_of_another_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="other"), replacing(tmp_path / "file"):
        (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("opened", [replacing, building])
def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, opened: Callable[..., Any]) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "below"
    with (
        pytest.raises(DataError, match=rf"^{path}: cannot be written \(Not a directory\); make room"),
        opened(path),
    ):
        pass


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path, unique=True) as one:
        one.write(b"one")
        with replacing(path, unique=True) as two:
            two.write(b"the other")
        assert path.read_bytes() == b"the other"
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]
