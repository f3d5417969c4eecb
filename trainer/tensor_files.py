"""Files of named tensors in the safetensors format: written and hashed in one pass, read by spans.

The format is a length, a JSON header and the bytes of the tensors one after another. The library's own writer
takes a copy of every tensor first and returns when all is written; this one streams from memory that exists
already, can be stopped between two chunks, and needs no second pass for the hash. Reading is the library's.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from trainer.errors import RunError

CHUNK = 8 << 20
"""Bytes written and hashed at a time."""
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Written:
    """What a file must be to be whole."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.numel * self.dtype.itemsize


def sort_entries(entries: Iterable[Entry]) -> list[Entry]:
    """The order of tensors in a file: by falling size of an element, so that every tensor is aligned."""
    return sorted(entries, key=lambda entry: -entry.dtype.itemsize)


def write_file(path: Path, parts: Iterable[Any], go_on: Callable[[], None]) -> Written:
    """Write what has the buffer protocol to a new file that survives a power cut. `go_on` raises to stop it."""
    sha256, size = hashlib.sha256(), 0
    with path.open("wb") as stream:
        for part in parts:
            view = memoryview(part).cast("B")
            for start in range(0, len(view), CHUNK):
                go_on()
                chunk = view[start : start + CHUNK]
                stream.write(chunk)
                sha256.update(chunk)
            size += len(view)
        stream.flush()
        os.fsync(stream.fileno())
    return Written(size, sha256.hexdigest())


def _header(entries: Sequence[Entry]) -> bytes:
    """What stands before the tensors."""
    header, offset = {}, 0
    for entry in entries:
        end = offset + entry.bytes
        header[entry.key] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_bytes(entries: Sequence[Entry]) -> int:
    """The size of the file that `write_tensors` would write."""
    return len(_header(entries)) + sum(entry.bytes for entry in entries)


def write_tensors(
    path: Path, entries: Sequence[Entry], tensors: Iterable[torch.Tensor], go_on: Callable[[], None]
) -> Written:
    """Write tensors, of the entries' order, types and sizes, to a new safetensors file."""
    begin = _header(entries)

    def parts() -> Iterable[Any]:
        yield begin
        for tensor in tensors:
            if tensor.numel():
                yield tensor.reshape(-1).view(torch.uint8).numpy()

    return write_file(path, parts(), go_on)


class HostCopy:
    """Tensors copied into one block of host memory, which is kept for the next copy.

    A fresh block costs far more than the copy: the system has to find and clear its pages.
    """

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._block = torch.empty(0, dtype=torch.uint8)
        self.entries: list[Entry] = []

    def reserve(self, tensors: dict[str, torch.Tensor]) -> None:
        """Have memory for these tensors at hand; after that, `take` of tensors of the same sizes only copies."""
        self.entries = sort_entries(Entry(key, one.dtype, tuple(one.shape)) for key, one in tensors.items())
        size = sum(entry.bytes for entry in self.entries)
        if len(self._block) != size:
            self._block = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned).fill_(0)

    def take(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copy the tensors; from a GPU the copy has ended only after it was synchronised with."""
        self.reserve(tensors)
        for entry, copy in self.items():
            copy.copy_(tensors[entry.key], non_blocking=True)

    def items(self) -> Iterator[tuple[Entry, torch.Tensor]]:
        """What was copied, in the order of a file."""
        offset = 0
        for entry in self.entries:
            yield entry, self._block[offset : offset + entry.bytes].view(entry.dtype).view(entry.shape)
            offset += entry.bytes

    def write(self, path: Path, go_on: Callable[[], None]) -> Written:
        """Write all of it; see `write_tensors`."""
        return write_tensors(path, self.entries, (tensor for _, tensor in self.items()), go_on)


class TensorFiles:
    """Tensors of several files by name, whole or in spans: `NAME@START`, (n,), is a span of a flattened `NAME`.

    Only what is asked for is read. Raises `RunError` for a file that cannot be read, and for a tensor whose
    spans do not cover what is asked for.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._spans: dict[str, list[tuple[int, int, Any, str]]] = {}
        for path in paths:
            try:
                file: Any = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise RunError(f"{path}: cannot be read ({error})") from None
            for key in file.keys():  # noqa: SIM118  (it is no dictionary)
                name, _, start = key.rpartition("@")
                (length,) = file.get_slice(key).get_shape()
                self._spans.setdefault(name, []).append((int(start), int(start) + length, file, key))

    def __contains__(self, name: str) -> bool:
        return name in self._spans

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """(stop - start,) float32: elements of a flattened tensor."""
        whole, found = torch.empty(stop - start), 0
        for first, last, file, key in self._spans.get(name, ()):
            low, high = max(start, first), min(stop, last)
            if low < high:
                whole[low - start : high - start] = file.get_slice(key)[low - first : high - first]
                found += high - low
        if found != stop - start:
            raise RunError(
                f"{name}: the checkpoint holds {found:,} of the {stop - start:,} numbers that are needed"
            )
        return whole
