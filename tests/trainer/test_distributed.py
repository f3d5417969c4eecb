"""A process's place in the world, from the variables of each launcher."""

import pytest
import torch

from trainer.distributed import World, device_of, first_host, free_port, read_world, slurm_environment
from trainer.errors import RunError

SRUN = {  # the sixth of eight tasks, two a node
    "SLURM_JOB_ID": "4123456",
    "SLURM_JOB_NODELIST": "gpu[003-006]",
    "SLURM_STEP_NODELIST": "gpu[003-006]",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
}
SBATCH = {  # the batch script itself: the first task of a step that srun did not start
    "SLURM_JOB_ID": "4123456",
    "SLURM_JOB_NODELIST": "gpu[003-006]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment of its own, without a launcher's variables."""
    own: dict[str, str] = {}
    monkeypatch.setattr("os.environ", own)
    return own


def test_a_task_of_srun_gets_what_torch_expects() -> None:
    assert slurm_environment(SRUN) == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu003",
        "MASTER_PORT": str(20000 + 4123456 % 20000),
    }


def test_all_tasks_of_a_step_meet_at_one_address() -> None:
    places = [slurm_environment(SRUN | {"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n % 2)}) for n in range(8)]
    assert len({(place["MASTER_ADDR"], place["MASTER_PORT"]) for place in places}) == 1
    assert [place["RANK"] for place in places] == [str(n) for n in range(8)]


def test_a_meeting_point_that_is_given_is_kept() -> None:
    given = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert given.items() <= slurm_environment(SRUN | given).items()


@pytest.mark.parametrize("job", [1, 19999, 20000, 99999999])
def test_the_port_is_one_that_a_user_may_open(job: int) -> None:
    assert 1024 < int(slurm_environment(SRUN | {"SLURM_JOB_ID": str(job)})["MASTER_PORT"]) < 65536


@pytest.mark.parametrize(
    "variables",
    [{}, SBATCH, SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}],
    ids=["no Slurm", "the batch script", "a step of one task"],
)
def test_outside_a_step_of_several_tasks_nothing_is_set(variables: dict[str, str]) -> None:
    assert slurm_environment(variables) == {}


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("gpu[003-005,7],login1", "gpu003"),
        ("gpu[7,003-005]", "gpu7"),
        ("login1,gpu[003-005]", "login1"),
        ("node-a-01", "node-a-01"),
        ("node-a-[01-09]", "node-a-01"),
        ("n1.cluster.org,n2.cluster.org", "n1.cluster.org"),
        ("gpu[03-05]-ib", "gpu03-ib"),
        ("rack[1-2]node[10-19],login", "rack1node10"),
        ("[1-3]", "1"),
    ],
)
def test_the_first_host_of_a_node_list(node_list: str, host: str) -> None:
    assert first_host(node_list) == host


def test_without_a_launcher_there_is_one_process(environment: dict[str, str]) -> None:
    assert read_world() == World(0, 1, 0)
    assert read_world().is_main
    assert "RANK" not in environment


def test_the_world_of_torchrun(environment: dict[str, str]) -> None:
    environment.update(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", MASTER_ADDR="host", MASTER_PORT="1234")
    assert read_world() == World(3, 4, 1)
    assert not read_world().is_main


def test_torchrun_within_an_srun_task_is_what_counts(environment: dict[str, str]) -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "1234"}
    environment.update(SRUN | torchrun | {"TORCHELASTIC_RUN_ID": "none"})
    assert read_world() == World(3, 4, 1)
    assert environment["MASTER_ADDR"] == "host"


def test_the_world_of_srun_and_what_torch_will_read_of_it(environment: dict[str, str]) -> None:
    environment.update(SRUN)
    assert read_world() == World(5, 8, 1)
    assert slurm_environment(SRUN).items() <= environment.items()


def test_half_a_launcher_is_a_users_error(environment: dict[str, str]) -> None:
    environment.update(RANK="0", WORLD_SIZE="2", MASTER_ADDR="host")
    with pytest.raises(RunError, match="LOCAL_RANK, MASTER_PORT is not"):
        read_world()


def test_a_free_port_can_be_opened() -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


@pytest.mark.parametrize(("seen", "expected"), [(8, 3), (1, 0)])
def test_a_process_takes_its_own_gpu_whether_it_sees_all_or_one(
    monkeypatch: pytest.MonkeyPatch, seen: int, expected: int
) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [device_of(World(rank=11, size=16, local_rank=3))] == chosen == [torch.device("cuda", expected)]
