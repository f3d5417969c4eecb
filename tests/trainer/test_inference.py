"""A trained model in three lines of Python: what it gives, what it refuses, and what it does not import."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from shards.decoding import DecodeError
from shards.manifest import read_manifest
from shards.reader import ShardReader
from tests.conftest import ENVIRONMENT
from trainer import load_model
from trainer.config import Recipe
from trainer.engine import build_encoders
from trainer.errors import RunError
from trainer.evaluate import evaluate
from trainer.inference import load_trained

MakeRun = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, make_run: MakeRun) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture(scope="module")
def pictures(demo: Path) -> list[bytes]:
    reader = ShardReader(read_manifest(demo / "val"))
    found = [reader.read(0, row).image for row in range(6)]
    return [one for one in found if one is not None]


def test_it_embeds_what_evaluation_embeds(run: Path, demo: Path, pictures: list[bytes]) -> None:
    measured = evaluate(run, demo / "val").embeddings
    model = load_model(run, device="cpu")
    assert torch.allclose(model.encode_images(pictures, batch_size=4), measured.images, atol=1e-6)
    assert torch.allclose(model.encode_text(measured.captions, batch_size=5), measured.texts, atol=1e-6)
    assert (model.encode_images([]).shape, model.encode_text([]).shape) == ((0, 16), (0, 16))


def test_a_picture_may_come_as_a_file_as_bytes_or_opened(run: Path, tmp_path: Path, pictures: list[bytes]) -> None:
    (tmp_path / "one.img").write_bytes(pictures[0])
    opened = Image.open(io.BytesIO(pictures[0]))
    model = load_model(run, device="cpu")
    rows = model.encode_images([pictures[0], tmp_path / "one.img", str(tmp_path / "one.img"), opened])
    assert torch.allclose(rows[1:3], rows[:1].expand(2, -1), atol=1e-6)
    # an opened picture may have been decoded by another library
    assert torch.allclose(rows[3], rows[0], atol=2e-2)
    modes = ["L", "RGBA", "P", "CMYK", "I;16", "1", "LA"]
    assert torch.isfinite(model.encode_images([Image.new(mode, (40, 30)) for mode in modes])).all()


@pytest.mark.parametrize("shared", [True, False])
def test_momentum_encoders_may_share_the_towers(
    tmp_path: Path, add_checkpoint: Callable[..., Path], tiny_recipe: Callable[..., Recipe], shared: bool
) -> None:
    recipe = tiny_recipe()
    online, average = (dict(build_encoders(recipe.model, seed).state_dict()) for seed in (0, 1))
    left_out = "image_tower." if shared else next(name for name in average if name.startswith("image_tower."))
    average = {name: value for name, value in average.items() if not name.startswith(left_out)}
    named = {f"encoders.{name}": value for name, value in online.items()}
    named |= {f"momentum.module.{name}": value for name, value in average.items()}
    add_checkpoint(tmp_path / "run", 4, 10.0, recipe, {name: value.contiguous() for name, value in named.items()})
    if not shared:
        with pytest.raises(RunError, match="another model"):
            load_trained(tmp_path / "run", momentum=True)
        return
    loaded = load_trained(tmp_path / "run", momentum=True).encoders.state_dict()
    for name, value in loaded.items():
        assert torch.equal(value, (online if name.startswith("image_tower.") else average)[name]), name


def test_mistakes_are_told(run: Path, tmp_path: Path, pictures: list[bytes]) -> None:
    model = load_model(run)
    with pytest.raises(TypeError, match="list of captions"):
        model.encode_text("a dog")
    with pytest.raises(TypeError, match="list of pictures"):
        model.encode_images(pictures[0])  # type: ignore[arg-type]
    with pytest.raises(DecodeError):
        model.encode_images([b"no picture"])
    with pytest.raises(RunError, match="regions given or missing"):
        model.encode_images(pictures, regions=[])
    with pytest.raises(RunError, match="no such run"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(RunError, match="no checkpoint"):
        load_model(tmp_path)


def test_nothing_of_the_training_is_imported(run: Path) -> None:
    program = (
        "import json, sys\n"
        "from trainer import load_model\n"
        f"model = load_model({str(run)!r})\n"
        "model.encode_text(['a dog'])\n"
        "print(json.dumps([name for name in ('deepspeed', 'accelerate', 'tensorboard', 'webdataset', 'faiss') "
        "if name in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=True
    )
    assert json.loads(done.stdout) == []
