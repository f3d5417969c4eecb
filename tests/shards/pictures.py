"""Records, splits and folders that the tests of the conversion share."""

import hashlib
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from shards.convert import Options, SplitReport, convert, publish
from shards.sources.record import Record, Skipped, Source, Split
from shards.staging import Staging

FOUR = Options(samples_per_shard=4)


def encoded(number: int = 0, form: str = "JPEG", size: tuple[int, int] = (30, 20), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(stream, form)
    return stream.getvalue()


def record(
    number: int, data: bytes | None = None, key: str = "", captions: tuple[str, ...] = ("one", "two")
) -> Record:
    data = encoded(number) if data is None else data
    return Record(key or f"key-{number:03d}", 50 + number, captions, partial(bytes, data))


def good(count: int) -> Iterator[Record]:
    """Records with one to three captions each."""
    return (
        record(number, captions=tuple(f"text {n} of {number}" for n in range(1 + number % 3)))
        for number in range(count)
    )


def mixed(count: int) -> list[Record | Skipped]:
    """Records, of which every seventh has a broken image, with things that the source skipped between them."""
    items: list[Record | Skipped] = []
    for number, one in enumerate(good(count)):
        items += [Skipped(f"left-out-{number:03d}", "not wanted")] * (number % 5 == 4)
        items.append(one if number % 7 != 3 else record(number, b"no image"))
    return items


def regions_of(shape: tuple[int, ...], value: float) -> np.ndarray:
    return np.full(shape, value, np.float32)


def with_regions(number: int, shape: tuple[int, ...] = (3, 4), image: bool = False) -> Record:
    load = partial(encoded, number) if image else None
    return Record(f"key-{number:03d}", number, ("text",), load, partial(regions_of, shape, number))


def source_of(identity: int = 1, **splits: list[Record | Skipped]) -> Source:
    return Source("d", [Split(name, items) for name, items in splits.items()], {"state": identity})


def claim(staging: Staging, source: Source, options: Options = FOUR) -> None:
    names = [split.name for split in source.splits]
    staging.claim(names, {"dataset": source.dataset, **source.identity, **options.as_dict()})


def convert_part(
    source: Source, out: Path, part: tuple[int, int], options: Options = FOUR, overwrite: bool = False
) -> None:
    with Staging(out, shared=True, overwrite=overwrite) as staging:
        claim(staging, source, options)
        convert(source, staging, options, part=part)


def convert_all(
    source: Source, out: Path, options: Options = FOUR, processes: int = 1, overwrite: bool = False
) -> dict[str, SplitReport]:
    """What a call of `itm shards convert` does."""
    with Staging(out, overwrite=overwrite) as staging:
        claim(staging, source, options)
        convert(source, staging, options, processes=processes)
        return publish(staging, source.dataset, [split.name for split in source.splits])


def contents(folder: Path) -> dict[str, str]:
    """Every file below `folder`, hidden ones too, with its hash; folders that are empty."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not any(path.iterdir()):
            found[str(path.relative_to(folder))] = "empty"
    return found


def skipped_names(root: Path) -> list[str]:
    return [json.loads(line)["name"] for line in (root / "skipped.jsonl").read_text().splitlines()]
