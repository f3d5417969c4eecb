"""Batch scripts from templates: those in this folder, run by hand, and those that `itm submit` writes.

`python -m slurm.render` writes the former anew.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from slurm.resources import Resources

LEAD = 300
"""Seconds before the time limit at which a run is saved."""
BY_HAND = '"${ITM:-.venv/bin/itm}"'


def train_script(
    resources: Resources, *, name: str, log: str, itm: Sequence[str], arguments: Sequence[str], lead: int = LEAD
) -> str:
    """A script that trains, resumes and requeues itself. `arguments` are those of `itm train`."""
    return _render(
        "train",
        what=f"Train {name}",
        options=[f"job-name={name}", *resources.options(), f"chdir={Path.cwd()}", f"output={log}"],
        itm=shlex.join(itm),
        arguments=shlex.join(arguments),
        lead=lead,
    )


def task_script(
    resources: Resources,
    *,
    name: str,
    log: str,
    itm: Sequence[str],
    command: Sequence[str],
    parts: int = 0,
    lead: int = LEAD,
) -> str:
    """A script of one task; with `parts`, of an array in which each converts one part."""
    array = [f"array=1-{parts}"] if parts else []
    return _render(
        "task",
        what=f"itm {' '.join(command[:2])}",
        options=[f"job-name={name}", *array, *resources.options(), f"chdir={Path.cwd()}", f"output={log}"],
        itm=shlex.join(itm),
        command=shlex.join(command),
        arguments="",
        array=bool(parts),
        lead=lead,
    )


def _render(template: str, **values: object) -> str:
    environment = Environment(
        loader=PackageLoader("slurm"), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template(f"{template}.sbatch.j2").render({"hand": False} | values)


def scripts_by_hand() -> dict[str, str]:
    """File name -> script, for the scripts in this folder."""
    eight = Resources(time="24:00:00")
    found = {}
    for file, what, resources in (
        ("pretrain.sbatch", "Pretrain on many nodes", eight.model_copy(update={"nodes": 4})),
        ("finetune.sbatch", "Fine-tune on one node", eight.model_copy(update={"time": "08:00:00"})),
    ):
        found[file] = _render(
            "train",
            hand=True,
            what=what,
            file=file,
            options=[f"job-name=itm-{file.split('.')[0]}", *resources.options(), "output=%x-%j.log"],
            itm=BY_HAND,
            arguments="",
            lead=LEAD,
        )
    one = {"gpus_per_node": 0, "tasks_per_node": 1}
    found["convert.sbatch"] = _render(
        "task",
        hand=True,
        what="Convert a data set to shards, one part a task of an array; then `itm shards merge OUT`",
        usage="--array=1-16 slurm/convert.sbatch FORMAT --out data/NAME ...    # as of `itm shards convert`",
        options=[
            "job-name=itm-convert",
            "array=1-16",
            *Resources.model_validate({**one, "cpus_per_task": 16, "time": "12:00:00"}).options(),
            "output=%x-%A-%a.log",
        ],
        itm=BY_HAND,
        command="shards convert",
        arguments="",
        array=True,
        lead=LEAD,
    )
    found["evaluate.sbatch"] = _render(
        "task",
        hand=True,
        what="Evaluate a run's best checkpoint on one GPU",
        usage="slurm/evaluate.sbatch runs/NAME --data data/NAME/test --out runs/NAME/test.json",
        options=[
            "job-name=itm-evaluate",
            *Resources.model_validate({"gpus_per_node": 1, "time": "01:00:00"}).options(),
            "output=%x-%j.log",
        ],
        itm=BY_HAND,
        command="eval",
        arguments="",
        array=False,
        lead=LEAD,
    )
    return found


if __name__ == "__main__":
    for name, text in scripts_by_hand().items():
        (Path(__file__).parent / name).write_text(text)
