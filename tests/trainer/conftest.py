import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import model  # noqa: F401  (lets torchvision, and so open_clip, import beside a CPU build of torch)
from shards.convert import Options, write_split
from shards.demo.source import demo_records
from shards.manifest import read_manifest
from shards.training import Part, TrainingSet
from trainer.checkpoint import FORMAT_VERSION, RECIPE, STATE, WEIGHTS, seal
from trainer.config import Recipe
from trainer.continuity import identity
from trainer.engine import build_encoders
from trainer.logs import EVALUATIONS, METRICS
from trainer.recipe import dump_recipe

TINY: dict[str, Any] = {
    "data": {"global_batch_size": 8},
    "model": {
        "architecture": "itm-tiny",
        "embed_dim": 16,
        "norm_group": 2,
        "aahr": {"fragment_heads": 2, "pooling_heads": 2},
    },
}


def merged(below: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return below | {k: merged(below.get(k, {}), v) if isinstance(v, dict) else v for k, v in over.items()}


@pytest.fixture
def tiny_recipe() -> Callable[..., Recipe]:
    """A recipe of a tiny model; `tiny_recipe(optimizer={"lr": 1.0})` changes it."""
    return lambda **changes: Recipe.model_validate(merged(TINY, changes))


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of shards: train (20 images), val (6), test (6)."""
    root = tmp_path_factory.mktemp("demo")
    for split, count in (("train", 20), ("val", 6), ("test", 6)):
        records = demo_records(split, count, 1)
        write_split(records, root / split, dataset="demo", split=split, options=Options(samples_per_shard=7))
    return root


@pytest.fixture
def add_checkpoint(demo: Path) -> Callable[..., Path]:
    """Writes `checkpoints/step-N` into a run's folder, with no weights but those given."""

    def add(
        run: Path,
        step: int,
        rsum: float | None = None,
        recipe: Recipe | None = None,
        weights: dict[str, torch.Tensor] | None = None,
    ) -> Path:
        folder = run / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        save_file(weights or {}, folder / WEIGHTS)
        (folder / RECIPE).write_text(dump_recipe(recipe or Recipe.model_validate(TINY)))
        content = {name: (folder / name).read_bytes() for name in (WEIGHTS, RECIPE)}
        state = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "loader": {"epoch": 2, "position": 40},
            "data": identity(TrainingSet((Part(read_manifest(demo / "train")),))),
            "val": None if rsum is None else {"rsum": rsum},
            "skipped_steps": 0,
            "gradient_scale": None,
            "versions": {},
            "files": {
                name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                for name, data in content.items()
            },
        }
        (folder / STATE).write_bytes(seal(state))
        return folder

    return add


@pytest.fixture
def make_run(add_checkpoint: Callable[..., Path], tiny_recipe: Callable[..., Recipe]) -> Callable[..., Path]:
    """A run's folder with logs and one checkpoint of random weights."""

    def make(run: Path, seed: int = 0, **sections: dict[str, Any]) -> Path:
        recipe = tiny_recipe(run={"seed": seed, "dir": "<b>folder</b>"}, **sections)
        weights = build_encoders(recipe.model, seed).state_dict()
        named = {f"encoders.{name}": value.contiguous() for name, value in weights.items()}
        add_checkpoint(run, 4, 10.0, recipe, named)
        rows = [{"step": step, "loss": 1 / step, "lr": 0.1} for step in range(1, 5)]
        recalls = {"r1": 1.0, "r5": 2.0, "r10": 30.0}
        (run / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "lo')
        (run / EVALUATIONS).write_text(json.dumps({"step": 4, "i2t": recalls, "t2i": recalls}) + "\n")
        return run

    return make
