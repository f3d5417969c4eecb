"""What a recipe comes to on this data with these processes, checked before anything is written."""

from dataclasses import dataclass
from pathlib import Path

from model.config import ModelConfig
from shards.loader import steps_per_epoch
from shards.manifest import Manifest, read_manifest
from shards.progress import counted
from shards.storage.cache import Cache, default_directory
from shards.storage.location import is_remote
from shards.training import Part, TrainingSet
from shards.working_set import working_set_bytes
from trainer.boards import check_boards
from trainer.checkpoint import Checkpoint, read_checkpoint
from trainer.checkpoint_folder import find_checkpoint, look_for_checkpoints, newest_checkpoint
from trainer.concepts import settle_concepts
from trainer.config import DataConfig, PartConfig, Recipe
from trainer.continuity import changes_of, check_model
from trainer.errors import RunError
from trainer.idle import idle_settings
from trainer.plan_checks import check_batch, check_splits, check_terms
from trainer.recipe import run_folder


@dataclass(frozen=True)
class Plan:
    """A recipe that can run: its data, its length, and the checkpoint to go on from."""

    recipe: Recipe
    processes: int
    train: TrainingSet
    val: Manifest | None
    steps_per_epoch: int
    total_steps: int
    resume: Checkpoint | None
    init_from: Checkpoint | None
    changed: tuple[str, ...]
    """Settings that differ from those of the checkpoint, as `key: before -> now`."""

    @property
    def run_dir(self) -> Path:
        return Path(self.recipe.run.dir)

    @property
    def finished(self) -> bool:
        return self.resume is not None and self.resume.step >= self.total_steps and not self.owes_evaluation

    @property
    def owes_evaluation(self) -> bool:
        """Whether the run was stopped before an evaluation that was due."""
        step = self.resume.step if self.resume else 0
        return step > 0 and self.resume is not None and self.resume.val is None and self.is_evaluated(step)

    def is_evaluated(self, step: int) -> bool:
        """Whether an evaluation on val is due after so many steps."""
        every = self.steps_between(self.recipe.evaluation.every_epochs)
        return self.val is not None and (step >= self.total_steps or step % every == 0)

    @property
    def share(self) -> int:
        """Pairs of a global batch on each process."""
        return self.recipe.data.global_batch_size // self.processes

    @property
    def micro_batch_size(self) -> int:
        """Pairs that a process encodes at once."""
        return min(self.recipe.engine.micro_batch_size or self.share, self.share)

    def steps_between(self, epochs: float) -> int:
        return max(1, round(epochs * self.steps_per_epoch))

    def summary(self) -> list[str]:
        """What would be done, a line each."""
        recipe = self.recipe
        start = " and ".join(_pretrained(recipe.model)) or "random weights"
        if self.resume:
            start = f"{self.resume.path} (step {self.resume.step:,})"
        elif self.init_from:
            start = f"the weights of {self.init_from.path}"
        val = f"val    {self.val.location}: {counted(self.val.num_samples, 'image')}" if self.val else "val    none"
        batch, model = recipe.data.global_batch_size, recipe.model
        at_once = (
            f", {counted(self.micro_batch_size, 'pair')} at once" if self.micro_batch_size < self.share else ""
        )
        return [
            f"run    {self.run_dir}, from {start}",
            *_describe(self.train),
            *_cache_warning(self.train, recipe.data.cache.max_gb),
            val,
            f"model  {model.framework} on {model.architecture}, embeddings of {model.embed_dim}",
            *(f"note   {line}" for line in idle_settings(recipe, fine_tunes=self.init_from is not None)),
            *(f"note   {reason}" for _, reason in look_for_checkpoints(self.run_dir / "checkpoints").damaged),
            f"steps  {self.total_steps:,} of {batch:,} pairs, {self.steps_per_epoch:,} an epoch",
            f"engine {counted(self.processes, 'process')}, ZeRO-{recipe.engine.zero_stage}, "
            f"{recipe.engine.precision}{at_once}",
        ]


