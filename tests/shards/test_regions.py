import io
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.decoding import DecodeError
from shards.regions import decode_regions


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def claiming(shape: tuple[int, ...]) -> bytes:
    """A header without what it describes."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def several() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros((2, 2)))
    return stream.getvalue()


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_regions_come_back_as_float32(dtype: str, order: str) -> None:
    array = np.arange(12, dtype=dtype).reshape(3, 4, order=order)
    regions = decode_regions(saved(array))
    assert regions.dtype == np.float32
    assert regions.flags.writeable
    np.testing.assert_array_equal(regions, array)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no array",
        b"PK\x03\x04aaaa",
        several(),
        b"\x80\x04K\x01.",
        saved(np.zeros(3, np.float32)),
        saved(np.zeros((0, 3), np.float32)),
        saved(np.zeros((2, 2), np.int64)),
        saved(np.array([[None]], object)),
        saved(np.zeros((2, 2), np.float32))[:-1],
        saved(np.array([[1, np.nan]], np.float32)),
        saved(np.array([[np.inf, 1]], np.float32)),
        saved(np.array([[1e300]])),
        saved(np.zeros((2, 2), np.float32)) + b"more",
        claiming((10**9, 10**4)),
        claiming((-1, -4)),
    ],
)
def test_what_is_no_array_of_regions_is_refused_without_allocating_it(content: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(DecodeError):
        decode_regions(content)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_refused_or_read_but_raises_nothing_else(data: st.DataObject) -> None:
    damaged = bytearray(saved(np.zeros((2, 3), np.float32)))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(DecodeError):
        assert decode_regions(bytes(damaged)).dtype == np.float32
