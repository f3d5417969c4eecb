"""The same run by any launcher, each really started, and one line where it started something else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, REPOSITORY, itm_command
from tests.end_to_end.conftest import TINY, data_of, losses
from trainer.distributed import free_port

pytestmark = pytest.mark.slow

# importing `model` first lets torchvision, and so accelerate's command, import beside a CPU build of torch
ACCELERATE = [sys.executable, "-c", "import model; from accelerate.commands.launch import main; main()"]
DEEPSPEED = [sys.executable, "-m", "deepspeed.launcher.runner"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def started(launcher: list[str], demo: Path, run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*launcher, "train", str(TINY), f"run.dir={run}", *data_of(demo), *options],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def two_by(name: str) -> list[str]:
    """The command by which a launcher starts two processes of `itm`."""
    port = str(free_port())
    launchers = {
        "torchrun": [*TORCHRUN, "--nproc_per_node=2", "-m"],
        "deepspeed": [*DEEPSPEED, "--num_gpus=2", "--master_port", port, "--module"],
        "accelerate": [*ACCELERATE, "--multi_gpu", "--num_processes=2", "--main_process_port", port, "-m"],
    }
    return [*launchers[name], "trainer.cli"]


@pytest.mark.parametrize("name", ["torchrun", "deepspeed", "accelerate"])
def test_a_launcher_starts_the_same_run(demo: Path, reference: Path, tmp_path: Path, name: str) -> None:
    done = started(two_by(name), demo, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "engine 2 processes" in done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(reference), rel=1e-4)


def test_srun_tasks_find_each_other(demo: Path, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid())}
    tasks = [
        subprocess.Popen(
            itm_command("train", TINY, f"run.dir={run}", *data_of(demo)),
            cwd=REPOSITORY,
            env=ENVIRONMENT | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    assert [task.wait(timeout=300) for task in tasks] == [0, 0]
    assert losses(run) == pytest.approx(losses(reference), rel=1e-4)


@pytest.mark.parametrize(
    ("launcher", "options", "message"),
    [
        (
            [*ACCELERATE, "--cpu", "--num_processes=2", "-m", "trainer.cli"],
            [],
            "accelerate launch was asked for several processes and has started one",
        ),
        (
            [*TORCHRUN, "--nproc_per_node=1", "-m", "trainer.cli"],
            ["--processes=2"],
            "--processes 2: the launcher has started 1",
        ),
    ],
    ids=["accelerate --cpu", "--processes under torchrun"],
)
def test_another_number_of_processes_than_asked_for_is_refused(
    demo: Path, tmp_path: Path, launcher: list[str], options: list[str], message: str
) -> None:
    done = started(launcher, demo, tmp_path / "run", *options)
    assert done.returncode != 0
    assert f"itm: error: {message}" in done.stderr
    assert not (tmp_path / "run").exists()
