import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.trace import Tracer

CPU = torch.device("cpu")
OPERATIONS = [torch.sin, torch.cos, torch.tan, torch.exp]
"""Of steps 1 to 4."""


def run(folder: Path, step: int | None, rank: int = 0, steps: Sequence[int] = range(1, 5)) -> None:
    tracer = Tracer(step, folder, rank, CPU, arrive=lambda: None)
    for number in steps:
        with tracer.around(number):
            OPERATIONS[number - 1](torch.ones(3))
        torch.log(torch.ones(3))  # what follows a step


def operations(path: Path) -> set[str]:
    events: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    ours = {f"aten::{operation.__name__}" for operation in [*OPERATIONS, torch.log]}
    return {event["name"] for event in events} & ours


@pytest.mark.parametrize(
    ("step", "steps", "traced"),
    [
        (3, [1, 2, 3, 4], "tan"),
        (1, [1, 2, 3, 4], "sin"),
        (3, [3, 4], "tan"),
        (4, [1, 2, 3, 4], "exp"),
        (3, [1, 2, 2, 3, 4], "tan"),
        (3, [1, 2, 3, 3, 4], "tan"),
    ],
    ids=[
        "in the middle",
        "the first",
        "the first of a resumed run",
        "the last",
        "after one done again",
        "done again",
    ],
)
def test_one_step_is_traced_whole_and_alone(tmp_path: Path, step: int, steps: list[int], traced: str) -> None:
    run(tmp_path, step, steps=steps)
    assert operations(tmp_path / f"trace/step-{step}-rank-0.json.gz") == {f"aten::{traced}"}
    assert f"aten::{traced}" in (tmp_path / f"trace/step-{step}-rank-0.txt").read_text()
    assert len(list((tmp_path / "trace").iterdir())) == 2


def test_each_rank_has_files_of_its_own(tmp_path: Path) -> None:
    for rank in (0, 1):
        run(tmp_path, 2, rank)
    names = {path.name for path in (tmp_path / "trace").iterdir()}
    assert names == {f"step-2-rank-{rank}.{kind}" for rank in (0, 1) for kind in ("json.gz", "txt")}


@pytest.mark.parametrize(("step", "first"), [(None, 1), (2, 3)], ids=["not asked for", "before a resumed run"])
def test_else_nothing_is_written(tmp_path: Path, step: int | None, first: int) -> None:
    run(tmp_path, step, steps=range(first, 5))
    assert not list(tmp_path.iterdir())
