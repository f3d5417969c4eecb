"""Several processes that share a cache: readers at once, one that is killed, the workers of a loader."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import psutil
import pytest

from shards.images import random_resized_crop
from shards.loader import Rank, TrainLoader
from shards.manifest import Manifest, read_index, read_manifest
from shards.storage.cache import Cache
from shards.training import Part, TrainDataset, TrainingSet, Unkeyed
from tests.conftest import ENVIRONMENT
from tests.shards.fakes import tokenize
from tests.shards.file_server import FileServer, serve
from tests.shards.remote_cases import kept_bytes, quick_cache, samples_at

SAMPLES, PER_SHARD = 64, 8

READER = """
import hashlib, sys
from pathlib import Path
from tests.shards.remote_cases import quick_cache, samples_at

samples = samples_at(sys.argv[1], quick_cache(Path(sys.argv[2]), max_bytes=int(sys.argv[3])))
print(hashlib.sha256(repr(samples).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_shards: Callable[..., Manifest]) -> Path:
    root = tmp_path_factory.mktemp("processes") / "train"
    make_shards(root, SAMPLES, per_shard=PER_SHARD)
    return root


@pytest.fixture
def server(root: Path) -> Iterator[FileServer]:
    with serve(root) as server:
        yield server


def spawn_reader(server: FileServer, directory: Path, max_bytes: int = 10**9) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", READER, server.url, str(directory), str(max_bytes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)


def test_readers_at_once_transfer_everything_once(root: Path, server: FileServer, tmp_path: Path) -> None:
    server.latency = 0.05
    readers = [spawn_reader(server, tmp_path) for _ in range(3)]
    told = {reader.communicate(timeout=60)[0] for reader in readers}
    assert len(told) == 1
    assert told != {""}
    assert server.count(".tar") == server.count(".arrow") == SAMPLES // PER_SHARD


def test_readers_at_once_keep_a_small_cache_within_its_bound(
    root: Path, server: FileServer, tmp_path: Path
) -> None:
    most = int(read_manifest(root).bytes.sum()) // 3
    with serve(root) as ample:
        right = spawn_reader(ample, tmp_path / "ample").communicate(timeout=60)[0]
    readers = [spawn_reader(server, tmp_path / "small", most) for _ in range(3)]
    largest = 0
    while any(reader.poll() is None for reader in readers):
        if (tmp_path / "small" / "data").is_dir():
            largest = max(largest, _roughly_kept(tmp_path / "small"))
    assert {reader.communicate()[0] for reader in readers} == {right}
    block = max(int(read_index(read_manifest(root), shard).sizes.sum()) for shard in range(8))
    # files that come and go while they are counted may be counted twice: one a process
    assert most // 2 < largest <= most + 3 * block
    assert kept_bytes(tmp_path / "small") <= most


def _roughly_kept(directory: Path) -> int:
    try:
        return kept_bytes(directory)
    except FileNotFoundError:
        return 0


def test_a_reader_killed_in_mid_transfer_leaves_nothing_broken(
    root: Path, server: FileServer, tmp_path: Path
) -> None:
    server.faults = ["", "", "drip"]
    reader = spawn_reader(server, tmp_path)
    deadline = time.monotonic() + 30
    while server.faults or server.count(".tar") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    reader.kill()
    reader.communicate()
    started = time.monotonic()
    assert samples_at(server.url, quick_cache(tmp_path)) == samples_at(root)
    assert time.monotonic() - started < 4, "what the dead held is free"
    assert server.count(".tar") == SAMPLES // PER_SHARD + 1, "only the transfer that was broken off is repeated"


def batches(location: str, cache: Cache | None, workers: int) -> list[tuple[list[int], list[str], bytes]]:
    """One epoch."""
    parts = (Part(read_manifest(location, cache)),)
    dataset = TrainDataset(TrainingSet(parts), random_resized_crop(16, 0.3), Unkeyed(tokenize), seed=4)
    loader = TrainLoader(dataset, 8, Rank(), workers)
    with closing(iter(loader)) as stream:
        found = []
        for batch in islice(stream, SAMPLES // 8):
            assert batch.images is not None
            found.append((batch.samples.tolist(), batch.captions, batch.images.numpy().tobytes()))
    dataset.loaders[0].reader.close()
    return found


def test_loader_workers_read_an_epoch_over_the_network_once(root: Path, server: FileServer, tmp_path: Path) -> None:
    local = batches(str(root), None, workers=0)
    server.latency = 0.02
    assert batches(server.url, quick_cache(tmp_path), workers=2) == local
    indexes = [read_index(read_manifest(root), shard) for shard in range(SAMPLES // PER_SHARD)]
    others = sum(path.stat().st_size for path in root.iterdir() if path.suffix != ".tar")
    assert server.bytes_sent == sum(int(index.sizes.sum()) for index in indexes) + others
    server.reset()
    assert batches(server.url, quick_cache(tmp_path), workers=0) == local
    assert not server.count(".tar")
    deadline = time.monotonic() + 10
    while _workers():
        assert time.monotonic() < deadline, "workers outlive their loader"
        time.sleep(0.1)


def _workers() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
