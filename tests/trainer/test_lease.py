"""Two programs on one run's folder, on one machine and on two."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, REPOSITORY
from trainer.config import LogConfig, Recipe
from trainer.errors import RunError
from trainer.lease import LEASE, Lease
from trainer.logs import METRICS, RunLog

OWNER = """
import sys
from pathlib import Path
import trainer.lease
from trainer.config import LogConfig, Recipe
from trainer.errors import RunError
trainer.lease._BOOT = Path(sys.argv[2])
with trainer.lease.Lease(Path(sys.argv[1])) as lease:
    print("has it", flush=True)
    for _ in sys.stdin:
        try:
            lease.check()
            print("has it", flush=True)
        except RunError as error:
            print(error, flush=True)
"""


class Elsewhere:
    """A process that trains the run; `boot` names the machine that it takes itself to be on."""

    def __init__(self, run: Path, boot: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(run), str(boot)],
            cwd=REPOSITORY,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.answer() == "has it"

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def check(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Elsewhere]]:
    started: list[Elsewhere] = []

    def run(machine: str | None = None) -> Elsewhere:
        boot = Path("/proc/sys/kernel/random/boot_id")
        if machine:
            boot = tmp_path / "boot_id"
            boot.write_text(machine)
        started.append(Elsewhere(tmp_path / "run", boot))
        return started[-1]

    yield run
    for one in started:
        one.kill()


def test_on_one_machine_the_second_is_refused_as_long_as_the_first_lives(
    tmp_path: Path, start: Callable[..., Elsewhere]
) -> None:
    first = start()
    written = (tmp_path / "run" / LEASE).read_bytes()
    with pytest.raises(RunError, match=rf"another process trains this run \(process {first.process.pid} on "):
        Lease(tmp_path / "run")
    assert (tmp_path / "run" / LEASE).read_bytes() == written
    assert first.check() == "has it"
    first.kill()
    with Lease(tmp_path / "run") as lease:
        lease.check()


def test_from_another_machine_a_run_is_taken_over_and_the_older_one_stops(
    tmp_path: Path, start: Callable[..., Elsewhere], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    first = start("the other machine")
    with Lease(tmp_path / "run") as lease:
        lease.check()
        told = first.check()
        assert f"taken over by process {lease.owner.pid} on {lease.owner.host}, job 4711, started " in told
        assert told.endswith("this run stops and writes nothing more")
        lease.check()
        first.kill()
        lease.check()  # from here on the lock is ours, too
        with pytest.raises(RunError, match="another process trains this run"):
            Lease(tmp_path / "run")


def test_a_log_that_was_taken_over_gets_no_more_rows(tmp_path: Path) -> None:
    row = {"step": 1, "loss": 1.0, "samples_per_second": 1.0, "data_wait": 0.0, "memory_gb": 0.0}
    recipe = Recipe(log=LogConfig(tensorboard=False))
    with Lease(tmp_path) as lease, RunLog(lease, total_steps=9, start_step=0, recipe=recipe) as log:
        log.metrics(row)
        theirs = (tmp_path / LEASE).read_text().replace(lease.owner.id, "another")
        (tmp_path / LEASE).write_text(theirs)
        with pytest.raises(RunError, match="taken over by"):
            log.metrics(row | {"step": 2})
    assert (tmp_path / METRICS).read_text().count("\n") == 1


@pytest.mark.parametrize("content", [None, "", "[]", '{"id": 3}'])
def test_a_lease_that_is_gone_or_damaged_stops_the_run(tmp_path: Path, content: str | None) -> None:
    with Lease(tmp_path) as lease:
        (tmp_path / LEASE).unlink()
        if content is not None:
            (tmp_path / LEASE).write_text(content)
        with pytest.raises(RunError, match=r"lease\.json: is gone or damaged"):
            lease.check()
    with Lease(tmp_path) as lease:
        lease.check()


def test_a_run_that_never_began_leaves_no_folder_and_takes_none_away(tmp_path: Path) -> None:
    with Lease(tmp_path / "new"):
        pass
    with Lease(tmp_path / "begun"):
        (tmp_path / "begun/metrics.jsonl").touch()
    (tmp_path / "there").mkdir()
    with Lease(tmp_path / "there"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun", "there"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be made"):
        Lease(tmp_path / "file/run")
