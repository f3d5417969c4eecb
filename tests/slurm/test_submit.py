"""What `itm submit` writes and refuses, without a Slurm."""

import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from slurm import queue
from slurm.chain import read_chain
from slurm.resources import Resources
from slurm.submit import training_jobs
from tests.conftest import REPOSITORY
from trainer.cli import commands
from trainer.config import Recipe
from trainer.errors import RunError

CHAIN = REPOSITORY / "slurm/chains/flickr8k.yaml"
DEMO = str(REPOSITORY / "configs/demo_pretrain.yaml")


@pytest.fixture
def partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ["main* 3", "high 2", "high 5"]
    monkeypatch.setattr(
        queue,
        "run",
        lambda command: "".join(f"{row}\n" for row in rows if "-p" not in command or command[-1] in row),
    )


def test_the_options_are_those_that_were_asked_for() -> None:
    lines = Resources(
        nodes=3, gpus_per_node=4, time="1-00:00:00", sbatch=["constraint=a100", "exclusive"]
    ).options()
    assert lines == [
        "nodes=3",
        "ntasks-per-node=4",
        "gpus-per-node=4",
        "cpus-per-task=8",
        "time=1-00:00:00",
        "constraint=a100",
        "exclusive",
    ]
    assert "ntasks-per-node=1" in Resources(gpus_per_node=0).options()
    for wrong in (
        {"time": "a day"},
        {"sbatch": ["--exclusive"]},
        {"sbatch": ["comment=a\nrm -rf /"]},
        {"nodes": 0},
    ):
        with pytest.raises(ValidationError):
            Resources.model_validate(wrong)


def test_more_nodes_than_there_are_is_refused(partitions: None) -> None:
    queue.check_nodes(Resources(nodes=3))
    queue.check_nodes(Resources(nodes=7, partition="high"))
    with pytest.raises(RunError, match="--nodes 4: partition main has 3"):
        queue.check_nodes(Resources(nodes=4))
    with pytest.raises(RunError, match="no such partition"):
        queue.check_nodes(Resources(partition="gone"))


def test_without_slurm_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="sinfo: not found"):
        queue.check_nodes(Resources())


def test_a_chain_waits_in_order() -> None:
    jobs = read_chain(CHAIN, Path("chain"))
    assert [(job.name, [before.name for before in job.after]) for job in jobs] == [
        ("1-convert", []),
        ("1-convert-merge", ["1-convert"]),
        ("flickr8k", ["1-convert-merge"]),
        ("3-evaluate", ["flickr8k"]),
        ("4-report", ["3-evaluate"]),
    ]
    assert "#SBATCH --array=1-4\n" in jobs[0].script


def test_a_chain_that_is_no_yaml_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text("- stage: [a\n")
    with pytest.raises(RunError, match=r"chain\.yaml: not valid YAML, line 2, column 1: [^\n]+\Z"):
        read_chain(tmp_path / "chain.yaml", tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ([], "no stage in it"),
        ([{"stage": "cook"}], "cook"),
        ([{"stage": "report", "runs": ["a"], "data": "b"}], r"report\.out: Field required"),
        ([{"stage": "train", "name": "a", "recipe": "nowhere.yaml"}], "no such recipe"),
        ([{"stage": "train", "name": "a", "recipe": DEMO}], "run.dir: not given"),
        ([{"stage": "train", "name": "a", "recipe": DEMO, "settings": ["run.dir=r"]}] * 2, "have one name"),
    ],
)
def test_a_chain_s_mistakes_are_named(tmp_path: Path, change: list[dict[str, object]], said: str) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(yaml.safe_dump(change))
    with pytest.raises(RunError, match=said):
        read_chain(path, tmp_path)


def test_a_chain_goes_on_after_the_stages_that_are_done(tmp_path: Path) -> None:
    out, result, run = tmp_path / "data", tmp_path / "test.json", tmp_path / "run"
    stages = [
        {"stage": "convert", "arguments": ["folder"], "out": str(out)},
        {"stage": "train", "name": "run", "recipe": DEMO, "settings": [f"run.dir={run}"]},
        {"stage": "evaluate", "run": str(run), "data": str(out), "out": str(result)},
    ]
    path = tmp_path / "chain.yaml"
    path.write_text(yaml.safe_dump(stages))

    def left() -> list[str]:
        return [job.name for job in read_chain(path, tmp_path)]

    result.touch()  # of another run: the one before it is not done
    assert left() == ["1-convert", "1-convert-merge", "run", "3-evaluate"]
    (out / "train").mkdir(parents=True)
    (out / "train" / "manifest.json").touch()
    assert left() == ["run", "3-evaluate"]
    run.mkdir()
    (run / "outcome").write_text("saved 85\n")
    assert left() == ["run", "3-evaluate"]
    (run / "outcome").write_text("finished 0\n")
    said: list[str] = []
    assert read_chain(path, tmp_path, say=said.append) == []
    assert said[2] == "stage 3, evaluate, is done already: left out"


def test_repeated_jobs_follow_each_other_however_they_end() -> None:
    recipe = Recipe.model_validate({"run": {"dir": "runs/a b"}})
    jobs = training_jobs(recipe, Resources(), repeat=3)
    assert [(job.name, [before.name for before in job.after], job.any_end) for job in jobs] == [
        ("a b-1", [], True),
        ("a b-2", ["a b-1"], True),
        ("a b-3", ["a b-2"], True),
    ]
    assert "'run.dir=runs/a b'" in jobs[0].script


def test_jobs_call_this_program_or_the_one_that_itm_names(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.model_validate({"run": {"dir": "runs/a"}})
    assert f"itm=({sys.executable} -m trainer.cli)\n" in training_jobs(recipe, Resources())[0].script
    monkeypatch.setenv("ITM", "/opt/itm/bin/itm")
    assert "itm=(/opt/itm/bin/itm)\n" in training_jobs(recipe, Resources())[0].script


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        commands, ["submit", DEMO, f"run.dir={tmp_path / 'run'}", "--dry-run"], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert "#SBATCH --signal=B:USR1@300" in done.output
    assert list(tmp_path.iterdir()) == []
