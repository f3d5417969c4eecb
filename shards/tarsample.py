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
    try:
        members = [(names[1], content) for name, content in members_of(data) if (names := split_name(name))]
        image, captions = image_of(members), captions_of(members)
    except (tarfile.TarError, ValueError) as error:
        raise DataError(f"{where}: damaged sample ({error}); check the file against its manifest") from None
    if image is None or not captions:
        raise DataError(f"{where}: the sample holds no {'image' if image is None else 'captions'}")
    return TarSample(image, captions)


def members_of(data: bytes) -> list[tuple[str, bytes]]:
    """The regular files in a piece of a tar, as names and contents. Raises `tarfile.TarError`."""
    members = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            # a link leads out of the sample, whatever it is called
            stream = tar.extractfile(member) if member.isreg() else None
            if stream is not None:
                members.append((member.name, stream.read()))
    return members
