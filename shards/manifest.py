"""The manifest: what a folder of shards holds, in flat files that scale to a billion samples.

    DIR/manifest.json          format version, data set, split, totals; written last, so it commits the folder
    DIR/shards.parquet         one row a shard: name, samples, captions, bytes, sha256
    DIR/NAME.tar               a plain WebDataset shard
    DIR/NAME.index.parquet     one row a sample: key, image_id, captions, offset, size, width, height

`offset` and `size` (bytes) span a sample's members in the tar, headers included: one read fetches a sample.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.atomic import replacing
from shards.errors import DataError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SHARD_TABLE = "shards.parquet"

SHARD_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("samples", pa.int64()),
        ("captions", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image_id", pa.int64()),
        ("captions", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, in the tar's order; arrays of one length."""

    keys: list[str]
    image_ids: npt.NDArray[np.int64]
    captions: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Manifest:
    """A folder of shards, as `manifest.json` and `shards.parquet` describe it."""

    root: Path
    dataset: str
    split: str
    names: tuple[str, ...]
    samples: npt.NDArray[np.int64]
    """Samples a shard, in the order of `names`."""
    captions: npt.NDArray[np.int64]
    """Captions a shard."""

    @cached_property
    def num_samples(self) -> int:
        return int(self.samples.sum())

    @cached_property
    def num_captions(self) -> int:
        return int(self.captions.sum())

    @cached_property
    def fingerprint(self) -> str:
        """A hash over the hashes of all shards: the same samples in the same order."""
        return hashlib.sha256((self.root / SHARD_TABLE).read_bytes()).hexdigest()

    @cached_property
    def first_sample(self) -> npt.NDArray[np.int64]:
        """The number, counted over the whole folder, of each shard's first sample."""
        return np.concatenate([[0], np.cumsum(self.samples)[:-1]]).astype(np.int64)

    def shard_path(self, shard: int) -> Path:
        return self.root / f"{self.names[shard]}.tar"


def index_path(root: Path, name: str) -> Path:
    return root / f"{name}.index.parquet"


def write_index(root: Path, name: str, rows: dict[str, list[object]]) -> None:
    """Write the sample table of shard `name`; `rows` holds a list a column of `INDEX_SCHEMA`."""
    with replacing(index_path(root, name)) as stream:
        pq.write_table(pa.table(rows, schema=INDEX_SCHEMA), stream)


def read_index(manifest: Manifest, shard: int) -> ShardIndex:
    """Read one shard's sample table.

    Raises `DataError` when it is missing, damaged, or does not have the manifest's number of samples.
    """
    path = index_path(manifest.root, manifest.names[shard])
    if not path.is_file():
        raise DataError(f"{path}: the shard's index is missing; convert the data set again")
    columns = ["key", "image_id", "captions", "offset", "size"]
    try:
        table = pq.read_table(path, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({error}); convert the data set again") from None
    if table.num_rows != manifest.samples[shard]:
        raise DataError(
            f"{path}: {table.num_rows} samples, but the manifest says {manifest.samples[shard]}; "
            "convert the data set again"
        )
    return ShardIndex(
        keys=table["key"].to_pylist(),
        image_ids=table["image_id"].to_numpy(),
        captions=table["captions"].to_numpy(),
        offsets=table["offset"].to_numpy(),
        sizes=table["size"].to_numpy(),
    )


def write_manifest(root: Path, dataset: str, split: str, shards: dict[str, list[object]]) -> None:
    """Commit a folder of shards; `shards` holds a list a column of `SHARD_SCHEMA`."""
    table = pa.table(shards, schema=SHARD_SCHEMA)
    with replacing(root / SHARD_TABLE) as stream:
        pq.write_table(table, stream)
    header = {
        "format_version": FORMAT_VERSION,
        "dataset": dataset,
        "split": split,
        "shards": table.num_rows,
        "samples": sum(table["samples"].to_pylist()),
        "captions": sum(table["captions"].to_pylist()),
    }
    with replacing(root / MANIFEST) as stream:
        stream.write(json.dumps(header, indent=2).encode() + b"\n")


def read_manifest(root: Path) -> Manifest:
    """Read the manifest of folder `root`.

    Raises `DataError` when the folder, its manifest or one of its shards is missing, or when the manifest
    is of another version or damaged.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give a folder of shards, as `itm shards convert` writes it")
    if not (root / MANIFEST).is_file():
        splits = sorted(child.name for child in root.iterdir() if (child / MANIFEST).is_file())
        hint = (
            f"did you mean one of its splits, {', '.join(splits)}?"
            if splits
            else ("shards are made with their manifest by `itm shards convert`")
        )
        raise DataError(f"{root}: no {MANIFEST} in this folder; {hint}")
    try:
        header = json.loads((root / MANIFEST).read_bytes())
        version, dataset, split = header["format_version"], header["dataset"], header["split"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{root / MANIFEST}: not a manifest ({error!r}); convert the data set again") from None
    if version != FORMAT_VERSION:
        raise DataError(f"{root / MANIFEST}: format version {version}, this program reads {FORMAT_VERSION}")
    try:
        table = pq.read_table(root / SHARD_TABLE, schema=SHARD_SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{root / SHARD_TABLE}: cannot be read ({error}); convert the data set again") from None
    manifest = Manifest(
        root=root,
        dataset=dataset,
        split=split,
        names=tuple(table["name"].to_pylist()),
        samples=table["samples"].to_numpy(),
        captions=table["captions"].to_numpy(),
    )
    _check_shards(manifest, table["bytes"].to_numpy())
    return manifest


def _check_shards(manifest: Manifest, sizes: npt.NDArray[np.int64]) -> None:
    # one directory listing, not a stat a shard: a folder may hold 100,000 of them on a network disk
    present = {entry.name for entry in manifest.root.iterdir()}
    for shard, name in enumerate(manifest.names):
        if f"{name}.tar" not in present:
            raise DataError(f"{manifest.shard_path(shard)}: the shard is missing, the manifest lists it")
    first = manifest.shard_path(0) if manifest.names else None
    if first is not None and first.stat().st_size != sizes[0]:
        raise DataError(f"{first}: {first.stat().st_size} bytes, but the manifest says {sizes[0]}; copy it again")
