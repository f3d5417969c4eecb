"""What every source yields, whatever format it came from: images with their captions, and what it left out."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that could not be taken over, by name, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """One image with all of its captions.

    `load` returns the encoded image bytes (JPEG, PNG, ...). It is called in a worker process, so it must
    be picklable, for example `functools.partial(Path.read_bytes, path)`; it may raise `OSError`.
    """

    key: str
    """Unique within the split; names the sample's tar members, so it holds no dot, slash or white space."""
    image_id: int
    """Pairs with one image id are never each other's negatives."""
    captions: tuple[str, ...]
    load: Callable[[], bytes]
