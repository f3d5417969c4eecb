"""All that is foretold of a run, from its recipe, its data and the GPUs."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from model.terms.build import needs_memory
from shards.training import TrainingSet
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.forecast.communication import Exchange, communication, sent
from trainer.forecast.data_supply import Reading, images_per_second, reading, workers_needed
from trainer.forecast.length import UTILISATION, Length, count_steps, length, peak_of
from trainer.forecast.memory import Memory, memory
from trainer.forecast.step import STAGES, Measured, measure_step
from trainer.plan import read_training_set
from trainer.plan_checks import check_share, check_splits

GB = 1e9


@dataclass(frozen=True)
class Machine:
    """The GPUs that a run is to have."""

    gpus: int
    gpu_memory: float
    """Of each, in GB of 10^9 bytes."""
    gpus_per_node: int = 8
    gpu: str | None = None
    """Its name, for its speed."""
    utilisation: float = UTILISATION

    @property
    def gpus_of_a_node(self) -> int:
        return min(self.gpus, self.gpus_per_node)


@dataclass(frozen=True)
class Forecast:
    """Predictions for one recipe on one machine."""

    recipe: Recipe
    machine: Machine
    measured: Measured
    length: Length
    train: TrainingSet | None
    """None where `samples` stood in for it."""
    rate: float | None
    """Images a second of one loader worker on this machine, where that could be measured."""
    reading: Reading | None
    peak: float | None
    """TFLOP/s of the GPU, where it is known."""

    @property
    def stage(self) -> int:
        return self.recipe.engine.zero_stage

    def memory(self, stage: int) -> Memory:
        """Of a GPU, and of the host for its process, at a stage."""
        return memory_of(self.recipe, self.measured, self.machine.gpus, stage)

    def exchanges(self, stage: int) -> list[Exchange]:
        """Of one step."""
        return communication(self.measured.counts, self.measured.step, stage, self.machine.gpus)

    def fits(self, stage: int) -> bool:
        return self.memory(stage).total <= self.machine.gpu_memory * GB

    @property
    def workers(self) -> int | None:
        """Loader processes a GPU that would keep up with it."""
        speed = self.length.samples_per_second
        return None if speed is None or self.rate is None else workers_needed(speed, self.machine.gpus, self.rate)

    def as_dict(self) -> dict[str, Any]:
        """All numbers, in bytes, seconds and hours, for a file."""
        gpus, step, checkpoint = self.machine.gpus, self.measured.step, self.measured.checkpoints[self.stage]
        memories = {stage: self.memory(stage) for stage in STAGES}
        exchanges = {stage: self.exchanges(stage) for stage in STAGES}
        return {
            "recipe": self.recipe.model_dump(),
            "machine": asdict(self.machine),
            "parameters": asdict(self.measured.counts),
            "memory": {
                f"zero_stage_{stage}": {
                    "gpu_bytes": one.gpu,
                    "gpu_total_bytes": one.total,
                    "host_bytes": one.host,
                    "fits": self.fits(stage),
                }
                for stage, one in memories.items()
            },
            "communication": {
                f"zero_stage_{stage}": {"exchanges": [asdict(one) for one in some], "sent_bytes": sent(some, gpus)}
                for stage, some in exchanges.items()
            },
            "length": asdict(self.length),
            "step_flops": {"all": step.flops, "useful": step.useful_flops},
            "gpu_tflops": self.peak,
            "checkpoint_bytes": asdict(checkpoint) | {"total": checkpoint.total},
            "loader": {
                "images_per_second_a_worker": self.rate,
                "workers_a_gpu": self.workers,
                "reading": None if self.reading is None else asdict(self.reading),
            },
        }


def memory_of(recipe: Recipe, measured: Measured, gpus: int, stage: int) -> Memory:
    """As `Forecast.memory`."""
    batch, size = recipe.data.global_batch_size, recipe.loss.queue.size
    keys = max(batch, size) if needs_memory(recipe.model, recipe.loss) else batch
    return memory(measured.counts, measured.step, recipe.engine, stage, gpus, (batch // gpus, keys))


def make_forecast(recipe: Recipe, machine: Machine, samples: int | None = None, measures: bool = True) -> Forecast:
    """Predict a run of the recipe on the machine. Writes nothing, needs no GPU and takes no memory for weights.

    `samples` a pass take the place of the data, which are then not looked at; `measures` has the loader timed on
    data that are local. Raises `RunError`, `DataError` or `ModelError`.
    """
    peak = None if machine.gpu is None else peak_of(machine.gpu, recipe.engine.precision)
    check_share(recipe, machine.gpus)
    train = None
    if samples is None:
        if not recipe.data.train:
            raise RunError("data.train: not given; add data.train=FOLDER, a folder of shards, or --samples N")
        train = read_training_set(recipe.data)
        check_splits(train, None, recipe.model)
    visits = train.num_visits if train else samples or 0
    measured = measure_step(recipe, machine.gpus, *count_steps(recipe, visits))
    step = measured.step
    return Forecast(
        recipe=recipe,
        machine=machine,
        measured=measured,
        length=length(recipe, visits, machine.gpus, step.flops, step.useful_flops, peak, machine.utilisation),
        train=train,
        rate=images_per_second(recipe, train) if train and measures else None,
        reading=reading(recipe, train, machine.gpus) if train else None,
        peak=peak,
    )


def with_engine(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other settings of its engine."""
    return recipe.model_copy(update={"engine": recipe.engine.model_copy(update=changes)})


def remeasured(forecast: Forecast, recipe: Recipe) -> Forecast:
    """The same for a changed recipe, as far as memory goes."""
    known = forecast.length
    measured = measure_step(recipe, forecast.machine.gpus, known.steps_per_epoch, known.total_steps)
    return replace(forecast, recipe=recipe, measured=measured)
