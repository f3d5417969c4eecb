"""What a run measures about itself, in one process with a clock of the test's."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from shards.batch import Batch
from trainer.config import Recipe
from trainer.flops import step_flops
from trainer.meter import Meter

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    """A group of one process, for the collectives."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def batch(pairs: int) -> Batch:
    numbers = torch.arange(pairs)
    images = torch.zeros(pairs, 32, 32, 3, dtype=torch.uint8)
    text = torch.zeros(pairs, 16, dtype=torch.int64)
    return Batch(images, None, None, text, numbers, numbers, numbers, numbers >= 0, [""] * pairs)


def trained(meter: Meter, clock: Clock, steps: int) -> None:
    """Steps of 4 seconds, one of them a wait for the batch of 8 pairs."""

    def slow() -> Iterator[Batch]:
        while True:
            clock.now += 1
            yield batch(8)

    batches = slow()
    for _ in range(steps):
        meter.waiting(batches)
        clock.now += 3


def test_speed_waits_and_arithmetic_are_those_since_the_last_reading(
    tiny_recipe: Callable[..., Recipe], clock: Clock
) -> None:
    recipe = tiny_recipe()
    meter = Meter(recipe, CPU, rank=0, step=5)
    clock.now += 100  # before the first step
    meter.restart(5)
    trained(meter, clock, 2)
    row = meter.read(7)
    assert row["samples_per_second"] == 2.0  # 16 pairs in 8 seconds
    assert row["data_wait"] == 0.25
    first = batch(8)
    flops = step_flops(recipe.model, first.images, None, None, first.text)
    assert row["tflops_per_second"] == pytest.approx(flops / 4 / 1e12, rel=1e-3)
    assert "mfu" not in row, "nobody knows a CPU's peak"
    trained(meter, clock, 1)
    assert meter.read(8)["samples_per_second"] == 2.0


def test_the_peak_of_memory_is_this_process_s(tiny_recipe: Callable[..., Recipe], clock: Clock) -> None:
    meter = Meter(tiny_recipe(), CPU, rank=0, step=0)
    trained(meter, clock, 1)
    resident = psutil.Process().memory_info().rss / 1e9
    before = meter.read(1)["memory_gb"]
    # earlier tests of this process may have held more than it does now, never more than the machine has
    assert 0.99 * resident <= before <= psutil.virtual_memory().total / 1e9
    held = torch.ones(100_000_000)  # 0.4 GB, which may lie where others were
    trained(meter, clock, 1)
    after = meter.read(2)["memory_gb"]
    assert after >= held.nbytes / 1e9
    del held
    trained(meter, clock, 1)
    assert meter.read(3)["memory_gb"] == pytest.approx(after, rel=0.01), "a peak stays"


def test_only_the_main_rank_counts_arithmetic(tiny_recipe: Callable[..., Recipe], clock: Clock) -> None:
    meter = Meter(tiny_recipe(), CPU, rank=1, step=0)
    trained(meter, clock, 1)
    assert "tflops_per_second" not in meter.read(1)


def test_utilisation_is_the_share_of_a_known_peak(
    tiny_recipe: Callable[..., Recipe], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = Meter(tiny_recipe(engine={"precision": "bfloat16"}), CPU, rank=0, step=0)
    monkeypatch.setattr("trainer.meter.step_flops", lambda *_: 1e15)
    trained(meter, clock, 1)
    meter.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA A100-SXM4-80GB")
    assert meter._arithmetic(0.1) == {"tflops_per_second": 100.0, "mfu": round(100 / 312, 4)}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Another")
    assert meter._arithmetic(0.1) == {"tflops_per_second": 100.0}


def test_what_cannot_be_counted_is_left_out(
    tiny_recipe: Callable[..., Recipe], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_at_values(*_inputs: object) -> float:
        return torch.zeros(1, device="meta").item()

    monkeypatch.setattr("trainer.meter.step_flops", look_at_values)
    meter = Meter(tiny_recipe(), CPU, rank=0, step=0)
    for step in (1, 2):
        trained(meter, clock, 1)
        row = meter.read(step)
        assert "samples_per_second" in row
        assert "tflops_per_second" not in row
