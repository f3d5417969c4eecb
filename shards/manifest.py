"""The manifest: what a folder of shards holds, in flat files that scale to a billion samples.

    DIR/manifest.json        format version, data set, split, what a sample holds, totals; written last
    DIR/shards.parquet       one row a shard, see `SHARD_SCHEMA`
    DIR/NAME.tar             a plain WebDataset shard
    DIR/NAME.index.arrow     one row a sample, see `shards.shard_index`

`path` is where the tar lies: relative to DIR, or an absolute path or URL, so that a manifest can describe tars
that somebody else wrote, all of their samples or a part. DIR itself may be a URL.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.atomic import replacing
from shards.errors import DataError, told
from shards.shard_index import Rows, ShardIndex, as_index, index_name, read_table
from shards.storage.cache import Cache
from shards.storage.fetch import fetch
from shards.storage.location import is_remote, join, resolve

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
SHARD_TABLE = "shards.parquet"
IMAGE, REGIONS = "image", "regions"
"""What samples can hold beside their captions."""
MEND = "convert the data set again, or index its tars with `itm shards index`"

SHARD_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("path", pa.string()),  # of the tar; see above
        ("samples", pa.int64()),
        ("captions", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),  # of the tar
        ("index_sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class Manifest:
    """A folder of shards, as `manifest.json` and `shards.parquet` describe it."""

    location: str
    """The folder's path or URL."""
    dataset: str
    split: str
    holds: tuple[str, ...]
    """What every sample holds beside its captions: "image", "regions" or both."""
    names: tuple[str, ...]
    paths: tuple[str, ...]
    """Of each shard's tar, as `shards.parquet` has it."""
    samples: npt.NDArray[np.int64]
    """Samples a shard, in the order of `names`."""
    captions: npt.NDArray[np.int64]
    """Captions a shard."""
    bytes: npt.NDArray[np.int64]
    """Of each shard's tar."""
    sha256: tuple[str, ...]
    index_sha256: tuple[str, ...]
    fingerprint: str
    """A hash over the hashes of all shards and indexes: the same samples in the same order."""
    cache: Cache | None = field(default=None, compare=False)
    """Where what lies behind a URL is kept here."""

    @cached_property
    def num_samples(self) -> int:
        return int(self.samples.sum())

    @cached_property
    def num_captions(self) -> int:
        return int(self.captions.sum())

    @cached_property
    def first_sample(self) -> npt.NDArray[np.int64]:
        """The number, counted over the whole folder, of each shard's first sample."""
        return np.concatenate([[0], np.cumsum(self.samples)[:-1]]).astype(np.int64)

    def shard_location(self, shard: int) -> str:
        """The tar's path or URL."""
        return join(self.location, self.paths[shard])


def read_index_table(manifest: Manifest, shard: int) -> pa.Table:
    """One shard's sample table as it stands in the file.

    Raises `DataError` when it is missing, damaged, or does not have the manifest's number of samples.
    """
    location = join(manifest.location, index_name(manifest.names[shard]))
    path = fetch(location, manifest.cache, manifest.index_sha256[shard])
    if not path.is_file():
        raise DataError(f"{location}: the shard's index is missing; {MEND}")
    try:
        table = read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{location}: cannot be read ({error}); {MEND}") from None
    if table.num_rows != manifest.samples[shard]:
        raise DataError(
            f"{location}: {table.num_rows} samples, but the manifest says {manifest.samples[shard]}; {MEND}"
        )
    return table


def read_index(manifest: Manifest, shard: int) -> ShardIndex:
    """Map one shard's sample table. Raises `DataError` as `read_index_table` does."""
    return as_index(read_index_table(manifest, shard))


def write_manifest(root: Path, dataset: str, split: str, holds: tuple[str, ...], shards: Rows) -> None:
    """Commit a folder of shards; `shards` holds a list a column of `SHARD_SCHEMA`."""
    import pyarrow.parquet as pq

    table = pa.table(shards, schema=SHARD_SCHEMA)
    with replacing(root / SHARD_TABLE) as stream:
        pq.write_table(table, stream)
    header = {
        "format_version": FORMAT_VERSION,
        "dataset": dataset,
        "split": split,
        "holds": list(holds),
        "shards": table.num_rows,
        "samples": sum(table["samples"].to_pylist()),
        "captions": sum(table["captions"].to_pylist()),
    }
    with replacing(root / MANIFEST) as stream:
        stream.write(json.dumps(header, indent=2).encode() + b"\n")


