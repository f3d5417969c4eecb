"""A folder of shards, one shard at a time: what workers are sent, and the samples that an index lists."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from shards.errors import DataError
from shards.manifest import Manifest
from shards.shard_index import ShardIndex
from shards.tarwalk import DamagedTarError, RawSample, open_bytes, samples_in, walk


def one_shard(manifest: Manifest, shard: int) -> Manifest:
    """The manifest cut down to one shard: small, so that it can be sent to a worker with each of them."""
    part = slice(shard, shard + 1)
    return replace(
        manifest,
        names=manifest.names[part],
        paths=manifest.paths[part],
        samples=manifest.samples[part],
        captions=manifest.captions[part],
        bytes=manifest.bytes[part],
        sha256=manifest.sha256[part],
        index_sha256=manifest.index_sha256[part],
    )


def indexed_samples(
    location: str, index: ShardIndex, wanted: Callable[[str], bool]
) -> Iterator[tuple[int, RawSample]]:
    """Walk a shard's tar and yield the samples that its index lists, each with its row.

    Raises `DataError` when the tar is damaged, or a sample is not where the index says.
    """
    rows = {offset: row for row, offset in enumerate(index.offsets.tolist())}
    try:
        with open_bytes(location) as stream:
            for sample in walk(stream, location, wanted):
                if (row := rows.pop(sample.offset, None)) is not None:
                    yield row, sample
    except DamagedTarError as error:
        raise DataError(f"{location}: {error}; `itm shards verify` tells more") from None
    if rows:
        raise DataError(
            f"{location}: {len(rows):,} samples are not where the index says; `itm shards verify` tells more"
        )


def sample_at(location: str, index: ShardIndex, row: int) -> RawSample:
    """One sample with all of its members. Raises `DamagedTarError`."""
    with open_bytes(location) as stream:
        stream.seek(int(index.offsets[row]))
        data = stream.read(int(index.sizes[row]))
    samples = samples_in(data) if len(data) == index.sizes[row] else []
    if len(samples) != 1:
        raise DamagedTarError(f"{location}: sample {index.key(row)} is not where the index says")
    return samples[0]
