"""Blocks: the stretches of a shard that are fetched and kept as one, computed from its index alone."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from shards.shard_index import ShardIndex

ROWS = 512
"""No block crosses a multiple of this many rows: the order of an epoch reads runs of them."""
BYTES = 16 * 1024**2
"""Of a block at most, or one sample that is larger."""
GAP = 1024**2
"""Bytes of other samples in between, above which two requests cost less than to fetch them too."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows `first .. last - 1` of a shard, which lie in its bytes `start .. end - 1`."""

    location: str
    first: int
    last: int
    start: int
    end: int
    key: str
    """Hashed from where the block lies and from its samples' checksums: other bytes have another key."""

    def __len__(self) -> int:
        return self.end - self.start


def block_starts(offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The first row of each block of a shard whose samples have these `offsets` and `sizes`, `(samples,)` each."""
    ends = offsets + sizes
    starts: list[int] = []
    for group in range(0, len(offsets), ROWS):
        last = min(group + ROWS, len(offsets))
        gaps = np.flatnonzero(offsets[group + 1 : last] - ends[group : last - 1] > GAP) + group + 1
        edges = [group, *gaps.tolist(), last]
        for first, after in pairwise(edges):
            starts.extend(_cut(offsets, ends, first, after))
    return np.array(starts, np.int64)


def _cut(offsets: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], first: int, after: int) -> Iterator[int]:
    span = int(ends[after - 1] - offsets[first])
    pieces = -(-span // BYTES)
    # rather equal blocks than full ones and a rest
    most = min(BYTES, span // pieces + int((ends[first:after] - offsets[first:after]).max()))
    while first < after:
        yield first
        fitting = np.searchsorted(ends[first:after], offsets[first] + most, side="right")
        first += max(1, int(fitting))


class BlockTable:
    """The blocks of one shard."""

    def __init__(self, location: str, index: "ShardIndex") -> None:
        self.location, self.index = location, index
        self._starts = block_starts(index.offsets, index.sizes)
        self._blocks: dict[int, Block] = {}

    def between(self, first: int, last: int) -> list[Block]:
        """The blocks that hold rows `first .. last - 1`, of which there is at least one."""
        low, high = np.searchsorted(self._starts, (first, last - 1), side="right")
        return [self._block(number) for number in range(int(low) - 1, int(high))]

    def holding(self, row: int) -> Block:
        return self._block(int(np.searchsorted(self._starts, row, side="right")) - 1)

    def _block(self, number: int) -> Block:
        if number not in self._blocks:
            first = int(self._starts[number])
            last = int(self._starts[number + 1]) if number + 1 < len(self._starts) else len(self.index)
            start = int(self.index.offsets[first])
            end = int(self.index.offsets[last - 1] + self.index.sizes[last - 1])
            identity = hashlib.sha256(f"{self.location}\n{start}\n{end}\n".encode())
            identity.update(self.index.crc32[first:last].tobytes())
            self._blocks[number] = Block(self.location, first, last, start, end, identity.hexdigest()[:40])
        return self._blocks[number]
