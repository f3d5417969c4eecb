"""A real Slurm of three nodes on this machine, for the tests of this folder."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, REPOSITORY

LAB = Path(__file__).parent / "lab.sh"
CLOCK = 10
"""How much faster than the true time the controller's clock runs."""


@dataclass(frozen=True)
class Lab:
    """The cluster, and a folder that all nodes see."""

    root: Path
    environment: dict[str, str]

    def do(self, *arguments: object) -> str:
        """`lab.sh COMMAND ROOT ...`"""
        command, *rest = map(str, arguments)
        return _run([str(LAB), command, str(self.root), *rest], self.environment)

    def slurm(self, *command: object) -> str:
        """One of Slurm's own commands."""
        return _run(list(map(str, command)), self.environment)

    def sbatch(self, *arguments: object, **variables: str) -> str:
        """Send a job from the repository's folder -> its id."""
        command = ["sbatch", "--parsable", *map(str, arguments)]
        return _run(command, self.environment | variables).strip()

    def itm(self, *arguments: object) -> str:
        """`itm`, with Slurm's commands at hand."""
        return _run([sys.executable, "-m", "trainer.cli", *map(str, arguments)], self.environment)

    def job(self, identity: str) -> dict[str, str]:
        text = self.slurm("scontrol", "show", "job", "-o", identity)
        return dict(re.findall(r"(\w[\w/:]*)=(\S*)", text.splitlines()[0]))

    def wait(self, identity: str, *states: str, seconds: float = 300) -> dict[str, str]:
        """Until the job is in one of the states, by default until it has ended."""
        wanted = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        deadline = time.monotonic() + seconds
        while (found := self.job(identity))["JobState"] not in wanted:
            assert time.monotonic() < deadline, f"job {identity} is {found['JobState']} ({found['Reason']})"
            time.sleep(0.1)
        return found


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def _reason_against() -> str | None:
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    if shutil.which("slurmctld") is None and shutil.which("apt-get") is None:
        return "Slurm is not installed, and there is no apt-get to install it"
    return None


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Started for the first test that needs it, gone after the last one."""
    if reason := _reason_against():
        pytest.skip(f"no real Slurm: {reason}")
    root = Path(f"/tmp/itm-slurm-{os.getpid()}")  # short: Unix sockets lie in it
    settings = ENVIRONMENT | {"SLURM_LAB_CLOCK": str(CLOCK)}
    started = subprocess.run([LAB, "up", root], env=settings, capture_output=True, text=True, check=False)
    if started.returncode:
        pytest.skip(f"no real Slurm: {started.stderr.strip().splitlines()[-1]}")
    environment = settings | {"SLURM_CONF": f"{root}/etc/slurm.conf"}
    try:
        yield Lab(root, environment)
    finally:
        subprocess.run([LAB, "down", root], env=environment, capture_output=True, check=False)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def folder(lab: Lab, tmp_path: Path) -> Iterator[Path]:
    """For a test's files; the jobs that it leaves are cancelled."""
    yield tmp_path
    lab.slurm("scancel", "--me")
    deadline = time.monotonic() + 60
    while lab.slurm("squeue", "-h").strip():
        assert time.monotonic() < deadline, "jobs of a test live on"
        time.sleep(0.1)
    for node in re.findall(
        r"^(node\d) (?:down|drain)", lab.slurm("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T"), re.M
    ):
        lab.do("node-on", node)
