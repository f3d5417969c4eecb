"""Models on a split: load, embed once, measure by every protocol that applies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shards.atomic import replacing
from shards.commands.outfile import as_json
from shards.manifest import Manifest
from trainer.checkpoint import Checkpoint
from trainer.checkpoint_folder import best_checkpoint, look_for_checkpoints
from trainer.distributed import World, device_of
from trainer.embed import Embeddings, embed_split
from trainer.errors import RunError
from trainer.evaluation.measure import Measured, measure
from trainer.evaluation.protocol import SplitIds
from trainer.evaluation.protocols import applicable
from trainer.evaluation.tables import Row, Table, as_latex, as_markdown, sources, table_of
from trainer.inputs import evaluation_set
from trainer.metrics import Retrieval, chance
from trainer.subject import Subject, find_subject, read_split

TIES = "a wrong item that scores as high as a right one ranks before it"


@dataclass(frozen=True)
class Member:
    """One model, and the split as it embeds it."""

    subject: Subject
    embeddings: Embeddings


@dataclass(frozen=True)
class Evaluation:
    """The measurement, and what it was taken from."""

    members: tuple[Member, ...]
    """One model, or those of an ensemble."""
    manifest: Manifest
    protocols: tuple[Measured, ...]
    """All that apply to the split; the first is of the whole split."""
    left_out: dict[str, str]
    """Protocols that do not apply, with the reason."""
    notes: tuple[str, ...]
    chance: Retrieval

    @property
    def checkpoint(self) -> Checkpoint:
        """The first one; it must not be an exported model."""
        checkpoint = self.members[0].subject.checkpoint
        assert checkpoint is not None
        return checkpoint

    @property
    def embeddings(self) -> Embeddings:
        """Those of the first model."""
        return self.members[0].embeddings

    @property
    def result(self) -> Retrieval:
        """Recalls on the whole split."""
        first = self.protocols[0]
        return Retrieval(first.i2t.values, first.t2i.values, self.chance.num_images, self.chance.num_captions)

    @property
    def name(self) -> str:
        """For the row of a table."""
        return "this model" if len(self.members) == 1 else f"ensemble of {len(self.members)}"

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.result.as_dict(),
            "chance": self.chance.as_dict(),
            **self.members[0].subject.as_dict(),
            "members": [member.subject.as_dict() for member in self.members],
            "dataset": self.manifest.dataset,
            "split": self.manifest.split,
            "fingerprint": self.manifest.fingerprint,
            "ties": TIES,
            "protocols": [one.as_dict() for one in self.protocols],
            "left_out": self.left_out,
            "notes": list(self.notes),
        }

    def tables(self) -> list[Table]:
        """A table a protocol, chance beside the whole split."""
        by_chance = Row("chance", [*self.chance.i2t.values(), *self.chance.t2i.values(), self.chance.rsum])
        return [
            table_of(one, self.name, [by_chance] if place == 0 else []) for place, one in enumerate(self.protocols)
        ]

    def remarks(self) -> list[str]:
        """What must be known beside the tables, a line each."""
        absent: dict[str, list[str]] = {}
        for title, reason in self.left_out.items():
            absent.setdefault(reason, []).append(title)
        return [
            f"ties: {TIES}",
            *(f"left out: {', '.join(titles)}: {reason}" for reason, titles in absent.items()),
            *(f"note: {note}" for note in self.notes),
        ]

    def sources(self) -> list[str]:
        """Of the published rows."""
        return sources(self.tables(), [one.key for one in self.protocols])


def selection_note(chosen: Checkpoint, manifest: Manifest) -> str | None:
    """What to say of how a checkpoint was chosen that is measured on a test split; None for the best one on val."""
    if manifest.split != "test":
        return None
    siblings = look_for_checkpoints(chosen.path.resolve().parent).whole
    best = best_checkpoint(siblings) if siblings else chosen
    if best.val is None:
        return f"{chosen.path}: nothing was measured on val, so this checkpoint was not selected by it"
    if best.path != chosen.path.resolve():
        return (
            f"{chosen.path}: not the run's best on val, which is {best.path.name}; models are selected on val alone"
        )
    return None


def evaluate(
    path: Path | Sequence[Path],
    data: str | Path,
    *,
    batch_size: int = 128,
    workers: int = 0,
    on_batch: Callable[[int], None] = lambda _images: None,
    world: World | None = None,
) -> Evaluation:
    """Evaluate a checkpoint, a run's best one on val, or an exported model, on shards; several are an ensemble.

    The similarities of an ensemble are averaged. `workers` processes load the images, this one where it is 0. Every
    process of a started `world` calls it, embeds its share, and returns the whole. Raises `RunError` or `DataError`
    when something cannot be read.
    """
    paths = [path] if isinstance(path, Path) else list(path)
    subjects = [find_subject(one) for one in paths]
    manifest = read_split(subjects[0].checkpoint, data)
    world = world or World()
    members = [Member(one, _embed(one, data, world, batch_size, workers, on_batch)) for one in subjects]
    first = members[0].embeddings
    owner = first.caption_image.cpu().numpy()
    ids = SplitIds(
        manifest.dataset, manifest.split, first.image_ids.cpu().numpy(), first.caption_ids.cpu().numpy(), owner
    )
    what = applicable(ids)
    measured = measure(
        [one.embeddings.images for one in members], [one.embeddings.texts for one in members], what, world
    )
    checkpoints = [one.checkpoint for one in subjects if one.checkpoint]
    notes = [*what.notes, *(note for one in checkpoints if (note := selection_note(one, manifest)))]
    expected = chance(owner, len(first.images))
    return Evaluation(tuple(members), manifest, tuple(measured), what.left_out, tuple(notes), expected)


def _embed(
    subject: Subject,
    data: str | Path,
    world: World,
    batch_size: int,
    workers: int,
    on_batch: Callable[[int], None],
) -> Embeddings:
    device, trained = device_of(world), subject.trained()
    embeddings = embed_split(
        trained.encoders.to(device),
        evaluation_set(trained.config, read_split(subject.checkpoint, data)),
        world,
        device,
        batch_size=batch_size,
        precision=trained.precision,
        workers=workers,
        on_batch=on_batch,
    )
    if not torch.isfinite(embeddings.images).all() or not torch.isfinite(embeddings.texts).all():
        raise RunError(f"{subject.path}: its embeddings are not finite numbers; take an older checkpoint")
    return embeddings


def write_results(evaluation: Evaluation, out: Path) -> list[Path]:
    """Write the JSON file `out`, and beside it the tables as Markdown and LaTeX; returns the three paths."""
    tables, below = evaluation.tables(), [*evaluation.remarks(), *evaluation.sources()]
    texts = {
        out: as_json(evaluation.as_dict()),
        out.with_suffix(".md"): "\n".join([*map(as_markdown, tables), *(f"- {line}" for line in below), ""]),
        out.with_suffix(".tex"): "\n".join([*map(as_latex, tables), *(f"% {line}" for line in below), ""]),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        with replacing(path) as stream:
            stream.write(text.encode())
    return list(texts)
