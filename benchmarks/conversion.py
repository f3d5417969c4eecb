"""Images a second into shards with one and with two processes: `conversion.py ANNOTATIONS IMAGES [COUNT] [ROUNDS]`.

Rounds alternate, so that what else the machine does meets both alike, and say how many cores other programs
took meanwhile (Linux): only rounds without them tell the ratio. The files are read once beforehand. The train
split is taken, over again under other names where COUNT is larger, as its files are and with `--resize 224`.
Beside them the machine's own limit: two conversions of half the images each that share nothing and are up already.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

from shards.convert import Options, write_split
from shards.prepare import Resize
from shards.sources.karpathy import read_karpathy
from shards.sources.record import Record

PER_SHARD = 500


def busy_seconds() -> tuple[float, float]:
    """CPU time of the whole machine, and of this process with its ended children."""
    user, nice, system, _idle, _wait, irq, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
    own = os.times()
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK"), sum(own[:4])


def seconds(records: list[Record], options: Options, processes: int) -> tuple[float, float, float]:
    """Time taken, CPU time taken, and cores that others took."""
    with tempfile.TemporaryDirectory() as folder:
        begin, (machine, own) = time.perf_counter(), busy_seconds()
        write_split(
            records, Path(folder) / "train", dataset="d", split="train", options=options, processes=processes
        )
        taken, (machine_after, own_after) = time.perf_counter() - begin, busy_seconds()
    cpu = own_after - own
    return taken, cpu, (machine_after - machine - cpu) / taken


def apart(records: list[Record], options: Options) -> float:
    """Seconds until two conversions of one process and half the records each are done; their start not counted."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)

    def convert(half: list[Record]) -> None:
        barrier.wait()
        seconds(half, options, 1)

    middle = len(records) // 2
    halves = [context.Process(target=convert, args=(half,)) for half in (records[:middle], records[middle:])]
    for half in halves:
        half.start()
    barrier.wait()
    begin = time.perf_counter()
    for half in halves:
        half.join()
        assert half.exitcode == 0
    return time.perf_counter() - begin


def main(annotations: str, images: str, count: int = 6000, rounds: int = 5) -> None:
    [train] = (split for split in read_karpathy(Path(annotations), Path(images)).splits if split.name == "train")
    files = [item for item in train.items if isinstance(item, Record)][:count]
    records = [replace(item, key=f"{item.key}_{number}") for number, item in enumerate(islice(cycle(files), count))]
    for record in files:
        assert record.load is not None
        record.load()
    for name, resize in (("as they are", Resize()), ("resized to 224", Resize(224))):
        options = Options(PER_SHARD, resize=resize)
        for _ in range(rounds):
            one, two = (seconds(records, options, processes) for processes in (1, 2))
            limit = apart(records, options)
            print(
                f"{count:,} images {name}: 1 process {count / one[0]:,.0f}/s, 2 processes {count / two[0]:,.0f}/s, "
                f"{one[0] / two[0]:.2f} times as many, "
                f"two conversions apart {one[0] / limit:.2f} times; CPU {one[1]:.1f} s and {two[1]:.1f} s; "
                f"others took {one[2]:.1f} and {two[2]:.1f} cores",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
