"""Noise for every pair of an anchor and a key, drawn from what the pair is and not from a generator's state.

A pair's number is a pure function of (seed, stream, step, anchor's position, key's position), so it is the same
at any world size and in any tile. Integers of 32 bits, on whatever device holds them: CPUs shift those 20 times
as fast as 64 bits.
"""

import torch

_MULTIPLIERS = (0x7FEB352D, 0x846CA68B - 2**32)


def mix(values: torch.Tensor) -> torch.Tensor:
    """A bijective hash of int32, element by element (Wellons's lowbias32, of the Murmur3 finaliser's form)."""
    # shifts of signed integers copy the sign, which the masks take off again
    mixed = values ^ (values >> 16).bitwise_and_(0xFFFF)
    mixed.mul_(_MULTIPLIERS[0])
    mixed.bitwise_xor_((mixed >> 15).bitwise_and_(0x1FFFF))
    mixed.mul_(_MULTIPLIERS[1])
    return mixed.bitwise_xor_((mixed >> 16).bitwise_and_(0xFFFF))


class PairNoise:
    """The noise of all pairs of some anchors with `keys` keys, each a key's position its row."""

    def __init__(self, positions: torch.Tensor, keys: int, seed: int, step: int, stream: int = 0) -> None:
        """`positions` (b,) int64 of the anchors in the global batch; `stream` tells draws of one step apart."""
        root = torch.zeros((), dtype=torch.int32, device=positions.device)
        for part in (seed, seed >> 32, stream, step):
            root = mix(root ^ _low_bits(torch.full_like(root, part, dtype=torch.int64)))
        self._anchors = mix(mix(root) ^ _low_bits(positions))
        self._keys = mix(mix(~root) ^ torch.arange(keys, dtype=torch.int32, device=positions.device))

    def bits(self, rows: slice, columns: slice) -> torch.Tensor:
        """(r, c) int32, uniform."""
        return mix(self._anchors[rows].unsqueeze(1) ^ self._keys[columns])

    def log_exponential(self, rows: slice, columns: slice, dtype: torch.dtype) -> torch.Tensor:
        """(r, c): logarithms of draws from the exponential distribution, which are negative Gumbel noise."""
        # the largest noise comes of the smallest numbers, where float32 is finest
        uniform = self.bits(rows, columns).bitwise_and_(0x7FFFFFFF).to(dtype).add_(0.5).mul_(2.0**-31)
        return uniform.clamp_(max=1 - 2.0**-24).neg_().log1p_().neg_().log_()


def _low_bits(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.int32)
