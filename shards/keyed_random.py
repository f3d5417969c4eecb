"""Randomness that is a pure function of a key, the same on every machine and in every library version.

Built on the SplitMix64 finaliser (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014). NumPy does not promise that its generators' higher methods keep their streams across versions;
the order of an epoch must survive an upgrade in the middle of a run.
"""

import numpy as np
import numpy.typing as npt

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijective hash of 64-bit integers, element by element."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
        return z ^ (z >> np.uint64(31))


def mix_int(value: int) -> int:
    """`mix` of one number below 2**64: a tenth of the time that an array of one takes."""
    z = (value + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return z ^ (z >> 31)


def key_of(*parts: int) -> np.uint64:
    """One 64-bit key from a tuple of integers in `0 .. 2**64 - 1`; the order of the parts counts.

    Raises `OverflowError` for others.
    """
    return extended(np.uint64(0), *parts)


def extended(key: np.uint64, *parts: int) -> np.uint64:
    """A key with further parts: `extended(key_of(1, 2), 3) == key_of(1, 2, 3)`."""
    state = int(key)
    for part in parts:
        number = int(part)
        if not 0 <= number <= _MASK:
            raise OverflowError(f"{number} is no part of a key: it is not in 0 .. 2**64 - 1")
        state = mix_int(state ^ mix_int(number))
    return np.uint64(state)


def below(key: np.uint64, count: int) -> int:
    """A number in `0 .. count - 1` drawn for `key`."""
    return mix_int(int(key)) % count


def uniforms(key: np.uint64, count: int) -> list[float]:
    """`count` numbers in [0, 1) drawn for `key`."""
    return [(mix_int(mix_int(place) ^ int(key)) >> 11) * 2.0**-53 for place in range(count)]


def permutation(key: np.uint64, count: int) -> npt.NDArray[np.int64]:
    """A random permutation of `0 .. count - 1` drawn for `key`."""
    # distinct inputs to a bijection: no ties, so the sort's algorithm does not matter
    return np.argsort(mix(np.arange(count, dtype=np.uint64) ^ key)).astype(np.int64)
