"""How well an epoch mixes and how sequentially it reads: `shuffle_quality.py [SHARDS] [PER_SHARD]`.

The worst case: data sorted by class, every shard a class of its own. Beside this project's order stand a uniform
shuffle, and WebDataset's own shuffle stages, run here: the list of shards, then a buffer of 10,000 samples; as
one stream, and as 64 streams (8 ranks of 8 workers, each with its part of the shards and a buffer of its
own) that give equal parts of every global batch. SHARDS must be a multiple of 64.
"""

import random
import sys
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from webdataset.filters import shuffle

from shards.order import LANES, STAGGER, WINDOW, Ints, epoch_order

BATCH = 4096
BUFFER = 10_000
STREAMS = 64


def ours(shards: int, per_shard: int, epoch: int) -> Ints:
    order = epoch_order(np.full(shards, per_shard), seed=0, epoch=epoch)
    shard, row = order.locate(np.arange(order.num_samples))
    return shard * per_shard + row


def uniform(shards: int, per_shard: int, epoch: int) -> Ints:
    return np.random.default_rng(epoch).permutation(shards * per_shard)


def webdataset(shards: int, per_shard: int, epoch: int, streams: int = 1) -> Ints:
    """The streams' samples in turn: one of the first stream, one of the second, and so on."""
    generator = random.Random(epoch)
    names = list(shuffle(shards, initial=shards, rng=generator)(iter(range(shards))))

    def samples(stream: int) -> Iterator[int]:
        for shard in names[stream::streams]:
            yield from range(shard * per_shard, (shard + 1) * per_shard)

    mixed = shuffle(BUFFER, initial=BUFFER, rng=generator)
    length = shards // streams * per_shard
    parts = [np.fromiter(mixed(samples(stream)), np.int64, length) for stream in range(streams)]
    return np.stack(parts, axis=1).ravel()


def report(name: str, first: Ints, second: Ints, per_shard: int) -> None:
    """Print one line for the samples of two consecutive epochs, `(n,)` each, in their order."""
    shard = first // per_shard
    batches = np.sort(shard[: len(first) // BATCH * BATCH].reshape(-1, BATCH), axis=1)
    fresh = np.diff(batches, axis=1, prepend=-1) != 0
    counts = np.diff(np.append(np.flatnonzero(fresh), batches.size))
    pairs = (counts * (counts - 1)).sum() / (len(batches) * BATCH * (BATCH - 1))
    by_chance = (per_shard - 1) / (len(first) - 1)
    lags = [np.corrcoef(shard[:-lag], shard[lag:])[0, 1] for lag in (1, LANES)]
    place, place_after = np.empty(len(first)), np.empty(len(first))
    place[first] = place_after[second] = np.arange(len(first))
    moved = np.abs(place - place_after).mean() / len(first)
    print(f"{name:24}{fresh.sum(axis=1).mean():8.0f}{pairs / by_chance:10.2f}{lags[0]:9.3f}{lags[1]:9.3f}"
          f"{moved:9.3f}{np.corrcoef(place, place_after)[0, 1]:13.3f}")  # fmt: skip


def report_reading(shards: int, per_shard: int) -> None:
    """Print how much of an epoch's reading is in sequence."""
    order = epoch_order(np.full(shards, per_shard), seed=0, epoch=0)
    runs = len(order.runs(np.arange(order.num_samples)).shard)
    stretches = 0
    for lane in range(LANES):
        shard, row = order.locate(np.arange(lane, order.num_samples, LANES))
        window = (np.arange(len(row)) + STAGGER[lane]) // WINDOW
        sample = shard * per_shard + row
        by_window = np.lexsort((sample, window))
        jumps = (np.diff(sample[by_window]) != 1) | (np.diff(window[by_window]) != 0)
        stretches += 1 + int(jumps.sum())
    print(f"\n{runs / order.num_samples * 1e6:,.0f} runs a million samples; within a window "
          f"{order.num_samples / stretches:.0f} consecutive rows at a time")  # fmt: skip


def main(shards: int = 1024, per_shard: int = 5000) -> None:
    print(f"{shards:,} shards of {per_shard:,}, batches of {BATCH:,}\n")
    print("                          shards  same-shard  autocorrelation    from epoch to epoch\n"
          "                         a batch  pairs     lag 1   lag 64    moved  correlation")  # fmt: skip
    ways: dict[str, Callable[[int, int, int], Ints]] = {
        "this project": ours,
        "uniform": uniform,
        "WebDataset, 1 stream": webdataset,
        f"WebDataset, {STREAMS} streams": partial(webdataset, streams=STREAMS),
    }
    for name, way in ways.items():
        report(name, way(shards, per_shard, 0), way(shards, per_shard, 1), per_shard)
    report_reading(shards, per_shard)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
