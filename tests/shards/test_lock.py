import errno
import fcntl
import os
from pathlib import Path

import pytest

import shards.lock
from shards.lock import FileLock


@pytest.mark.parametrize(
    ("first", "second", "granted"),
    [(False, False, False), (False, True, False), (True, False, False), (True, True, True)],
)
def test_a_lock_is_shared_or_alone(tmp_path: Path, first: bool, second: bool, granted: bool) -> None:
    one, two = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert one.acquire(shared=first)
    assert two.acquire(shared=second) == granted
    one.close()
    assert two.acquire(shared=second)
    two.close()


def test_a_lock_can_be_made_shared(tmp_path: Path) -> None:
    one, two = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert one.acquire()
    assert one.acquire(shared=True)
    assert two.acquire(shared=True)
    assert not one.acquire()


def test_a_deleted_lock_is_not_current(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    one = FileLock(path)
    assert one.is_current()
    path.unlink()
    assert not one.is_current()
    FileLock(path).close()
    assert not one.is_current()


def test_a_file_system_without_locks_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(_descriptor: int, _kind: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", none)
    shards.lock._warn.cache_clear()
    one = FileLock(tmp_path / "lock")
    assert one.acquire()
    assert one.acquire(shared=True)
    assert not one.works
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: this file system has no locks; see to it yourself that no second call writes there"
    ]
