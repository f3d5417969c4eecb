"""Time and memory to set up an epoch's order and to locate a batch in it: `epoch_order.py [SHARDS] [PER_SHARD]`."""

import resource
import sys
import time

import numpy as np

from shards.order import batch_positions, epoch_order

BATCH = 32_768


def main(shards: int = 100_000, per_shard: int = 10_000) -> None:
    samples = np.full(shards, per_shard)
    begin = time.perf_counter()
    order = epoch_order(samples, seed=0, epoch=0)
    ready = time.perf_counter()
    order.locate(batch_positions(order.num_samples // 2, BATCH))
    located = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{order.num_samples:,} samples: set up {ready - begin:.2f} s, a batch of {BATCH:,} located in "
          f"{1000 * (located - ready):.0f} ms, peak memory {peak:,.0f} MB")  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
