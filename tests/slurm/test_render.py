"""The batch scripts as text, and what they would start, without a Slurm."""

import os
import subprocess
from pathlib import Path

import pytest

from slurm.render import scripts_by_hand
from tests.conftest import REPOSITORY

SCRIPTS = sorted(scripts_by_hand())
PRINTS = '#!/bin/sh\necho "$(basename "$0") $*"\n'


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_what_its_template_gives(name: str) -> None:
    assert (REPOSITORY / "slurm" / name).read_text() == scripts_by_hand()[name], "run python -m slurm.render"


@pytest.mark.parametrize("name", SCRIPTS)
def test_signals_go_to_the_script_alone_and_logs_are_kept(name: str) -> None:
    options = [line for line in scripts_by_hand()[name].splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --open-mode=append" in options
    assert all("=B:" in option for option in options if "--signal" in option)


def started(tmp_path: Path, name: str, **variables: str) -> str:
    """What the script hands to srun, in a job of two nodes."""
    for program in ("srun", "scontrol"):
        path = tmp_path / program
        path.write_text(PRINTS if program == "srun" else "#!/bin/sh\nprintf 'gpu1\\ngpu2\\n'\n")
        path.chmod(0o755)
    job = {"JOB_ID": "7", "JOB_NUM_NODES": "2", "NTASKS_PER_NODE": "4", "JOB_NODELIST": "gpu[1-2]"}
    array = {"ARRAY_TASK_ID": "3", "ARRAY_TASK_MIN": "1", "ARRAY_TASK_COUNT": "4", "ARRAY_JOB_ID": "7"}
    done = subprocess.run(
        ["bash", REPOSITORY / "slurm" / name, "RECIPE", f"run.dir={tmp_path}"],
        env={f"SLURM_{key}": value for key, value in (job | array).items()}
        | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    return next((line for line in done.stdout.splitlines() if line.startswith("srun ")), done.stdout + done.stderr)


@pytest.mark.parametrize("name", SCRIPTS)
def test_one_variable_runs_it_in_a_container(tmp_path: Path, name: str) -> None:
    inside = started(tmp_path, name, ITM_CONTAINER="/images/itm.sif", ITM_MOUNTS="/data")
    assert f" apptainer exec --nv --bind {tmp_path},/data --pwd {tmp_path} /images/itm.sif .venv/bin/itm " in inside
    inside = started(tmp_path, name, ITM_CONTAINER="nvcr.io#itm:1")
    assert " --container-image=nvcr.io#itm:1 " in inside
    assert f" --container-mounts={tmp_path} --container-workdir={tmp_path} .venv/bin/itm " in inside
    assert "container" not in started(tmp_path, name)


def test_torchrun_too_runs_inside_the_container(tmp_path: Path) -> None:
    inside = started(tmp_path, "pretrain.sbatch", ITM_TORCHRUN="1", ITM_CONTAINER="itm.sif")
    program = inside.partition(" itm.sif ")[2]
    assert program.startswith("bash -c ")
    assert ".venv/bin/torchrun --nnodes=2 --nproc-per-node=1" in program
    assert "--rdzv-endpoint=gpu1:20007 -m trainer.cli train RECIPE" in program


def test_without_a_run_s_folder_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", REPOSITORY / "slurm/pretrain.sbatch", "RECIPE"],
        env=os.environ | {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "run.dir=FOLDER is missing" in done.stderr
