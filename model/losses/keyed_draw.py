"""Draws that are pure functions of a key, made on the device: the same at any world size, and after a resume.

SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) on int64, whose products wrap around as those of uint64 do.
"""

import torch

_GOLDEN, _MIX_1, _MIX_2 = (
    constant - 2**64 for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def mix(values: torch.Tensor) -> torch.Tensor:
    """A bijective hash of int64, element by element."""
    z = values + _GOLDEN
    z = (z ^ _shifted(z, 30)) * _MIX_1
    z = (z ^ _shifted(z, 27)) * _MIX_2
    return z ^ _shifted(z, 31)


def _shifted(values: torch.Tensor, bits: int) -> torch.Tensor:
    # signed shifts copy the sign, which the mask takes away
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def keys_of(positions: torch.Tensor, *parts: int | torch.Tensor) -> torch.Tensor:
    """One int64 key for each of (b,) int64 positions and the same parts; the order of the parts counts."""
    state = torch.zeros((), dtype=torch.int64, device=positions.device)
    for part in parts:
        number = part if isinstance(part, torch.Tensor) else torch.full_like(state, part)
        state = mix(state ^ mix(number))
    return mix(state ^ mix(positions))


def draw(keys: torch.Tensor, slots: torch.Tensor, possible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One of the possible slots for each key, all equally likely.

    The slot that hashes highest with the key wins, so the order in which they are listed does not matter.

    Args:
        keys: (b,) int64.
        slots: (b, k) int64.
        possible: (b, k) bool.

    Returns:
        (b,) the slot drawn; (b,) bool, False where none was possible.
    """
    lowest = torch.iinfo(torch.int64).min
    ranks = mix(keys.unsqueeze(1) ^ mix(slots)).masked_fill(~possible, lowest)
    return slots.gather(1, ranks.argmax(dim=1, keepdim=True)).squeeze(1), possible.any(dim=1)
