import gc
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing import parent_process
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shards.staging
from shards.convert import Options, convert, merge, parse_part, write_split
from shards.demo.source import demo_records
from shards.errors import DataError
from shards.manifest import read_index, read_manifest
from shards.sources.record import Record, Skipped, Source, Split
from shards.staging import Staging
from tests.conftest import ENVIRONMENT, REPOSITORY
from tests.shards.killable import OPTIONS, slow_source
from tests.shards.pictures import (
    FOUR,
    claim,
    contents,
    convert_all,
    convert_part,
    encoded,
    good,
    mixed,
    record,
    skipped_names,
    source_of,
)
from tests.shards.test_parallel import group_lives

SOURCE = source_of(train=mixed(45), val=mixed(9))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process writes without an interruption."""
    out = tmp_path_factory.mktemp("expected")
    convert_all(SOURCE, out)
    return contents(out)


# --- the same bytes, however it is done


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_any_number_of_processes_writes_the_same_bytes(
    tmp_path: Path, expected: dict[str, str], processes: int
) -> None:
    time.sleep(1.1 if processes == 1 else 0)  # times in a tar are whole seconds
    convert_all(SOURCE, tmp_path, processes=processes)
    assert contents(tmp_path) == expected
    assert len(expected) == 2 * 12 + 3 + 2 * 3 + 3


@pytest.mark.parametrize("order", [(1,), (2, 1), (4, 2, 5, 1, 3), (20, *range(1, 20))])
def test_any_parts_in_any_order_write_the_same_bytes(
    tmp_path: Path, expected: dict[str, str], order: tuple[int, ...]
) -> None:
    for part in order:
        convert_part(SOURCE, tmp_path, (part, len(order)))
    merge(tmp_path)
    assert contents(tmp_path) == expected


def test_parts_need_not_be_of_one_number(tmp_path: Path, expected: dict[str, str]) -> None:
    for part in ((1, 2), (3, 3), (2, 4), (4, 4)):
        convert_part(SOURCE, tmp_path, part)
    convert_all(SOURCE, tmp_path)
    assert contents(tmp_path) == expected


def test_the_demo_data_set_is_the_same_for_any_number_of_processes(tmp_path: Path) -> None:
    for processes in (1, 2):
        write_split(
            demo_records("pretrain", 40, 3, 16),
            tmp_path / f"with-{processes}",
            dataset="demo",
            split="pretrain",
            options=FOUR,
            processes=processes,
        )
    assert contents(tmp_path / "with-1") == contents(tmp_path / "with-2")
    assert read_manifest(tmp_path / "with-1").num_samples == 40


def keys(root: Path) -> list[str]:
    manifest = read_manifest(root)
    return [key for shard in range(len(manifest.names)) for key in read_index(manifest, shard).keys.to_pylist()]


def test_a_seed_shuffles_all_records_of_a_split(tmp_path: Path) -> None:
    orders = {}
    for name, seed, processes in (("none", None, 1), ("one", 1, 1), ("again", 1, 2), ("two", 2, 1)):
        convert_all(SOURCE, tmp_path / name, Options(samples_per_shard=4, seed=seed), processes)
        orders[name] = keys(tmp_path / name / "train")
        assert sorted(skipped_names(tmp_path / name / "train")) == sorted(skipped_names(tmp_path / "none/train"))
    assert orders["none"] == sorted(orders["none"]) == sorted(orders["one"]) == sorted(orders["two"])
    assert len({tuple(order) for order in orders.values()}) == 3
    assert contents(tmp_path / "one") == contents(tmp_path / "again")
    moved = [abs(place - orders["none"].index(key)) for place, key in enumerate(orders["one"])]
    assert sum(moved) / len(moved) > len(moved) / 5, "near a third, when all places are alike"


@pytest.mark.parametrize("processes", [1, 2])
def test_progress_tells_every_record_once_also_those_found_finished(tmp_path: Path, processes: int) -> None:
    convert_part(SOURCE, tmp_path, (2, 3))
    told = {"train": 0, "val": 0}

    def advance(split: str, count: int) -> None:
        told[split] += count

    with Staging(tmp_path) as staging:
        claim(staging, SOURCE)
        convert(SOURCE, staging, FOUR, processes=processes, on_records=advance)
    assert told == {"train": 45, "val": 9}


# --- kills


def start(out: Path, processes: int, *part: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.shards.killable", str(out), str(processes), *part],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_units(running: subprocess.Popen[str], out: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(out.glob(".partial/*/.units/0*.json"))) < count and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_for_group(running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while group_lives(running.pid):
        assert time.monotonic() < deadline, "a process lives on"
        time.sleep(0.01)


def finished_tars(out: Path) -> dict[str, tuple[int, int]]:
    """Of the units that are noted as finished: each tar's inode and time."""
    found = {}
    for note in out.glob(".partial/*/.units/0*.json"):
        root = note.parents[1]
        for shard in json.loads(note.read_bytes())["shards"]:
            state = (root / shard["path"]).stat()
            found[f"{root.name}/{shard['path']}"] = (state.st_ino, state.st_mtime_ns)
    return found


