"""The batch script, run by bash with an `srun` that only says how it was called."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "slurm/train.sbatch"


def run(tmp_path: Path, *arguments: str, **environment: str) -> list[str]:
    srun = tmp_path / "srun"
    srun.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@" "threads=$OMP_NUM_THREADS" "export=${SLURM_EXPORT_ENV-unset}"\n'
    )
    srun.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", SCRIPT, *arguments], env={"PATH": path, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_it_trains_with_the_arguments_as_given(tmp_path: Path) -> None:
    called = run(tmp_path, "configs/a.yaml", "run.dir=runs/with space", ITM="/opt/itm")
    assert called[:5] == ["--kill-on-bad-exit=1", "/opt/itm", "train", "configs/a.yaml", "run.dir=runs/with space"]


def test_tasks_keep_the_environment_under_export_none(tmp_path: Path) -> None:
    assert "export=unset" in run(tmp_path, "r.yaml", SLURM_EXPORT_ENV="NONE")


def test_threads_follow_the_cores_of_a_task(tmp_path: Path) -> None:
    assert "threads=6" in run(tmp_path, "r.yaml", SLURM_CPUS_PER_TASK="6")
    assert "threads=2" in run(tmp_path, "r.yaml", SLURM_CPUS_PER_TASK="6", OMP_NUM_THREADS="2")


def test_the_work_is_left_to_one_task_a_gpu() -> None:
    options = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    values = dict(line.removeprefix("#SBATCH --").split("=", 1) for line in options)
    assert values["ntasks-per-node"] == values["gpus-per-node"]
    assert values["open-mode"] == "append"
