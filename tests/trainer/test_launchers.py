"""Environments of launchers that do not fit together; real launchers: tests/end_to_end/test_launchers.py."""

import pytest

from tests.trainer.test_distributed import SBATCH, SRUN
from trainer.errors import RunError
from trainer.launchers import check_launcher, check_processes

BY_HAND = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "1234"}
TORCHRUN = BY_HAND | {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2"}
DEEPSPEED = BY_HAND | {"LOCAL_SIZE": "2", "CROSS_RANK": "1", "CROSS_SIZE": "2"}
ACCELERATE_ALONE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BY_HAND,
        TORCHRUN,
        DEEPSPEED,
        SRUN,
        SBATCH,
        SRUN | TORCHRUN,
        SRUN | DEEPSPEED,
        SRUN | {"WORLD_SIZE": "8"},
        SRUN | {"PMI_SIZE": "8"},
        ACCELERATE_ALONE,
    ],
)
def test_what_fits_together(environment: dict[str, str]) -> None:
    check_launcher(environment)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (SRUN | BY_HAND, "WORLD_SIZE=4, but srun has started 8 tasks"),
        (SRUN | {"WORLD_SIZE": "16"}, "WORLD_SIZE=16, but srun has started 8 tasks"),
        (
            ACCELERATE_ALONE | {"MASTER_ADDR": "127.0.0.1"},
            "has started one, as it does with --cpu; give it --multi_gpu",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2: mpirun does not say where the processes meet"),
        (BY_HAND | {"RANK": "4"}, "RANK=4: is not below WORLD_SIZE=4"),
        (BY_HAND | {"WORLD_SIZE": "four"}, "WORLD_SIZE=four: not a number"),
        (BY_HAND | {"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1: not a number"),
    ],
)
def test_what_contradicts_itself(environment: dict[str, str], message: str) -> None:
    with pytest.raises(RunError, match=message):
        check_launcher(environment)


@pytest.mark.parametrize(
    ("environment", "processes"),
    [({}, None), ({}, 4), (BY_HAND, None), (BY_HAND, 4), (SRUN, 8), (SBATCH, 2), (SBATCH | TORCHRUN, None)],
)
def test_processes_that_agree(environment: dict[str, str], processes: int | None) -> None:
    check_processes(environment, processes)


@pytest.mark.parametrize(
    ("environment", "processes", "message"),
    [
        (BY_HAND, 2, "--processes 2: the launcher has started 4"),
        (BY_HAND | {"WORLD_SIZE": "1"}, 4, "--processes 4: the launcher has started 1"),
        (SRUN, 4, "--processes 4: the launcher has started 8"),
        (SBATCH, None, "SLURM_NTASKS=8, but the batch script has started one process; start it with srun"),
    ],
)
def test_processes_that_do_not(environment: dict[str, str], processes: int | None, message: str) -> None:
    with pytest.raises(RunError, match=message):
        check_processes(environment, processes)