@pytest.mark.parametrize("whole_group", [True, False])
def test_a_conversion_killed_again_and_again_ends_as_if_it_were_not(tmp_path: Path, whole_group: bool) -> None:
    convert_all(slow_source(0), tmp_path / "expected", OPTIONS)
    out, draw = tmp_path / "out", random.Random(int(whole_group))
    kept: dict[str, tuple[int, int]] = {}
    for wanted in (1, 8, 15):
        with start(out, 2) as running:
            wait_for_units(running, out, wanted)
            time.sleep(draw.random() * 0.05)
            (os.killpg if whole_group else os.kill)(running.pid, signal.SIGKILL)
        wait_for_group(running)
        assert running.returncode == -signal.SIGKILL
        assert [path.name for path in out.iterdir()] == [".partial"]
        found = finished_tars(out)
        assert kept.items() <= found.items(), "a finished shard was written again"
        assert len(found) >= wanted
        kept = found
    with start(out, 2) as running:
        assert running.communicate(timeout=60) == ("", "")
    wait_for_group(running)
    assert contents(out) == contents(tmp_path / "expected")
    for name, (inode, written) in kept.items():
        state = (out / name).stat()
        assert (state.st_ino, state.st_mtime_ns) == (inode, written)


def test_a_repeated_call_waits_for_the_workers_of_a_killed_one(tmp_path: Path) -> None:
    convert_all(slow_source(0), tmp_path / "expected", OPTIONS)
    out = tmp_path / "out"
    with start(out, 2) as running:
        wait_for_units(running, out, 2)
        running.kill()
        with start(out, 2) as following:  # at once
            assert following.communicate(timeout=60) == ("", "")
    assert contents(out) == contents(tmp_path / "expected")


def test_a_part_that_is_killed_is_repeated_while_another_goes_on(tmp_path: Path) -> None:
    convert_all(slow_source(0), tmp_path / "expected", OPTIONS)
    out = tmp_path / "out"
    with start(out, 1, "1/2") as one, start(out, 1, "2/2") as two:
        wait_for_units(two, out, 3)
        two.kill()
        two.wait()
        one.send_signal(signal.SIGSTOP)
        with pytest.raises(DataError, match="another conversion is writing there"):
            merge(out)
        one.send_signal(signal.SIGCONT)
        with start(out, 1, "2/2") as again:
            assert again.communicate(timeout=60) == ("", "")
        assert one.communicate(timeout=60) == ("", "")
    merge(out)
    assert contents(out) == contents(tmp_path / "expected")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interruption_keeps_finished_shards_and_nothing_half_written(tmp_path: Path, processes: int) -> None:
    out = tmp_path / "out"
    with start(out, processes) as running:
        wait_for_units(running, out, 3)
        begin = time.monotonic()
        os.killpg(running.pid, signal.SIGINT)
        _, errors = running.communicate(timeout=30)
        assert time.monotonic() - begin < 10
    wait_for_group(running)
    assert (running.returncode, errors) == (130, "")
    kept = finished_tars(out)
    assert len(kept) >= 3
    with start(out, processes) as running:
        assert running.communicate(timeout=60) == ("", "")
    assert all((out / name).stat().st_ino == inode for name, (inode, _) in kept.items())
    assert len(list(out.rglob(".*"))) == 0


# --- what goes wrong on the way


def die(number: int) -> bytes:
    """Ends the process that it is in, unless that is the calling one, which is slow and leaves work to others."""
    if number >= 10:
        if parent_process() is not None:
            os._exit(1)
        time.sleep(0.2)
    return encoded(number)


def test_a_worker_that_dies_is_one_line_and_finished_shards_stay(tmp_path: Path) -> None:
    records: list[Record | Skipped] = [Record(f"k{n}", n, ("x",), partial(die, n)) for n in range(40)]
    with pytest.raises(DataError, match=r"^a worker process died, .*; repeat the call with fewer --processes$"):
        convert_all(source_of(train=records), tmp_path, processes=2)
    assert finished_tars(tmp_path)
    assert not (tmp_path / "train").exists()


