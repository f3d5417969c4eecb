"""A conversion to be killed: `python -m tests.shards.killable OUT PROCESSES [I/N]`. It takes about a second."""

import sys
import time
from functools import partial
from pathlib import Path

from shards.convert import Options, convert, parse_part, publish
from shards.sources.record import Record, Skipped, Source, Split
from shards.staging import Staging
from tests.shards.pictures import claim, encoded

OPTIONS = Options(samples_per_shard=10)
SECONDS = 0.004


def load(number: int, seconds: float) -> bytes:
    time.sleep(seconds)
    if number % 17 == 3:
        raise FileNotFoundError
    return encoded(number % 5)


def slow_source(seconds: float = SECONDS) -> Source:
    def items(split: str, count: int) -> list[Record | Skipped]:
        records = [
            Record(f"{split}-{number}", number, ("text",), partial(load, number, seconds))
            for number in range(count)
        ]
        return [*records[:25], Skipped("left out", "not wanted"), *records[25:]]

    return Source("d", [Split("train", items("train", 185)), Split("val", items("val", 33))])


def main(out: str, processes: str, part: str | None = None) -> None:
    source = slow_source()
    with Staging(Path(out), shared=part is not None) as staging:
        claim(staging, source, OPTIONS)
        convert(source, staging, OPTIONS, processes=int(processes), part=parse_part(part or "1/1"))
        if part is None:
            publish(staging, source.dataset, [split.name for split in source.splits])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
