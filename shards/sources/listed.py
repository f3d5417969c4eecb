"""A source whose records fit into memory: annotation files of up to some million captions."""

from pathlib import Path

from shards.errors import DataError
from shards.sources.record import Record, Skipped, Source, Split

Splits = dict[str, list[Record | Skipped]]


def listed_source(
    dataset: str, splits: Splits, identity: dict[str, object], inputs: tuple[Path, ...], where: str
) -> Source:
    """A source of lists. `where` names the annotations in messages.

    Raises `DataError` when two images of one split have the same key, or when nothing is usable at all.
    """
    for split, items in splits.items():
        _check_keys(items, split, where)
    counts = {name: sum(isinstance(item, Record) for item in items) for name, items in splits.items()}
    if not any(counts.values()):
        first = [item for items in splits.values() for item in items if isinstance(item, Skipped)][:1]
        reason = "".join(f"; the first left out: {item.name}: {item.reason}" for item in first)
        raise DataError(f"{where}: no image has a usable caption{reason}")
    return Source(dataset, [Split(name, items, counts[name]) for name, items in splits.items()], identity, inputs)


def _check_keys(items: list[Record | Skipped], split: str, where: str) -> None:
    keys: set[str] = set()
    for item in items:
        if isinstance(item, Record):
            if item.key in keys:
                raise DataError(
                    f"{where}: a second image named {item.key} in split {split}; names must be unique "
                    "(dots, slashes and spaces count as `_`)"
                )
            keys.add(item.key)