def stop(number: int) -> bytes:
    if number == 10:
        raise DataError("the archive is damaged")
    return encoded(number)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_the_source_keeps_its_words(tmp_path: Path, processes: int) -> None:
    records: list[Record | Skipped] = [Record(f"k{n}", n, ("x",), partial(stop, n)) for n in range(40)]
    with pytest.raises(DataError, match=r"^the archive is damaged$"):
        convert_all(source_of(train=records), tmp_path, processes=processes)
    assert not (tmp_path / "train").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("a file system can be mounted by root alone; test_units.py has the error without one")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_is_one_line_and_the_call_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path, processes: int
) -> None:
    source = source_of(train=[record(number, encoded(number, "BMP", (50, 50))) for number in range(40)])
    out = small_disk / "out"
    with pytest.raises(
        DataError, match=rf"^{out}/.partial/train/train-.*: cannot be written \(No space left on device\)"
    ):
        convert_all(source, out, processes=processes)
    kept = finished_tars(out)
    assert len(kept) >= 2
    gc.collect()  # a killed worker's half-written file is the next call's to delete
    subprocess.run(["mount", "-o", "remount,size=4M", small_disk], check=True)
    convert_all(source, out, processes=processes)
    assert all((out / name).stat().st_ino == inode for name, (inode, _) in kept.items())
    convert_all(source, tmp_path / "expected")
    assert contents(out) == contents(tmp_path / "expected")


# --- size

MEMORY = """
import resource, sys
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from shards.convert import Options, convert, publish
from shards.sources.record import Source, Split
from shards.staging import Staging
from tests.shards.test_convert import Tiny

def mebibytes(who):
    return resource.getrusage(who).ru_maxrss / 1024

if __name__ == "__main__":
    source = Source("d", [Split("train", Tiny(int(sys.argv[2])))])
    with Staging(Path(sys.argv[1])) as staging:
        staging.claim(["train"], {})
        convert(source, staging, Options(), processes=2)
        reports = publish(staging, "d", ["train"])
    print(reports["train"].samples, mebibytes(resource.RUSAGE_SELF), mebibytes(resource.RUSAGE_CHILDREN))
"""


class Tiny:
    """So many records of one pixel, made as they are asked for; every tenth is skipped."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Record | Skipped]:
        load = partial(bytes, encoded(0, "GIF", (1, 1)))
        for number in range(self.count):
            yield Record(f"k{number:08d}", number, ("a caption of some length",), load)
            if number % 10 == 0:
                yield Skipped(f"skipped {number}", "for a reason of some length")


def peaks(tmp_path: Path, count: int) -> tuple[float, float]:
    """Most memory of the main process and of a worker, MiB."""
    script = tmp_path / "script.py"
    script.write_text(MEMORY)
    done = subprocess.run(
        [sys.executable, script, str(tmp_path / f"of-{count}"), str(count)],
        env=ENVIRONMENT,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    samples, main, worker = done.stdout.split()
    assert int(samples) == count
    return float(main), float(worker)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    few, many = peaks(tmp_path, 10_000), peaks(tmp_path, 100_000)
    assert many[0] < few[0] + 10
    assert many[1] < few[1] + 10


def test_an_endless_source_is_taken_only_a_bounded_way_ahead(tmp_path: Path) -> None:
    taken = 0

    class Endless:
        def __iter__(self) -> Iterator[Record | Skipped]:
            nonlocal taken
            for number in itertools.count():
                taken = number
                yield record(number, b"x" if number < 10_000 else encoded())

    class EnoughError(Exception):
        pass

    def advance(_split: str, _count: int) -> None:
        if taken > 100:
            raise EnoughError

    with pytest.raises(EnoughError), Staging(tmp_path) as staging:
        source = Source("d", [Split("train", Endless())])
        claim(staging, source)
        convert(source, staging, FOUR, processes=2, on_records=advance)
    assert taken < 200


# --- the rest


def test_write_split_leaves_nothing_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split val: no usable sample"):
        write_split([record(0, b"x")], tmp_path / "folder", dataset="d", split="val")
    assert not list(tmp_path.iterdir())


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_a_part_is_written_as_i_of_n(first: int, more: int) -> None:
    assert parse_part(f"{first}/{first + more}") == (first, first + more)


@settings(max_examples=30)
@given(
    st.one_of(st.sampled_from(["0/2", "3/2", "1", "1/", "/2", "-1/2", "1/2/3", "a/b", "1 / 2", "1/0"]), st.text())
)
def test_another_part_is_refused(text: str) -> None:
    first, _, last = text.partition("/")
    if first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last):
        return
    with pytest.raises(DataError, match=r"(?s)--part .*write I/N with I from 1 to N"):
        parse_part(text)


def test_the_lock_is_held_for_a_while_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shards.staging, "PATIENCE", 0.2)
    with Staging(tmp_path):
        begin = time.monotonic()
        with pytest.raises(DataError), Staging(tmp_path):
            pass
        assert 0.2 <= time.monotonic() - begin < 2


def test_open_files_do_not_add_up(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    convert_all(source_of(train=list(good(5))), tmp_path / "first", processes=2)
    before = open_files()
    for number in range(5):
        convert_all(source_of(train=list(good(5))), tmp_path / str(number), processes=2)
        with pytest.raises(DataError):
            convert_all(source_of(train=[record(0, b"x")]), tmp_path / "failed", processes=2)
    assert open_files() <= before
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > before
