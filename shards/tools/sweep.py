"""One pass over all shards of some folders, a shard at a time, by many processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

from shards.manifest import Manifest, read_manifest
from shards.parallel import ordered_map
from shards.reader import ShardReader
from shards.storage.cache import Cache

Result = TypeVar("Result")


@dataclass(frozen=True)
class ShardWork:
    """One shard of one folder. Names the manifest instead of holding it: that may list 100,000 shards."""

    location: str
    cache: Cache | None
    fingerprint: str
    """Of the manifest: a folder that was written anew is read anew."""
    folder: int
    """The folder's place among those of the sweep."""
    shard: int


def sweep(
    function: Callable[[ShardReader, ShardWork], Result],
    manifests: Sequence[Manifest],
    *,
    processes: int = 1,
    on_samples: Callable[[int], None] = lambda _count: None,
) -> Iterator[Result]:
    """Yield `function(reader, work)` for every shard, in the order of the folders and their shards.

    `function` must be picklable. `on_samples` is called with the number of samples of each shard that is done.
    """
    works = (
        ShardWork(manifest.location, manifest.cache, manifest.fingerprint, folder, shard)
        for folder, manifest in enumerate(manifests)
        for shard in range(len(manifest.names))
    )
    samples = (int(count) for manifest in manifests for count in manifest.samples)
    results = ordered_map(partial(_on_shard, function), works, processes, chunk=1)
    for count, result in zip(samples, results, strict=True):
        on_samples(count)
        yield result


def _on_shard(function: Callable[[ShardReader, ShardWork], Result], work: ShardWork) -> Result:
    return function(_reader(work.location, work.cache, work.fingerprint), work)


@lru_cache(maxsize=4)
def _reader(location: str, cache: Cache | None, _fingerprint: str) -> ShardReader:
    return ShardReader(read_manifest(location, cache))
