"""A trace of one step: what ran when, on the host and on the device."""

import gzip
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from shards.atomic import replacing

FOLDER = "trace"
ROWS = 40
"""Of the table of operations."""


class Tracer:
    """Traces the step of number `step`; any other step costs a comparison.

    The step before it warms the profiler up, so that the profiler's own start is not in the trace; a step that is
    skipped and so done again is traced again. Each rank writes
    `run_dir/trace/step-N-rank-R.json.gz`, which ui.perfetto.dev and chrome://tracing open, and beside it, as
    text, a table of the operations that took longest.
    """

    def __init__(
        self, step: int | None, run_dir: Path, rank: int, device: torch.device, arrive: Callable[[], None]
    ) -> None:
        """`arrive` waits until no exchange is under way: where one ended in gloo's thread while the profiler began
        or ended, one run in six was seen to end by a signal, its memory damaged."""
        self.step, self.folder, self.rank, self.arrive = step, run_dir / FOLDER, rank, arrive
        self.on_gpu = device.type == "cuda"
        self._profile: profile | None = None

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Hold this while step number `step`, from 1 on, runs. Raises `DataError` when it cannot be written."""
        if self.step is None or not self.step - 1 <= step <= self.step:
            yield
            return
        self.arrive()
        if self._profile is None:
            self._profile = self._started(self.step - step)
        elif step == self.step:
            # here and not after the step before, whose metrics and checkpoint would be in the trace
            self._profile.step()
        yield
        if step == self.step:
            self.arrive()
            self._profile.stop()
            self._profile = None

    def _started(self, warmup: int) -> profile:
        # it would tell of its own steps on standard error
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self.on_gpu
        with warnings.catch_warnings():
            # where the first step is traced there is none before it
            warnings.filterwarnings("ignore", "Profiler won't be using warmup")
            one = schedule(wait=0, warmup=warmup, active=1, repeat=1)
        started = profile(activities=activities, schedule=one, on_trace_ready=self._write, record_shapes=True)
        started.start()
        return started

    def _write(self, traced: profile) -> None:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step-{self.step}-rank-{self.rank}.json.gz"
        with NamedTemporaryFile(suffix=".json") as raw, replacing(path) as stream:
            traced.export_chrome_trace(raw.name)
            with gzip.open(stream, "wb") as packed, Path(raw.name).open("rb") as whole:
                shutil.copyfileobj(whole, packed)
        order = "self_device_time_total" if self.on_gpu else "self_cpu_time_total"
        table = traced.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        with replacing(path.with_name(path.name.replace(".json.gz", ".txt"))) as stream:
            stream.write(table.encode())
