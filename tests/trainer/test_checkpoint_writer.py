"""What a save leaves on disk: in the background, beside others, on a full disk, killed, taken over."""

import json
import multiprocessing as mp
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import trainer.checkpoint_save
from tests.trainer.saving import alone, progress, save_and_die, writing
from trainer.checkpoint import WEIGHTS, check_hashes
from trainer.checkpoint_folder import look_for_checkpoints, newest_checkpoint
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.lease import Lease
from trainer.recipe import dump_recipe


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    with alone():
        yield


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def whole_steps(run: Path) -> list[int]:
    """The checkpoints, whose every byte must be right; nothing else may lie beside them."""
    found = look_for_checkpoints(run / "checkpoints")
    for checkpoint in found.whole:
        check_hashes(checkpoint, checkpoint.files)
    assert not found.damaged
    assert names(run) == [checkpoint.path.name for checkpoint in found.whole]
    return [checkpoint.step for checkpoint in found.whole]


class Gate(threading.Event):
    """No tensors are written before it is set."""

    reached = threading.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, write_file = Gate(), trainer.checkpoint_save.HostCopy.write
    gate.reached.clear()

    def write(*arguments: object) -> object:
        gate.reached.set()
        assert gate.wait(60)
        return write_file(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer.checkpoint_save.HostCopy, "write", write)
    yield gate
    gate.set()


def test_a_checkpoint_holds_the_run_as_it_was_and_where_it_came_from(tmp_path: Path) -> None:
    with writing(tmp_path) as (writer, engine):
        writer.save(progress(5, 12.5))
    path = tmp_path / "checkpoints/step-00000005"
    weights = load_file(path / WEIGHTS)
    assert weights.keys() == engine.module.state_dict().keys()
    for name, value in engine.module.state_dict().items():
        assert torch.equal(weights[name], value), name
        assert weights[name].dtype == value.dtype
    moments = load_file(path / "optimizer-00000-of-00001.safetensors")
    state = engine.optimizer.state[engine.module.linear.weight]
    assert torch.equal(moments["linear.weight/exp_avg@0"], state["exp_avg"].flatten())
    assert torch.equal(moments["linear.weight/exp_avg_sq@0"], state["exp_avg_sq"].flatten())
    document = json.loads((path / "state.json").read_text())
    assert (document["step"], document["loader"], document["val"]) == (
        5,
        {"epoch": 0, "position": 5},
        {"rsum": 12.5},
    )
    assert document["versions"]["torch"] == version("torch")
    assert document["random"] == {"seed": 0, "step": 5}
    assert (path / "recipe.yaml").read_text() == dump_recipe(Recipe())


def test_training_goes_on_while_a_save_is_written_and_does_not_reach_into_it(tmp_path: Path, gate: Gate) -> None:
    with writing(tmp_path) as (writer, engine):
        before = engine.module.linear.weight.detach().clone()
        writer.save(progress(1))
        assert writer.stall()["checkpoint_stall"] >= 0
        assert writer.stall() == {}
        writer.check()  # under way, so no reason to complain
        with torch.no_grad():
            engine.module.linear.weight.zero_()
        assert not (tmp_path / "checkpoints/step-00000001").exists()
        gate.set()
    assert torch.equal(load_file(tmp_path / "checkpoints/step-00000001" / WEIGHTS)["linear.weight"], before)


def test_a_second_save_waits_for_the_first_and_says_so(tmp_path: Path, gate: Gate) -> None:
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        gate.set()

    with writing(tmp_path, say=say) as (writer, _):
        writer.save(progress(1))
        writer.save(progress(2))
        assert len(said) == 1
        assert "waiting for" in said[0]
        assert "step-00000001, which is still being written" in said[0]
    assert whole_steps(tmp_path) == [1, 2]


def test_of_a_step_that_is_saved_already_only_the_evaluation_is_added(tmp_path: Path) -> None:
    with writing(tmp_path) as (writer, _):
        writer.save(progress(1, 3.0))
        writer.save(progress(1))
    weights = tmp_path / "checkpoints/step-00000001" / WEIGHTS
    written = weights.stat().st_ino
    for resumed, rsum in ((None, 3.0), (1, 9.0)):
        with writing(tmp_path, resumed_step=resumed) as (writer, _):
            if resumed:
                writer.save(progress(1, rsum))
        checkpoint = newest_checkpoint(tmp_path / "checkpoints")
        assert checkpoint is not None
        assert checkpoint.val == {"rsum": rsum}
    assert whole_steps(tmp_path) == [1]
    assert weights.stat().st_ino == written


def test_a_step_that_an_older_owner_has_saved_since_is_replaced(tmp_path: Path) -> None:
    for rsum in (3.0, 4.0):
        with writing(tmp_path) as (writer, _):
            writer.save(progress(1, rsum))
    checkpoint = newest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.val == {"rsum": 4.0}
    assert whole_steps(tmp_path) == [1]


def test_old_checkpoints_are_pruned_but_for_the_best(tmp_path: Path) -> None:
    with writing(tmp_path, keep_last=1) as (writer, _):
        for step, rsum in enumerate((5.0, 9.0, 7.0, None), start=1):
            writer.save(progress(step, rsum))
    assert whole_steps(tmp_path) == [2, 4]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"step 2: linear\.weight is not finite"),
        writing(tmp_path) as (writer, engine),
    ):
        writer.save(progress(1))
        with torch.no_grad():
            engine.module.linear.weight[0, 0] = torch.nan
        writer.save(progress(2))
    assert whole_steps(tmp_path) == [1]


