"""Fixtures that several packages' tests share."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.convert import Options, write_split
from shards.manifest import Manifest, read_manifest
from shards.sources.record import Record

REPOSITORY = Path(__file__).parents[1]

# a test run in the background ignores interrupts, and would hand that down to the programs that tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def test_data() -> Path:
    """The folder of real photos and annotations that `ITM_TEST_DATA` names."""
    if "ITM_TEST_DATA" not in os.environ:
        pytest.skip("ITM_TEST_DATA is not set: tests on real photos are left out")
    return Path(os.environ["ITM_TEST_DATA"])


_LAUNCHER = ("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK")
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(_LAUNCHER)} | {
    "PYTHONPATH": str(REPOSITORY)
}
"""For a process that imports this checkout and is no launcher's child."""


def itm_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "trainer.cli", *map(str, arguments)]


def run_itm(cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line of this checkout in a process of its own."""
    return subprocess.run(
        itm_command(*arguments),
        capture_output=True,
        text=True,
        cwd=cwd,
        env=ENVIRONMENT,
        timeout=300,
        check=False,
    )


@pytest.fixture
def itm(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`itm ARGUMENTS` in `tmp_path`."""
    return partial(run_itm, tmp_path)


def numbered_record(number: int, captions: int = 3, side: int = 24) -> Record:
    """A record whose picture, a JPEG of `side` pixels, and captions tell `number`."""
    values = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).resize((side, side)).save(stream, "JPEG")
    texts = tuple(f"caption {place} of picture {number}" for place in range(captions))
    return Record(f"picture-{number:04d}", 100 + number, texts, partial(bytes, stream.getvalue()))


@pytest.fixture(scope="session")
def make_shards() -> Callable[..., Manifest]:
    """Write a folder of `samples` numbered pictures, `per_shard` a shard, each with `captions` captions."""

    def make(root: Path, samples: int, per_shard: int = 5, captions: int = 3) -> Manifest:
        records = (numbered_record(number, captions) for number in range(samples))
        write_split(records, root, dataset="synthetic", split="train", options=Options(samples_per_shard=per_shard))
        return read_manifest(root)

    return make
