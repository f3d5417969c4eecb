"""The batch scripts on a real Slurm, with a stand-in for `itm` that keeps its promises."""

import time
from pathlib import Path

import pytest

from slurm.render import scripts_by_hand
from tests.conftest import REPOSITORY
from tests.slurm.conftest import Lab

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

SCRIPT = "slurm/pretrain.sbatch"
STAND_IN = str(REPOSITORY / "tests/slurm/stand_in.sh")
TWO_NODES = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1")


def send(lab: Lab, folder: Path, behaviour: str, *options: str, **variables: str) -> str:
    log = f"--output={folder / 'log'}"
    arguments = (SCRIPT, behaviour, f"run.dir={folder}")
    return lab.sbatch(*TWO_NODES, "--time=60", log, *options, *arguments, ITM=STAND_IN, **variables)


def wait_for(folder: Path, tasks: int, restart: int = 0) -> None:
    deadline = time.monotonic() + 60
    path = folder / "starts"
    while not path.is_file() or path.read_text().count(f"restart {restart}") < tasks:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_scripts_are_what_the_templates_give() -> None:
    for name, text in scripts_by_hand().items():
        assert (REPOSITORY / "slurm" / name).read_text() == text, "run python -m slurm.render"


def test_before_the_time_limit_it_is_saved_and_requeued(lab: Lab, folder: Path) -> None:
    job = send(lab, folder, "once", "--time=2", "--signal=B:USR1@60")
    ended = lab.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    log = (folder / "log").read_text()
    assert log.count("asked to stop") == 1
    assert log.count("restart 0") == log.count("restart 1") == 1  # the first run's log was kept
    assert (folder / "saves").read_text().count("saved") == 4


def test_scontrol_requeue_runs_it_again(lab: Lab, folder: Path) -> None:
    job = send(lab, folder, "once")
    wait_for(folder, 4)
    lab.slurm("scontrol", "requeue", job)
    ended = lab.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")


@pytest.mark.parametrize("partition", ["main", "grace"])
def test_a_preempted_job_comes_back(lab: Lab, folder: Path, partition: str) -> None:
    job = send(lab, folder, "once", f"--partition={partition}")
    wait_for(folder, 4)
    high = lab.sbatch("--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    lab.wait(high)
    ended = lab.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    if partition == "grace":
        assert "saved" in (folder / "saves").read_text()


def test_a_job_whose_node_dies_runs_elsewhere(lab: Lab, folder: Path) -> None:
    job = send(lab, folder, "once")
    wait_for(folder, 4)
    nodes = lab.slurm("scontrol", "show", "hostnames", lab.job(job)["NodeList"]).split()
    lab.do("node-off", nodes[-1], "now")
    ended = lab.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert nodes[-1] not in (folder / "starts").read_text().split("restart 0")[-1]
    lab.do("node-on", nodes[-1])


def test_one_task_that_fails_ends_all_and_its_code_is_kept(lab: Lab, folder: Path) -> None:
    job = send(lab, folder, "fails")
    ended = lab.wait(job, seconds=60)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "3:0")
    assert "rank 1 is unwell" in (folder / "log").read_text()


def test_the_tasks_keep_the_environment_under_export_none(lab: Lab, folder: Path) -> None:
    for number, options in enumerate((("--export=ALL",), ("--export=NONE", f"--export=ITM={STAND_IN}")), 1):
        job = send(lab, folder, "environment", "--cpus-per-task=2", *options, FOO="bar", OMP_NUM_THREADS="")
        assert lab.wait(job)["JobState"] == "COMPLETED"
        assert len((folder / "environment").read_text().splitlines()) == 4 * number
    assert set((folder / "environment").read_text().splitlines()) == {"2 bar", "2 none"}
