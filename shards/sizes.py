"""Sizes as people write them: `300MB`, `1.5 GiB`."""

import re

from shards.errors import DataError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{letter}I": 1024 ** (1 + "KMGT".index(letter)) for letter in "KMGT"}


def parse_size(text: str, option: str) -> int:
    """`300MB` -> 300,000,000 bytes, `1GiB` -> 1024**3; without a unit: bytes. Raises `DataError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", text.strip().upper())
    size = int(float(found[1]) * _UNITS[found[2]]) if found and found[2] in _UNITS else 0
    if size < 1:
        raise DataError(f"{option} {text}: not a size; write one such as 300MB, 1GB or 1GiB")
    return size
