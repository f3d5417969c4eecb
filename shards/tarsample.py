"""The bytes of one sample in a tar -> its members."""

import io
import tarfile
from dataclasses import dataclass

from shards.errors import SampleError
from shards.members import REGIONS, image_of, label_of, split_name
from shards.regions import decode_regions
from shards.sources.record import Regions


@dataclass(frozen=True, slots=True)
class TarSample:
    """One image, still encoded, its regions, or both, with the captions."""

    image: bytes | None
    captions: list[str]
    regions: Regions | None = None
    caption_ids: tuple[int, ...] = ()
    """The data set's own: one a caption, or none at all."""


def parse_sample(data: bytes) -> TarSample:
    """Parse the bytes that an index's `offset` and `size` span.

    Raises `SampleError` when they are damaged, or hold neither image nor regions, or no captions; which sample
    it is, the caller adds.
    """
    try:
        named = [(split_name(name), content) for name, content in members_of(data)]
        members = [(names[1], content) for names, content in named if names is not None]
        label = label_of(members)
        regions = next((decode_regions(content) for extension, content in members if extension == REGIONS), None)
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise SampleError(f"damaged sample ({error}); check the file against its manifest") from None
    image = image_of(members)
    if (image is None and regions is None) or not label.captions:
        raise SampleError(f"the sample holds no {'image' if label.captions else 'captions'}")
    return TarSample(image, label.captions, regions, label.caption_ids)


def members_of(data: bytes) -> list[tuple[str, bytes]]:
    """The regular files in a piece of a tar, as names and contents. Raises `tarfile.TarError`."""
    plain = _plain_members(data)
    return _tarfile_members(data) if plain is None else plain


def _tarfile_members(data: bytes) -> list[tuple[str, bytes]]:
    members = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isreg() else None
            if stream is not None:
                members.append((member.name, stream.read()))
    return members


_CHECKSUM = slice(148, 156)
_MAGIC = (b"ustar\0", b"ustar ")  # POSIX and GNU


def _plain_members(data: bytes) -> list[tuple[str, bytes]] | None:
    """What `_tarfile_members` gives, at a fraction of the cost; None for all but whole, plain members.

    Long names, sparse files, sizes that are not octal digits, links, damage: all that is left to `tarfile`.
    """
    members = []
    position = 0
    while position < len(data):
        header = data[position : position + tarfile.BLOCKSIZE]
        if len(header) < tarfile.BLOCKSIZE or header[156:157] != b"0" or header[257:263] not in _MAGIC:
            return None
        digits, checksum = header[124:136].rstrip(b" \0"), header[_CHECKSUM].rstrip(b" \0")
        if not (digits.isdigit() and checksum.isdigit()):
            return None
        try:
            size, stated = int(digits, 8), int(checksum, 8)
            name = header[:100].partition(b"\0")[0].decode()
            prefix = header[345:500].partition(b"\0")[0].decode()
        except ValueError:
            return None
        start = position + tarfile.BLOCKSIZE
        position = start + size + -size % tarfile.BLOCKSIZE
        # the checksum is of the header with blanks in its own place
        if position > len(data) or sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ") != stated:
            return None
        members.append((f"{prefix}/{name}" if prefix else name, data[start : start + size]))
    return members or None
