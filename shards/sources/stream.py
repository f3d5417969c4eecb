"""Items that are made anew each time that they are iterated, so that they need not fit into memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shards.sources.record import Record, Skipped


@dataclass(frozen=True)
class Stream:
    """An iterable over what `make()` yields."""

    make: Callable[[], Iterator[Record | Skipped]]

    def __iter__(self) -> Iterator[Record | Skipped]:
        return self.make()
