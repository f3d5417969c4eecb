"""Which strings were met before, in about 8 bytes a string."""

import hashlib

import numpy as np
import numpy.typing as npt

_RECENT = 1 << 16


class Seen:
    """A set that only grows; it holds 64-bit hashes, so one in 2**64 pairs of strings is taken for equal."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted: list[npt.NDArray[np.uint64]] = []

    def add(self, text: str) -> bool:
        """Whether `text` is new; from now on it is not."""
        value = hash64(text)
        if value in self._recent or any(_holds(array, value) for array in self._sorted):
            return False
        self._recent.add(value)
        if len(self._recent) == _RECENT:
            self._settle()
        return True

    def _settle(self) -> None:
        """Sort the recent ones; arrays of like size are merged, so that few have to be searched."""
        array = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
        self._recent.clear()
        while self._sorted and len(self._sorted[-1]) <= len(array):
            array = np.sort(np.concatenate([self._sorted.pop(), array]), kind="stable")
        self._sorted.append(array)


def hash64(text: str) -> int:
    """The first 64 bits of the SHA-256 of `text`; lone surrogates count as themselves."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _holds(array: npt.NDArray[np.uint64], value: int) -> bool:
    place = int(np.searchsorted(array, np.uint64(value)))
    return place < len(array) and int(array[place]) == value
