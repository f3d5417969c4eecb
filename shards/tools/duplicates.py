"""How often values repeat, by sorting their 64-bit hashes: 8 bytes a value, whatever repeats."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Duplicates:
    """Counts of what stands more than once."""

    values: int = 0
    """Different values that do."""
    copies: int = 0
    """Items beyond the first of each."""
    most: int = 1
    """Items of the most frequent one; 1 where nothing repeats."""
    examples: tuple[int, ...] = ()
    """Hashes of the most frequent ones."""


def count_duplicates(parts: Sequence[Hashes], examples: int = 5) -> Duplicates:
    """Count over all parts together."""
    values = np.concatenate([*parts, np.empty(0, np.uint64)])
    values.sort()
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: len(values)])
    lengths = np.diff(starts, append=len(values))
    repeated = np.flatnonzero(lengths > 1)
    most = repeated[np.argsort(-lengths[repeated], kind="stable")[:examples]]
    return Duplicates(
        values=len(repeated),
        copies=len(values) - len(starts),
        most=int(lengths.max(initial=1)),
        examples=tuple(values[starts[most]].tolist()),
    )
