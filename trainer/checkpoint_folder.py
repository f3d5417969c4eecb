"""The checkpoints of a run's `checkpoints/`: which there are, which is best, and which may go."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint import STATE, WEIGHTS, Checkpoint, DamagedError, read_checkpoint
from trainer.errors import RunError

_STEPS, _SET_ASIDE = "step-*", "damaged-"


@dataclass(frozen=True)
class Found:
    """The checkpoints in a run's `checkpoints/`, by what `read_checkpoint` sees."""

    whole: list[Checkpoint]
    """Oldest first."""
    damaged: list[tuple[Path, str]]
    """Folders, and what is wrong with each."""


def look_for_checkpoints(folder: Path) -> Found:
    """Sort the checkpoints of a run's `checkpoints/` into whole and damaged ones."""
    found = Found([], [])
    for path in sorted(folder.glob(_STEPS)):
        try:
            found.whole.append(read_checkpoint(path))
        except DamagedError as error:
            found.damaged.append((path, str(error)))
    return found


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, None where there never was one.

    Raises `RunError` where there are only damaged ones: to begin anew is for the user to say.
    """
    found = look_for_checkpoints(folder)
    if not found.whole and (found.damaged or any(folder.glob(f"{_SET_ASIDE}*"))):
        reasons = [reason for _, reason in found.damaged]
        raise RunError(
            f"{folder}: no checkpoint is whole{f' ({reasons[-1]})' if reasons else ''}; bring one back from a "
            "copy, or give another run.dir to begin anew"
        )
    return found.whole[-1] if found.whole else None


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint so that it is none any more; returns where it lies now."""
    names = (f"{_SET_ASIDE}{path.name}{again}" for again in ("", *(f"-{number}" for number in range(2, 1000))))
    return path.rename(next(place for place in map(path.with_name, names) if not place.exists()))


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """All checkpoints in a run's `checkpoints/`, oldest first. Raises `DamagedError` when one is damaged."""
    return [read_checkpoint(path) for path in sorted(folder.glob(_STEPS))]


def best_checkpoint(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The one with the largest rSum on val; the newest where none was evaluated."""
    evaluated = [(float(checkpoint.val["rsum"]), checkpoint) for checkpoint in checkpoints if checkpoint.val]
    return max(evaluated, key=lambda pair: pair[0])[1] if evaluated else checkpoints[-1]


def find_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint given by its own folder, or the best one of a run's folder.

    Raises `RunError` when there is none.
    """
    if (path / STATE).is_file() or (path / WEIGHTS).is_file():
        return read_checkpoint(path)
    if not path.exists():
        raise RunError(f"{path}: no such run or checkpoint")
    checkpoints = list_checkpoints(path / "checkpoints")
    if not checkpoints:
        raise RunError(f"{path}: holds no checkpoint; give a run's folder or one of its checkpoints/step-*")
    return best_checkpoint(checkpoints)


def prune(folder: Path, keep_last: int) -> None:
    """Remove all whole checkpoints but the newest `keep_last` and the best."""
    checkpoints = look_for_checkpoints(folder).whole
    for checkpoint in checkpoints[:-keep_last]:
        if checkpoint.path != best_checkpoint(checkpoints).path:
            shutil.rmtree(retire(checkpoint.path))


def step_name(step: int) -> str:
    """The folder of a checkpoint."""
    return f"step-{step:08d}"


def retire(path: Path) -> Path:
    """Rename a checkpoint that is to be removed, since a half-removed folder must not look like one."""
    doomed = path.with_name(f".{path.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    return path.rename(doomed)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left half-written or half-removed; only for the owner of the run's folder."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for leftover in folder.glob(f"{_STEPS}/.*.partial"):
        leftover.unlink()
