"""Whether all ranks still hold the same: queue, momentum encoders, bank, statistics, weights, seeds, position.

What is meant to be the same on every rank is only ever computed alike, never sent. A wrong bit of memory or a
faulty device would make the ranks optimise different things, and no loss would tell.
"""

from collections import Counter

import torch
import torch.distributed as dist
from torch import nn

from model.frameworks import Framework
from trainer.errors import RunError

_CHUNK = 2**20
"""Elements hashed at once: the products are in int64, whatever the tensor's type."""
_GOLDEN, _ODD = 0x9E3779B97F4A7C15 - 2**64, 0xD1B54A32D192ED03 - 2**64
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def hash_of(tensor: torch.Tensor) -> torch.Tensor:
    """() int64 of a tensor's exact bits, on its device and without waiting for it (ours).

    The sum modulo 2**64 of every element's bits times an odd number that belongs to its place: a change of one
    element always shows, and any other all but always. Integers, so the order of the sum is free.
    """
    words = tensor.detach().reshape(-1).view(_WORDS[tensor.element_size()])
    places = torch.arange(min(_CHUNK, len(words)), device=tensor.device)
    multipliers = (places * _GOLDEN) ^ _ODD | 1
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for number, first in enumerate(range(0, len(words), _CHUNK)):
        part = words[first : first + _CHUNK]
        total = total * _ODD + (part.to(torch.int64) * multipliers[: len(part)]).sum() * (2 * number + 1)
    return total


def shared_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers that every rank holds whole, by name.

    Under ZeRO-3 a weight exists once, and so does what a sharded queue holds.
    """
    buffers = module.replicated_buffers() if isinstance(module, Framework) else dict(module.named_buffers())
    named = {**dict(module.named_parameters()), **buffers}
    return {name: tensor for name, tensor in named.items() if not hasattr(tensor, "ds_tensor")}


def check_ranks(module: nn.Module, state: dict[str, int], device: torch.device, step: int) -> None:
    """Compare what all ranks should have alike: the module's tensors and the numbers of `state`.

    All ranks call it together. Raises `RunError` on every rank where one differs, naming rank and thing. What
    most ranks have is taken to be right, and rank 0's in a tie.
    """
    tensors = shared_tensors(module)
    names = [*state, *tensors]
    hashes = [torch.tensor(number, device=device) for number in state.values()]
    hashes += [hash_of(tensor).to(device) for tensor in tensors.values()]
    own = torch.stack(hashes).unsqueeze(0)
    everyone = own.new_empty(dist.get_world_size(), own.shape[1])
    dist.all_gather_single(everyone, own)
    if found := diverged(everyone.tolist()):
        rank, places = found
        what = " and ".join(names[place] for place in places[:2])
        more = f" and {len(places) - 2} more" if len(places) > 2 else ""
        raise RunError(
            f"step {step}: rank {rank} differs in {what}{more}; memory or a device of its machine may be at fault; "
            "resume from the newest checkpoint, on another machine if it comes again"
        )


def diverged(hashes: list[list[int]]) -> tuple[int, list[int]] | None:
    """The first rank whose row differs from what most ranks have, and the places of its differences."""
    common = []
    for column in zip(*hashes, strict=True):
        counts = Counter(column)
        most = max(counts.values())
        common.append(column[0] if counts[column[0]] == most else counts.most_common(1)[0][0])
    for rank, row in enumerate(hashes):
        if places := [place for place, value in enumerate(row) if value != common[place]]:
            return rank, places
    return None
