"""Training images that also stand in test sets: found by their bytes and by their looks, listed or left out.

Images whose encoded bytes are equal are found in the indexes alone. Copies that were scaled or encoded anew are
found by perceptual hash, for which every image is decoded once, at small scale. Memory holds the hashes of the
test sets, and of a few training shards at a time.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from shards.atomic import building, replacing
from shards.decoding import DecodeError
from shards.errors import DataError
from shards.manifest import IMAGE, SHARD_SCHEMA, Manifest, read_index, read_index_table, write_manifest
from shards.reader import ShardReader
from shards.shard_index import INDEX_SCHEMA, Rows, write_index
from shards.storage.location import is_remote
from shards.tools.perceptual import BITS, HashSearch, perceptual_hash
from shards.tools.sweep import ShardWork, sweep

DISTANCE = 8
"""Bits. Of photos, copies compressed anew (JPEG quality 10), scaled to 96 pixels, or cropped by 2% all lie within
it, nine in ten of those cropped by 5%; of 24 million pairs of different photos, one."""
EXACT, PERCEPTUAL = "exact", "perceptual"
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class _Looks:
    """What the images of one shard look like."""

    hashes: npt.NDArray[np.uint8]
    """(N, 8); zeros where there is none."""
    telling: npt.NDArray[np.bool_]
    """(N,): whether the image has a hash; not where it is almost uniform, or does not decode."""
    broken: int
    """Images that do not decode."""


def _looks(reader: ShardReader, work: ShardWork) -> _Looks:
    samples = len(reader.index(work.shard))
    hashes, telling, broken = np.zeros((samples, BITS // 8), np.uint8), np.zeros(samples, np.bool_), 0
    for row in range(samples):
        data = reader.read(work.shard, row).image
        assert data is not None
        try:
            found = perceptual_hash(data)
        except DecodeError:
            broken += 1
            continue
        if found is not None:
            hashes[row], telling[row] = found, True
    return _Looks(hashes, telling, broken)


class ReferenceImages:
    """The images of all test sets, to be searched."""

    def __init__(self, manifests: Sequence[Manifest], looks: Iterator[_Looks]) -> None:
        content, hashes, place = [], [], []
        self.names: list[tuple[str, str, str]] = []
        """Folder, shard and key of each image."""
        self.broken = 0
        for manifest in manifests:
            for shard, name in enumerate(manifest.names):
                index, part = read_index(manifest, shard), next(looks)
                content.append(index.content)
                hashes.append(part.hashes[part.telling])
                place.append(len(self.names) + np.flatnonzero(part.telling))
                self.names += [(manifest.location, name, index.key(row)) for row in range(len(index))]
                self.broken += part.broken
        contents = np.concatenate(content)
        self._by_content = np.argsort(contents, kind="stable")
        self._contents = contents[self._by_content]
        self._place = np.concatenate(place)
        self._search = HashSearch(np.concatenate(hashes))

    def matches(
        self, content: npt.NDArray[np.uint64], looks: _Looks, distance: int
    ) -> dict[tuple[int, int], tuple[str, int]]:
        """(row, test image) -> how the training image at `row` of a shard matches it, and at which distance."""
        rows = np.flatnonzero(looks.telling)
        query, found, bits = self._search.within(looks.hashes[rows], distance)
        near = zip(rows[query].tolist(), self._place[found].tolist(), bits.tolist(), strict=True)
        matches = {(row, test): (PERCEPTUAL, count) for row, test, count in near}
        first, last = (np.searchsorted(self._contents, content, side) for side in ("left", "right"))
        for row in np.flatnonzero(last > first).tolist():
            for test in self._by_content[first[row] : last[row]].tolist():
                matches[row, test] = (EXACT, 0)
        return dict(sorted(matches.items()))


@dataclass
class Report:
    """What was found, and what of it was written."""

    images: int = 0
    """Training images that match a test image,"""
    exact: int = 0
    """of these, by their bytes."""
    kept: int = 0
    broken: int = 0
    """Images, of training and test sets, that do not decode: compared by their bytes alone."""
    shards: Rows = field(default_factory=lambda: {name: [] for name in SHARD_SCHEMA.names})


def check_sets(train: Manifest, tests: Sequence[Manifest]) -> None:
    """Raise `DataError` where comparing makes no sense: a set without images, or one given twice."""
    for manifest in (train, *tests):
        if IMAGE not in manifest.holds:
            raise DataError(f"{manifest.location}: holds no images, only {', '.join(manifest.holds)}")
        if not manifest.num_samples:
            raise DataError(f"{manifest.location}: holds no samples")
    for test in tests:
        if test.fingerprint == train.fingerprint:
            raise DataError(
                f"--against {test.location}: the same shards as the training set {train.location}; every image "
                "would match"
            )


def decontaminate(
    train: Manifest,
    tests: Sequence[Manifest],
    *,
    out: Path | None = None,
    listing: Path | None = None,
    distance: int = DISTANCE,
    processes: int = 1,
    progress: Progress = lambda _stage, _count: None,
) -> Report:
    """Compare the training images with those of the test sets.

    `out` becomes a folder with a manifest of the training samples that match none; its indexes lead to the
    tars of `train`, which stay as they are. `listing` becomes a file with one JSON line a match. `progress` is
    called with "tests" or "train" and the number of images done. Raises `DataError`, and writes nothing, where
    `check_sets` does, or when no training image would be left in `out`.
    """
    check_sets(train, tests)
    report = Report()
    progress("tests", 0)
    hashed = sweep(_looks, tests, processes=processes, on_samples=lambda count: progress("tests", count))
    images = ReferenceImages(tests, hashed)
    report.broken = images.broken
    with ExitStack() as stack:
        stream = stack.enter_context(replacing(listing)) if listing else None
        root = stack.enter_context(building(out)) if out else None
        progress("train", 0)
        looks = sweep(_looks, [train], processes=processes, on_samples=lambda count: progress("train", count))
        for shard, part in enumerate(looks):
            index = read_index(train, shard)
            matches = images.matches(index.content, part, distance)
            if stream:
                _list(stream, train.names[shard], index.key, images, matches)
            matched = {row for row, _test in matches}
            report.images += len(matched)
            report.exact += len({row for (row, _test), (kind, _bits) in matches.items() if kind == EXACT})
            report.kept += len(index) - len(matched)
            report.broken += part.broken
            if root:
                _keep(root, train, shard, matched, report.shards)
        if root:
            if not report.kept:
                raise DataError(f"{train.location}: every image matches a test image; nothing is left to write")
            write_manifest(root, train.dataset, train.split, train.holds, report.shards)
    return report


def _list(
    stream: IO[bytes],
    shard: str,
    key: Callable[[int], str],
    images: ReferenceImages,
    matches: dict[tuple[int, int], tuple[str, int]],
) -> None:
    for (row, test), (kind, bits) in matches.items():
        folder, test_shard, test_key = images.names[test]
        line = {
            "train": {"shard": shard, "key": key(row)},
            "test": {"folder": folder, "shard": test_shard, "key": test_key},
            "match": kind,
            "distance": bits,
        }
        stream.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def _keep(root: Path, train: Manifest, shard: int, dropped: set[int], shards: Rows) -> None:
    """Write the index of a shard without the rows of `dropped`; nothing where none would be left."""
    table = read_index_table(train, shard)
    kept = np.setdiff1d(np.arange(table.num_rows), list(dropped))
    if not len(kept):
        return
    table = table.take(kept)
    rows = {name: table[name].to_pylist() for name in INDEX_SCHEMA.names}
    location = train.shard_location(shard)
    row = {
        "name": train.names[shard],
        "path": location if is_remote(location) else str(Path(location).absolute()),
        "samples": len(kept),
        "captions": sum(rows["captions"]),
        "bytes": int(train.bytes[shard]),
        "sha256": train.sha256[shard],
        "index_sha256": write_index(root, train.names[shard], rows),
    }
    for column, value in row.items():
        shards[column].append(value)
