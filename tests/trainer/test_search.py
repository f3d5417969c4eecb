"""From shards to answers: embeddings with keys, an index of them, ranked results."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from shards.errors import DataError
from shards.manifest import read_manifest
from tests.conftest import numbered_record
from trainer import load_model
from trainer.cli import commands
from trainer.errors import RunError
from trainer.evaluate import evaluate
from trainer.search.embeddings import read_about, read_embeddings, read_items, write_embeddings
from trainer.search.index import build_index, open_index

MakeRun = Callable[..., Path]


def itm(*arguments: object) -> Result:
    return CliRunner().invoke(commands, [str(one) for one in arguments], catch_exceptions=False)


@pytest.fixture
def run(tmp_path: Path, make_run: MakeRun) -> Path:
    return make_run(tmp_path / "run")


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_embeddings_come_in_order_with_their_keys(tmp_path: Path, run: Path, demo: Path, format: str) -> None:
    out = tmp_path / "new" / "embedded"
    assert itm("embed", run, "--data", demo / "train", "--out", out, "--dry-run").exit_code == 0
    assert not out.parent.exists()
    arguments = ("--format", format, "--batch-size", 3, "--workers", 1)
    assert itm("embed", run, "--data", demo / "train", "--out", out, *arguments).exit_code == 0
    measured = evaluate(run, demo / "train").embeddings
    about = read_about(out)
    assert (about.images, about.texts, about.split) == (20, len(measured.texts), "train")
    for side, expected in (("images", measured.images), ("texts", measured.texts)):
        (found,) = read_embeddings(out, side, about)  # type: ignore[arg-type]
        assert np.allclose(found, expected, atol=1e-6)
    images, texts = read_items(out, "images").to_pydict(), read_items(out, "texts").to_pydict()
    assert images["key"] == [f"train-{number:06d}" for number in range(20)]
    assert images["sample"] == list(range(20))
    assert texts["caption"] == measured.captions
    assert texts["sample"] == measured.caption_image.tolist()
    assert texts["key"] == [images["key"][sample] for sample in texts["sample"]]
    assert ("embedding" in pq.read_schema(out / "images.parquet").names) == (format == "parquet")
    with pytest.raises(RunError, match="is there already"):
        write_embeddings(load_model(run), read_manifest(demo / "train"), out)


def test_a_failure_leaves_nothing(tmp_path: Path, run: Path, demo: Path) -> None:
    shutil.copytree(demo / "val", tmp_path / "val")
    (shard,) = (tmp_path / "val").glob("*.tar")
    bytes_ = bytearray(shard.read_bytes())
    bytes_[600:3000] = bytes(2400)
    shard.write_bytes(bytes_)
    with pytest.raises(DataError):
        write_embeddings(load_model(run), read_manifest(tmp_path / "val"), tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


@pytest.fixture
def scattered(tmp_path: Path, run: Path, demo: Path) -> Path:
    """Embeddings of 20 pictures, their vectors spread at random."""
    folder = tmp_path / "embedded"
    write_embeddings(load_model(run), read_manifest(demo / "train"), folder, format="npy")
    values = np.random.default_rng(0).standard_normal((20, 16)).astype(np.float32)
    np.save(folder / "images.npy", values / np.linalg.norm(values, axis=1, keepdims=True))
    return folder


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_an_index_finds_the_nearest(tmp_path: Path, scattered: Path, kind: str) -> None:
    out = tmp_path / "index"
    about = build_index(scattered, out, "images", kind)  # type: ignore[arg-type]
    vectors = np.load(scattered / "images.npy")
    opened = open_index(out)
    assert opened.about == about
    scores, rows = opened.search(vectors, 3)
    exact = np.argsort(-(vectors @ vectors.T), axis=1)[:, :3]
    assert np.array_equal(rows, exact)  # so few items fill every list that is looked into
    assert np.allclose(scores[:, 0], 1, atol=1e-5)
    assert about.recall == 1.0
    assert opened.search(vectors, 99)[1].shape == (20, 20)
    with pytest.raises(RunError, match="is there already"):
        build_index(scattered, out)


def test_recall_tells_what_an_index_misses(
    tmp_path: Path, scattered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.search.index.PROBES", 1)
    assert 0 < build_index(scattered, tmp_path / "index", "images", "ivf").recall < 1


def test_a_sentence_and_a_picture_find_what_is_nearest(tmp_path: Path, run: Path, demo: Path) -> None:
    folder = tmp_path / "embedded"
    assert itm("embed", run, "--data", demo / "train", "--out", folder).exit_code == 0
    for side in ("images", "texts"):
        assert itm("index", folder, "--out", tmp_path / side, "--of", side).exit_code == 0
    caption = read_items(folder, "texts").column("caption")[4].as_py()
    model = load_model(run, device="cpu")
    (vectors,) = read_embeddings(folder, "images", read_about(folder))
    expected = np.argsort(-(vectors @ model.encode_text([caption]).numpy()[0]))[:4]
    page = tmp_path / "page.html"
    done = itm("search", tmp_path / "images", "--text", caption, "--top", 4, "--page", page)
    assert [line.split()[2] for line in done.output.splitlines()[:4]] == [f"train-{row:06d}" for row in expected]
    text = page.read_text()
    assert text.count("<li>") == 4
    assert "http" not in text
    itself = itm("search", tmp_path / "texts", "--text", caption, "--top", 1)
    assert itself.output.split(maxsplit=3)[3].strip() == caption
    picture = tmp_path / "picture.jpg"
    load = numbered_record(3).load
    assert load is not None
    picture.write_bytes(load())
    assert len(itm("search", tmp_path / "images", "--image", picture, "--top", 99).output.splitlines()) == 20


def test_mistakes_are_told(tmp_path: Path, run: Path, demo: Path, make_run: MakeRun) -> None:
    folder = tmp_path / "embedded"
    itm("embed", run, "--data", demo / "val", "--out", folder)
    itm("index", folder, "--out", tmp_path / "index")
    wider = make_run(tmp_path / "wider", model={"embed_dim": 32})
    for arguments, error, said in (
        (("search", tmp_path / "index"), RunError, "either --text SENTENCE or --image FILE"),
        (("search", tmp_path / "index", "--text", "a", "--image", "b"), RunError, "either --text"),
        (("search", tmp_path / "index", "--image", tmp_path / "none.jpg"), RunError, "no such file"),
        (("search", folder, "--text", "a"), DataError, "no index that `itm index` wrote"),
        (("search", tmp_path / "index", "--text", "a", "--model", wider), RunError, "embeds in 32 dimensions"),
        (("index", demo / "val", "--out", tmp_path / "x"), DataError, "no embeddings in it"),
        (("embed", run, "--data", demo / "val", "--out", folder), RunError, "is there already"),
        (("embed", tmp_path / "none", "--data", demo / "val", "--out", tmp_path / "x"), RunError, "no such run"),
    ):
        with pytest.raises(error, match=said):
            itm(*arguments)
