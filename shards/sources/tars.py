"""Tars with samples, of ours or of others, with a manifest or without -> a source, to be written anew."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shards.errors import DataError
from shards.manifest import IMAGE, MANIFEST, REGIONS, Manifest, read_index, read_manifest
from shards.members import REGIONS as REGIONS_MEMBER
from shards.members import is_image, is_label, label_of
from shards.regions import decode_regions
from shards.seen import Seen
from shards.sources.record import Record, Regions, Skipped, Source, Split
from shards.sources.text import file_identity, safe_key
from shards.tarwalk import DamagedTarError, Part, RawSample, open_bytes, samples_of
from shards.tools.indexed import indexed_samples
from shards.tools.locate import find_tars
from shards.tools.scan import fault_of, guess_holds_of


def read_tars(
    locations: list[str], split: str | None = None, dataset: str | None = None, *, skip_damaged: bool = False
) -> Source:
    """Open folders of shards with their manifests, or else plain tars, compressed ones too.

    Each folder with a manifest is a split of its own, called as its manifest says; so is each of a folder's
    subfolders. Plain tars make one split, called `split`, or as their folder. Of a damaged one, `skip_damaged`
    takes what stands before the damage. Raises `DataError`.
    """
    folders = [folder for location in locations for folder in _with_manifest(location)]
    if not folders:
        return _plain(find_tars(locations, compressed=True), split, dataset, skip_damaged)
    if len(folders) > 1 and split:
        raise DataError(f"--split {split}: there are {len(folders)} splits, which keep their names")
    plain = [location for location in locations if not _with_manifest(location)]
    if plain:
        raise DataError(f"{plain[0]}: has no {MANIFEST}, but others have; rewrite it on its own")
    manifests = [read_manifest(folder) for folder in folders]
    names = [split or manifest.split for manifest in manifests]
    if len(set(names)) < len(names):
        raise DataError(f"{folders[0]}: two folders of one split, {names[0]}; rewrite them one by one")
    datasets = dict.fromkeys(manifest.dataset for manifest in manifests)
    return Source(
        dataset or "+".join(datasets),
        [Split(name, _Indexed(each), each.num_samples) for name, each in zip(names, manifests, strict=True)],
        {"format": "tars", "manifests": [manifest.fingerprint for manifest in manifests]},
        (*folders, *{folder for manifest in manifests for folder in _tar_folders(manifest)}),
    )


def _tar_folders(manifest: Manifest) -> set[Path]:
    return {Path(manifest.shard_location(shard)).parent for shard in range(len(manifest.names))}


def _with_manifest(location: str) -> list[Path]:
    folder = Path(location)
    if (folder / MANIFEST).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []


def _plain(tars: list[Path], split: str | None, dataset: str | None, skip_damaged: bool) -> Source:
    folder = tars[0].absolute().parent
    state = hashlib.sha256(repr([file_identity(path) for path in tars]).encode()).hexdigest()
    split = split or folder.name
    return Source(
        dataset or folder.parent.name,
        [Split(split, _Plain(tars, skip_damaged))],
        {"format": "tars", "tars": state, "skip_damaged": skip_damaged},
        tuple(tars),
    )


class _Keys:
    """Sample keys -> keys of records: fit to name members, and each used once."""

    def __init__(self) -> None:
        self._seen = Seen()
        self._count = 0

    def __call__(self, name: str) -> str:
        self._count += 1
        key = safe_key(name)
        if not self._seen.add(key):
            key = f"{key}-{self._count}"
            while not self._seen.add(key):
                key += "_"
        return key


@dataclass(frozen=True)
class _Indexed:
    """The records of a folder with a manifest: the samples that its index lists, no others."""

    manifest: Manifest

    def __iter__(self) -> Iterator[Record | Skipped]:
        key_of = _Keys()
        for shard in range(len(self.manifest.names)):
            index, location = read_index(self.manifest, shard), self.manifest.shard_location(shard)
            for row, sample in indexed_samples(location, index, is_label):
                yield _record(sample, location, self.manifest.holds, key_of, int(index.image_ids[row]))


@dataclass(frozen=True)
class _Plain:
    """The records of tars without a manifest. Those of a compressed one carry their bytes, so it is read once."""

    tars: list[Path]
    skip_damaged: bool

    def __iter__(self) -> Iterator[Record | Skipped]:
        key_of, holds = _Keys(), guess_holds_of(self.tars)
        for tar in self.tars:
            location = str(tar)
            try:
                for sample in samples_of(location, is_label):
                    fault = fault_of(sample, holds)
                    yield (
                        Skipped(_name(sample, location), fault)
                        if fault
                        else _record(sample, location, holds, key_of)
                    )
            except DamagedTarError as error:
                if not self.skip_damaged:
                    raise DataError(
                        f"{location}: {error}; mend it, or take what stands before the damage with --skip-damaged"
                    ) from None
                yield Skipped(location, f"damaged from here on: {error}")


def _name(sample: RawSample, location: str) -> str:
    return f"{Path(location).name}: sample {sample.name}"


def _record(
    sample: RawSample, location: str, holds: tuple[str, ...], key_of: _Keys, image_id: int | None = None
) -> Record | Skipped:
    try:
        label = label_of(sample.members)
    except ValueError as error:
        return Skipped(_name(sample, location), str(error))
    if not label.captions:
        return Skipped(_name(sample, location), "no caption")
    image = next((part for part in sample.parts if is_image(part.extension)), None)
    regions = next((part for part in sample.parts if part.extension == REGIONS_MEMBER), None)
    return Record(
        key=key_of(sample.name),
        image_id=label.image_id if image_id is None else image_id,
        captions=tuple(label.captions),
        load=_reader(image, location) if image and IMAGE in holds else None,
        regions=partial(_regions, _reader(regions, location)) if regions and REGIONS in holds else None,
        caption_ids=label.caption_ids,
    )


def _reader(part: Part, location: str) -> Callable[[], bytes]:
    if part.data is not None:
        return partial(bytes, part.data)
    return partial(_read, location, part.start, part.size)


def _read(location: str, start: int, size: int) -> bytes:
    try:
        with open_bytes(location) as stream:
            stream.seek(start)
            data = stream.read(size)
    except OSError as error:
        raise DataError(f"{location}: cannot be read ({error.strerror}); mend it and repeat") from None
    if len(data) != size:
        raise DataError(f"{location}: shorter than when it was listed; convert it anew")
    return data


def _regions(read: Callable[[], bytes]) -> Regions:
    return decode_regions(read())
