"""How fast a run goes, and how long it waits for data."""

import time
from collections.abc import Iterator

from shards.batch import Batch


class Meter:
    """Throughput, and the share of the time spent waiting for data, since the last reading."""

    def __init__(self, global_batch_size: int, step: int) -> None:
        self.global_batch_size = global_batch_size
        self.restart(step)

    def restart(self, step: int) -> None:
        self.first_step, self.started, self.waited = step, time.perf_counter(), 0.0

    def waiting(self, batches: Iterator[Batch]) -> Batch:
        begin = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - begin
        return batch

    def read(self, step: int) -> dict[str, float]:
        elapsed = time.perf_counter() - self.started
        samples = (step - self.first_step) * self.global_batch_size
        row = {
            "samples_per_second": round(samples / elapsed, 2),
            "data_wait": round(self.waited / elapsed, 4),
        }
        self.restart(step)
        return row
