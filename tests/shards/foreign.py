"""Tars as others write them, and small folders of our own."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from shards.convert import Options, write_split
from shards.manifest import Manifest, read_manifest
from tests.conftest import numbered_record


def picture(number: int = 0, form: str = "JPEG", size: tuple[int, int] = (30, 20)) -> bytes:
    """An encoded picture that `number` alone decides."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def as_json(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def write_tar(
    path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT, mode: str = "w"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_600_000_000
            tar.addfile(info, io.BytesIO(data))
    return path


def img2dataset_members(first: int, count: int) -> list[tuple[str, bytes]]:
    """What img2dataset puts into a tar: image, text and JSON of each download that succeeded, keys with gaps."""
    members = []
    for number in range(first, first + count):
        key, caption = f"{number * 3:09d}", f"  a picture called {number}\n"
        fields = as_json(caption=caption, url=f"http://host/{number}.jpg", key=key, status="success", width=30)
        members += [(f"{key}.jpg", picture(number)), (f"{key}.txt", caption.encode()), (f"{key}.json", fields)]
    return members


def write_img2dataset(folder: Path, shards: int = 3, count: int = 4) -> Path:
    """An output folder of img2dataset, with its side files."""
    for shard in range(shards):
        write_tar(folder / f"{shard:05d}.tar", img2dataset_members(shard * count, count))
        (folder / f"{shard:05d}_stats.json").write_text("{}")
        (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1")
    return folder


def fingerprint(folder: Path) -> dict[str, str]:
    """A hash a file, hidden ones too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_ours(root: Path, samples: int = 12, per_shard: int = 5, captions: int = 3) -> Manifest:
    """A folder of our own shards with `numbered_record`s."""
    records = (numbered_record(number, captions) for number in range(samples))
    write_split(records, root, dataset="synthetic", split="train", options=Options(per_shard))
    return read_manifest(root)
