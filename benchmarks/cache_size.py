"""How often a cache of remote shards transfers each byte in an epoch, by its size.

`cache_size.py [SHARDS] [PER_SHARD]`: the canonical order over the blocks of shards, without any bytes, and a
cache that drops what was not used for longest.
"""

import sys
from collections import OrderedDict

import numpy as np

from shards.order import LANES, RUN_LENGTH, WINDOW, batch_positions, epoch_order
from shards.storage.blocks import ROWS

BATCH = 32_768


def needed_blocks(shards: int, per_shard: int) -> list[list[tuple[int, int]]]:
    """For each batch of an epoch the blocks it needs: number and samples."""
    order = epoch_order(np.full(shards, per_shard), seed=0, epoch=0)
    needs = []
    for start in range(0, order.num_samples - BATCH + 1, BATCH):
        runs = order.runs(batch_positions(start, BATCH))
        first = runs.first_row // ROWS * ROWS
        size = np.minimum(ROWS, per_shard - first)
        needs.append(list(zip((runs.shard * per_shard + first).tolist(), size.tolist(), strict=True)))
    return needs


def transferred(needs: list[list[tuple[int, int]]], held: int) -> int:
    """Samples transferred in an epoch into a cache that holds `held` samples."""
    cache: OrderedDict[int, int] = OrderedDict()
    total = kept = 0
    for block, size in (need for batch in needs for need in batch):
        if block in cache:
            cache.move_to_end(block)
            continue
        total, kept = total + size, kept + size
        cache[block] = size
        while kept > held:
            kept -= cache.popitem(last=False)[1]
    return total


def main(shards: int = 800, per_shard: int = 10_000) -> None:
    window = LANES * (WINDOW + RUN_LENGTH)
    needs = needed_blocks(shards, per_shard)
    print(f"{shards * per_shard:,} samples; a window and a run of each lane: {window:,}")
    for share in (0.5, 0.75, 0.9, 1.0, 1.05, 1.1, 1.15, 1.3):
        times = transferred(needs, int(share * window)) / (shards * per_shard)
        print(f"a cache of {share:4.2f} times that: each byte is transferred {times:5.2f} times")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
