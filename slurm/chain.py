"""A chain of jobs in one YAML file, from raw images to a report; each waits until the one before it ended well."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from slurm.render import LEAD
from slurm.resources import Resources
from slurm.submit import OUTCOME, Job, task_job, training_jobs
from trainer.errors import RunError
from trainer.recipe import load_recipe, yaml_problem

ONE = Resources(gpus_per_node=0, tasks_per_node=1, cpus_per_task=4)


class _Stage(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    resources: Resources = ONE


class Convert(_Stage):
    """`itm shards convert`, in parts, and the merge of them."""

    stage: Literal["convert"]
    arguments: list[str] = Field(description="format and options of `itm shards convert`, without --out")
    out: str = Field(description="folder of the shards")
    parts: int = Field(1, ge=1, description="tasks of the array")

    def is_done(self) -> bool:
        return any(Path(self.out).glob("*/manifest.json"))


class Train(_Stage):
    """`itm train`: pretraining or fine-tuning."""

    stage: Literal["train"]
    name: str = Field(description="of the job")
    recipe: str = Field(description="a recipe file")
    settings: list[str] = Field([], description="key=value, run.dir among them")
    resources: Resources = Resources()

    def is_done(self) -> bool:
        run = load_recipe(Path(self.recipe), self.settings).run.dir
        outcome = Path(run) / OUTCOME
        return bool(run) and outcome.is_file() and outcome.read_text().startswith("finished")


class _Measured(_Stage):
    data: str = Field(description="folder of shards to measure on")
    out: str = Field(description="the file to write")

    def is_done(self) -> bool:
        return Path(self.out).exists()


class Evaluate(_Measured):
    """`itm eval`."""

    stage: Literal["evaluate"]
    run: str


class Report(_Measured):
    """`itm report`."""

    stage: Literal["report"]
    runs: list[str]


Stage = Annotated[Convert | Train | Evaluate | Report, Field(discriminator="stage")]


def read_chain(
    path: Path, folder: Path, lead: int = LEAD, say: Callable[[str], None] = lambda _line: None
) -> list[Job]:
    """The jobs of a chain file, each after the one before; scripts of other jobs than training lie in `folder`.

    Stages at its beginning whose results are there already are left out; `say` is told of each.
    Raises `RunError`, naming what is wrong.
    """
    try:
        tree: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        stages: list[Stage] = TypeAdapter(list[Stage]).validate_python(tree)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not valid YAML: {error}") from None
    except yaml.YAMLError as error:
        raise RunError(f"{path}: not valid YAML{yaml_problem(error)}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunError(f"{path}: {where}: {first['msg']}") from None
    jobs: list[Job] = []
    all_done = True
    for number, stage in enumerate(stages, 1):
        all_done = all_done and stage.is_done()
        if all_done:
            say(f"stage {number}, {stage.stage}, is done already: left out")
            continue
        for job in _jobs(stage, folder, f"{number}-{stage.stage}", lead):
            job.after = job.after or jobs[-1:]
            jobs.append(job)
    names = [job.name for job in jobs]
    if not stages or len(set(names)) < len(names):
        raise RunError(f"{path}: {'two training stages have one name' if stages else 'no stage in it'}")
    return jobs


def _jobs(stage: Stage, folder: Path, name: str, lead: int) -> Sequence[Job]:
    if isinstance(stage, Train):
        recipe = load_recipe(Path(stage.recipe), stage.settings)
        return training_jobs(recipe, stage.resources, name=stage.name, lead=lead)
    if isinstance(stage, Convert):
        command = ["shards", "convert", *stage.arguments, "--out", stage.out]
        parts = task_job(name, folder, command, stage.resources, parts=stage.parts, lead=lead)
        merge = task_job(
            f"{name}-merge", folder, ["shards", "merge", stage.out], ONE.model_copy(update={"cpus_per_task": 1})
        )
        merge.after = [parts]
        return [parts, merge]
    if isinstance(stage, Evaluate):
        command = ["eval", stage.run, "--data", stage.data, "--out", stage.out]
    else:
        command = ["report", *stage.runs, "--data", stage.data, "--out", stage.out]
    return [task_job(name, folder, command, stage.resources)]
