"""How fast a run goes, how long it waits for data, and what it holds."""

import resource
import sys
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from shards.batch import Batch
from trainer.config import Recipe
from trainer.flops import arithmetic_of, peak_tflops, step_flops

_Inputs = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor]


class Meter:
    """What is measured between two readings. A step costs two readings of the clock, and no wait for the device."""

    def __init__(self, recipe: Recipe, device: torch.device, rank: int, step: int) -> None:
        self.recipe, self.device, self.is_main = recipe, device, rank == 0
        self._flops: float | None = 0.0
        self._inputs: _Inputs | None = None
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begin to measure after `step`."""
        self.first_step, self.started, self.waited = step, time.perf_counter(), 0.0

    def waiting(self, batches: Iterator[Batch]) -> Batch:
        """The next batch, with the wait for it measured."""
        begin = time.perf_counter()
        # the name stands in a trace
        with torch.profiler.record_function("wait for data"):
            batch = next(batches)
        self.waited += time.perf_counter() - begin
        if self._inputs is None:
            images = (batch.images, batch.regions, batch.region_mask)
            shapes = [None if part is None else part.to("meta") for part in images]
            self._inputs = (shapes[0], shapes[1], shapes[2], batch.text.to("meta"))
        return batch

    def read(self, step: int) -> dict[str, float]:
        """What a step's row holds beside its losses; all ranks call it together, after a wait for the device.

        `samples_per_second` over all processes; `data_wait`, the share of the time that the rank which waits most
        waits for its batches; peaks since the process began, of the rank that has most, in GB: `memory_gb` of
        the process without its loader processes, `cuda_allocated_gb` by tensors, `cuda_reserved_gb` also what the
        allocator keeps; on the main rank also `tflops_per_second` of useful arithmetic (`trainer.flops`) a
        process, where that can be counted, and `mfu`, its share of the device's peak where that is known.
        """
        steps, elapsed = step - self.first_step, time.perf_counter() - self.started
        peaks = _peaks(self.device)
        # as float32, which some devices' collectives alone have; 24 bits are enough to read
        highest = torch.tensor([self.waited / elapsed, *peaks.values()], device=self.device)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        data_wait, *values = highest.tolist()
        row = {
            "samples_per_second": round(steps * self.recipe.data.global_batch_size / elapsed, 2),
            "data_wait": round(data_wait, 4),
            **{name: round(value, 3) for name, value in zip(peaks, values, strict=True)},
            **(self._arithmetic(steps / elapsed) if self.is_main else {}),
        }
        self.restart(step)
        return row

    def _arithmetic(self, steps_per_second: float) -> dict[str, float]:
        if self._flops == 0:
            assert self._inputs is not None
            try:
                self._flops = step_flops(self.recipe.model, *self._inputs)
            except RuntimeError:  # towers that look at values cannot be run without any, to be counted
                self._flops = None
        if self._flops is None:
            return {}
        tflops = self._flops * steps_per_second / 1e12
        row = {"tflops_per_second": float(f"{tflops:.4g}")}
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
            peak = peak_tflops(name, arithmetic_of(self.recipe.engine.precision))
            if peak is not None:
                row["mfu"] = round(tflops / peak, 4)
        return row


def _peaks(device: torch.device) -> dict[str, float]:
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    if device.type == "cuda":
        peaks["cuda_allocated_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        peaks["cuda_reserved_gb"] = torch.cuda.max_memory_reserved(device) / 1e9
    return peaks
