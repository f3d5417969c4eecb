import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest

import shards.staging
from shards.convert import Options, SplitReport, convert, publish
from shards.errors import DataError
from shards.lock import FileLock
from shards.manifest import MANIFEST, read_manifest
from shards.publish import join
from shards.sources.record import Source
from shards.staging import UNITS, Staging
from tests.shards.pictures import FOUR, claim, contents, convert_all, convert_part, good, mixed, source_of

THREE = Options(samples_per_shard=3)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.staging, "PATIENCE", 0)


def refused(call: Callable[[], object], *phrases: str) -> None:
    with pytest.raises(DataError) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message
    for phrase in phrases:
        assert phrase in message


def enter(staging: Staging) -> None:
    with staging:
        pass


def leave_unfinished(out: Path, options: Options = FOUR, identity: int = 1) -> None:
    """The first of two parts of a conversion."""
    convert_part(source_of(identity, train=list(good(13)), val=mixed(9)), out, (1, 2), options)


# --- one call at a time


@pytest.mark.parametrize("shared", [False, True])
def test_a_second_conversion_is_refused_and_the_first_goes_on(tmp_path: Path, shared: bool) -> None:
    source = source_of(train=list(good(5)))
    with Staging(tmp_path / "out") as staging:
        claim(staging, source)
        refused(lambda: enter(Staging(tmp_path / "out", shared=shared)), "another conversion is writing there")
        convert(source, staging, FOUR)
        publish(staging, "d", ["train"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train"]


def test_parts_work_at_once_and_neither_merge_nor_publish_comes_between(tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = source_of(train=list(good(13)))
    with Staging(out, shared=True) as one:
        claim(one, source)
        with Staging(out, shared=True) as two:
            claim(two, source)
            convert(source, two, FOUR, part=(2, 2))
        refused(lambda: enter(Staging(out)), "another conversion is writing there")
        convert(source, one, FOUR, part=(1, 2))
    with Staging(out) as staging:
        assert publish(staging, "d", ["train"])["train"].samples == 13


def test_a_part_that_fails_takes_nothing_from_one_at_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = source_of(train=list(good(3)))
    with Staging(out, shared=True) as one:
        claim(one, source)
        (one.split("train") / UNITS).mkdir(parents=True)
        with pytest.raises(RuntimeError), Staging(out, shared=True) as two:
            claim(two, source)
            raise RuntimeError
        convert(source, one, FOUR)
    assert (out / ".partial/train/train-000000.tar").is_file()


def test_workers_of_a_killed_conversion_keep_the_lock(tmp_path: Path) -> None:
    out = tmp_path / "out"
    leave_unfinished(out)
    orphan = FileLock(out / ".partial/.lock")
    orphan.acquire()
    refused(lambda: enter(Staging(out)), "another conversion is writing there")
    refused(lambda: leave_unfinished(out), "another conversion is writing there")
    orphan.close()
    enter(Staging(out))


def test_a_call_that_comes_while_the_last_one_tidies_up_begins_anew(tmp_path: Path) -> None:
    out = tmp_path / "out"
    staging = Staging(out)
    with staging:
        stale = FileLock(staging.root / ".gate")
    assert not stale.is_current()
    assert not out.exists()
    convert_all(source_of(train=list(good(3))), out)
    assert read_manifest(out / "train").num_samples == 3


# --- what stands there already


def test_a_split_that_exists_is_refused_without_overwrite(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "val").symlink_to("nowhere")
    for split in ("train", "val"):
        refused(
            lambda split=split: Staging(tmp_path).check([split]),  # type: ignore[misc]
            f"{tmp_path / split}: exists already; give another --out, or --overwrite",
        )
    Staging(tmp_path).check(["test"])
    Staging(tmp_path, overwrite=True).check(["train", "val"])


def test_overwrite_replaces_nothing_but_shards(tmp_path: Path) -> None:
    """Somebody's photos, with a `manifest.json` of something else among them; a file."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train/photo.jpg").write_bytes(b"mine")
    (tmp_path / "train" / MANIFEST).write_bytes(b"{}")
    (tmp_path / "val").write_bytes(b"mine")
    for split in ("train", "val"):
        refused(
            lambda split=split: convert_all(source_of(**{split: list(good(3))}), tmp_path, overwrite=True),
            f"{tmp_path / split}: exists already, and is no folder of shards; give another --out",
        )
    assert sorted(contents(tmp_path)) == ["train/manifest.json", "train/photo.jpg", "val"]


@pytest.mark.parametrize("read", ["out/train", "out/train/train-000000.tar", "link/train", "out"])
def test_overwrite_replaces_nothing_that_is_read(tmp_path: Path, read: str) -> None:
    out = tmp_path / "out"
    convert_all(source_of(train=list(good(3))), out)
    (tmp_path / "link").symlink_to(out)
    staging = Staging(out, overwrite=True, inputs=[tmp_path / read])
    if read == "out":  # such as `--images .`: the split is beside what is read from it
        staging.check(["train"])
    else:
        refused(lambda: staging.check(["train"]), f"{out / 'train'}: is, or holds, what is read, {tmp_path / read}")


@pytest.mark.parametrize("name", ["", ".", "..", ".units", "a/b", "a b", "a\nb", "{000..999}", "a\0"])
def test_a_split_that_can_be_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    refused(lambda: Staging(tmp_path).check([name]), "split ", "must be made of letters")


@pytest.mark.parametrize("name", ["train", "val2017", "test.clean", "Straße", "a+b_c-d", "lock", "plan.json"])
def test_other_names_make_a_split(tmp_path: Path, name: str) -> None:
    convert_all(source_of(**{name: list(good(5))}), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert read_manifest(tmp_path / "out" / name).num_samples == 5


@pytest.mark.parametrize("below", [".", "deeper"])
def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    refused(lambda: enter(Staging(file / below)), f"--out {file / below}: cannot be written to")
    assert file.read_text() == "mine"


def test_a_failure_leaves_what_stood_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RuntimeError), Staging(tmp_path) as staging:
        claim(staging, source_of(train=[]))
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_relative_out_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    convert_all(source_of(train=list(good(5))), Path("a/b"), processes=2)
    assert sorted(contents(tmp_path))[0].startswith("a/b/train/")
    convert_all(source_of(train=list(good(5))), Path())
    assert read_manifest("train").num_samples == 5


# --- going on, and other settings


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("change", ["settings", "input", "splits"])
def test_something_else_on_top_of_an_unfinished_conversion_is_refused(
    tmp_path: Path, change: str, shared: bool
) -> None:
    out = tmp_path / "out"
    leave_unfinished(out)
    before = contents(out)
    source = source_of(2 if change == "input" else 1, train=[], **({} if change == "splits" else {"val": []}))
    options = THREE if change == "settings" else FOUR

    def begin() -> None:
        with Staging(out, shared=shared) as staging:
            claim(staging, source, options)

    refused(begin, str(out / ".partial"), "an unfinished conversion of other input, or with other settings")
    assert contents(out) == before


@pytest.mark.parametrize("parts", [1, 2])
def test_overwrite_discards_an_unfinished_conversion_of_something_else(tmp_path: Path, parts: int) -> None:
    source = source_of(2, train=list(good(14)), val=mixed(8))
    convert_all(source, tmp_path / "expected", THREE)
    out = tmp_path / "out"
    leave_unfinished(out)
    if parts == 1:
        convert_all(source, out, THREE, overwrite=True)
    else:
        for part in (2, 1):
            convert_part(source, out, (part, 2), THREE, overwrite=True)
        with Staging(out) as staging:
            publish(staging, "d", ["train", "val"])
    assert contents(out) == contents(tmp_path / "expected")


def test_overwrite_discards_nothing_under_a_part_at_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    leave_unfinished(out)
    source = source_of(train=list(good(13)), val=mixed(9))
    with Staging(out, shared=True) as one:
        claim(one, source)
        before = contents(out)
        refused(
            lambda: convert_part(source, out, (2, 2), THREE, overwrite=True),
            "parts of another conversion are being written there; wait for them",
        )
        assert contents(out) == before


def test_overwrite_goes_on_with_the_same_conversion(tmp_path: Path) -> None:
    out = tmp_path / "out"
    leave_unfinished(out)
    before = times(out / ".partial")
    convert_all(source_of(train=list(good(13)), val=mixed(9)), out, overwrite=True)
    assert before.items() <= times(out).items()


def times(root: Path) -> dict[str, int]:
    """When each tar was written."""
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.glob("*/*.tar")}


def test_a_discarding_that_was_killed_leaves_nothing_that_counts_as_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever files of the old conversion are left, neither the old nor the new one may take them over."""
    source = source_of(train=list(good(13)), val=mixed(9))
    convert_all(source, tmp_path / "expected")
    out = tmp_path / "out"
    leave_unfinished(out)

    def half(path: Path, **_options: object) -> None:
        tars = sorted(Path(path).glob("*.tar"))
        assert tars
        tars[0].unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            convert_all(source_of(2, train=[], val=[]), out, THREE, overwrite=True)
    convert_all(source, out)
    assert contents(out) == contents(tmp_path / "expected")


# --- the commit


def test_overwrite_replaces_the_whole_split_and_no_other(tmp_path: Path) -> None:
    convert_all(source_of(train=list(good(9)), val=list(good(2))), tmp_path)
    convert_all(source_of(train=list(good(3))), tmp_path, overwrite=True)
    assert read_manifest(tmp_path / "train").num_samples == 3
    assert not (tmp_path / "train" / "train-000002.tar").exists()
    assert read_manifest(tmp_path / "val").num_samples == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train", "val"]


def test_overwrite_replaces_a_link_and_leaves_what_it_points_to(tmp_path: Path) -> None:
    convert_all(source_of(elsewhere=list(good(9))), tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "train").symlink_to(tmp_path / "elsewhere")
    convert_all(source_of(train=list(good(3))), out, overwrite=True)
    assert read_manifest(out / "train").num_samples == 3
    assert read_manifest(tmp_path / "elsewhere").num_samples == 9


def die_at(step: int, call: Callable[[], object]) -> bool:
    """Make the call in a copy of this process that is killed before its `step`-th change to the disk; was it?"""
    child = os.fork()
    if child == 0:
        steps = iter(range(step))

        def count(event: str, _arguments: object) -> None:
            if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir") and next(steps, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        call()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


def prepare(out: Path, source: Source) -> None:
    """All but the commit."""
    with Staging(out, overwrite=True) as staging:
        claim(staging, source)
        convert(source, staging, FOUR)
        for split in source.splits:
            join(staging.split(split.name), "d", split.name)


def commit(out: Path, reports: dict[str, SplitReport]) -> None:
    with Staging(out, overwrite=True) as staging:
        staging.commit({split: asdict(report) for split, report in reports.items()})


@pytest.mark.parametrize("replaces", [False, True])
def test_a_commit_killed_at_any_step_is_made_good_by_the_same_call(tmp_path: Path, replaces: bool) -> None:
    source = source_of(train=list(good(9)), val=mixed(9))
    expected = tmp_path / "expected"
    reports = convert_all(source, expected)
    prepared = tmp_path / "prepared"
    if replaces:
        convert_all(source_of(train=list(good(2))), prepared)
    prepare(prepared, source)
    step, killed = 0, True
    while killed:
        out = tmp_path / f"out-{step}"
        shutil.copytree(prepared, out)
        killed = die_at(step, partial(commit, out, reports))
        for split in ("train", "val"):
            if (out / split).exists():  # whole, whatever happened
                assert read_manifest(out / split).num_samples in (reports[split].samples, 2)
        if (out / ".partial").exists():
            moved = not any((out / ".partial" / name).exists() for name in (".plan.json", ".commit.json"))
            if moved:  # all that was left to do was to delete the locks
                refused(lambda out=out: convert_all(source, out), "exists already")  # type: ignore[misc]
            else:
                assert convert_all(source, out, overwrite=replaces) == reports
        assert contents(out) == contents(expected), f"killed at step {step}"
        step += 1
    assert step > 15


def test_another_call_ends_a_killed_commit_first(tmp_path: Path) -> None:
    source = source_of(train=list(good(9)))
    reports = convert_all(source, tmp_path / "expected")
    step, out = 0, tmp_path / "out"
    while not (out / ".partial/.commit.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        prepare(out, source)
        assert die_at(step, partial(commit, out, reports))
        step += 1
    assert not (out / "train").exists()
    convert_all(source_of(2, val=list(good(4))), out)
    assert contents(out / "train") == contents(tmp_path / "expected/train")
    assert read_manifest(out / "val").num_samples == 4
    assert sorted(path.name for path in out.iterdir()) == ["train", "val"]