def read_manifest(location: str | Path, cache: Cache | None = None, *, check_shards: bool = True) -> Manifest:
    """Read the manifest of a folder, given by its path or URL; `cache` is for what lies behind URLs.

    `check_shards` looks whether the local tars are there.

    Raises `DataError` when the folder, its manifest or one of its local shards is missing, or when the
    manifest is of another version or damaged.
    """
    import pyarrow.parquet as pq

    location = resolve(str(location))
    where = join(location, MANIFEST)
    try:
        if not is_remote(location):
            _check_folder(Path(location))
        header = json.loads(fetch(where, cache).read_bytes())
        version = header["format_version"]
        if version != FORMAT_VERSION:
            raise DataError(f"{where}: format version {version}, this program reads {FORMAT_VERSION}; {MEND}")
        dataset, split, holds = str(header["dataset"]), str(header["split"]), tuple(header["holds"])
        totals = [header[name] for name in ("shards", "samples", "captions")]
        if not holds or not {IMAGE, REGIONS}.issuperset(holds):
            raise ValueError(f"holds {holds}")
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror}); get the right to read it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: not a manifest ({told(error)}); {MEND}") from None
    where = join(location, SHARD_TABLE)
    try:
        data = fetch(where, cache).read_bytes()
        # on this thread: one of Arrow's that still frees `data` when the interpreter ends aborts the process
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        if table.schema != SHARD_SCHEMA or any(column.null_count for column in table.columns):
            raise pa.ArrowInvalid("another layout")
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{where}: cannot be read ({error}); {MEND}") from None
    if totals != [table.num_rows, *(sum(table[name].to_pylist()) for name in ("samples", "captions"))]:
        raise DataError(f"{where}: does not belong to the {MANIFEST} beside it; copy the folder again")
    manifest = Manifest(
        location=location,
        dataset=dataset,
        split=split,
        holds=holds,
        names=tuple(table["name"].to_pylist()),
        paths=tuple(table["path"].to_pylist()),
        samples=table["samples"].to_numpy(),
        captions=table["captions"].to_numpy(),
        bytes=table["bytes"].to_numpy(),
        sha256=tuple(table["sha256"].to_pylist()),
        index_sha256=tuple(table["index_sha256"].to_pylist()),
        fingerprint=_fingerprint(table),
        cache=cache,
    )
    if check_shards:
        _check_shards(manifest)
    return manifest


def _fingerprint(shards: pa.Table) -> str:
    # of what the files hold, not of the table's own bytes: these change with the library that wrote it
    rows = zip(shards["sha256"].to_pylist(), shards["index_sha256"].to_pylist(), strict=True)
    return hashlib.sha256("\n".join(f"{tar} {index}" for tar, index in rows).encode()).hexdigest()


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give a folder of shards, as `itm shards convert` writes it")
    if not (root / MANIFEST).is_file():
        children = sorted(root.iterdir())
        splits = [child.name for child in children if (child / MANIFEST).is_file()]
        hint = "shards are made with their manifest by `itm shards convert`"
        if any(child.suffix == ".tar" for child in children):
            hint = "make one for its tars with `itm shards index`"
        if splits:
            hint = f"did you mean one of its splits, {', '.join(splits)}?"
        raise DataError(f"{root}: no {MANIFEST} in this folder; {hint}")


def _check_shards(manifest: Manifest) -> None:
    # one listing a folder, not a stat a shard: a folder may hold 100,000 of them on a network disk
    listings: dict[Path, set[str]] = {}
    checked = False
    for shard in range(len(manifest.names)):
        location = manifest.shard_location(shard)
        if is_remote(location):
            continue
        path = Path(location)
        if path.parent not in listings:
            found = path.parent.iterdir() if path.parent.is_dir() else ()
            listings[path.parent] = {entry.name for entry in found}
        if path.name not in listings[path.parent]:
            raise DataError(f"{path}: the shard is missing, the manifest lists it")
        if not checked and (size := path.stat().st_size) != manifest.bytes[shard]:
            raise DataError(f"{path}: {size} bytes, but the manifest says {manifest.bytes[shard]}; copy it again")
        checked = True
