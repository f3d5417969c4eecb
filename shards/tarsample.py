"""The bytes of one sample in a tar -> its members."""

import io
import json
import tarfile
from dataclasses import dataclass

import numpy as np

from shards.errors import SampleError
from shards.sources.record import Regions

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tiff", "tif", "img"})


@dataclass(frozen=True, slots=True)
class TarSample:
    """One image, still encoded, its regions, or both, with the captions."""

    image: bytes | None
    captions: list[str]
    regions: Regions | None = None


def parse_sample(data: bytes, where: str) -> TarSample:
    """Parse the bytes that an index's `offset` and `size` span; `where` names the sample in errors."""
    image: bytes | None = None
    captions: list[str] | None = None
    regions: Regions | None = None
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is None:
                    continue
                extension = member.name.rpartition(".")[2].lower()
                if extension in IMAGE_EXTENSIONS:
                    image = stream.read()
                elif member.name.endswith(".regions.npy"):
                    regions = np.load(io.BytesIO(stream.read()), allow_pickle=False)
                elif extension == "json":
                    captions = json.loads(stream.read())["captions"]
    except (tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise SampleError(f"{where}: damaged sample ({error}); check the file against its manifest") from None
    if (image is None and regions is None) or not captions:
        raise SampleError(f"{where}: the sample holds no {'captions' if not captions else 'image'}")
    return TarSample(image, captions, regions)
