"""Which texts of very many stand more than once, in 8 bytes a text."""

from array import array

import numpy as np

from shards.seen import hash64


class Repeats:
    """Texts as 64-bit hashes, so one in 2**64 pairs of different texts is taken for a repetition."""

    def __init__(self) -> None:
        self._hashes = array("Q")

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, text: str) -> None:
        self._hashes.append(hash64(text))

    def found(self) -> frozenset[int]:
        """The hashes that stand more than once; `hash64` tells whose they are."""
        values, counts = np.unique(np.frombuffer(self._hashes, np.uint64), return_counts=True)
        return frozenset(values[counts > 1].tolist())