def test_a_full_disk_is_told_and_costs_no_older_checkpoint(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with writing(tmp_path) as (writer, _):
        writer.save(progress(1))
        writer.close()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
            writer.save(progress(2))
            with pytest.raises(RunError, match=r"step-00000002: cannot be written \(File too large\); make room"):
                while True:  # as training does
                    writer.check()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert whole_steps(tmp_path) == [1]
        writer.save(progress(3))
    assert whole_steps(tmp_path) == [1, 3]


def test_a_folder_that_is_gone_is_told(tmp_path: Path, gate: Gate) -> None:
    run = tmp_path / "run"
    with pytest.raises(RunError, match=r"lease\.json: is gone"), writing(run) as (writer, _):
        writer.save(progress(1))
        assert gate.reached.wait(60)
        shutil.rmtree(run)
        gate.set()


def test_a_run_that_was_taken_over_commits_nothing(tmp_path: Path, gate: Gate) -> None:
    with (
        pytest.raises(RunError, match="taken over by process 7 on other, job 12"),
        writing(tmp_path) as (writer, _),
    ):
        writer.save(progress(1))
        lease = tmp_path / "lease.json"
        theirs = {"id": "new", "host": "other", "machine": "m", "pid": 7, "job": "12", "started": "now"}
        lease.write_text(json.dumps(theirs))
        gate.set()
    assert names(tmp_path) == []


def test_a_run_that_fails_ends_the_save_that_is_under_way(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="diverged"), writing(tmp_path) as (writer, _):
        writer.save(progress(1))
        raise RunError("diverged")
    assert whole_steps(tmp_path) == [1]


def test_an_interrupted_run_leaves_nothing_half_written(tmp_path: Path, gate: Gate) -> None:
    with pytest.raises(KeyboardInterrupt), writing(tmp_path) as (writer, _):
        writer.save(progress(1))
        assert gate.reached.wait(60)
        threading.Timer(0.5, gate.set).start()  # by then the save was told to stop
        raise KeyboardInterrupt
    assert names(tmp_path) == []


@pytest.fixture(scope="module")
def start() -> Callable[..., int]:
    """Runs `save_and_die` in a process of its own; returns its exit code."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests.trainer.saving"])

    def run(*arguments: object) -> int:
        process = context.Process(target=save_and_die, args=arguments)
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    return run


def survives(run: Path, start: Callable[..., int]) -> int:
    """After a kill: a whole checkpoint is there, to go on from; the next save leaves nothing of the killed one."""
    found = newest_checkpoint(run / "checkpoints")
    assert found is not None
    check_hashes(found, found.files)
    assert not look_for_checkpoints(run / "checkpoints").damaged
    assert start(run, 3, None, None) == 0
    assert whole_steps(run) == [3]
    return found.step


def test_a_save_killed_at_any_call_loses_nothing_older(tmp_path: Path, start: Callable[..., int]) -> None:
    assert start(tmp_path / "before", 1, None, None) == 0
    newest, code = [], -signal.SIGKILL
    while code == -signal.SIGKILL:
        run = tmp_path / f"killed-{len(newest)}"
        shutil.copytree(tmp_path / "before", run)
        code = start(run, 2, len(newest) + 1, None)
        newest.append(survives(run, start))
    assert code == 0
    assert newest == sorted(newest)
    assert newest.count(1) >= 6
    assert newest.count(2) >= 3  # the last one was not killed, the others while the older one was removed


def test_a_save_killed_at_any_byte_loses_nothing_older(tmp_path: Path, start: Callable[..., int]) -> None:
    assert start(tmp_path / "before", 1, None, None) == 0
    largest = max(file.stat().st_size for file in (tmp_path / "before/checkpoints/step-00000001").iterdir())
    for file_bytes in range(0, largest, largest // 12):
        run = tmp_path / f"killed-{file_bytes}"
        shutil.copytree(tmp_path / "before", run)
        assert start(run, 2, None, file_bytes) == -signal.SIGXFSZ
        assert survives(run, start) == 1


def test_a_lease_ends_with_its_process(tmp_path: Path, start: Callable[..., int]) -> None:
    assert start(tmp_path, 1, 3, None) == -signal.SIGKILL
    with Lease(tmp_path) as lease:
        lease.check()


def test_a_rank_that_is_stopped_leaves_to_the_owner_what_may_be_committed(tmp_path: Path) -> None:
    save = trainer.checkpoint_save.Save(
        folder=tmp_path / "checkpoints",
        run_id="run",
        progress=progress(2),
        recipe=Recipe(),
        weights=trainer.checkpoint_save.HostCopy(False),
        moments=trainer.checkpoint_save.HostCopy(False),
        shapes={},
        divided=False,
        store=dist.HashStore(),
        rank=1,
        world=2,
        lease=None,
    )
    save.partial.mkdir(parents=True)
    (save.partial / "of-another-rank").touch()
    save.stop.set()
    save.run()
    assert save.error is not None
    assert "another process of this run has ended" in save.error
    assert (save.partial / "of-another-rank").exists()
    with writing(tmp_path):
        assert not save.partial.exists()
