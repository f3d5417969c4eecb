"""Training, conversion and a whole chain on a real Slurm of three nodes."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import ENVIRONMENT, REPOSITORY, itm_command, numbered_record
from tests.shards.pictures import contents
from tests.slurm.conftest import Lab

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(1200)]

BIN = Path(sys.executable).parent
ITM = str(BIN / "itm")
BATCH, EPOCHS, STEPS = 24, 4, 40
CPU = ("--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=600")


def itm(*arguments: object) -> None:
    done = subprocess.run(
        itm_command(*arguments), cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def data(lab: Lab) -> Path:
    out = lab.root / "files" / "demo"
    counts = ("--pretrain", 240, "--train", 24, "--val", 24, "--test", 24)
    itm("shards", "demo", "--out", out, *counts, "--side", 48, "--samples-per-shard", 60, "--processes", 1)
    itm("shards", "concepts", out / "pretrain", "--out", out / "concepts.json", "--size", 30, "--processes", 1)
    return out


@pytest.fixture(scope="module")
def paced(lab: Lab) -> str:
    """An `itm` that waits where the variable PAUSES says; beside it lies a `torchrun` that starts the same."""
    folder = lab.root / "files" / "bin"
    folder.mkdir(parents=True)
    instead = 'for one; do shift; [ "$one" != trainer.cli ] || one=tests.slurm.paced; set -- "$@" "$one"; done'
    for name, program in (("itm", f"{sys.executable} -m tests.slurm.paced"), ("torchrun", f"{BIN / 'torchrun'}")):
        path = folder / name
        path.write_text(f'#!/bin/sh\n{instead}\nPYTHONPATH={REPOSITORY} exec {program} "$@"\n')
        path.chmod(0o755)
    return str(folder / "itm")


@pytest.fixture(scope="module")
def recipe(data: Path) -> Path:
    """All terms of both methods, without dropout, on any number of processes up to three."""
    path = data.with_suffix(".yaml")
    content = {
        "extends": str(REPOSITORY / "tests/end_to_end/whole.yaml"),
        "data": {"train": str(data / "pretrain"), "val": str(data / "val"), "global_batch_size": BATCH},
        "model": {"norm_group": 4, "consensus": {"concepts": str(data / "concepts.json")}},
        "schedule": {"epochs": EPOCHS},
        "checkpoint": {"every_epochs": 0.5},
        "evaluation": {"every_epochs": 2.0},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def rows(run: Path) -> list[dict[str, float]]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_until(condition: Callable[[], bool], said: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, said
        time.sleep(0.1)


def start(
    lab: Lab, recipe: Path, run: Path, *options: str, settings: tuple[str, ...] = (), **variables: str
) -> str:
    run.mkdir(parents=True, exist_ok=True)
    arguments = ("slurm/pretrain.sbatch", recipe, f"run.dir={run}", *settings)
    variables = {"ITM": ITM, "OMP_NUM_THREADS": "1"} | variables
    return lab.sbatch(*CPU, f"--output={run.parent / 'log'}", *options, *arguments, **variables)


def completed(lab: Lab, job: str, run: Path) -> dict[str, str]:
    ended = lab.wait(job, seconds=600)
    assert ended["JobState"] == "COMPLETED", log_of(run)
    return ended


def log_of(run: Path) -> str:
    path = run.parent / "log"
    return path.read_text() if path.is_file() else ""


def errors(log: str) -> list[str]:
    """What processes have said at their end."""
    return [line for line in log.splitlines() if re.match(r"(\[rank\d\]: )?(itm: error|\w+Error): ", line)]


def test_a_run_that_is_requeued_and_loses_a_node_ends_as_an_undisturbed_one(
    lab: Lab, folder: Path, recipe: Path, paced: str
) -> None:
    alone, run = folder / "alone" / "run", folder / "run"
    completed(lab, start(lab, recipe, alone, "--nodes=1"), alone)
    job = start(lab, recipe, run, "--nodes=3", ITM=paced, PAUSES="7 12 17")

    def until_step(step: int) -> None:
        wait_until(lambda: len(rows(run)) >= step, f"no step {step}: {log_of(run)}")

    until_step(6)
    lab.slurm("scontrol", "requeue", job)
    (run / "go-7").touch()
    # asked while its processes are being started, some before they can listen
    wait_until(lambda: "restart 1" in log_of(run), "not requeued")
    lab.slurm("scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: "restart 2" in log_of(run), "not requeued when it was asked at its start")
    until_step(11)
    lab.slurm("scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: "restart 3" in log_of(run), "not requeued after saving")
    assert "the run saved" in log_of(run)
    (run / "go-12").touch()
    until_step(16)
    nodes = lab.slurm("scontrol", "show", "hostnames", lab.job(job)["NodeList"]).split()
    assert len(nodes) == 3
    lab.do("node-off", nodes[-1], "now")
    lab.wait(job, "PENDING")
    lab.slurm("scontrol", "update", f"JobId={job}", "NumTasks=2", "NumCPUs=2", "NumNodes=2-2")
    (run / "go-17").touch()
    ended = completed(lab, job, run)
    assert (ended["Restarts"], ended["NumNodes"]) == ("4", "2")
    assert (run / "outcome").read_text() == "finished 0\n"
    lab.do("node-on", nodes[-1])

    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))
    expected = [row["loss"] for row in rows(alone)]
    found = [row["loss"] for row in rows(run)]
    # other numbers of processes round otherwise, and training lets that grow
    assert found[:20] == pytest.approx(expected[:20], rel=1e-4)
    assert found == pytest.approx(expected, rel=5e-3)
    # sent once more, it ends at once
    completed(lab, start(lab, recipe, run, "--nodes=1"), run)
    assert len(rows(run)) == STEPS
    status = lab.itm("status", run)
    assert "ended       finished 0" in status
    assert f"job         {job} by hand: COMPLETED, restarted 4 times" in status


def test_processes_that_outlive_their_slurmd_lose_the_run(lab: Lab, folder: Path, recipe: Path, paced: str) -> None:
    run = folder / "run"
    job = start(lab, recipe, run, "--nodes=1", ITM=paced, PAUSES="4")
    wait_until(lambda: len(rows(run)) >= 3, "no step")
    node = lab.job(job)["NodeList"]
    before = json.loads((run / "lease.json").read_text())
    lab.do("slurmd-off", node, "now")
    wait_until(lambda: json.loads((run / "lease.json").read_text())["host"] != node, "not started elsewhere")
    assert before["host"] == node
    (run / "go-4").touch()
    completed(lab, job, run)
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))
    wait_until(
        lambda: f"run.dir={run}" not in lab.do("exec", node, "ps", "-eo", "args"), "the old processes live on", 120
    )
    lab.do("node-on", node)


def test_one_failing_process_ends_all_and_is_what_the_log_says(
    lab: Lab, folder: Path, recipe: Path, paced: str
) -> None:
    run = folder / "run"
    job = start(lab, recipe, run, "--nodes=2", ITM=paced, FAULT="crash 1 3")
    ended = lab.wait(job, seconds=600)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0")
    assert len(rows(run)) == 2
    (error,) = errors(log_of(run))
    assert error.endswith("AssertionError: a fault in the middle")
    *_, last = log_of(run).splitlines()
    assert re.search(r"the run failed: process 1 on node\d: AssertionError: a fault in the middle$", last)
    assert "Connection closed" not in log_of(run)


def test_a_full_disk_stops_the_job_and_loses_nothing(lab: Lab, folder: Path, recipe: Path, paced: str) -> None:
    disk = folder / "disk"
    run = disk / "run"
    disk.mkdir()
    lab.do("exec", "node1", "mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk)

    def on_disk(*command: object) -> str:
        return lab.do("exec", "node1", *command)

    def steps() -> list[str]:
        return on_disk("ls", run / "checkpoints").split()

    options = ("--nodelist=node1", "--nodes=1", f"--output={folder / 'log'}")
    two = (*options, "--ntasks-per-node=2")
    job = start(lab, recipe, run, *two, ITM=paced, PAUSES="7")
    wait_until(
        lambda: "go" in on_disk("sh", "-c", f"grep -c '' {run}/metrics.jsonl | grep -q 6 && echo go || true"),
        "no step",
    )
    wait_until(lambda: steps() == ["step-00000005"], "no checkpoint")
    before = on_disk("sh", "-c", f"cd {run}/checkpoints && find . -type f | sort | xargs sha256sum")
    on_disk("sh", "-c", f"dd if=/dev/zero of={disk}/filler bs=64k 2>/dev/null; touch {run}/go-7")
    ended = lab.wait(job, seconds=600)
    log = (folder / "log").read_text()
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0"), log
    (error,) = errors(log)
    assert "No space left on device" in error
    assert "make room" in error
    assert on_disk("sh", "-c", f"cd {run}/checkpoints && find . -type f | sort | xargs sha256sum") == before
    on_disk("rm", disk / "filler")
    # with fewer processes, too
    job = start(lab, recipe, run, *options, settings=("schedule.epochs=1",))
    ended = lab.wait(job, seconds=600)
    assert ended["JobState"] == "COMPLETED", (folder / "log").read_text()
    assert "step-00000010" in steps()


def test_one_torchrun_a_node_does_the_same(lab: Lab, folder: Path, recipe: Path, paced: str) -> None:
    run = folder / "run"
    job = start(lab, recipe, run, "--nodes=2", ITM=paced, ITM_TORCHRUN="1", PAUSES="6")
    wait_until(lambda: len(rows(run)) >= 5, "no step under torchrun")
    lab.slurm("scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: "restart 1" in log_of(run), "not requeued after saving")
    assert "the run saved" in log_of(run)
    (run / "go-6").touch()
    ended = completed(lab, job, run)
    assert ended["Restarts"] == "1", log_of(run)
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))


def test_an_array_of_four_converts_to_the_same_bytes(lab: Lab, folder: Path) -> None:
    raw = pictures(folder / "raw", 40)
    arguments = ("folder", "--root", raw, "--split", "train", "--samples-per-shard", 3)
    itm("shards", "convert", *arguments, "--out", folder / "alone", "--processes", 1)
    out = folder / "out"
    job = lab.sbatch(
        "--array=1-4",
        "--cpus-per-task=1",
        f"--output={folder / 'log-%a'}",
        "slurm/convert.sbatch",
        *arguments,
        "--out",
        out,
        ITM=ITM,
    )
    wait_until(lambda: not lab.slurm("squeue", "-h", "-j", job).strip(), "the array did not end")
    itm("shards", "merge", out)
    assert contents(out) == contents(folder / "alone")


def test_a_chain_leads_from_raw_images_to_a_report(lab: Lab, folder: Path, recipe: Path) -> None:
    out, run = folder / "out", folder / "run"
    for split, count in (("train", 48), ("val", 24), ("test", 24)):
        pictures(folder / "raw" / split, count)
    small = {"gpus_per_node": 0, "cpus_per_task": 1, "time": "600"}
    settings = [
        f"data.train={out / 'train'}",
        f"data.val={out / 'val'}",
        "model.framework=aahr",
        "model.consensus.concepts=null",
        "schedule.epochs=1",
    ]
    convert = ["folder", "--root", str(folder / "raw"), "--splits", "train,val,test", "--samples-per-shard", "10"]
    train = {"stage": "train", "recipe": str(recipe)}
    tuned = [*settings, f"run.dir={run}", f"run.init_from={folder / 'first'}"]
    chain = [
        {"stage": "convert", "arguments": convert, "out": str(out), "parts": 4, "resources": small},
        train | {"name": "first", "settings": [*settings, f"run.dir={folder / 'first'}"], "resources": small},
        train | {"name": "tuned", "settings": tuned, "resources": {**small, "nodes": 2}},
        {"stage": "evaluate", "run": str(run), "data": str(out / "test"), "out": str(folder / "test.json")},
        {"stage": "report", "runs": [str(run)], "data": str(out / "test"), "out": str(folder / "report.html")},
    ]
    (folder / "chain.yaml").write_text(yaml.safe_dump(chain))
    said = lab.itm("submit", "--chain", folder / "chain.yaml", "--folder", folder / "jobs")
    jobs = re.findall(r"^(\d+)  ", said, re.MULTILINE)
    assert len(jobs) == 6
    last = lab.wait(jobs[-1], seconds=900)
    logs = "".join(path.read_text() for path in (folder / "jobs").glob("*.log"))
    assert last["JobState"] == "COMPLETED", logs
    assert json.loads((folder / "test.json").read_text())["rsum"] > 0
    assert "</html>" in (folder / "report.html").read_text()
    assert (run / "slurm/recipe.yaml").is_file()
    assert (run / "slurm/code.txt").read_text()
    status = lab.itm("status", run)
    assert re.search(rf"^job +{jobs[3]} tuned: COMPLETED, on node\[1-2\], exit code 0:0$", status, re.MULTILINE), (
        status
    )
    assert "checkpoint  step-" in status
    said = lab.itm("submit", "--chain", folder / "chain.yaml", "--folder", folder / "jobs")
    assert said.count("is done already: left out") == len(said.splitlines()) == len(chain)


def pictures(folder: Path, count: int) -> Path:
    """Pictures with a file of captions beside each."""
    folder.mkdir(parents=True)
    for number in range(count):
        record = numbered_record(number, side=48)
        assert record.load is not None
        (folder / f"{number:03d}.jpg").write_bytes(record.load())
        (folder / f"{number:03d}.txt").write_text("\n".join(record.captions) + "\n")
    return folder
