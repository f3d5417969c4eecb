"""The bytes of one sample in a tar -> its members."""

import io
import json
import tarfile
from dataclasses import dataclass

from shards.errors import DataError

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tiff", "tif", "img"})


@dataclass(frozen=True, slots=True)
class TarSample:
    """One image, still encoded, with its captions."""

    image: bytes
    captions: list[str]


def parse_sample(data: bytes, where: str) -> TarSample:
    """Parse the bytes that an index's `offset` and `size` span; `where` names the sample in errors."""
    image: bytes | None = None
    captions: list[str] | None = None
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is None:
                    continue
                extension = member.name.rpartition(".")[2].lower()
                if extension in IMAGE_EXTENSIONS:
                    image = stream.read()
                elif extension == "json":
                    captions = json.loads(stream.read())["captions"]
    except (tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: damaged sample ({error}); check the file against its manifest") from None
    if image is None or not captions:
        raise DataError(f"{where}: the sample holds no {'image' if image is None else 'captions'}")
    return TarSample(image, captions)
