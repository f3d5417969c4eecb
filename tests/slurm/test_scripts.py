"""The batch scripts on a real Slurm, with a stand-in for `itm` that keeps its promises."""

import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.slurm.conftest import Lab

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

SCRIPT = "slurm/pretrain.sbatch"
STAND_IN = str(REPOSITORY / "tests/slurm/stand_in.sh")
TWO_NODES = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1")


def send(lab: Lab, folder: Path, behaviour: str, *options: str, **variables: str) -> str:
    log = f"--output={folder / 'log'}"
    arguments = (SCRIPT, behaviour, f"run.dir={folder}")
    folder.mkdir(exist_ok=True)
    return lab.sbatch(*TWO_NODES, "--time=60", log, *options, *arguments, ITM=STAND_IN, **variables)


def wait_for(folder: Path, tasks: int, restart: int = 0) -> None:
    deadline = time.monotonic() + 120
    path = folder / "starts"
    while not path.is_file() or path.read_text().count(f"restart {restart}") < tasks:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_before_the_time_limit_it_is_saved_and_requeued(lab: Lab, folder: Path) -> None:
    job = send(lab, folder, "once", "--time=2", "--signal=B:USR1@60")
    ended = lab.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    log = (folder / "log").read_text()
    assert log.count("asked to stop") == 1
    assert log.count("restart 0") == log.count("restart 1") == 1  # the first run's log was kept
    assert (folder / "saves").read_text().count("saved") == 4


def test_who_is_asked_before_it_listens_runs_again(lab: Lab, folder: Path) -> None:
    behaviours = ("young", "deaf")
    jobs = [send(lab, folder / behaviour, behaviour) for behaviour in behaviours]
    for behaviour, job in zip(behaviours, jobs, strict=True):
        wait_for(folder / behaviour, 4)
        lab.slurm("scancel", "--batch", "--signal=USR1", job)
    log = folder / "deaf" / "log"
    while "asked to stop" not in log.read_text():
        time.sleep(0.1)
    (folder / "deaf" / "listen").touch()
    for job in jobs:
        ended = lab.wait(job)
        assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert log.read_text().count("asked to stop") == 1
    assert (folder / "deaf" / "saves").read_text().count("saved") == 4


def test_who_is_cancelled_does_not_come_back(lab: Lab, folder: Path) -> None:
    job = send(lab, folder, "once")
    wait_for(folder, 4)
    lab.slurm("scancel", job)
    assert lab.wait(job)["JobState"] == "CANCELLED"
    deadline = time.monotonic() + 60
    while lab.slurm("squeue", "-h", "-j", job).strip():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert lab.job(job)["JobState"] == "CANCELLED"
    assert "restart 1" not in (folder / "starts").read_text()


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


def test_a_job_that_misses_a_node_before_slurm_does_runs_again(lab: Lab, folder: Path) -> None:
    job = send(lab, folder, "misses")
    wait_for(folder, 4)
    nodes = lab.slurm("scontrol", "show", "hostnames", lab.job(job)["NodeList"]).split()
    lab.do("node-off", nodes[-1])
    (folder / "gone").touch()
    deadline = time.monotonic() + 300
    while "a node does not answer" not in (folder / "log").read_text():
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.1)
    ended = lab.wait(job)
    assert ended["JobState"] == "COMPLETED", (folder / "log").read_text()
    assert int(ended["Restarts"]) >= 1
    lab.do("node-on", nodes[-1])


def test_one_task_that_fails_ends_all_and_its_code_is_kept(lab: Lab, folder: Path) -> None:
    job = send(lab, folder, "fails")
    ended = lab.wait(job, seconds=60)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "3:0")
    assert "rank 1 is unwell" in (folder / "log").read_text()


def test_what_the_tasks_find_in_their_environment(lab: Lab, folder: Path) -> None:
    """Also under --export=NONE; and each sees one GPU, or all of its node, as they were asked for."""
    cases = (
        (("--export=ALL",), {"FOO": "bar"}, ["2 bar none"] * 4),
        (("--export=NONE", f"--export=ITM={STAND_IN}"), {"FOO": "bar"}, ["2 none none"] * 4),
        (("--gpus-per-node=4",), {}, ["2 none 0,1,2,3"] * 4),
        (("--gpus-per-node=2", "--gpus-per-task=1"), {}, ["2 none 0", "2 none 1"] * 2),
    )
    for number, (options, variables, expected) in enumerate(cases):
        run = folder / str(number)
        job = send(lab, run, "environment", "--cpus-per-task=2", *options, **variables, OMP_NUM_THREADS="")
        assert lab.wait(job)["JobState"] == "COMPLETED", (run / "log").read_text()
        assert sorted((run / "environment").read_text().splitlines()) == sorted(expected)


def test_submit_refuses_what_would_wait_for_ever_and_a_second_job_for_a_run(lab: Lab, folder: Path) -> None:
    run = folder / "run"
    command = ("submit", "tests/end_to_end/tiny.yaml", f"run.dir={run}", "--gpus-per-node", 0)
    assert "--nodes 5: partition main has 3; give fewer" in lab.refused(*command, "--nodes", 5)
    assert "unwanted: there is no such partition" in lab.refused(*command, "--partition", "unwanted")
    assert not run.exists()
    job = lab.itm(*command, "--sbatch", "hold").split()[0]
    assert f"job         {job} run: PENDING (JobHeldUser)" in lab.itm("status", run)
    assert f"job {job} is in the queue for it; wait for it, or scancel {job}" in lab.refused(*command)
    lab.slurm("scancel", job)
    assert lab.itm(*command, "--sbatch", "hold", "--sbatch", "comment=again")
