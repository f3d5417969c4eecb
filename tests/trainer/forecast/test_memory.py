"""What is shared out at which stage, and what is offloaded."""

from dataclasses import replace

import pytest

from trainer.config import EngineConfig
from trainer.forecast.empty_model import Counts
from trainer.forecast.live_bytes import Peak
from trainer.forecast.memory import FLOAT, Memory, memory
from trainer.forecast.step import StepCost

M = 1_000_000
COUNTS = Counts(
    trained=100 * M,
    frozen=10 * M,
    momentum=90 * M,
    prototypes=M,
    largest=20 * M,
    buffers=3 * M,
    bank=2 * M,
    queue_rows=50 * M,
    queue_notes=M,
)
STEP = StepCost(
    before=Peak(7000 * M, 7000 * M, 0),
    after=Peak(6900 * M, 7000 * M, 200 * M),
    flops=1.0,
    useful_flops=1.0,
    exchanges={},
    micro_batches=1,
)


def at(stage: int, processes: int = 8, **engine: str) -> Memory:
    # settings that a stage cannot follow are not followed; the recipe's own check refuses them
    settings = EngineConfig.model_construct(**(EngineConfig().model_dump() | engine))
    return memory(COUNTS, STEP, settings, stage, processes, (64, 512))


def test_what_is_shared_out_at_each_stage() -> None:
    stages = [at(stage).gpu for stage in range(4)]
    assert [one["weights"] / (FLOAT * M) for one in stages] == [109, 109, 109, 109 / 8]
    assert [one["momentum encoders"] / (FLOAT * M) for one in stages] == [90, 90, 90, 90 / 8]
    # two moments, and from stage 1 to 2 a copy of the weights
    assert [one["optimiser"] / (FLOAT * M) for one in stages] == [200, 300 / 8, 300 / 8, 200 / 8]
    assert {one["queue"] for one in stages} == {51 * M}
    assert [one["prototypes"] / M for one in stages] == [6, 6, 6, 2.5]
    assert stages[3]["gathered weights"] == FLOAT * 110 * M
    assert "gathered weights" not in stages[2]


def test_the_fullest_moment() -> None:
    # without a bucket before the first gradient, with it after
    assert (at(0).gpu["activations"], at(0).gpu["buckets"]) == (7000 * M, 0)
    assert (at(2).gpu["activations"], at(2).gpu["buckets"]) == (6900 * M, FLOAT * 100 * M)
    assert (at(3).gpu["activations"], at(3).gpu["buckets"]) == (7000 * M, FLOAT * 100 * M)
    # no larger than all gradients, nor than DeepSpeed has it
    many = replace(COUNTS, trained=900 * M)
    assert memory(many, STEP, EngineConfig(), 2, 8, (64, 512)).gpu["buckets"] == FLOAT * 500 * M
    assert at(3).gpu["gradients"] == FLOAT * 100 * M / 8


def test_offloading_moves_to_the_host_what_a_stage_can() -> None:
    assert at(0, offload_optimizer="cpu") == at(0)
    second = at(2, offload_optimizer="cpu")
    assert second.gpu["optimiser"] == 0
    assert second.gpu["gradients"] == 0
    assert second.host == {"optimiser": FLOAT * 100 * M / 8 * 5}
    third = at(3, offload_optimizer="cpu", offload_parameters="cpu")
    assert third.gpu["weights"] == third.gpu["momentum encoders"] == 0
    assert third.gpu["prototypes"] == COUNTS.bank
    assert third.host["weights"] == FLOAT * (100 + 10 + 90) * M / 8


def test_parts_add_up_and_an_allowance_is_among_them() -> None:
    for stage in range(4):
        found = at(stage)
        assert found.total == pytest.approx(sum(found.gpu.values()))
        assert found.gpu["allowance"] > 1.5e9
