"""What one rank knows and all must act on at the same step."""

from typing import Any

import torch
import torch.distributed as dist

from trainer.distributed import World


class Agreement:
    """Flags that any rank may raise and that all ranks learn of at the same call.

    An exchange is a sum of a few bytes over the network between the hosts, started after one step and read
    after the next, when it has long arrived: no rank waits for another, nor a host for its device.
    """

    def __init__(self, world: World, num_flags: int) -> None:
        """All ranks call it together."""
        self.num_flags = num_flags
        # gloo also where the gradients go over NCCL: its tensors are in the host's memory
        self.group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._under_way: tuple[torch.Tensor, Any] | None = None

    def exchange(self, own: list[bool]) -> list[bool]:
        """Tell the others; returns the flags that any rank had raised at the call before this one."""
        assert len(own) == self.num_flags
        if self.group is None:
            return own
        told = self._read()
        flags = torch.tensor(own, dtype=torch.int32)
        self._under_way = flags, dist.all_reduce(flags, group=self.group, async_op=True)
        return told

    def settle(self, own: list[bool]) -> list[bool]:
        """The flags that any rank has raised up to and with this call, which waits for all ranks."""
        before = self.exchange(own)
        return [early or now for early, now in zip(before, self._read(), strict=True)] if self.group else before

    def arrive(self) -> None:
        """Wait until the exchange under way is through; the next call reads it all the same."""
        if self._under_way is not None:
            self._under_way[1].wait()

    def _read(self) -> list[bool]:
        if self._under_way is None:
            return [False] * self.num_flags
        flags, work = self._under_way
        self._under_way = None
        work.wait()
        return [count > 0 for count in flags.tolist()]
