"""What every source yields, whatever format it came from: samples to be, and what it left out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

Regions = npt.NDArray[np.float32]
"""(R, F): R image regions with F features each, such as 36 x 2048."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that could not be taken over, by name, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """One image, its precomputed regions, or both, with all of its captions.

    `load` returns the encoded image bytes (JPEG, PNG, ...), `regions` the region features; at least one is
    given. They are called in a worker process, so they must be picklable, for example
    `functools.partial(Path.read_bytes, path)`; they may raise `OSError` or `ValueError` where this
    sample cannot be read, `DataError` where none can.
    """

    key: str
    """Unique within the split; names the sample's tar members, so it holds no dot, slash or white space."""
    image_id: int | None
    """Pairs with one image id are never each other's negatives. None: hashed from the image's bytes."""
    captions: tuple[str, ...]
    load: Callable[[], bytes] | None
    regions: Callable[[], Regions] | None = None
    caption_ids: tuple[int, ...] = ()
    """The data set's own ids of the captions, where it has such: one a caption, or none at all."""


@dataclass(frozen=True)
class Split:
    """The records of one split, with what was left out between them, in the source's order."""

    name: str
    items: Iterable[Record | Skipped]
    """Gives the same items each time that it is iterated; may be far too many for memory."""
    count: int | None = None
    """How many records there are, where that is known without reading them all; for progress alone."""


@dataclass(frozen=True)
class Source:
    """A data set in a foreign format, opened: its annotations checked, its images not read yet."""

    dataset: str
    splits: list[Split]
    identity: dict[str, object] = field(default_factory=dict)
    """What decides the records, as JSON: files with their sizes and times, and options. An interrupted
    conversion goes on only where it is the same."""
    inputs: tuple[Path, ...] = ()
    """Files and folders that the records are read from; what is written replaces none of them."""
    in_order: bool = False
    """Whether records can be loaded in the source's order alone, or else each at the price of many."""
