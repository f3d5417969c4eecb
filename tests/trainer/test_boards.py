"""Weights & Biases, offline, by its own package; TensorBoard: tests/end_to_end/test_path.py."""

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.boards import check_boards, open_boards
from trainer.config import LogConfig, Recipe
from trainer.errors import RunError


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the package wandb is not installed")
def test_a_resumed_run_stays_one_run_on_weights_and_biases(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    recipe = tiny_recipe(log={"tensorboard": False, "wandb": "offline"})
    for step in (1, 2):
        (board,) = open_boards(recipe, tmp_path, start_step=step - 1)
        board.draw({"train/loss": step + 0.28125}, step)
        board.close(failed=False)
    name = (tmp_path / "wandb" / "id").read_text()
    deadline = time.monotonic() + 60  # its own process writes a little later on a busy machine
    holding: list[list[bytes]] = []
    while [len(one) for one in holding] != [1, 1] and time.monotonic() < deadline:
        written = [path.read_bytes() for path in tmp_path.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb")]
        holding = [[one for one in written if f"{step}.28125".encode() in one] for step in (1, 2)]
        time.sleep(0.1)
    assert len(written) == 2
    for one in holding:
        assert len(one) == 1
        assert b"train/loss" in one[0]
        assert b"itm-tiny" in one[0], "the recipe goes with it"


def test_without_the_package_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    check_boards(LogConfig())
    with pytest.raises(RunError, match=r"log.wandb=offline: the package wandb is not installed; pip install"):
        check_boards(LogConfig(wandb="offline"))
