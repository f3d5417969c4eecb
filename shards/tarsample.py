"""The bytes of one sample in a tar -> its members."""

import io
import tarfile
from dataclasses import dataclass

from shards.errors import DataError
from shards.members import captions_of, image_of, split_name


@dataclass(frozen=True, slots=True)
class TarSample:
    """One image, still encoded, with its captions."""

    image: bytes
    captions: list[str]


def parse_sample(data: bytes, where: str) -> TarSample:
    """Parse the bytes that an index's `offset` and `size` span; `where` names the sample in errors."""
    members: list[tuple[str, bytes]] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                names = split_name(member.name) if member.isreg() else None
                stream = tar.extractfile(member) if names else None
                if names is not None and stream is not None:
                    members.append((names[1], stream.read()))
        captions = captions_of(members)
    except (tarfile.TarError, ValueError) as error:
        raise DataError(f"{where}: damaged sample ({error}); check the file against its manifest") from None
    image = image_of(members)
    if image is None or not captions:
        raise DataError(f"{where}: the sample holds no {'image' if image is None else 'captions'}")
    return TarSample(image, captions)
