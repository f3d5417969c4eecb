"""Records -> WebDataset tars with their manifest, committed by one rename a split."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shards.atomic import replacing
from shards.errors import DataError
from shards.images import DECODE_ERRORS, open_image
from shards.manifest import INDEX_SCHEMA, SHARD_SCHEMA, write_index, write_manifest
from shards.parallel import ordered_map
from shards.sources.record import Record, Skipped

SAMPLES_PER_SHARD = 1000
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}
"""Pillow's format -> the member's extension; anything else that Pillow decodes is named `img`."""


@dataclass(frozen=True)
class Sample:
    """A record whose image was read and decoded once to see that it can be."""

    record: Record
    image: bytes
    extension: str
    width: int
    height: int


@dataclass
class SplitReport:
    """What was written of one split, and what was left out."""

    samples: int = 0
    captions: int = 0
    shards: int = 0
    bytes: int = 0
    skipped: list[Skipped] = field(default_factory=list)


def load_sample(record: Record) -> Sample | Skipped:
    """Read the record's image and decode it whole: what will not decode in training is found here."""
    try:
        data = record.load()
    except FileNotFoundError:
        return Skipped(record.key, "the image file is missing")
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return Skipped(record.key, f"the image file cannot be read ({error})")
    try:
        with open_image(data) as image:
            image.load()
            extension = EXTENSIONS.get(image.format or "", "img")
            return Sample(record, data, extension, image.width, image.height)
    except DECODE_ERRORS as error:
        return Skipped(record.key, f"the image does not decode ({error})")


class _ShardWriter:
    """Cuts a stream of samples into tars of `samples_per_shard`, each with its index."""

    def __init__(self, root: Path, prefix: str, samples_per_shard: int) -> None:
        self.root, self.prefix, self.samples_per_shard = root, prefix, samples_per_shard
        self.shards: dict[str, list[object]] = {name: [] for name in SHARD_SCHEMA.names}
        self.pending: list[Sample] = []

    def add(self, sample: Sample) -> None:
        self.pending.append(sample)
        if len(self.pending) == self.samples_per_shard:
            self.flush()

    def flush(self) -> None:
        if not self.pending:
            return
        from webdataset import TarWriter  # imports torch, which commands that write nothing do without

        name = f"{self.prefix}-{len(self.shards['name']):06d}"
        path = self.root / f"{name}.tar"
        rows: dict[str, list[object]] = {column: [] for column in INDEX_SCHEMA.names}
        with replacing(path) as stream:
            # a fixed time and owner: the same samples give the same bytes
            writer = TarWriter(stream, encoder=False, mtime=0, format="PAX_FORMAT")
            for sample in self.pending:
                start = writer.tarstream.offset
                writer.write(_members(sample))
                size = writer.tarstream.offset - start
                row = _index_row(sample, start, size)
                for column, value in row.items():
                    rows[column].append(value)
            writer.close()
        write_index(self.root, name, rows)
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        captions = sum(len(sample.record.captions) for sample in self.pending)
        values = (name, len(self.pending), captions, path.stat().st_size, digest)
        for column, value in zip(SHARD_SCHEMA.names, values, strict=True):
            self.shards[column].append(value)
        self.pending.clear()


def _members(sample: Sample) -> dict[str, object]:
    record = sample.record
    label = {"image_id": record.image_id, "captions": list(record.captions)}
    return {
        "__key__": record.key,
        sample.extension: sample.image,
        "json": json.dumps(label, ensure_ascii=False).encode(),
    }


def _index_row(sample: Sample, offset: int, size: int) -> dict[str, object]:
    return {
        "key": sample.record.key,
        "image_id": sample.record.image_id,
        "captions": len(sample.record.captions),
        "offset": offset,
        "size": size,
        "width": sample.width,
        "height": sample.height,
    }


def write_split(
    records: Iterable[Record],
    root: Path,
    *,
    dataset: str,
    split: str,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    processes: int = 1,
    skipped: Sequence[Skipped] = (),
    on_record: Callable[[int], None] = lambda _count: None,
) -> SplitReport:
    """Write the records as a folder of shards with its manifest at `root`, which must not exist yet.

    The image of every record is decoded once; what does not decode is skipped and listed in the report and
    in `skipped.jsonl`, after what the source `skipped` already. `on_record` is called with 1 after each
    record. Raises `DataError` when nothing is left.
    """
    root.mkdir(parents=True)
    report = SplitReport(skipped=list(skipped))
    writer = _ShardWriter(root, split, samples_per_shard)
    for result in ordered_map(load_sample, records, processes):
        if isinstance(result, Skipped):
            report.skipped.append(result)
        else:
            writer.add(result)
            report.samples += 1
            report.captions += len(result.record.captions)
        on_record(1)
    writer.flush()
    if not report.samples:
        first = [f"; the first of {len(report.skipped)}: {item.name}: {item.reason}" for item in report.skipped[:1]]
        raise DataError(f"split {split}: no usable sample{''.join(first)}")
    report.shards = len(writer.shards["name"])
    report.bytes = sum(int(str(size)) for size in writer.shards["bytes"])
    if report.skipped:
        with replacing(root / "skipped.jsonl") as stream:
            for item in report.skipped:
                stream.write(json.dumps({"name": item.name, "reason": item.reason}).encode() + b"\n")
    write_manifest(root, dataset, split, writer.shards)
    return report


class Staging:
    """A scratch folder in `out` whose splits move into place together, and only when all are whole.

    Use as a context manager; `commit()` publishes. Left without a commit, nothing of it remains.
    """

    def __init__(self, out: Path, overwrite: bool = False) -> None:
        self.out, self.overwrite = out, overwrite
        self.root = out / ".partial"
        self.splits: list[str] = []

    def __enter__(self) -> "Staging":
        self.created = not self.out.exists()
        shutil.rmtree(self.root, ignore_errors=True)  # of a run that was killed
        try:
            self.root.mkdir(parents=True)
        except OSError as error:
            raise DataError(f"--out {self.out}: cannot be written to ({error.strerror}); give another") from None
        return self

    def check(self, split: str) -> None:
        """Raise `DataError` when `split` stands in `out` already."""
        if (self.out / split).exists() and not self.overwrite:
            raise DataError(f"{self.out / split}: exists already; give another --out, or --overwrite to replace it")

    def path(self, split: str) -> Path:
        """Where to write `split`."""
        self.splits.append(split)
        return self.root / split

    def commit(self) -> None:
        for split in self.splits:
            if self.overwrite and (self.out / split).exists():
                # moved aside, deleted later: a kill finds the old split or the new one, never half of one
                (self.out / split).rename(self.root / f"{split}.replaced")
            (self.root / split).rename(self.out / split)

    def __exit__(self, *_error: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        if self.created and not any(self.out.iterdir()):
            self.out.rmdir()
