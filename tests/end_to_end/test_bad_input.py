"""A user's mistake is one line on standard error, exit code 1, and nothing written."""

import fcntl
import json
import shutil
from pathlib import Path

import pytest

from shards.manifest import read_index, read_manifest
from tests.end_to_end.conftest import TINY, Itm, data_of, losses


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimizer.lrate=1"], "optimizer.lrate=1: no such key; nearest: optimizer.lr"),
        (["engine.zero_stage=7"], "engine.zero_stage=7: should be 0, 1, 2 or 3"),
        (["data.train=nowhere"], "nowhere: no such folder"),
        (["data.global_batch_size=128"], "data.global_batch_size=128"),
        (["data.global_batch_size=20", "--processes", "3"], "does not divide among 3 processes"),
        (["--processes", "101"], "101 processes for 100 samples"),
        (["--processes", "8"], "model.norm_group=4: does not divide the 2 pairs a process"),
        (["model.architecture=itm-tinny"], "itm-tiny"),
        (["run.init_from=nowhere"], "nowhere: no such run or checkpoint"),
    ],
)
def test_train_refuses(itm: Itm, demo: Path, tmp_path: Path, settings: list[str], message: str) -> None:
    run = tmp_path / "run"
    done = itm("train", TINY, f"run.dir={run}", *data_of(demo), *settings, fails=True)
    assert message in done.stderr
    assert not run.exists()


def test_training_never_touches_a_test_split(itm: Itm, demo: Path, tmp_path: Path) -> None:
    done = itm(
        "train", TINY, f"run.dir={tmp_path / 'run'}", *data_of(demo), f"data.val={demo / 'test'}", fails=True
    )
    assert "data.val" in done.stderr
    assert "a test split" in done.stderr


def test_a_shard_folder_without_manifest_is_refused(itm: Itm, demo: Path, tmp_path: Path) -> None:
    data = shutil.copytree(demo / "train", tmp_path / "train")
    (data / "manifest.json").unlink()
    done = itm("train", TINY, f"run.dir={tmp_path / 'run'}", f"data.train={data}", fails=True)
    assert f"{data}: no manifest.json" in done.stderr


@pytest.mark.slow
def test_resuming_with_another_model_is_refused(itm: Itm, demo: Path, reference: Path) -> None:
    done = itm("train", TINY, f"run.dir={reference}", *data_of(demo), "model.embed_dim=64", fails=True)
    assert "model.embed_dim=64" in done.stderr
    assert "model.embed_dim=32" in done.stderr


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(itm: Itm, demo: Path, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = (f"run.init_from={reference}", "model.embed_dim=64")
    done = itm("train", TINY, f"run.dir={run}", *data_of(demo), *settings, "--processes", 2, fails=True)
    assert "a checkpoint of another model" in done.stderr
    assert not run.exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named(itm: Itm, demo: Path, reference: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(reference / "checkpoints/step-00000012", tmp_path / "step-00000012")
    weights = checkpoint / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    done = itm("eval", checkpoint, "--data", demo / "test", "--out", tmp_path / "out.json", fails=True)
    assert str(weights) in done.stderr
    assert not (tmp_path / "out.json").exists()


def test_evaluating_what_is_no_run_is_refused(itm: Itm, demo: Path, tmp_path: Path) -> None:
    assert "holds no checkpoint" in itm("eval", tmp_path, "--data", demo / "test", fails=True).stderr


def test_a_damaged_shard_stops_training_and_its_samples_are_listed(itm: Itm, demo: Path, tmp_path: Path) -> None:
    data, run = shutil.copytree(demo / "train", tmp_path / "train"), tmp_path / "run"
    shard = data / "train-000001.tar"
    content = bytearray(shard.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    shard.write_bytes(content)
    done = itm("train", TINY, f"run.dir={run}", f"data.train={data}", "--processes", 2, fails=True)
    assert "data.max_undecodable" in done.stderr
    assert str(run / "quarantine.jsonl") in done.stderr
    listed = [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]
    assert len(listed) > 10
    assert all(row["reason"].startswith(f"{shard}: sample train-0000") for row in listed)


def test_a_damaged_sample_is_replaced_listed_and_counted(itm: Itm, demo: Path, tmp_path: Path) -> None:
    data = shutil.copytree(demo / "train", tmp_path / "train")
    index = read_index(read_manifest(data), 1)
    with (data / "train-000001.tar").open("r+b") as shard:
        shard.seek(int(index.offsets[7]))
        shard.write(bytes(int(index.sizes[7])))
    curves = []
    for processes, workers in ((1, 0), (2, 1)):
        run = tmp_path / f"run-{processes}"
        settings = (f"data.train={data}", "data.last_batch=pad", f"data.workers={workers}")
        itm("train", TINY, f"run.dir={run}", *settings, "--processes", processes)
        (listed,) = [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]
        assert listed["sample"] == 37
        assert listed["reason"].startswith(f"{data / 'train-000001.tar'}: sample {index.key(7)}: ")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["undecodable"] == 1
        curves.append(losses(run))
    assert len(curves[0]) == 14  # 2 epochs of 7 batches of 16 out of 100
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    done = itm("train", TINY, f"run.dir={tmp_path / 'strict'}", *settings, "data.max_undecodable=0", fails=True)
    assert "1 of" in done.stderr


@pytest.mark.parametrize("stage", [0, 2])
def test_a_run_that_diverges_stops_and_saves_no_broken_weights(
    itm: Itm, demo: Path, tmp_path: Path, stage: int
) -> None:
    run = tmp_path / "run"
    settings = ("optimizer.lr=1e30", f"engine.zero_stage={stage}", "optimizer.gradient_clipping=0")
    done = itm("train", TINY, f"run.dir={run}", *data_of(demo), *settings, fails=True)
    assert "not finite" in done.stderr
    assert not list(run.glob("checkpoints/*"))


def test_two_processes_cannot_train_one_run(itm: Itm, demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    being_written = '{"sample": 1, "reason": "broken"}\n{"sample": 2, "rea'
    (run / "quarantine.jsonl").write_text(being_written)
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = itm("train", TINY, f"run.dir={run}", *data_of(demo), fails=True)
    assert "another process trains this run" in done.stderr
    assert (run / "quarantine.jsonl").read_text() == being_written


def test_an_output_that_cannot_be_written_is_refused_before_the_work(itm: Itm, demo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = itm("eval", tmp_path, "--data", demo / "test", "--out", tmp_path / "file/out.json", fails=True)
    assert f"{tmp_path / 'file'} cannot be written to (Not a directory)" in done.stderr


@pytest.mark.slow
def test_real_photos(itm: Itm, test_data: Path, tmp_path: Path) -> None:
    """A few photos through conversion, training and evaluation."""
    document = json.loads((test_data / "flickr8k/dataset_flickr8k.json").read_text())
    chosen = [image for split in ("train", "val", "test") for image in _first(document, split, 40)]
    annotations = tmp_path / "some.json"
    annotations.write_text(json.dumps(document | {"images": chosen}))
    photos = tmp_path / "photos"
    itm(
        "shards",
        "convert",
        "karpathy",
        "--annotations",
        annotations,
        "--images",
        test_data / "flickr8k/images",
        "--out",
        photos,
    )
    itm("train", TINY, f"run.dir={tmp_path / 'run'}", *data_of(photos))
    itm("eval", tmp_path / "run", "--data", photos / "test", "--out", tmp_path / "test.json")
    assert json.loads((tmp_path / "test.json").read_text())["num_captions"] == 200


def _first(document: dict, split: str, count: int) -> list:
    return [image for image in document["images"] if image["split"] == split][:count]
