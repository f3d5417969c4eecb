import errno
import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from shards.errors import DataError
from shards.storage.cache import Cache, default_directory
from shards.storage.store import StoppedError, Store
from tests.conftest import ENVIRONMENT


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:40]


def total(directory: Path) -> int:
    """Bytes in the directory, those being written included."""
    sizes = []
    for path in (path for folder in ("partial", "data") for path in (directory / folder).iterdir()):
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sum(sizes)


def kept(store: Store, numbers: range) -> list[int]:
    """Which of the numbers are there, without using them."""
    return [number for number in numbers if store.path(key(number)).exists()]


def test_what_is_put_is_read_by_any_store_of_the_directory(tmp_path: Path) -> None:
    Store(tmp_path, 100).put(key(1), b"0123456789")
    store = Store(tmp_path, 100)
    assert store.read(key(1), 3, 4) == b"3456"
    assert store.read(key(2), 0, 4) is None
    assert store.use(key(1))
    assert not store.use(key(2))
    store.remove(key(1))
    assert store.read(key(1), 3, 4) is None


@pytest.mark.parametrize("touch", [lambda store: store.use(key(0)), lambda store: store.read(key(0), 0, 1)])
def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, touch: Callable[[Store], object]) -> None:
    store = Store(tmp_path, 50)
    for number in range(5):
        store.put(key(number), bytes(10))
        time.sleep(0.01)
    touch(store)
    store.put(key(5), bytes(10))
    assert kept(store, range(6)) == [0, 2, 3, 4, 5]
    store.put(key(6), bytes(25))
    assert kept(store, range(7)) == [0, 5, 6]
    assert total(tmp_path) <= 50


def test_an_open_file_stays_readable_when_it_is_evicted(tmp_path: Path) -> None:
    store = Store(tmp_path, 10)
    store.put(key(0), b"0123456789")
    with store.path(key(0)).open("rb") as stream:
        store.put(key(1), bytes(10))
        assert not kept(store, range(1))
        assert stream.read() == b"0123456789"


def test_files_removed_by_hand_free_their_room(tmp_path: Path) -> None:
    store = Store(tmp_path, 50)
    for number in range(5):
        store.put(key(number), bytes(10))
    for number in range(3):
        store.path(key(number)).unlink()
    for number in range(5, 8):
        store.put(key(number), bytes(10))
    assert kept(store, range(8)) == [3, 4, 5, 6, 7]


def test_a_bound_lower_than_before_is_kept_from_the_next_put_on(tmp_path: Path) -> None:
    for number in range(10):
        Store(tmp_path, 100).put(key(number), bytes(10))
    Store(tmp_path, 30).put(key(10), bytes(10))
    assert total(tmp_path) <= 30


def test_more_than_the_bound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"11 bytes to keep, but it is bounded to 10; give it many times more"):
        Store(tmp_path, 10).put(key(0), bytes(11))


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Store(tmp_path, 100)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(DataError, match=r"cannot be written to \(No space left on device\); make room there"):
            store.put(key(0), bytes(10))
    assert total(tmp_path) == 0
    store.put(key(0), bytes(10))
    assert kept(store, range(1)) == [0]


def test_a_directory_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cache .*file/sub: cannot be written to \(Not a directory\)"):
        Store(tmp_path / "file" / "sub", 100).put(key(0), bytes(10))


def test_a_claim_makes_others_wait_until_it_ends_or_they_are_stopped(tmp_path: Path) -> None:
    order = []

    def claim() -> None:
        with Store(tmp_path, 100).claim(key(0), threading.Event()):
            order.append("second")

    stopped = threading.Event()
    stopped.set()
    with Store(tmp_path, 100).claim(key(0), threading.Event()):
        other = threading.Thread(target=claim)
        other.start()
        with pytest.raises(StoppedError), Store(tmp_path, 100).claim(key(0), stopped):
            pass
        time.sleep(0.1)
        order.append("first")
    other.join(5)
    assert order == ["first", "second"]


