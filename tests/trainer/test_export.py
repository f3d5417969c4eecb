"""Exported models: each is loaded by whoever reads the format, and gives the same embeddings."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
from typer.testing import CliRunner

from shards.tools.concept_graph import GraphOptions
from tests.model.hub import save_bert
from trainer import load_model
from trainer.cli import commands
from trainer.errors import RunError
from trainer.evaluate import evaluate
from trainer.export.write import export_model

MakeRun = Callable[..., Path]
CAPTIONS = ["a dog", "two cats and a dog run", ""]


def pixels(count: int = 3, side: int = 32) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def concept_file(path: Path) -> str:
    words = [{"word": word, "group": "object", "forms": [word, f"{word}s"], "count": 4} for word in ("dog", "cat")]
    graph = asdict(GraphOptions())
    content = {"format_version": 1, "captions": 9, "sources": [], "graph": graph, "concepts": words}
    path.write_text(json.dumps(content | {"co_occurrence": [[0, 2], [2, 0]]}))
    return str(path)


def model_of(tmp_path: Path, kind: str) -> dict[str, Any]:
    concepts = concept_file(tmp_path / "c.json")
    bert = {"name": str(save_bert(tmp_path / "bert")), "weights": "random", "max_length": 12}
    return {
        "clip": {"framework": "clip", "embed_dim": 16},
        "siglip": {"framework": "siglip"},
        "amsps with concepts": {"framework": "amsps", "consensus": {"concepts": concepts}},
        "aahr": {"image": {"freeze": "all"}},
        "larger pictures": {"framework": "clip", "image": {"size": 64}},
        "aahr with bert": {"text": {"towers": "clip+transformer", "transformer": bert}},
        "bert alone": {"framework": "clip", "text": {"towers": "transformer", "transformer": bert}},
        "regions": {"image": {"inputs": "pixels+regions", "region_width": 8}},
    }[kind]


@pytest.mark.parametrize(
    "kind", ["clip", "siglip", "amsps with concepts", "aahr", "aahr with bert", "bert alone", "regions"]
)
def test_ours_is_the_same_model_wherever_it_lies(tmp_path: Path, make_run: MakeRun, kind: str) -> None:
    model = model_of(tmp_path, kind)
    run = make_run(tmp_path / "run", model=model)
    before = load_model(run, device="cpu")
    inputs: list[Any] = [pixels(), None, None]
    if kind == "regions":
        inputs[1:] = [torch.rand(3, 4, 8), torch.ones(3, 4, dtype=torch.bool)]
    with torch.inference_mode():
        expected = before.encode_text(CAPTIONS), before.encoders.encode_image(*inputs)
    export_model(run, tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    for gone in ("run", "bert"):
        shutil.rmtree(tmp_path / gone)
    (tmp_path / "c.json").unlink()
    after = load_model(tmp_path / "moved", device="cpu")
    with torch.inference_mode():
        found = after.encode_text(CAPTIONS), after.encoders.encode_image(*inputs)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert all(parameter.requires_grad for parameter in after.encoders.image_tower.parameters())
    again = export_model(tmp_path / "moved", tmp_path / "again")
    assert again == []
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "moved" / "model.safetensors"
    ).read_bytes()


def test_an_exported_model_gives_the_table_of_its_run(tmp_path: Path, make_run: MakeRun, demo: Path) -> None:
    run, exported = (
        make_run(tmp_path / "run", model=model_of(tmp_path, "amsps with concepts")),
        tmp_path / "exported",
    )
    export_model(run, exported)
    expected, found = evaluate(run, demo / "test"), evaluate(exported, demo / "test")
    assert found.protocols == expected.protocols
    assert found.as_dict()["model"] == str(exported)
    both = evaluate([run, exported], demo / "test").as_dict()
    assert [sorted(one) for one in both["members"]] == [["checkpoint", "step"], ["model"]]


@pytest.mark.parametrize("kind", ["clip", "siglip", "aahr", "larger pictures"])
def test_open_clip_loads_the_towers(tmp_path: Path, make_run: MakeRun, kind: str) -> None:
    run = make_run(tmp_path / "run", model=model_of(tmp_path, kind))
    notes = export_model(run, tmp_path / "out", "open_clip")
    assert any("heads of aahr" in note for note in notes) == (kind == "aahr")
    clip, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'out'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(CAPTIONS)
    ours, side = load_model(run, device="cpu"), 64 if kind == "larger pictures" else 32
    normalize = preprocess.transforms[-1]
    with torch.inference_mode():
        images = clip.encode_image(normalize(pixels(side=side).permute(0, 3, 1, 2) / 255))
        texts = clip.encode_text(tokens)
        tower = ours.encoders.image_tower(pixels(side=side)).pooled
    assert torch.allclose(images, tower, atol=1e-5)
    if kind != "aahr":  # there the towers' features are the embeddings
        assert torch.allclose(torch.nn.functional.normalize(texts, dim=1), ours.encode_text(CAPTIONS), atol=1e-5)


def test_transformers_loads_the_text_encoder(tmp_path: Path, make_run: MakeRun) -> None:
    from transformers import AutoModel, AutoTokenizer

    run = make_run(tmp_path / "run", model=model_of(tmp_path, "bert alone"))
    export_model(run, tmp_path / "out", "transformers")
    encoder, tokenizer = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModel, AutoTokenizer))
    ours: Any = load_model(run, device="cpu").encoders.text_tower
    tokens = tokenizer("a dog runs", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert torch.allclose(encoder.eval()(tokens).last_hidden_state[:, 0], ours(tokens).pooled, atol=1e-6)
    with pytest.raises(RunError, match="open_clip's, not of transformers"):
        export_model(make_run(tmp_path / "clip"), tmp_path / "none", "transformers")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", ["amsps with concepts", "aahr with bert"])
def test_onnxruntime_gives_the_same_embeddings(tmp_path: Path, make_run: MakeRun, kind: str) -> None:
    run = make_run(tmp_path / "run", model=model_of(tmp_path, kind))
    notes = export_model(run, tmp_path / "out", "onnx")
    assert len(notes) == 2
    model = load_model(run, device="cpu")
    tokens = model.tokenize(CAPTIONS)
    sessions = [onnxruntime.InferenceSession(tmp_path / "out" / f"{name}.onnx") for name in ("image", "text")]
    with torch.inference_mode():
        images = model.encoders.encode_image(pixels(5)).numpy()
    assert np.allclose(sessions[0].run(None, {"images": pixels(5).numpy()})[0], images, atol=1e-5)
    assert np.allclose(sessions[1].run(None, {"tokens": tokens.numpy()})[0], model.encode_text(CAPTIONS), atol=1e-5)
    assert json.loads((tmp_path / "out" / "itm_onnx.json").read_text())["images"].startswith("(B, 32, 32, 3)")


def test_onnx_is_for_pixels_alone(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "run", model=model_of(tmp_path, "regions"))
    with pytest.raises(RunError, match="models that read pixels alone"):
        export_model(run, tmp_path / "out", "onnx")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_what_is_damaged_is_named(tmp_path: Path, make_run: MakeRun) -> None:
    out = tmp_path / "out"
    export_model(make_run(tmp_path / "run"), out)
    with pytest.raises(RunError, match="is there already"):
        export_model(tmp_path / "run", out)
    with pytest.raises(RunError, match="no momentum encoders"):
        export_model(out, tmp_path / "other", momentum=True)
    settings = json.loads((out / "itm_model.json").read_text())
    for change, said in (
        ({"format_version": 9}, "a model of format 9, this program reads 1"),
        ({"model": settings["model"] | {"embed_dim": 8}}, "not this model's weights"),
        ({"model": {}}, "damaged"),
    ):
        (out / "itm_model.json").write_text(json.dumps(settings | change))
        with pytest.raises(RunError, match=said):
            load_model(out)
    (out / "itm_model.json").write_text(json.dumps(settings))
    (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(RunError, match="not this model's weights"):
        load_model(out)


def test_a_run_without_momentum_encoders_has_none_to_export(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "run", model=model_of(tmp_path, "clip"))
    with pytest.raises(RunError, match=r"step-00000004: .*keeps no momentum encoders.*leave --momentum out"):
        export_model(run, tmp_path / "out", momentum=True)


def test_the_command_says_what_it_does(tmp_path: Path, make_run: MakeRun) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "new" / "out"
    arguments = ["export", str(run), "--out", str(out)]
    dry = CliRunner().invoke(commands, [*arguments, "--dry-run"], catch_exceptions=False)
    assert (dry.exit_code, "step-00000004" in dry.output, out.parent.exists()) == (0, True, False)
    done = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert (done.exit_code, sorted(path.name for path in out.iterdir())) == (
        0,
        ["itm_model.json", "model.safetensors"],
    )
    assert (out / "model.safetensors").stat().st_mode == (out / "itm_model.json").stat().st_mode
