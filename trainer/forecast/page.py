"""A forecast as the terminal shows it."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from shards.order import LANES
from shards.progress import counted
from trainer.forecast.communication import sent
from trainer.forecast.forecast import GB, Forecast
from trainer.forecast.memory import Memory
from trainer.forecast.step import STAGES


def show(parts: list[RenderableType]) -> None:
    """Print on standard output; lines are not broken where it is a file or a pipe."""
    console = Console(highlight=False)
    console.print(Group(*parts), soft_wrap=not console.is_terminal)


def page(forecast: Forecast, suggestions: list[str]) -> list[RenderableType]:
    """All tables and lines; `suggestions` are those of `trainer.forecast.advice`."""
    return [*map(_line, _heading(forecast)), memory_table(forecast), *map(_line, _verdict(forecast, suggestions)),
            *map(_line, _run(forecast)), *map(_line, _loading(forecast))]  # fmt: skip


def _line(text: str) -> Text:
    return Text(text)


def _heading(forecast: Forecast) -> list[str]:
    counts, model, data = forecast.measured.counts, forecast.recipe.model, forecast.recipe.data
    gpus, precision = forecast.machine.gpus, forecast.recipe.engine.precision
    share = data.global_batch_size // gpus
    parts = {"trained": counts.trained, "frozen": counts.frozen, "momentum encoders": counts.momentum}
    numbers = ", ".join(f"{number / 1e6:,.1f} M {name}" for name, number in parts.items() if number)
    size = min(forecast.recipe.engine.micro_batch_size or share, share)
    return [
        f"model   {model.framework} on {model.architecture}: parameters {numbers}",
        f"batch   {data.global_batch_size:,} pairs on {counted(gpus, 'GPU')}: {share:,} each, {size:,} at once, "
        f"{precision}",
    ]


def memory_table(forecast: Forecast) -> Table:
    """Components by stage, in GB."""
    memories = [forecast.memory(stage) for stage in STAGES]
    own = forecast.stage
    table = Table(title="GB a GPU at its fullest, by ZeRO stage", title_justify="left")
    table.add_column("")
    for stage in STAGES:
        table.add_column(f"{stage}, the recipe's" if stage == own else str(stage), justify="right")
    names = list(dict.fromkeys(name for one in memories for name in one.gpu))
    for name in names:
        if any(_shown(one.gpu.get(name, 0.0)) for one in memories):
            table.add_row(name, *(_cell(one.gpu.get(name)) for one in memories))
    table.add_section()
    table.add_row("total", *(f"{one.total / GB:.2f}" for one in memories))
    limit = forecast.machine.gpu_memory
    table.add_row(f"of {limit:g}", *(_fits(one, limit) for one in memories))
    for name in dict.fromkeys(name for one in memories for name in one.host):
        table.add_row(f"host, {name}", *(_cell(one.host.get(name)) for one in memories))
    exchanged = [sent(forecast.exchanges(stage), forecast.machine.gpus) for stage in STAGES]
    table.add_row("sent a step", *(f"{size / GB:.2f}" for size in exchanged))
    return table


def _shown(size: float) -> bool:
    return size >= 0.005 * GB


def _cell(size: float | None) -> str:
    return "-" if not size else f"{size / GB:.2f}" if _shown(size) else "<0.01"


def _fits(memory: Memory, limit: float) -> str:
    return "fits" if memory.total <= limit * GB else "too much"


def _verdict(forecast: Forecast, suggestions: list[str]) -> list[str]:
    if not suggestions:
        return []
    total, limit = forecast.memory(forecast.stage).total / GB, forecast.machine.gpu_memory
    return [
        f"does not fit: {total:.1f} of {limit:g} GB at stage {forecast.stage}; tried instead:",
        *(f"  {line}" for line in suggestions),
    ]


def _run(forecast: Forecast) -> list[str]:
    own, exchanges = forecast.length, forecast.exchanges(forecast.stage)
    step, machine = forecast.measured.step, forecast.machine
    checkpoint = forecast.measured.checkpoints[forecast.stage]
    kept = forecast.recipe.checkpoint.keep_last + 1
    lines = []
    for what in ("method", "ZeRO"):
        some = [one for one in exchanges if one.what == what]
        if some:
            sizes = ", ".join(f"{one.kind} {one.bytes / 1e6:,.2f} MB" for one in some)
            lines.append(f"a step  {what} exchanges {sizes}")
    lines += [
        f"steps   {own.total_steps:,}, {own.steps_per_epoch:,} an epoch of {own.visits:,} pairs",
        f"work    {step.flops / 1e12:,.3g} TFLOP a GPU and step, {own.useful_share:.0%} of it as mfu counts",
    ]
    if own.step_seconds is None:
        lines.append("time    not known: name the GPU, such as --gpu H100")
    else:
        lines.append(
            f"time    {own.hours:,.2f} hours, {own.gpu_hours:,.1f} GPU hours: {own.step_seconds:.3g} s a step, "
            f"{own.samples_per_second:,.0f} pairs/s, at an assumed {machine.utilisation:.0%} of the "
            f"{forecast.peak:g} TFLOP/s of {machine.gpu}; waits for data and network come on top"
        )
    lines.append(
        f"disk    {checkpoint.total / GB:,.2f} GB a checkpoint ({checkpoint.weights / GB:,.2f} weights, "
        f"{checkpoint.optimizer / GB:,.2f} optimiser), up to {(kept + 1) * checkpoint.total / GB:,.1f} GB at a time"
    )
    return lines


def _loading(forecast: Forecast) -> list[str]:
    speed, rate, machine = forecast.length.samples_per_second, forecast.rate, forecast.machine
    lines = []
    if speed is not None:
        a_gpu = speed / machine.gpus
        lines.append(
            f"loader  must give {a_gpu:,.0f} images/s a GPU, {a_gpu * machine.gpus_of_a_node:,.0f} a node of "
            f"{machine.gpus_of_a_node}"
        )
    if rate is not None:
        enough, workers = "", forecast.recipe.data.workers
        if forecast.workers is not None and speed is not None:
            gives = max(workers, 1) * rate / (speed / machine.gpus)
            enough = f"; data.workers={forecast.workers}, a core each, would keep up: {workers} give {gives:.0%}"
        lines.append(f"loader  one worker gives {rate:,.0f} images/s here, on these data{enough}")
    else:
        lines.append("loader  not measured: the data are not on this machine; benchmarks/loader.py does it there")
    read = forecast.reading
    if read is not None:
        lines += [
            f"shards  {read.shards:,} of {read.bytes_a_shard / 1e6:,.1f} MB, {read.shards_a_worker:.2g} a worker, "
            "who share them: any number does",
            f"order   a batch draws on {read.shards_a_batch:,} of them (at random: {read.shards_by_chance:,.0f}), "
            f"in runs of {read.run_length:,.0f} samples, {read.run_bytes / 1e6:,.2f} MB; a process reads from "
            f"{read.lanes_a_process:g} of {LANES} places at a time",
        ]
        if read.run_bytes < 1e6:
            lines.append(
                "order   runs are short, as the data set is small: reads are scattered; keep it on a local disk"
            )
    return lines
