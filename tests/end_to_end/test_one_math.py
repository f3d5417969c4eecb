"""With dropout off, the loss curve is a function of the recipe alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ENVIRONMENT, REPOSITORY, itm_command
from tests.end_to_end.conftest import TINY, WHOLE, Itm, data_of, losses, whole_of

pytestmark = pytest.mark.slow

SHARDED = "loss.queue.sharded=true"
STEPS = 12  # 2 epochs of 100 // 16


def agrees(run: Path, reference: Path) -> None:
    assert len(losses(reference)) == STEPS
    assert losses(run) == pytest.approx(losses(reference), rel=1e-5)


def test_the_loss_falls(reference: Path) -> None:
    curve = losses(reference)[:8]  # before the hardest negative takes over
    assert sum(curve[-3:]) < sum(curve[:3])


@pytest.mark.parametrize(
    ("processes", "stage", "workers", "micro_batch_size", "sharded"),
    [
        (1, 1, 2, "8", False),
        (1, 3, 0, "null", False),
        (2, 0, 2, "null", True),
        (2, 2, 0, "null", False),
        (2, 3, 0, "4", True),
        (4, 2, 0, "null", True),
    ],
)
def test_processes_stages_workers_micro_batches_and_a_queue_in_parts_change_nothing(
    itm: Itm,
    demo: Path,
    whole: Path,
    tmp_path: Path,
    processes: int,
    stage: int,
    workers: int,
    micro_batch_size: str,
    sharded: bool,
) -> None:
    """A few of all; the others are in `test_grid.py`."""
    run = tmp_path / "run"
    settings = (
        f"engine.zero_stage={stage}",
        f"data.workers={workers}",
        f"engine.micro_batch_size={micro_batch_size}",
        f"loss.queue.sharded={str(sharded).lower()}",
    )
    itm("train", WHOLE, f"run.dir={run}", *whole_of(demo), *settings, "--processes", processes)
    agrees(run, whole)


def test_a_mixture_with_every_caption_is_the_same_on_any_processes(itm: Itm, demo: Path, tmp_path: Path) -> None:
    mixture = (
        f"[{{path: {demo / 'train'}, captions: all, weight: 0.2}}, {{path: {demo / 'pretrain'}, weight: 0.5}}]"
    )
    curves = []
    for processes, workers in ((1, 0), (2, 2)):
        run = tmp_path / f"run-{processes}"
        settings = (f"data.train={mixture}", "data.last_batch=pad", f"data.workers={workers}")
        itm("train", TINY, f"run.dir={run}", *settings, "--processes", processes)
        curves.append(losses(run))
    assert len(curves[0]) == 2 * 10  # of 500 captions a fifth and of 100 pairs half, in batches of 16
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_killed_and_resumed_on_other_processes_and_another_stage(
    itm: Itm, demo: Path, whole: Path, tmp_path: Path
) -> None:
    run, scratch = tmp_path / "run", tmp_path / "tmp"
    scratch.mkdir()
    arguments = ("train", WHOLE, f"run.dir={run}", *whole_of(demo), "checkpoint.every_epochs=0.5")
    # as a background job of a script runs: with SIGINT ignored
    background = ["bash", "-c", 'trap "" INT; exec "$@"', "bash"]
    process = subprocess.Popen(
        [*background, *itm_command(*arguments, "engine.zero_stage=2", SHARDED, "--processes", 2)],
        cwd=REPOSITORY,
        env=ENVIRONMENT | {"TMPDIR": str(scratch)},
        stderr=subprocess.DEVNULL,
    )
    wait_for(run / "checkpoints/step-00000006/state.json")
    time.sleep(random.uniform(0, 0.3))  # some steps later, or in the next save
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, "the processes of a killed run live on"
    assert len(losses(run)) < STEPS, "the run had ended before it was killed"

    newest = max((run / "checkpoints").glob("step-*"))
    weights = bytearray((newest / "weights.safetensors").read_bytes())
    weights[-9] ^= 1
    (newest / "weights.safetensors").write_bytes(weights)
    told = itm(*arguments, "engine.zero_stage=3").stderr
    assert f"{newest.name}/weights.safetensors: damaged" in told
    assert (run / "checkpoints" / f"damaged-{newest.name}").is_dir()
    agrees(run, whole)
    same_memory(run, whole)
    assert {path.name for path in run.rglob(".*")} <= {".lock"}, "something half-written was left behind"
    # wandb, which DeepSpeed imports where it is installed, makes folders at once; torch keeps a cache
    left = [path.name for path in scratch.iterdir() if "wandb" not in path.name and "inductor" not in path.name]
    assert not left, "temporary files of the killed run"
    mapped = [name for one in family for name in Path("/dev/shm").glob(f"torch_{one.pid}_*")]
    assert not mapped, "shared memory of the killed run"


def same_memory(run: Path, reference: Path) -> None:
    """Momentum encoders, queue and prototypes at the end of both runs."""
    found, expected = (
        load_file(path / f"checkpoints/step-{STEPS:08d}/weights.safetensors") for path in (run, reference)
    )
    kept = [name for name in expected if name.startswith(("momentum.", "queue.")) or ".bank." in name]
    for part in ("momentum.", "queue.", ".bank."):
        assert any(part in name for name in kept)
    for name in kept:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_killed_run_goes_on_with_more_processes_and_sees_every_sample_once(demo: Path, tmp_path: Path) -> None:
    run, seen = tmp_path / "run", tmp_path / "seen"
    seen.mkdir()
    settings = (
        "data.last_batch=pad",
        "data.global_batch_size=24",
        "checkpoint.every_epochs=0.3",
        "schedule.epochs=3",
    )

    def start(processes: int, workers: int) -> subprocess.Popen[bytes]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        arguments = ("train", TINY, f"run.dir={run}", *data_of(demo), *settings, f"data.workers={workers}")
        return subprocess.Popen(
            [*launcher, "-m", "tests.end_to_end.recording", *map(str, arguments)],
            cwd=REPOSITORY,
            env=ENVIRONMENT | {"SAMPLES": str(seen)},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    first = start(2, 1)
    wait_for(run / "checkpoints/step-00000006/state.json")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    for process in psutil.process_iter(["cmdline"]):  # torchrun gives its workers sessions of their own
        if str(run) in " ".join(process.info["cmdline"] or ()):
            process.kill()
    assert start(3, 0).wait(timeout=300) == 0

    rows = [json.loads(line) for file in seen.iterdir() for line in file.read_text().splitlines()]
    resumed = max(row["start"] for row in rows)
    assert resumed in (6, 8, 10), "the second call went on from a checkpoint of the first"
    assert any(row["start"] == 0 and row["step"] >= 5 for row in rows)
    # what the first call did after its last checkpoint counts for nothing: the weights of it are gone
    kept = [row for row in rows if row["start"] == resumed or row["step"] < resumed]
    for epoch in range(3):
        samples = [
            sample
            for row in kept
            if row["step"] // 5 == epoch  # 100 samples in 5 batches of 24
            for sample, valid in zip(row["samples"], row["valid"], strict=True)
            if valid
        ]
        assert sorted(samples) == list(range(100))


def wait_for(path: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)
