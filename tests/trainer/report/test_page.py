"""The page: it renders from runs on disk, needs nothing from elsewhere, and says what was measured."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from shards.convert import Options, write_split
from shards.errors import DataError
from shards.manifest import read_manifest
from tests.conftest import numbered_record
from tests.trainer.report.conftest import NASTY, Page
from trainer.checkpoint_folder import find_checkpoint
from trainer.cli import commands
from trainer.errors import RunError
from trainer.evaluate import evaluate
from trainer.report.comparison import differing_settings
from trainer.report.page import images_to_embed, write_report
from trainer.report.pictures import PICTURE_BYTES, THUMBNAIL, Thumbnails, as_uri
from trainer.report.prototypes import describe
from trainer.report.soft_positives import soft_positives

MakeRun = Callable[..., Path]


def page_of(out: Path) -> Page:
    return Page(out.read_text(encoding="utf-8"))


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(
    tmp_path: Path, nasty: Path, make_whole_run: MakeRun
) -> None:
    run, out = make_whole_run(tmp_path / "<i>run</i> & co"), tmp_path / "deep" / "page.html"
    embedded: list[int] = []
    write_report([run], nasty, out, on_batch=embedded.append)
    # once by the encoders, once by their moving average, which mines
    assert sum(embedded) == images_to_embed([run], nasty) == 2 * 9
    text = out.read_text(encoding="utf-8")
    assert text.lower().lstrip().startswith("<!doctype html>")
    assert len(text) < 500_000
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "i", "b" if attributes.get("class") else "i"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#")), (tag, name, value)
    assert "@import" not in text and "url(" not in text
    assert page.sections == [
        "results", "training", "text-queries", "image-queries", "confused", "soft-positives", "prototypes",
        "recipe", "environment",
    ]  # fmt: skip
    assert {link["href"] for link in page.all("a")} == {f"#{name}" for name in page.sections}
    assert NASTY in page.text  # as text, and not as markup
    assert "<i>run</i> & co" in page.text and "<b>folder</b>" in page.text
    assert all(image["alt"] for image in page.all("img"))
    measured = evaluate(run, nasty)
    assert f"{measured.result.rsum:.1f}" in page.text and f"{measured.chance.rsum:.1f}" in page.text
    bank = describe(measured.checkpoint, measured.embeddings)
    assert f"Of 5 prototypes {bank.unused} have no item of this split" in page.text
    assert sum(one.images for one in bank.prototypes) == 9 and sum(one.captions for one in bank.prototypes) == 18
    mined = soft_positives(measured.checkpoint, measured.manifest, measured.embeddings)
    assert f"is {mined.threshold:.3f}: {mined.count} of {mined.compared} combinations" in page.text
    assert mined.threshold == pytest.approx(0, abs=1e-3) and mined.compared == 36
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def test_a_method_without_bank_and_mining_has_no_such_sections(
    tmp_path: Path, demo: Path, make_run: MakeRun
) -> None:
    out = tmp_path / "page.html"
    write_report([make_run(tmp_path / "clip", model={"framework": "clip"})], demo / "val", out)
    assert not {"prototypes", "soft-positives"} & set(page_of(out).sections)
    write_report([make_run(tmp_path / "early")], demo / "val", out)
    page = page_of(out)
    assert "soft-positives" not in page.sections
    assert "their term begins after step 2,200, and the checkpoint is of step 4" in page.text


def test_several_runs_are_compared(tmp_path: Path, demo: Path, make_run: MakeRun) -> None:
    runs = [make_run(tmp_path / "a", 1), make_run(tmp_path / "b", 2, optimizer={"lr": 0.125})]
    out = tmp_path / "page.html"
    write_report(runs, demo / "val", out)
    page = page_of(out)
    first, second = (evaluate(run, demo / "val").result for run in runs)
    assert "a and b" in page.text
    assert f"{first.rsum:.1f}" in page.text and f"{second.rsum:.1f}" in page.text
    assert f"{second.rsum - first.rsum:+.1f}".replace("-", "−") in page.text
    assert page.text.count("The whole recipe of") == 2
    assert "Settings in which the runs differ" in page.text
    recipes = [find_checkpoint(run).recipe for run in runs]
    assert {setting.key: setting.values for setting in differing_settings(recipes)} == {
        "run.seed": ["1", "2"],
        "optimizer.lr": [str(recipes[0].optimizer.lr), "0.125"],
    }
    charts = [image for image in page.all("svg") if image.get("aria-label")]
    assert "a from 1 to 0.25" in str(charts) and "b from 1 to 0.25" in str(charts)


def test_without_data_the_logs_alone_make_a_page(tmp_path: Path, make_run: MakeRun) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "page.html"
    (run / "recipe.yaml").write_bytes((find_checkpoint(run).path / "recipe.yaml").read_bytes())
    for path in sorted((run / "checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (run / "evaluations.jsonl").unlink()
    result = CliRunner().invoke(commands, ["report", str(run), "--out", str(out)])
    assert (result.exit_code, result.stdout) == (0, f"wrote {out}\n"), result.output
    page = page_of(out)
    assert page.sections == ["training", "recipe", "environment"]
    assert "run: nothing was measured on val" in page.text
    result = CliRunner().invoke(commands, ["report", str(run), "--out", str(tmp_path / "b"), "--data", "x"])
    assert "holds no checkpoint" in str(result.exception)


def test_a_split_of_one_picture_and_one_caption(tmp_path: Path, make_whole_run: MakeRun) -> None:
    records = [numbered_record(0, captions=1)]
    write_split(records, tmp_path / "one", dataset="one", split="test", options=Options(samples_per_shard=4))
    write_report([make_whole_run(tmp_path / "run")], tmp_path / "one", tmp_path / "page.html")
    page = page_of(tmp_path / "page.html")
    assert "0 of 1 pictures have a caption of another picture above" in page.text
    assert "0 of 0 combinations reach it" in page.text


def test_before_any_mining_there_is_no_threshold(tmp_path: Path, nasty: Path, make_whole_run: MakeRun) -> None:
    run = make_whole_run(tmp_path / "run", threshold=None)
    write_report([run], nasty, tmp_path / "page.html")
    assert "has seen no step with mining yet" in page_of(tmp_path / "page.html").text


def test_nothing_is_written_where_something_cannot_be_read(tmp_path: Path, demo: Path, make_run: MakeRun) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "page.html"
    with pytest.raises(RunError, match="no metrics"):
        write_report([tmp_path], demo / "val", out)
    with pytest.raises(DataError, match="nowhere"):
        images_to_embed([run], tmp_path / "nowhere")
    records = [numbered_record(number) for number in range(3)]
    write_split(records, tmp_path / "split", dataset="x", split="test", options=Options(samples_per_shard=4))
    (tar,) = (tmp_path / "split").glob("*.tar")
    content = bytearray(tar.read_bytes())
    start = content.index(b"\xff\xd8")
    content[start : start + 200] = bytes(200)
    tar.write_bytes(content)
    with pytest.raises(DataError, match="does not decode"):
        write_report([run], tmp_path / "split", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "split"]


def test_thumbnails_are_small_jpegs_whatever_the_picture(demo: Path) -> None:
    manifest = read_manifest(demo / "val")
    uri = Thumbnails(manifest)[3]
    assert uri is not None
    noise = np.random.default_rng(0).integers(0, 256, (900, 500, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    for one in (uri, as_uri(stream.getvalue(), THUMBNAIL)):
        head, _, data = one.partition(",")
        assert head == "data:image/jpeg;base64"
        decoded = base64.b64decode(data)
        assert len(decoded) <= PICTURE_BYTES
        assert max(Image.open(io.BytesIO(decoded)).size) <= THUMBNAIL
