"""The bytes of a `regions.npy` -> its array."""

import io
import math

import numpy as np

from shards.decoding import DecodeError, decoding
from shards.sources.record import Regions


def decode_regions(content: bytes) -> Regions:
    """Regions x features, float32. Raises `DecodeError` when the bytes are no such array of finite values.

    Nothing is allocated before the header is known to agree with the bytes that follow it: a damaged one may
    claim petabytes.
    """
    stream = io.BytesIO(content)
    with decoding():
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise DecodeError(f"an array in version {version} of its format")
        shape, _fortran_order, dtype = read_header[version](stream)
    if len(shape) != 2 or dtype.kind != "f" or not shape[0]:
        raise DecodeError(f"regions of shape {shape} and type {dtype}")
    held = len(content) - stream.tell()
    if math.prod(shape) * dtype.itemsize != held:
        raise DecodeError(f"regions of shape {shape} and type {dtype} in {held:,} bytes")
    stream.seek(0)
    with decoding():
        array: Regions = np.lib.format.read_array(stream, allow_pickle=False)
    with np.errstate(over="ignore"):  # what becomes infinite is refused below
        regions: Regions = array.astype(np.float32, copy=False)
    if not np.isfinite(regions).all():
        raise DecodeError("regions with values that are not finite")
    return regions
