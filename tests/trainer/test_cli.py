from pathlib import Path

import pytest
from typer.testing import CliRunner

from shards.errors import DataError
from tests.shards.foreign import write_tar
from trainer.cli import commands


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("eval", "run", "--data", "test", "--out"), "--out"),
        (("report", "run", "--data", "test", "--out"), "--out"),
        (("search", "index", "--text", "a dog", "--page"), "--page"),
    ],
)
def test_a_file_that_stands_there_is_kept_and_that_is_told_first(
    tmp_path: Path, arguments: tuple[str, ...], option: str
) -> None:
    place = tmp_path / "out"
    place.write_text("mine")
    result = CliRunner().invoke(commands, [*arguments, str(place)])
    assert isinstance(result.exception, DataError)
    assert str(result.exception).startswith(f"{option} {place}: exists already; give another, or --overwrite")


def stop(*_arguments: object, **_options: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_command_says_so_and_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.tools.stats.folder_stats", stop)
    monkeypatch.setattr("shards.manifest.read_manifest", stop)
    result = CliRunner().invoke(commands, ["shards", "stats", str(tmp_path)])
    assert result.exit_code == 130
    assert result.stderr == "itm: interrupted; nothing is half-written; the same command starts anew\n"


def test_what_goes_on_is_told_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "0.tar", [("a.jpg", b"no image"), ("a.txt", b"a picture")])
    monkeypatch.setattr("shards.tools.index.index_tars", stop)
    result = CliRunner().invoke(commands, ["shards", "index", str(tmp_path)])
    assert (result.exit_code, result.stderr) == (
        130,
        "itm: interrupted; the same command goes on where it was\n",
    )
