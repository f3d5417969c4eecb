"""Shards behind a real HTTP server, which misbehaves where it is told to."""

import logging
import pickle
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from shards.errors import DataError, SampleError
from shards.evaluation import EvaluationDataset, evaluation_batches
from shards.images import center_crop
from shards.loader import Rank, TrainLoader
from shards.manifest import Manifest, read_index, read_manifest
from shards.storage import blocks, remote
from shards.storage.fetch import fetch
from shards.training import Part, TrainDataset, TrainingSet, Unkeyed
from tests.shards.fakes import tokenize
from tests.shards.file_server import FileServer, serve
from tests.shards.remote_cases import (
    PER_SHARD,
    SAMPLES,
    all_samples,
    kept_bytes,
    places,
    quick_cache,
    reader_of,
    relocated,
    samples_at,
    transfer_threads,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_shards: Callable[..., Manifest]) -> Path:
    """Sixty samples in shards of 12."""
    root = tmp_path_factory.mktemp("remote") / "train"
    make_shards(root, SAMPLES, per_shard=PER_SHARD)
    return root


@pytest.fixture
def server(root: Path) -> Iterator[FileServer]:
    with serve(root) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    yield
    assert not transfer_threads()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four samples a block, three blocks a shard."""
    monkeypatch.setattr(blocks, "ROWS", 4)


def wait_until(is_true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# What is read


def test_samples_behind_a_url_are_those_on_the_disk(root: Path, server: FileServer, tmp_path: Path) -> None:
    assert samples_at(server.url, quick_cache(tmp_path)) == samples_at(root)


def test_a_local_manifest_may_name_tars_behind_urls(root: Path, server: FileServer, tmp_path: Path) -> None:
    relocated(root, tmp_path / "here", server.url)
    assert samples_at(tmp_path / "here", quick_cache(tmp_path / "cache")) == samples_at(root)
    assert server.count(".tar") == len(server.requests) == SAMPLES // PER_SHARD


def test_any_filesystem_of_fsspec_serves(root: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in root.iterdir():
        memory.pipe_file(f"/shards/{path.name}", path.read_bytes())
    try:
        assert samples_at("memory://shards", quick_cache(tmp_path)) == samples_at(root)
    finally:
        memory.rm("/shards", recursive=True)


def test_a_server_that_ignores_ranges_gives_the_right_bytes(
    root: Path, server: FileServer, tmp_path: Path, small_blocks: None
) -> None:
    server.serves_ranges = False
    assert samples_at(server.url, quick_cache(tmp_path)) == samples_at(root)


def test_what_is_in_the_cache_needs_no_network(root: Path, server: FileServer, tmp_path: Path) -> None:
    samples_at(server.url, quick_cache(tmp_path))
    server.reset()
    assert samples_at(server.url, quick_cache(tmp_path)) == samples_at(root)
    assert server.requests == ["/manifest.json", "/shards.parquet"], "a run looks whether these are still the same"


def test_everything_is_transferred_once(root: Path, server: FileServer, tmp_path: Path, small_blocks: None) -> None:
    samples_at(server.url, quick_cache(tmp_path))
    assert server.count(".tar") == SAMPLES // 4
    indexes = [read_index(read_manifest(root), shard) for shard in range(SAMPLES // PER_SHARD)]
    others = sum(path.stat().st_size for path in root.iterdir() if path.suffix != ".tar")
    assert server.bytes_sent == sum(int(index.sizes.sum()) for index in indexes) + others


def test_shards_that_were_replaced_at_their_url_are_read_anew(
    tmp_path: Path, make_shards: Callable[..., Manifest]
) -> None:
    make_shards(tmp_path / "train", 6)
    with serve(tmp_path / "train") as server:
        cache = quick_cache(tmp_path / "cache")
        before = samples_at(server.url, cache)
        for path in (tmp_path / "train").iterdir():
            path.unlink()
        (tmp_path / "train").rmdir()
        make_shards(tmp_path / "train", 6, captions=2)
        assert samples_at(server.url, cache) == samples_at(tmp_path / "train") != before


def test_a_reader_sent_to_another_process_begins_anew(root: Path, server: FileServer, tmp_path: Path) -> None:
    with reader_of(server.url, quick_cache(tmp_path)) as reader:
        reader.prefetch(0, 0, PER_SHARD)
        reader.read(1, 0)
        copy = pickle.loads(pickle.dumps(reader))
        assert all_samples(copy) == samples_at(root)
        copy.close()


# The cache


def test_the_cache_stays_within_its_bound(
    root: Path, server: FileServer, tmp_path: Path, small_blocks: None
) -> None:
    size = int(read_manifest(root).bytes.sum()) // 3
    cache = quick_cache(tmp_path, max_bytes=size)
    with reader_of(server.url, cache) as reader:
        for shard, row in places(reader.manifest) * 2:
            assert reader.read(shard, row).captions[0].endswith(f" {shard * PER_SHARD + row}")
            assert kept_bytes(tmp_path) <= size
    assert kept_bytes(tmp_path) > size // 2


def test_a_cache_smaller_than_a_block_is_refused(server: FileServer, tmp_path: Path) -> None:
    with reader_of(server.url, quick_cache(tmp_path, max_bytes=12_000)) as reader:
        reader.index(0)
        with pytest.raises(DataError, match=r"bytes to keep, but it is bounded to 12,000; give it many times more"):
            reader.read(0, 0)


def test_a_cache_that_is_too_small_is_told_once(
    server: FileServer, tmp_path: Path, small_blocks: None, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        reader_of(server.url, quick_cache(tmp_path, max_bytes=30_000)) as reader,
    ):
        for row in range(4):
            for shard in range(5):
                for block in range(3):
                    reader.read(shard, 4 * block + row)
    assert len(caplog.records) == 1
    assert "are too little for it; give it more" in caplog.text


@pytest.mark.parametrize("damage", [bytes, lambda size: b"x" * size, lambda _size: b""])
def test_kept_bytes_that_a_crash_has_damaged_are_fetched_again(
    root: Path, server: FileServer, tmp_path: Path, damage: Callable[[int], bytes]
) -> None:
    samples_at(server.url, quick_cache(tmp_path))
    for path in (tmp_path / "data").iterdir():
        path.write_bytes(damage(path.stat().st_size))
    assert samples_at(server.url, quick_cache(tmp_path)) == samples_at(root)


def test_a_cache_emptied_in_mid_run_is_filled_again(root: Path, server: FileServer, tmp_path: Path) -> None:
    with reader_of(server.url, quick_cache(tmp_path)) as reader:
        reader.read(0, 0)
        for path in (tmp_path / "data").iterdir():
            path.unlink()
        assert all_samples(reader) == samples_at(root)


# Faults


@pytest.mark.parametrize(
    "faults",
    [["503", "503"], ["429"], ["408"], ["flip"], ["truncate"], ["drop"], ["stall"], ["drip"], ["500", "flip"]],
)
def test_faults_that_pass_are_overcome(root: Path, server: FileServer, tmp_path: Path, faults: list[str]) -> None:
    server.faults = list(faults)
    with reader_of(server.url, quick_cache(tmp_path, timeout=0.4)) as reader:
        started = time.monotonic()
        assert reader.read(0, 3).captions[0] == "caption 0 of picture 3"
        assert time.monotonic() - started < 3
    assert server.count(".tar") == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("503", r"HTTP 503 Service Unavailable \(3 attempts\)"),
        ("stall", r"no answer in time \(3 attempts\)"),
        ("drip", r"no answer in time \(3 attempts\)"),
    ],
)
def test_faults_that_stay_are_told_after_all_attempts(
    server: FileServer, tmp_path: Path, fault: str, told: str
) -> None:
    server.faults = [fault] * 9
    with reader_of(server.url, quick_cache(tmp_path, timeout=0.3)) as reader:
        started = time.monotonic()
        with pytest.raises(DataError, match=rf"^{server.url}/train-000000\.tar: .*{told}$") as caught:
            reader.read(0, 3)
        assert time.monotonic() - started < 3
    assert "\n" not in str(caught.value)
    assert server.count(".tar") == 3


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("404", "no such file$"),
        ("410", "HTTP 410 Gone$"),
        ("403", r"access is denied \(HTTP 403 Forbidden\); check the credentials$"),
        ("401", "access is denied"),
        ("416", "the file is shorter than its index says"),
    ],
)
def test_faults_that_cannot_pass_are_told_at_once(
    server: FileServer, tmp_path: Path, fault: str, told: str
) -> None:
    server.faults = [fault] * 9
    with reader_of(server.url, quick_cache(tmp_path, first_pause=5)) as reader:
        started = time.monotonic()
        with pytest.raises(DataError, match=rf"^{server.url}/train-000000\.tar: {told}"):
            reader.read(0, 3)
        assert time.monotonic() - started < 2
    assert server.count(".tar") == 1


def test_a_sample_damaged_at_its_source_is_named_and_the_others_are_read(
    tmp_path: Path, make_shards: Callable[..., Manifest]
) -> None:
    manifest = make_shards(tmp_path / "train", 6, per_shard=6)
    path = Path(manifest.shard_location(0))
    data = bytearray(path.read_bytes())
    data[int(read_index(manifest, 0).offsets[2]) + 600] ^= 1
    path.write_bytes(data)
    with (
        serve(tmp_path / "train") as server,
        reader_of(server.url, quick_cache(tmp_path / "cache")) as reader,
    ):
        damaged = rf"^{server.url}/train-000000\.tar: sample picture-0002: arrives damaged"
        with pytest.raises(SampleError, match=damaged):
            reader.read(0, 2)
        assert server.count(".tar") == 3
        for row in (0, 1, 3, 4, 5):
            assert reader.read(0, row).captions[0] == f"caption 0 of picture {row}"
        with pytest.raises(SampleError, match=damaged):
            reader.read(0, 2)
        assert server.count(".tar") == 3


def test_a_tar_that_was_replaced_ends_the_run_instead_of_being_damaged_sample_by_sample(
    tmp_path: Path, make_shards: Callable[..., Manifest]
) -> None:
    manifest = make_shards(tmp_path / "train", 60, per_shard=PER_SHARD)
    for shard in range(5):
        path = Path(manifest.shard_location(shard))
        path.write_bytes(bytes(path.stat().st_size))
    with serve(tmp_path / "train") as server:
        parts = (Part(read_manifest(server.url, quick_cache(tmp_path / "cache"))),)
        dataset = TrainDataset(TrainingSet(parts), center_crop(8), Unkeyed(tokenize))
        told = r"train-00000\d\.tar: not the tar that its index describes \(rows 0 to 11 .*\); index it again"
        with closing(dataset.loaders[0].reader), pytest.raises(DataError, match=told) as raised:
            next(iter(TrainLoader(dataset, 8, Rank())))
        assert not isinstance(raised.value, SampleError)


def test_each_attempt_that_fails_is_logged(
    server: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults = ["503", "truncate"]
    with caplog.at_level(logging.WARNING), reader_of(server.url, quick_cache(tmp_path)) as reader:
        reader.read(0, 3)
    where = f"{server.url}/train-000000.tar: "
    first, second = caplog.messages
    assert first == f"{where}HTTP 503 Service Unavailable (attempt 1 of 3)"
    assert second.startswith(where)
    assert second.endswith("(attempt 2 of 3)")


def test_a_shard_that_ends_early_is_told(tmp_path: Path, make_shards: Callable[..., Manifest]) -> None:
    path = Path(make_shards(tmp_path / "train", 6, per_shard=6).shard_location(0))
    path.write_bytes(path.read_bytes()[:8000])
    with (
        serve(tmp_path / "train") as server,
        reader_of(server.url, quick_cache(tmp_path / "cache")) as reader,
        pytest.raises(DataError, match=r"train-000000\.tar: 8,000 of [\d,]+ bytes arrived \(3 attempts\)"),
    ):
        reader.read(0, 5)


def test_an_index_that_is_not_the_manifests_is_refused(
    root: Path, tmp_path: Path, make_shards: Callable[..., Manifest]
) -> None:
    make_shards(tmp_path / "train", 6)
    (tmp_path / "train" / "train-000000.index.arrow").write_bytes((root / "train-000001.index.arrow").read_bytes())
    with (
        serve(tmp_path / "train") as server,
        reader_of(server.url, quick_cache(tmp_path / "cache")) as reader,
        pytest.raises(DataError, match=r"train-000000\.index\.arrow: not the file that the manifest") as raised,
    ):
        reader.index(0)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value), "a worker can send it on"


def test_a_manifest_is_not_taken_from_the_cache_when_its_server_is_gone(root: Path, tmp_path: Path) -> None:
    with serve(root) as server:
        assert read_manifest(server.url, quick_cache(tmp_path)).num_samples == SAMPLES
    with pytest.raises(DataError, match=r"manifest\.json: Cannot connect to host .* \(3 attempts\)"):
        read_manifest(server.url, quick_cache(tmp_path))


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("xyz://host/train", "Protocol not known: xyz"),
        ("http:///train", "http:///train/manifest.json: "),
        ("file:///nowhere/train", "/nowhere/train: no such folder"),
        ("memory://nowhere", "memory://nowhere/manifest.json: no such file"),
    ],
)
def test_a_location_that_cannot_be_is_told_at_once(tmp_path: Path, location: str, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        read_manifest(location, quick_cache(tmp_path, first_pause=60))
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(DataError, match=r"a package is missing .*aiohttp.*pip install 'itm-scale\[remote\]'"):
        read_manifest(server.url, quick_cache(tmp_path, first_pause=60))


class _Hanging(MemoryFileSystem):
    """A filesystem without timeouts of its own whose server never answers."""

    protocol = "hanging"
    released = threading.Event()

    def cat_file(self, *_arguments: object, **_options: object) -> bytes:
        self.released.wait()
        return b""


def test_a_filesystem_without_timeouts_does_not_hang_the_run(tmp_path: Path) -> None:
    fsspec.register_implementation("hanging", _Hanging, clobber=True)
    started = time.monotonic()
    try:
        with pytest.raises(DataError, match=r"hanging://a/b: no answer in time \(3 attempts\)"):
            fetch("hanging://a/b", quick_cache(tmp_path, timeout=0.2))
        assert time.monotonic() - started < 3
    finally:
        _Hanging.released.set()
        wait_until(lambda: not transfer_threads())


# Prefetching


def test_prefetching_hides_latency(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ROWS", 2)
    took = {}
    for ahead in (False, True):
        with reader_of(server.url, quick_cache(tmp_path / str(ahead))) as reader:
            for shard in range(5):
                reader.index(shard)
            server.latency = 0.05
            started = time.monotonic()
            for shard in range(5 if ahead else 0):
                reader.prefetch(shard, 0, PER_SHARD)
            assert len(all_samples(reader)) == SAMPLES
            took[ahead] = time.monotonic() - started
            server.latency = 0.0
    assert server.most_at_once >= 3
    assert took[False] > 30 * 0.05
    assert took[True] < took[False] / 2, "with 4 transfers at once up to 4 times as fast"


def test_indexes_are_fetched_side_by_side_and_once(server: FileServer, tmp_path: Path) -> None:
    with reader_of(server.url, quick_cache(tmp_path)) as reader:
        server.reset()
        server.latency = 0.2
        reader.bring_indexes([0, 1, 2, 3, 4, 0])
        assert server.most_at_once >= 3
        for shard in range(5):
            assert len(reader.index(shard)) == PER_SHARD
        reader.bring_indexes(range(5))
        assert len(server.requests) == server.count(".arrow") == 5


def test_an_index_that_is_missing_is_told_when_several_are_fetched(root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "train"))
    (copy / "train-000003.index.arrow").unlink()
    with serve(copy) as server, reader_of(server.url, quick_cache(tmp_path / "cache")) as reader:
        with pytest.raises(DataError, match=r"train-000003\.index\.arrow: no such file"):
            reader.bring_indexes(range(5))
        wait_until(lambda: not transfer_threads())


def test_a_first_batch_waits_for_one_round_of_indexes(server: FileServer, tmp_path: Path) -> None:
    parts = (Part(read_manifest(server.url, quick_cache(tmp_path))),)
    dataset = TrainDataset(TrainingSet(parts), center_crop(8), Unkeyed(tokenize))
    server.reset()
    server.latency, server.most_at_once = 0.2, 0
    with closing(dataset.loaders[0].reader):
        next(iter(TrainLoader(dataset, 8, Rank())))
    assert all(path.endswith(".arrow") for path in server.requests[:5])
    assert server.most_at_once >= 3


@pytest.mark.parametrize("batch_size", [5, 30])
def test_an_evaluation_is_read_ahead(
    server: FileServer, tmp_path: Path, small_blocks: None, batch_size: int
) -> None:
    manifest = read_manifest(server.url, quick_cache(tmp_path))
    dataset = EvaluationDataset(manifest, center_crop(8), tokenize)
    server.reset()
    server.latency, server.most_at_once = 0.05, 0
    with closing(dataset.loader.reader):
        batches = list(evaluation_batches(dataset, batch_size, Rank()))
    assert sum(map(len, batches)) == SAMPLES
    assert server.most_at_once > 1
    assert server.count(".tar") == SAMPLES // 4, "every block once"


def test_a_read_waits_for_the_transfer_under_way(server: FileServer, tmp_path: Path) -> None:
    with reader_of(server.url, quick_cache(tmp_path)) as reader:
        reader.index(0)
        server.latency = 0.2
        for _ in range(3):
            reader.prefetch(0, 0, PER_SHARD)
        wait_until(lambda: server.count(".tar"))
        assert reader.read(0, 1).captions
        assert server.count(".tar") == 1


def test_a_read_overtakes_what_still_queues(server: FileServer, tmp_path: Path, small_blocks: None) -> None:
    with reader_of(server.url, quick_cache(tmp_path, threads=1)) as reader:
        for shard in range(5):
            reader.index(shard)
        server.latency = 0.1
        for shard in range(5):
            reader.prefetch(shard, 0, PER_SHARD)
        started = time.monotonic()
        reader.read(4, 11)
        assert time.monotonic() - started < 0.8, "fifteen transfers, one after another, take 1.5 s"
        assert server.count("train-000004.tar") == 1


def test_an_error_met_ahead_comes_up_when_its_sample_is_read(
    root: Path, server: FileServer, tmp_path: Path
) -> None:
    server.faults = ["404"]
    with reader_of(server.url, quick_cache(tmp_path)) as reader:
        reader.prefetch(0, 0, PER_SHARD)
        wait_until(lambda: server.count(".tar"))
        assert reader.read(1, 0).captions
        with pytest.raises(DataError, match=r"train-000000\.tar: no such file"):
            reader.read(0, 0)
        assert all_samples(reader) == samples_at(root)


def test_no_more_is_under_way_than_the_cache_bears(
    server: FileServer, tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "AHEAD", 2)
    with reader_of(server.url, quick_cache(tmp_path, max_bytes=100_000)) as reader:
        for shard in range(5):
            reader.index(shard)
        server.reset()
        server.latency = 0.1
        taken = [reader.prefetch(shard, 0, PER_SHARD) for shard in range(5)]
        assert taken[0]
        assert not taken[-1], "what is dropped is told, so that it can be asked for again"
        wait_until(lambda: server.bytes_sent > 30_000)
        time.sleep(0.3)
        assert server.bytes_sent <= 50_000
        assert reader.prefetch(4, 0, PER_SHARD)


def test_closing_breaks_off_transfers_and_the_reader_may_go_on(
    root: Path, server: FileServer, tmp_path: Path, small_blocks: None
) -> None:
    server.faults = ["stall"] * 4
    with reader_of(server.url, quick_cache(tmp_path, timeout=60)) as reader:
        reader.prefetch(0, 0, PER_SHARD)
        wait_until(lambda: server.count(".tar") == 3)
        started = time.monotonic()
        reader.close()
        assert time.monotonic() - started < 2
        assert not transfer_threads()
        server.faults = []
        assert all_samples(reader) == samples_at(root)


def test_closing_does_not_wait_for_pauses(server: FileServer, tmp_path: Path) -> None:
    server.faults = ["503"] * 9
    with reader_of(server.url, quick_cache(tmp_path, first_pause=60)) as reader:
        reader.prefetch(0, 0, PER_SHARD)
        wait_until(lambda: server.count(".tar"))
        started = time.monotonic()
    assert time.monotonic() - started < 2


def test_a_forgotten_reader_ends_its_threads(server: FileServer, tmp_path: Path) -> None:
    with reader_of(server.url, quick_cache(tmp_path)) as reader:
        reader.prefetch(0, 0, PER_SHARD)
        reader.read(0, 0)
        assert transfer_threads()
        assert pickle.loads(pickle.dumps(reader)) is not reader
    assert not transfer_threads()
