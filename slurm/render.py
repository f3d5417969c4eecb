"""Batch scripts from templates: those in this folder, run by hand, and those that `itm submit` writes.

`python -m slurm.render` writes the former anew.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from slurm.resources import Resources

LEAD = 300
"""Seconds before the time limit at which a run is saved."""
BY_HAND = '"${ITM:-.venv/bin/itm}"'


def train_script(
    resources: Resources, *, name: str, log: str, itm: Sequence[str], arguments: Sequence[str], lead: int = LEAD
) -> str:
    """A script that trains, resumes and requeues itself. `arguments` are those of `itm train`."""
    options = _options(resources, name, log)
    return _render(
        "train", what=f"Train {name}", options=options, itm=itm, arguments=shlex.join(arguments), lead=lead
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
    return _render(
        "task",
        what=f"itm {' '.join(command[:2])}",
        options=_options(resources, name, log, parts),
        itm=itm,
        command=shlex.join(command),
        array=bool(parts),
        lead=lead,
    )


def _options(resources: Resources, name: str, log: str, parts: int = 0) -> list[str]:
    array = [f"array=1-{parts}"] if parts else []
    return [f"job-name={name}", *array, *resources.options(), f"chdir={Path.cwd()}", f"output={log}"]


def _render(template: str, *, itm: Sequence[str] | None = None, **values: object) -> str:
    """`itm` None: a script for any place, run by hand."""
    environment = Environment(
        loader=PackageLoader("slurm"), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    common = {"hand": itm is None, "itm": shlex.join(itm) if itm else BY_HAND, "arguments": "", "array": False}
    return environment.get_template(f"{template}.sbatch.j2").render(common | {"lead": LEAD} | values)


_TRAINING = {
    "pretrain.sbatch": ("Pretrain on many nodes", Resources(nodes=4, time="24:00:00")),
    "finetune.sbatch": ("Fine-tune on one node", Resources(time="08:00:00")),
}
_TASKS: dict[str, dict[str, Any]] = {
    "convert.sbatch": {
        "what": "Convert a data set to shards, one part a task of an array; then `itm shards merge OUT`",
        "usage": "--array=1-16 slurm/convert.sbatch FORMAT --out data/NAME ...    # as of `itm shards convert`",
        "options": [
            "job-name=itm-convert",
            "array=1-16",
            *Resources(gpus_per_node=0, cpus_per_task=16, time="12:00:00").options(),
            "output=%x-%A-%a.log",
        ],
        "command": "shards convert",
        "array": True,
    },
    "evaluate.sbatch": {
        "what": "Evaluate a run's best checkpoint on one GPU",
        "usage": "slurm/evaluate.sbatch runs/NAME --data data/NAME/test --out runs/NAME/test.json",
        "options": [
            "job-name=itm-evaluate",
            *Resources(gpus_per_node=1, time="01:00:00").options(),
            "output=%x-%j.log",
        ],
        "command": "eval",
    },
}


def scripts_by_hand() -> dict[str, str]:
    """File name -> script, for the scripts in this folder."""
    training = {}
    for file, (what, resources) in _TRAINING.items():
        name = f"itm-{file.removesuffix('.sbatch')}"
        options = [f"job-name={name}", *resources.options(), "output=%x-%j.log"]
        training[file] = _render("train", file=file, what=what, options=options)
    return training | {file: _render("task", **values) for file, values in _TASKS.items()}


if __name__ == "__main__":
    for name, text in scripts_by_hand().items():
        (Path(__file__).parent / name).write_text(text)
