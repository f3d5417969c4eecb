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
PATIENT = """
SlurmdTimeout=600
BatchStartTimeout=600
"""
"""In seconds of that clock: a busy machine is not to pass for a node that is lost; tests that lose one say so."""
START_SECONDS = 300
"""For the lab to start in, with the installation of its packages."""


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

    def refused(self, *arguments: object) -> str:
        """The line with which `itm` refuses."""
        command = [sys.executable, "-m", "trainer.cli", *map(str, arguments)]
        done = subprocess.run(
            command, env=self.environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stdout
        return done.stderr

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
    path = f"{os.environ['PATH']}:/usr/sbin"
    if shutil.which("slurmctld", path=path) is None and shutil.which("apt-get") is None:
        return "Slurm is not installed, and there is no apt-get to install it"
    return None


def _start(root: Path, settings: dict[str, str]) -> Lab | str:
    """The lab, or why there is none: no fault of what is to be tested."""
    try:
        started = subprocess.run(
            [LAB, "up", root], env=settings, capture_output=True, text=True, timeout=START_SECONDS, check=False
        )
        if started.returncode:
            said = started.stderr.strip().splitlines()
            return next((line for line in said if "ERROR" in line), said[-1])
        lab = Lab(root, settings | {"SLURM_CONF": f"{root}/etc/slurm.conf"})
        subprocess.run(
            ["srun", "--nodes=3", "true"], env=lab.environment, capture_output=True, timeout=60, check=True
        )
    except subprocess.TimeoutExpired as error:
        return f"{' '.join(map(str, error.cmd))} took more than {error.timeout:g} s"
    except subprocess.CalledProcessError as error:
        return f"it starts, but runs no job: {error.stderr.decode().strip()}"
    return lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Started for the first test that needs it; gone after the last one, or with this process, however it ends."""
    if reason := _reason_against():
        pytest.skip(f"no real Slurm: {reason}")
    root = Path(f"/tmp/itm-slurm-{os.getpid()}")  # short: Unix sockets lie in it
    extra = root.with_suffix(".conf")
    settings = ENVIRONMENT | {"SLURM_LAB_CLOCK": str(CLOCK), "SLURM_LAB_EXTRA_CONF": str(extra)}
    script = 'cat; "$0" down "$1"; rm -rf "$1" "$1.conf"'
    with subprocess.Popen(
        ["sh", "-c", script, LAB, root],
        env=settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as caretaker:
        try:
            extra.write_text(PATIENT)
            lab = _start(root, settings)
            if isinstance(lab, str):
                pytest.skip(f"no real Slurm: {lab}")
            yield lab
        finally:
            assert caretaker.stdin is not None
            caretaker.stdin.close()
            caretaker.wait()


@pytest.fixture
def folder(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Path]:
    """For a test's files, gone with the lab; the jobs that it leaves are cancelled."""
    path = lab.root / "files" / re.sub(r"\W", "-", request.node.name)
    path.mkdir(parents=True)
    yield path
    lab.slurm("scancel", "--me")
    deadline = time.monotonic() + 60
    while lab.slurm("squeue", "-h").strip():
        assert time.monotonic() < deadline, "jobs of a test live on"
        time.sleep(0.1)
    for node in re.findall(
        r"^(node\d) (?:down|drain)", lab.slurm("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T"), re.M
    ):
        lab.do("node-on", node)
