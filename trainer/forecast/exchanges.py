"""What processes send each other, seen where torch hands it to the network."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAMES = {
    "_allgather_base_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "allreduce_": "all-reduce",
    "broadcast_": "broadcast",
    "allgather_": "all-gather of a list",
    "reduce_": "reduce",
}


class Exchanges(TorchDispatchMode):
    """Counts collectives and the bytes of the whole that each makes or takes, by kind.

    The whole is an all-gather's result and a reduce-scatter's argument.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            sizes = [leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            self.calls[NAMES.get(name, name)] += 1
            self.bytes[NAMES.get(name, name)] += max(sizes)
        return func(*args, **(kwargs or {}))


@contextmanager
def as_first_of(processes: int) -> Iterator[None]:
    """Rank 0 of a group whose other processes do not exist: collectives return at once, with the right shapes."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()
