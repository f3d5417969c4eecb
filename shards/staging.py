"""A folder under work beside the finished splits, and the step that moves all splits into place."""

import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from shards.atomic import replacing, sync_folder
from shards.errors import DataError
from shards.lock import FileLock
from shards.manifest import MANIFEST, SHARD_TABLE

UNITS = ".units"
"""Folder of a split under work with a note a finished unit; not published."""
PATIENCE = 2.0
"""Seconds in which the workers of a conversion that was just killed are sure to end."""


def _is_replaceable(place: Path) -> bool:
    """Whether this is a folder of shards, an empty one, or a link: `--overwrite` deletes nothing else."""
    if place.is_symlink() or not place.is_dir():
        return place.is_symlink()
    return not any(place.iterdir()) or all((place / name).is_file() for name in (MANIFEST, SHARD_TABLE))


class Staging:
    """The scratch folder of a conversion, `OUT/.partial`. It outlives a kill; the same call goes on with it.

    Use as a context manager. With `shared`, the parts of one conversion may work in it at once; without, it is
    taken alone. Left with nothing finished in it, it is removed.

        OUT/.partial/SPLIT/           a split under work
        OUT/.partial/.plan.json       what is converted, and how; without it, everything here is rubbish
        OUT/.partial/.commit.json     the splits are whole and being moved; deleted last
        OUT/.partial/.replaced/SPLIT  what `--overwrite` replaces, until it is deleted
        OUT/.partial/.lock            held shared by parts, else alone
        OUT/.partial/.gate            held from entering until the claim is settled, by one call at a time
    """

    def __init__(
        self, out: Path, *, overwrite: bool = False, shared: bool = False, inputs: Sequence[Path] = ()
    ) -> None:
        self.out, self.overwrite, self.shared, self.inputs = out, overwrite, shared, inputs
        self.root = out / ".partial"
        self._plan, self._journal = self.root / ".plan.json", self.root / ".commit.json"

    def check(self, splits: list[str]) -> None:
        """Raise `DataError` when a split stands in `out` already, or has a name that no folder should have.

        With `overwrite`, only what is a folder of shards may stand there, and nothing that is read.
        """
        for split in splits:
            if not re.fullmatch(r"[\w+-][\w+.-]*", split):
                raise DataError(
                    f"split {split!r}: it names a folder, so it must be made of letters, digits, `-`, `_`, `+` "
                    "and `.`, and not begin with a dot"
                )
            place = self.out / split
            if not os.path.lexists(place):
                continue
            read = [path for path in self.inputs if path.resolve().is_relative_to(place.resolve())]
            if read and not place.is_symlink():  # of a link, the target stays
                raise DataError(f"{place}: is, or holds, what is read, {read[0]}; give another --out")
            if not _is_replaceable(place):
                raise DataError(f"{place}: exists already, and is no folder of shards; give another --out")
            if not self.overwrite and not self._journal.is_file():
                raise DataError(f"{place}: exists already; give another --out, or --overwrite to replace it")

    def __enter__(self) -> "Staging":
        self._created = not self.out.exists()
        try:
            self._gate: FileLock | None = self._enter_gate()
            self.lock = FileLock(self.root / ".lock")
        except OSError as error:
            raise DataError(f"--out {self.out}: cannot be written to ({error.strerror}); give another") from None
        self._alone = self.lock.acquire(patience=0 if self.shared else PATIENCE) and self._locks_alone()
        if not self._alone and not (self.shared and self.lock.acquire(shared=True, patience=PATIENCE)):
            self._leave_gate()
            self.lock.close()
            raise DataError(f"--out {self.out}: another conversion is writing there; wait for it, or give another")
        if not self.shared:
            self._leave_gate()
        return self

    def _enter_gate(self) -> FileLock:
        while True:
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                gate = FileLock(self.root / ".gate")
            except FileNotFoundError:  # removed since by its last user
                continue
            gate.acquire(patience=math.inf)
            if gate.is_current():
                return gate
            gate.close()

    def _leave_gate(self) -> None:
        if self._gate is not None:
            self._gate.close()
            self._gate = None

    def claim(self, splits: list[str], plan: dict[str, object]) -> None:
        """Begin, or go on with, the conversion that `plan` describes.

        Raises `DataError` when an unfinished conversion of something else stands here.
        """
        wanted = json.loads(json.dumps({"splits": splits, **plan}))
        found = self.plan()
        if found != wanted and self.finish_commit() is not None:
            found = None
        self.check(splits)
        if found != wanted:
            if found is not None and not self.overwrite:
                raise DataError(
                    f"{self.root}: an unfinished conversion of other input, or with other settings; repeat it as "
                    "it was, give another --out, or --overwrite to discard it"
                )
            self._clear()
            with replacing(self._plan) as stream:
                stream.write(json.dumps(wanted, indent=2).encode() + b"\n")
        if self.shared:
            self.lock.acquire(shared=True)
            self._alone = False
            self._leave_gate()

    def _require_alone(self) -> None:
        if not self._alone:
            raise DataError(f"{self.root}: parts of another conversion are being written there; wait for them")

    def plan(self) -> dict[str, Any] | None:
        """What the conversion under work was claimed with, None where there is none."""
        if (journal := self._read(self._journal)) is not None:
            return dict(journal["plan"])
        return self._read(self._plan)

    @staticmethod
    def _read(path: Path) -> dict[str, Any] | None:
        return json.loads(path.read_bytes()) if path.is_file() else None

    def split(self, name: str) -> Path:
        """The folder of a split under work."""
        return self.root / name

    def discard(self, split: str) -> None:
        """Delete what was written of a split, notes first: a kill in between leaves none whose shards are gone."""
        shutil.rmtree(self.split(split) / UNITS, ignore_errors=True)
        shutil.rmtree(self.split(split), ignore_errors=True)

    def _clear(self) -> None:
        """Delete everything but the locks, the plan first and a commit's journal last: see the class."""
        rest = [path for path in self.root.iterdir() if path.name not in (".lock", ".gate", self._journal.name)]
        if rest:
            self._require_alone()
        self._plan.unlink(missing_ok=True)
        for path in rest:
            if path == self._plan:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        self._journal.unlink(missing_ok=True)

    def committed(self) -> dict[str, Any] | None:
        """The reports, by split, of a commit that was begun and not ended; None where there is none."""
        journal = self._read(self._journal)
        return journal and dict(journal["reports"])

    def commit(self, reports: dict[str, Any]) -> None:
        """Move the splits that are the keys of `reports` into place; from here on a kill is made good later."""
        self._require_alone()
        with replacing(self._journal) as stream:
            stream.write(json.dumps({"plan": self.plan(), "reports": reports}).encode())
        self._move()

    def finish_commit(self) -> dict[str, Any] | None:
        """Go on with a commit that was killed, and return its reports; None where there is none."""
        reports = self.committed()
        if reports is not None:
            self._require_alone()
            self._move()
        return reports

    def _move(self) -> None:
        replaced = self.root / ".replaced"
        for split in self.committed() or ():
            if not self.split(split).exists():  # moved already
                continue
            shutil.rmtree(self.split(split) / UNITS, ignore_errors=True)
            if os.path.lexists(self.out / split):
                # moved aside, deleted later: a kill finds the old split or the new one, never half of one
                replaced.mkdir(exist_ok=True)
                (self.out / split).rename(replaced / split)
            self.split(split).rename(self.out / split)
        sync_folder(self.out)
        self._clear()

    def _locks_alone(self) -> bool:
        """Whether a lock taken alone says that no other part is at work."""
        return self.lock.works or not self.shared

    def __exit__(self, *_error: object) -> None:
        with suppress(OSError):  # what cannot be tidied up does not hide what went wrong before
            self._tidy()
        self._leave_gate()
        self.lock.close()
        # on a network disk a deleted file stays until it is closed, so the folder goes last
        with suppress(OSError):
            self.root.rmdir()
            if self._created:
                self.out.rmdir()

    def _tidy(self) -> None:
        if self._gate is None:
            self._gate = FileLock(self.root / ".gate")
            if not self._gate.acquire():  # another call is coming in: the folder is its own now
                return
        if self.lock.acquire() and self._locks_alone():
            self._alone = True
            if not any(self.root.glob(f"*/{UNITS}/[0-9]*.json")) and not self._journal.is_file():
                self._clear()
                (self.root / ".gate").unlink()
                (self.root / ".lock").unlink()