WRITER = """
import hashlib, itertools, os, sys
from pathlib import Path
from shards.storage.store import Store

store = Store(Path(sys.argv[1]), 20_000_000)
store.put("0" * 40, bytes(20) * 150_000)
print("ready", flush=True)
for number in itertools.count(int(sys.argv[2])):
    name = hashlib.sha256(str(number).encode()).hexdigest()[:40]
    store.put(name, bytes.fromhex(name) * 150_000)
"""


def test_writers_that_are_killed_leave_whole_files_and_the_bound(tmp_path: Path) -> None:
    orphans = 0
    for attempt in range(6):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), str(1_000_000 * (2 * attempt + place))],
                stdout=subprocess.PIPE,
                env=ENVIRONMENT,
            )
            for place in range(2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        deadline = time.monotonic() + 0.05 + 0.02 * attempt
        while time.monotonic() < deadline:
            with (tmp_path / "used").open("rb") as accounts:
                fcntl.flock(accounts, fcntl.LOCK_EX)
                # a file that is renamed while they are counted may be counted twice: one a writer
                assert total(tmp_path) <= 20_000_000 + 2 * 3_000_000
        for writer in writers:
            writer.kill()
            writer.communicate()
        orphans += len(list((tmp_path / "partial").iterdir()))
        for path in (tmp_path / "data").iterdir():
            assert path.read_bytes() == bytes.fromhex(path.name) * 150_000
    assert orphans, "no kill met a write: the test shows nothing"
    store = Store(tmp_path, 20_000_000)
    for number in range(8):
        store.put(key(number), bytes(3_000_000))
    assert not list((tmp_path / "partial").iterdir())
    assert total(tmp_path) <= 20_000_000
    assert kept(store, range(8)) == list(range(2, 8))


def test_the_directory_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITM_CACHE", str(tmp_path / "here"))
    assert Cache().directory == default_directory() == tmp_path / "here"
    monkeypatch.delenv("ITM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Cache().directory == tmp_path / "home" / ".cache" / "itm"


@pytest.mark.parametrize("setting", ["max_bytes", "timeout", "attempts", "threads"])
def test_settings_that_mean_nothing_are_refused(tmp_path: Path, setting: str) -> None:
    with pytest.raises(DataError, match=f"{setting} is 0, but must be positive"):
        Cache(tmp_path, **{setting: 0})


def refusing(number: int) -> Callable[..., None]:
    def refuse(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def claimed(store: Store) -> None:
    with store.claim(key(0), threading.Event()):
        pass


USES = [
    claimed,
    lambda store: store.use(key(0)),
    lambda store: store.read(key(0), 0, 1),
    lambda store: store.put(key(0), b"x"),
]


@pytest.mark.parametrize("use", USES)
def test_a_file_in_the_folders_place_is_told_whatever_is_done(
    tmp_path: Path, use: Callable[[Store], object]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"^cache .*file: cannot be written to \((Not a directory|File exists)\)"):
        use(Store(tmp_path / "file", 100))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("use", [claimed, lambda store: store.put(key(0), b"x")])
def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Store], object], number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    told = r"^cache .*: this file system has no locks \(.*\); name a folder on a local disk, by data\.cache\.dir or"
    with pytest.raises(DataError, match=told):
        use(Store(tmp_path, 100))


@pytest.mark.parametrize("use", USES[1:3])
def test_a_disk_that_fails_is_told_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Store], object]
) -> None:
    Store(tmp_path, 100).put(key(0), b"x")
    monkeypatch.setattr(os, "utime", refusing(errno.EROFS))
    with pytest.raises(DataError, match=r"^cache .*Read-only file system"):
        use(Store(tmp_path, 100))


def test_an_error_of_what_is_done_under_a_claim_is_not_the_caches(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="another disk"), Store(tmp_path, 100).claim(key(0), threading.Event()):
        raise OSError("another disk")


def test_a_tilde_in_the_environment_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ITM_CACHE", "~/here")
    assert Cache().directory == tmp_path / "here"