def make_plan(recipe: Recipe, processes: int, resume_from: Path | None = None) -> Plan:
    """Check a recipe against its data, the processes and the run's folder.

    It goes on from the checkpoint `resume_from`, by default from the newest whole one of the run's folder.
    Raises `RunError` or `DataError` for what cannot run. Writes nothing.
    """
    if run_folder(recipe).is_file():
        raise RunError(f"run.dir={recipe.run.dir}: is a file; give a folder")
    check_boards(recipe.log)
    train = read_training_set(recipe.data)
    val = read_manifest(recipe.data.val, cache_of(recipe.data)) if recipe.data.val else None
    check_splits(train, val, recipe.model)
    check_batch(recipe, train, processes)
    check_terms(recipe)
    if val is not None and val.num_samples < processes:
        raise RunError(
            f"data.val={val.location}: {counted(val.num_samples, 'sample')} for {processes} processes; start fewer"
        )
    steps = steps_per_epoch(train.num_visits, recipe.data.global_batch_size, recipe.data.last_batch)
    checkpoints = Path(recipe.run.dir) / "checkpoints"
    resume = read_checkpoint(resume_from) if resume_from else newest_checkpoint(checkpoints)
    init_from = find_checkpoint(Path(recipe.run.init_from)) if recipe.run.init_from and not resume else None
    if init_from:
        check_model(recipe, init_from)
    changed = changes_of(resume, recipe, train) if resume else ()
    recipe = settle_concepts(recipe, resume, init_from)
    total_steps = max(1, round(recipe.schedule.epochs * steps))
    if (recipe.log.trace_step or 0) > total_steps:
        raise RunError(
            f"log.trace_step={recipe.log.trace_step}: the run has {counted(total_steps, 'step')}; give one of them"
        )
    return Plan(
        recipe=recipe,
        processes=processes,
        train=train,
        val=val,
        steps_per_epoch=steps,
        total_steps=total_steps,
        resume=resume,
        init_from=init_from,
        changed=changed,
    )


def cache_of(data: DataConfig) -> Cache:
    """The cache that a recipe asks for."""
    cache = data.cache
    folder = Path(cache.dir).expanduser() if cache.dir else default_directory()
    return Cache(folder, int(cache.max_gb * 1e9), cache.timeout, cache.attempts)


def read_training_set(data: DataConfig) -> TrainingSet:
    """Read the manifests of `data.train`. Raises `RunError` or `DataError`."""
    if not data.train:
        raise RunError("data.train: not given; add data.train=FOLDER, a folder of shards")
    listed = [PartConfig(path=data.train)] if isinstance(data.train, str) else data.train
    cache = cache_of(data)
    parts = [Part(read_manifest(one.path, cache), one.weight, one.captions or data.captions) for one in listed]
    train = TrainingSet(tuple(parts), data.mix)
    assert train.counts, "counting finds what is wrong with the weights"
    return train


def _pretrained(model: ModelConfig) -> list[str]:
    text, has_clip = model.text, model.reads_pixels or model.text.towers != "transformer"
    sources = [f"model.pretrained={model.pretrained}"] if model.pretrained and has_clip else []
    if text.towers != "clip" and text.transformer.weights != "random":
        sources.append(f"the weights of {text.transformer.weights or text.transformer.name}")
    return sources


def _describe(train: TrainingSet) -> list[str]:
    lines = []
    for part, visits in zip(train.parts, train.counts, strict=True):
        of = part.manifest
        line = f"data   {of.location}: {counted(of.num_samples, 'image')}, {counted(of.num_captions, 'caption')}"
        plain = len(train.parts) == 1 and visits == of.num_samples
        lines.append(line if plain else f"{line}; {counted(visits, 'visit')} an epoch")
    return lines


def _cache_warning(train: TrainingSet, max_gb: float) -> list[str]:
    remote = [
        part.manifest for part in train.parts if part.manifest.names and is_remote(part.manifest.shard_location(0))
    ]
    needed = sum(map(working_set_bytes, remote)) / 1e9
    if needed <= max_gb:
        return []
    return [
        f"cache  data.cache.max_gb={max_gb:g} is less than the {needed:,.0f} GB that the order draws on at a time "
        "(divided by the nodes): shards would be fetched many times over; raise it"
    ]
