"""What a run was made with: model, data, versions, and what it took."""

import json
import platform
from datetime import timedelta
from importlib.metadata import version
from statistics import median
from typing import Any

from shards.progress import counted
from trainer.checkpoint import STATE, Checkpoint
from trainer.report.runs import Run
from trainer.report.tensors import count_weights

Facts = list[tuple[str, str]]
"""Names and what they are, in words."""


def run_facts(run: Run, checkpoint: Checkpoint | None) -> Facts:
    """What is known of a run from its folder; of its checkpoint, where one was measured."""
    recipe, last, model = run.recipe, run.last, run.recipe.model
    facts = [
        ("folder", str(run.path)),
        ("state", run.outcome),
        ("trained", _trained(run)),
        (
            "model",
            f"{model.framework} on {model.architecture}, embeddings of {model.embed_dim}",
        ),
        ("began with", _origin(run)),
        ("batch", f"{recipe.data.global_batch_size:,} pairs"),
        ("engine", f"ZeRO-{recipe.engine.zero_stage}, {recipe.engine.precision}"),
        ("seed", str(recipe.run.seed)),
    ]
    if rates := [row["samples_per_second"] for row in run.metrics if "samples_per_second" in row]:
        facts.append(("throughput", f"{median(rates):,.0f} samples a second (median)"))
        time = timedelta(seconds=round(run.seconds))
        facts.append(("time in steps", f"{time}, evaluations and checkpoints left out"))
    if waits := [row["data_wait"] for row in run.metrics if "data_wait" in row]:
        facts.append(("waited for data", f"{median(waits):.1%} of the time (median)"))
    if "memory_gb" in last:
        gpu = f", GPU {last['cuda_reserved_gb']:.1f} GB" if "cuda_reserved_gb" in last else ""
        facts.append(("peak memory", f"{last['memory_gb']:.1f} GB a process{gpu}"))
    for key, name in (("undecodable", "samples replaced"), ("skipped_steps", "skipped steps")):
        if last.get(key):
            facts.append((name, f"{last[key]:,}"))
    if run.not_finite:
        facts.append(("not finite", f"{run.not_finite:,} logged values are no finite numbers"))
    return facts + (_of_checkpoint(checkpoint) if checkpoint else [])


def _trained(run: Run) -> str:
    if not run.last:
        return "no step is logged yet"
    epoch = f", epoch {run.last['epoch']:.2f} of {run.recipe.schedule.epochs:g}" if "epoch" in run.last else ""
    return f"{counted(run.last['step'], 'step')}{epoch}"


def _origin(run: Run) -> str:
    recipe = run.recipe
    if recipe.run.init_from:
        return f"the weights of {recipe.run.init_from}"
    return recipe.model.pretrained or "random weights"


def _of_checkpoint(checkpoint: Checkpoint) -> Facts:
    state: dict[str, Any] = json.loads((checkpoint.path / STATE).read_text())
    weights = count_weights(checkpoint, "encoders.")
    val = f", rSum {checkpoint.val['rsum']:.1f} on val" if checkpoint.val else ", not measured on val"
    versions = ", ".join(f"{name} {number}" for name, number in state.get("versions", {}).items())
    parts = [
        f"{part.get('dataset')} / {part.get('split')} ({str(part.get('fingerprint'))[:12]})"
        for part in checkpoint.progress.data
    ]
    return [
        ("checkpoint", f"step {checkpoint.step:,}{val}"),
        ("weights", f"{weights:,} numbers in the encoders, buffers included"),
        ("training data", ", ".join(parts)),
        ("trained with", versions or "not recorded"),
    ]


def report_facts() -> Facts:
    """What this page was made with."""
    made = [f"{name} {version(name)}" for name in ("itm-scale", "torch")]
    machine = f"{platform.system()} {platform.machine()}"
    return [("page made with", ", ".join([*made, f"Python {platform.python_version()}", machine]))]
