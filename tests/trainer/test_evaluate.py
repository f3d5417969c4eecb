"""A checkpoint on a split, wherever the split lies, and what is said of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.shards.file_server import FileServer, serve
from trainer.cli import commands
from trainer.evaluate import evaluate, table
from trainer.metrics import Retrieval

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


def test_the_table_has_a_row_a_result_with_its_numbers_below_their_heads() -> None:
    perfect = Retrieval(dict.fromkeys(("r1", "r5", "r10"), 100.0), dict.fromkeys(("r1", "r5", "r10"), 100.0), 1, 1)
    model = Retrieval({"r1": 1.0, "r5": 2.04, "r10": 3.06}, {"r1": 4.0, "r5": 5.0, "r10": 6.0}, 1, 1)
    directions, heads, *rows = table({"perfect": perfect, "a longer name": model}).splitlines()
    assert directions.split() == ["image", "to", "text", "text", "to", "image"]
    assert heads.split() == ["R@1", "R@5", "R@10", "R@1", "R@5", "R@10", "rSum"]
    assert rows[0].split() == ["perfect", *["100.0"] * 6, "600.0"]
    assert rows[1].removeprefix("a longer name").split() == ["1.0", "2.0", "3.1", "4.0", "5.0", "6.0", "21.1"]
    assert len({len(row) for row in [heads, *rows]}) == 1
