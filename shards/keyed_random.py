"""Randomness that is a pure function of a key, the same on every machine and in every library version.

Built on the SplitMix64 finaliser (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014). NumPy does not promise that its generators' higher methods keep their streams across versions;
the order of an epoch must survive an upgrade in the middle of a run.
"""

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijective hash of 64-bit integers, element by element."""
    with np.errstate(over="ignore"):
        z = values + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        return z ^ (z >> np.uint64(31))


def key_of(*parts: int) -> np.uint64:
    """One 64-bit key from a tuple of non-negative integers; the order of the parts counts."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = mix(state ^ mix(np.array([part], np.uint64)))
    return np.uint64(state[0])


def uniforms(key: np.uint64, count: int) -> npt.NDArray[np.float64]:
    """`count` numbers in [0, 1) drawn for `key`."""
    bits = mix(mix(np.arange(count, dtype=np.uint64)) ^ key)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: np.uint64, count: int) -> npt.NDArray[np.int64]:
    """A random permutation of `0 .. count - 1` drawn for `key`."""
    # distinct inputs to a bijection: no ties, so the sort's algorithm does not matter
    return np.argsort(mix(np.arange(count, dtype=np.uint64) ^ key)).astype(np.int64)
