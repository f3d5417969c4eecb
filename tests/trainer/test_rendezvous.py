"""Processes that meet, here threads of one, and what they find out about each other."""

import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch

from trainer import rendezvous
from trainer.distributed import World, free_port
from trainer.errors import RunError
from trainer.rendezvous import complaint, meet

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> int:
    """The port that they meet at."""
    port = free_port()
    for name in ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    return port


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "PATIENCE", timedelta(seconds=2))
    monkeypatch.setattr(rendezvous, "NOTICE", timedelta(seconds=1))


def met(ranks: Sequence[int], size: int) -> list[Any]:
    """What `meet` gave to each, a store or an error, while all of them live."""
    over = threading.Barrier(len(ranks))

    def one(rank: int) -> Any:
        try:
            outcome: Any = meet(World(rank, size, rank), CPU)
        except (RunError, SystemExit) as error:
            outcome = error
        over.wait()
        return outcome

    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(one, ranks))


def test_all_who_come_share_a_store() -> None:
    stores = met(range(3), 3)
    stores[2].set("word", "hello")
    assert [store.get("word") for store in stores] == [b"hello"] * 3


@pytest.mark.usefixtures("hasty")
def test_who_did_not_come_is_named(capsys: pytest.CaptureFixture[str], place: int) -> None:
    error, other = met([0, 2], 3)
    assert f"process 1 of 3 did not come to 127.0.0.1:{place}" in str(error)
    assert isinstance(other, SystemExit), "it is said once"
    assert f"waiting for process 1 of 3 at 127.0.0.1:{place}" in capsys.readouterr().err


@pytest.mark.usefixtures("hasty")
def test_without_the_first_process_there_is_nothing_to_meet_at() -> None:
    (error,) = met([1], 2)
    assert "process 1 of 2 has not met the others at 127.0.0.1" in str(error)
    assert "start as many processes as WORLD_SIZE says" in str(error)


@pytest.mark.usefixtures("hasty")
def test_two_processes_of_one_rank_are_refused() -> None:
    errors = [str(outcome) for outcome in met([0, 1, 1], 3)]
    assert any("two processes are number 1 of 3" in error for error in errors)
    assert any("process 2 of 3 did not come" in error for error in errors)


@pytest.mark.usefixtures("hasty")
def test_a_port_that_is_taken_is_named(place: int) -> None:
    with socket.socket() as other:
        other.bind(("", place))
        other.listen()
        with pytest.raises(RunError, match="give another MASTER_PORT if this one is taken"):
            meet(World(0, 1, 0), CPU)


def test_what_is_wrong_ends_every_process_and_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_identity", lambda _device: "gpu-7")
    error, *others = met(range(3), 3)
    assert "processes 0 and 1 have the same GPU" in str(error)
    assert all(isinstance(other, SystemExit) and other.code == 1 for other in others)


def test_devices() -> None:
    assert complaint([("a", "cpu"), ("a", "cpu")]) is None
    assert complaint([("a", "gpu-1"), ("a", "gpu-2"), ("b", "gpu-1")]) is None
    assert "processes 0 and 2 have the same GPU of a" in str(complaint([("a", "1"), ("a", "2"), ("a", "1")]))
    assert "process 1 finds no GPU on b" in str(complaint([("a", "1"), ("b", "cpu")]))
