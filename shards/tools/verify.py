"""Whether a folder of shards is what its manifest says, byte by byte and sample by sample."""

import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from shards.decoding import DecodeError, decoding
from shards.errors import DataError
from shards.images import open_image
from shards.manifest import IMAGE, REGIONS, Manifest, read_index, read_manifest
from shards.members import REGIONS as REGIONS_MEMBER
from shards.members import Label, image_of, label_of
from shards.parallel import ordered_map
from shards.regions import decode_regions
from shards.shard_index import ShardIndex, content_hash, index_name
from shards.storage.location import is_remote, join
from shards.tarwalk import DamagedTarError, RawSample, samples_in
from shards.tools.duplicates import Duplicates, Hashes, count_duplicates
from shards.tools.indexed import one_shard


@dataclass(frozen=True)
class Fault:
    """Something that is not as the manifest says."""

    shard: str
    """The tar's path."""
    sample: str | None
    problem: str

    def __str__(self) -> str:
        return f"{self.shard}: {'' if self.sample is None else f'sample {self.sample}: '}{self.problem}"


@dataclass
class Verification:
    """What was checked, and what was found."""

    manifest: Manifest
    decoded: bool
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    duplicates: Duplicates = field(default_factory=Duplicates)
    """Of images, by content."""
    examples: list[list[str]] = field(default_factory=list)
    """Names of samples with one image, a list an image."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "location": self.manifest.location,
            "dataset": self.manifest.dataset,
            "split": self.manifest.split,
            "shards": len(self.manifest.names),
            "samples": self.manifest.num_samples,
            "captions": self.manifest.num_captions,
            "bytes": int(self.manifest.bytes.sum()),
            "images_decoded": self.decoded,
            "whole": not self.faults,
            "faults": [asdict(fault) for fault in self.faults],
            "warnings": self.warnings,
            "duplicate_images": {
                "images": self.duplicates.values,
                "copies": self.duplicates.copies,
                "most": self.duplicates.most,
                "examples": self.examples,
            },
        }


def verify(
    location: str, *, decode: bool = True, processes: int = 1, on_shard: Callable[[], None] = lambda: None
) -> Verification:
    """Check every shard, index and sample; `decode` decodes every image, too.

    Raises `DataError` when the manifest itself cannot be read.
    """
    if is_remote(location):
        raise DataError(f"{location}: only folders on a local disk are verified; copy it first")
    manifest = read_manifest(location, check_shards=False)
    result = Verification(manifest, decode)
    result.warnings += [f"{path}: a tar that the manifest does not list" for path in _stray(manifest)]
    jobs = (one_shard(manifest, shard) for shard in range(len(manifest.names)))
    contents: list[Hashes] = []
    for faults, content in ordered_map(partial(_verify_shard, decode), jobs, processes, chunk=1):
        result.faults += faults
        contents.append(content)
        on_shard()
    result.duplicates = count_duplicates(contents)
    result.examples = [_names(manifest, contents, value) for value in result.duplicates.examples]
    if result.duplicates.copies:
        count = result.duplicates
        result.warnings.append(
            f"images in more than one sample: {count.values:,}, with {count.copies:,} copies beside the first, "
            f"of one image up to {count.most:,} samples, such as {' = '.join(result.examples[0][:3])}"
        )
    return result


def _stray(manifest: Manifest) -> list[Path]:
    root = Path(manifest.location)
    listed = {Path(manifest.shard_location(shard)).name for shard in range(len(manifest.names))}
    return [path for path in sorted(root.glob("*.tar")) if path.name not in listed]


def _names(manifest: Manifest, contents: list[Hashes], value: int, count: int = 5) -> list[str]:
    names: list[str] = []
    for shard, content in enumerate(contents):
        rows = np.flatnonzero(content == np.uint64(value))[: count - len(names)]
        if len(rows):
            index = read_index(manifest, shard)
            names += [f"{manifest.names[shard]}: sample {index.key(row)}" for row in rows]
    return names


def _verify_shard(decode: bool, manifest: Manifest) -> tuple[list[Fault], Hashes]:
    location = manifest.shard_location(0)
    fault = partial(Fault, location, None)
    faults: list[Fault] = []
    index: ShardIndex | None = None
    try:
        index = read_index(manifest, 0)
    except DataError as error:
        faults.append(fault(f"its index: {error}"))
    else:
        path = Path(join(manifest.location, index_name(manifest.names[0])))
        if hashlib.sha256(path.read_bytes()).hexdigest() != manifest.index_sha256[0]:
            faults.append(fault("its index has another SHA-256, so its samples were not checked"))
            index = None
        elif (captions := int(index.captions.sum())) != manifest.captions[0]:
            faults.append(fault(f"{captions} captions in the index, {manifest.captions[0]} in the shard table"))
    content = np.empty(0, np.uint64) if index is None else index.content.copy()
    try:
        with Path(location).open("rb") as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            if size != manifest.bytes[0]:
                faults.append(fault(f"{size} bytes, but the manifest says {manifest.bytes[0]}"))
            elif hashlib.file_digest(stream, "sha256").hexdigest() != manifest.sha256[0]:
                faults.append(fault("another SHA-256 than the manifest says"))
            if index is not None:
                faults += _sample_faults(stream, location, index, manifest.holds, decode)
    except FileNotFoundError:
        faults.append(fault("the shard is missing"))
    except OSError as error:
        faults.append(fault(f"cannot be read ({error.strerror})"))
    return faults, content


def _sample_faults(
    stream: IO[bytes], location: str, index: ShardIndex, holds: tuple[str, ...], decode: bool
) -> Iterator[Fault]:
    end = 0
    for row in range(len(index)):
        offset, size = int(index.offsets[row]), int(index.sizes[row])
        if offset < end or size < tarfile.BLOCKSIZE:
            yield Fault(location, index.key(row), f"the index has it at byte {offset}, within another sample")
            continue
        end = offset + size
        stream.seek(offset)
        problem = _problem(stream.read(size), index, row, holds, decode)
        if problem is not None:
            yield Fault(location, index.key(row), problem)


def _problem(data: bytes, index: ShardIndex, row: int, holds: tuple[str, ...], decode: bool) -> str | None:
    """The first thing that is wrong with a sample's bytes."""
    if len(data) != index.sizes[row]:
        return "the shard ends before it does"
    if zlib.crc32(data) != index.crc32[row]:
        return "damaged: another checksum"
    try:
        samples = samples_in(data)
        if [sample.name for sample in samples] != [index.key(row)]:
            return f"at its place stands {' and '.join(sample.name for sample in samples) or 'nothing'}"
        label = label_of(samples[0].members)
        if (regions := dict(samples[0].members).get(REGIONS_MEMBER)) is not None:
            decode_regions(regions)
    except (DamagedTarError, ValueError) as error:
        return f"cannot be parsed ({error})"
    return _disagreement(samples[0], label, index, row, holds) or (
        _image_problem(samples[0], index, row) if decode and IMAGE in holds else None
    )


def _disagreement(
    sample: RawSample, label: Label, index: ShardIndex, row: int, holds: tuple[str, ...]
) -> str | None:
    members = dict(sample.members)
    image = image_of(sample.members)
    if IMAGE in holds and image is None:
        return "no image"
    if REGIONS in holds and REGIONS_MEMBER not in members:
        return "no regions"
    if len(label.captions) != index.captions[row]:
        return f"{len(label.captions)} captions, but the index says {index.captions[row]}"
    if label.image_id is not None and label.image_id != index.image_ids[row]:
        return f"image id {label.image_id}, but the index says {index.image_ids[row]}"
    main = image if image is not None and IMAGE in holds else members[REGIONS_MEMBER]
    if content_hash(main) != index.content[row]:
        return "another content hash than the index has"
    return None


def _image_problem(sample: RawSample, index: ShardIndex, row: int) -> str | None:
    try:
        with decoding(), open_image(image_of(sample.members) or b"") as image:
            image.load()
            size = image.size
    except DecodeError as error:
        return f"the image does not decode ({error})"
    if size != (index.widths[row], index.heights[row]):
        return f"{size[0]} x {size[1]} pixels, but the index says {index.widths[row]} x {index.heights[row]}"
    return None
