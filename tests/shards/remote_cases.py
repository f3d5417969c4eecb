"""What the tests of remote shards share: shards behind a server, and looks at what was left behind."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from shards.manifest import SHARD_TABLE, Manifest, read_manifest, write_manifest
from shards.reader import ShardReader
from shards.storage.cache import Cache
from shards.tarsample import TarSample

SAMPLES, PER_SHARD = 60, 12


def quick_cache(directory: Path, **settings: int | float) -> Cache:
    """A cache with short pauses and timeouts."""
    return replace(Cache(directory, timeout=5, attempts=3, first_pause=0.02), **settings)  # type: ignore[arg-type]


@contextmanager
def reader_of(location: str | Path, cache: Cache | None = None) -> Iterator[ShardReader]:
    with closing(ShardReader(read_manifest(location, cache))) as reader:
        yield reader


def places(manifest: Manifest) -> list[tuple[int, int]]:
    return [(shard, row) for shard, size in enumerate(manifest.samples.tolist()) for row in range(size)]


def all_samples(reader: ShardReader) -> list[TarSample]:
    return [reader.read(shard, row) for shard, row in places(reader.manifest)]


def samples_at(location: str | Path, cache: Cache | None = None) -> list[TarSample]:
    with reader_of(location, cache) as reader:
        return all_samples(reader)


def relocated(root: Path, to: Path, base: str) -> None:
    """Copy the manifest and the indexes at `root`, with paths to tars below `base`."""
    to.mkdir()
    for index in root.glob("*.index.arrow"):
        (to / index.name).write_bytes(index.read_bytes())
    rows = pq.read_table(root / SHARD_TABLE).to_pydict()
    rows["path"] = [f"{base}/{path}" for path in rows["path"]]
    manifest = read_manifest(root)
    write_manifest(to, manifest.dataset, manifest.split, manifest.holds, rows)


def transfer_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("itm-")]


def kept_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in (directory / "data").iterdir())
