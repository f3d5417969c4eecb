"""Which member of a sample means what: the rules for tars of ours and of others alike.

A member is its extension and its bytes. The rules are those of webdataset for names, and the conventions of
img2dataset and open_clip for what stands in them.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

Member = tuple[str, bytes]
"""Extension, in lower case and without the first dot, and content."""

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tiff", "tif", "img"})
JSON, TEXT, REGIONS = "json", "txt", "regions.npy"

_NAME = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")


@dataclass(frozen=True, slots=True)
class Label:
    """What a sample says of its image in words and numbers."""

    captions: list[str]
    caption_ids: tuple[int, ...] = ()
    """One a caption, or none at all."""
    image_id: int | None = None


def split_name(name: str) -> tuple[str, str] | None:
    """A member's key and extension; None for a file that belongs to no sample.

    The extension begins at the first dot of the last part of the path: `a.b/c.seg.PNG` -> `a.b/c`, `seg.png`.
    """
    match = _NAME.fullmatch(name)
    if match is None or _META.match(name):
        return None
    return match[1], match[2].lower()


def is_image(extension: str) -> bool:
    """Whether a member with this extension can be the sample's image."""
    return extension.rpartition(".")[2] in IMAGE_EXTENSIONS


def is_label(extension: str) -> bool:
    """Whether a member with this extension can hold captions."""
    return extension in (JSON, TEXT)


def image_of(members: Iterable[Member]) -> bytes | None:
    """The first member that is an image."""
    return next((data for extension, data in members if is_image(extension)), None)


def captions_of(members: Iterable[Member]) -> list[str]:
    """The captions, white space collapsed, the empty ones left out; see `label_of`."""
    return label_of(members).captions


def label_of(members: Iterable[Member]) -> Label:
    """The captions, from the first of these that gives any: JSON `captions`, the text, JSON `caption`.

    Raises `ValueError` when the JSON or the text cannot be decoded.
    """
    parts = {extension: data for extension, data in members if is_label(extension)}
    fields: object = None
    if JSON in parts:
        try:
            fields = json.loads(parts[JSON])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the JSON cannot be decoded ({error})") from None
    if not isinstance(fields, dict):
        fields = {}
    image_id = fields.get("image_id")
    if not _is_int64(image_id):
        image_id = None
    texts = fields.get("captions")
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        ids = fields.get("caption_ids")
        if not (isinstance(ids, list) and len(ids) == len(texts) and all(map(_is_int64, ids))):
            ids = []
        captions, places = _clean(texts)
        if captions:
            return Label(captions, tuple(ids[place] for place in places if ids), image_id)
    if TEXT in parts:
        try:
            captions, _ = _clean([parts[TEXT].decode("utf-8-sig")])
        except UnicodeDecodeError as error:
            raise ValueError(f"the text is not UTF-8 ({error.reason} at byte {error.start})") from None
        if captions:
            return Label(captions, image_id=image_id)
    single = fields.get("caption")
    return Label(_clean([single])[0] if isinstance(single, str) else [], image_id=image_id)


def _is_int64(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _clean(texts: list[str]) -> tuple[list[str], list[int]]:
    """The usable texts and their places."""
    captions, places = [], []
    for place, text in enumerate(texts):
        caption = " ".join(text.split())
        if caption and (caption.isascii() or _is_unicode(caption)):
            captions.append(caption)
            places.append(place)
    return captions, places


def _is_unicode(text: str) -> bool:
    # a JSON escape can smuggle in half of a surrogate pair, which no tokenizer takes
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
