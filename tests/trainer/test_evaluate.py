"""A checkpoint on a split, wherever the split lies, and what is said of it."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from shards.commands.outfile import as_json
from shards.manifest import read_manifest
from tests.conftest import ENVIRONMENT, itm_command
from tests.shards.file_server import FileServer, serve
from trainer.checkpoint_folder import find_checkpoint
from trainer.cli import commands
from trainer.distributed import free_port
from trainer.errors import RunError
from trainer.evaluate import evaluate, selection_note
from trainer.metrics import retrieval

MakeRun = Callable[..., Path]


@pytest.fixture
def server(demo: Path) -> Iterator[FileServer]:
    with serve(demo) as server:
        yield server


def test_a_split_behind_a_url_is_kept_where_the_recipe_says(
    tmp_path: Path, demo: Path, server: FileServer, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ITM_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run = make_run(tmp_path / "run", data={"cache": {"dir": str(tmp_path / "cache")}})
    local, remote = evaluate(run, demo / "val"), evaluate(run, f"{server.url}/val")
    assert torch.equal(local.embeddings.images, remote.embeddings.images)
    assert list((tmp_path / "cache" / "data").iterdir())
    assert not (tmp_path / "home").exists()


def test_the_environment_names_another_cache_on_another_machine(
    tmp_path: Path, server: FileServer, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ITM_CACHE", str(tmp_path / "here"))
    evaluate(make_run(tmp_path / "run", data={"cache": {"dir": "/nowhere/cache"}}), f"{server.url}/val")
    assert list((tmp_path / "here" / "data").iterdir())


@pytest.mark.parametrize("command", ["eval", "report"])
def test_the_commands_take_urls_and_workers(
    tmp_path: Path, server: FileServer, make_run: MakeRun, command: str
) -> None:
    run, out = make_run(tmp_path / "run", data={"cache": {"dir": str(tmp_path / "cache")}}), tmp_path / "out"
    arguments = [command, str(run), "--data", f"{server.url}/val", "--out", str(out)]
    dry = CliRunner().invoke(commands, [*arguments, "--dry-run"], catch_exceptions=False)
    assert dry.exit_code == 0, dry.output
    assert f"on {server.url}/val" in dry.output
    done = CliRunner().invoke(commands, [*arguments, "--workers", "1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert out.is_file()


def test_a_split_without_the_models_regions_is_named(tmp_path: Path, demo: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "run", model={"image": {"inputs": "regions", "region_width": 8}})
    with pytest.raises(RunError, match=r"val: holds no regions, .*inputs=regions; give a split that holds them"):
        evaluate(run, demo / "val")


def by_name(text: str) -> dict[str, list[str]]:
    """The numbers of each row of printed tables; names hold no digit."""
    rows = re.findall(r"^(\D+?) +([\d. –†]+)$", text, re.MULTILINE)
    return {name.strip(): numbers.split() for name, numbers in rows}


def test_results_are_printed_and_written_in_three_forms(tmp_path: Path, demo: Path, make_run: MakeRun) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "results" / "test.json"
    done = CliRunner().invoke(
        commands, ["eval", str(run), "--data", str(demo / "test"), "--out", str(out)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    written = json.loads(out.read_text())
    (protocol,) = written["protocols"]
    assert (protocol["title"], protocol["i2t"]["queries"]) == ("demo test", 6)
    recalls = [protocol[way][name] for way in ("i2t", "t2i") for name in ("r1", "r5", "r10")]
    assert written["rsum"] == pytest.approx(sum(recalls))
    assert written["rsum"] == protocol["rsum"]
    shown = [f"{number:.1f}" for number in [*recalls, sum(recalls)]]
    assert by_name(done.output)["this model"] == shown
    assert len(by_name(done.output)["chance"]) == 7
    low, high = protocol["i2t"]["interval"]["r1"]
    assert low <= protocol["i2t"]["r1"] <= high
    assert written["left_out"]["ECCV Caption"] == "the data set is demo"
    assert "ECCV Caption: the data set is demo" in done.output
    for suffix, bold in ((".md", "**{}**"), (".tex", r"\textbf{{{}}}")):
        text = out.with_suffix(suffix).read_text()
        assert all(bold.format(number) in text for number in shown)
        assert "a wrong item that scores as high" in text


def test_an_ensemble_averages_similarities(tmp_path: Path, demo: Path, make_run: MakeRun) -> None:
    runs = [make_run(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))]
    one, other, both = (evaluate(which, demo / "test") for which in (runs[0], runs[1], runs))
    assert [member.subject.path.parents[1] for member in both.members] == runs
    images, texts = (
        torch.cat([getattr(each.embeddings, side) for each in (one, other)], dim=1) for side in ("images", "texts")
    )
    expected = retrieval(images, texts, one.embeddings.caption_image)
    assert both.result == expected
    assert both.name == "ensemble of 2"
    assert len(both.as_dict()["members"]) == 2


def test_a_test_split_says_when_its_checkpoint_was_not_chosen_on_val(
    tmp_path: Path, demo: Path, make_run: MakeRun, add_checkpoint: Callable[..., Path]
) -> None:
    run = make_run(tmp_path / "run")  # step 4, rSum 10 on val
    best = run / "checkpoints" / "step-00000004"
    worse = add_checkpoint(run, 6, 5.0, weights=load_file(best / "weights.safetensors"))
    untested = add_checkpoint(run, 8)
    manifest = read_manifest(demo / "test")
    for path in (worse, untested):
        note = selection_note(find_checkpoint(path), manifest)
        assert note is not None
        assert note.endswith("not the run's best on val, which is step-00000004; models are selected on val alone")
        assert selection_note(find_checkpoint(path), read_manifest(demo / "val")) is None
    assert selection_note(find_checkpoint(run), manifest) is None
    assert selection_note(find_checkpoint(best), manifest) is None
    unchosen = selection_note(find_checkpoint(add_checkpoint(tmp_path / "other", 1)), manifest)
    assert unchosen is not None
    assert "nothing was measured on val" in unchosen
    shown = CliRunner().invoke(commands, ["eval", str(worse), "--data", str(demo / "test")], catch_exceptions=False)
    assert "note: " in shown.output
    assert "not the run's best on val" in shown.output


@pytest.mark.parametrize("suffix", [".md", ".tex"])
def test_the_json_file_is_not_written_under_the_name_of_a_table(
    tmp_path: Path, demo: Path, make_run: MakeRun, suffix: str
) -> None:
    arguments = ["eval", str(make_run(tmp_path / "run")), "--data", str(demo / "test"), "--out", f"out{suffix}"]
    with pytest.raises(RunError, match=f"the name of the JSON file; {suffix} is written beside it"):
        CliRunner().invoke(commands, arguments, catch_exceptions=False)


def test_processes_share_the_pass_and_print_once(tmp_path: Path, demo: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "run")
    expected = json.loads(as_json(evaluate(run, demo / "test").as_dict()))
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            itm_command("eval", run, "--data", demo / "test", "--out", tmp_path / "out.json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    (first, errors), (second, _) = (process.communicate(timeout=300) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], errors
    assert first.count("image to text") == 2  # over the table, and in the line of the ranks
    assert second == ""
    assert (tmp_path / "out.json").read_text() == as_json(expected)
