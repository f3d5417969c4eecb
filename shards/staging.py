"""A folder under work beside the finished splits, and the step that moves all splits into place."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from shards.atomic import replacing
from shards.errors import DataError

UNITS = ".units"
"""Folder of a split under work with a note a finished unit; not published."""


class Staging:
    """The scratch folder of a conversion, `OUT/.partial`. It outlives a kill; the same call goes on with it.

    Use as a context manager. Several parts may work in it at once; publishing, or working without parts,
    takes it alone. Left by an error with nothing finished in it, it is removed.
    """

    def __init__(
        self, out: Path, *, overwrite: bool = False, shared: bool = False, folder: str = ".partial"
    ) -> None:
        self.out, self.overwrite, self.shared = out, overwrite, shared
        self.root = out / folder

    @property
    def _plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def _publishing(self) -> Path:
        return self.root / "publishing.json"

    def check(self, splits: list[str]) -> None:
        """Raise `DataError` when one of the splits stands in `out` already."""
        for split in splits:
            if (self.out / split).exists() and not self.overwrite and not self._publishing.is_file():
                raise DataError(
                    f"{self.out / split}: exists already; give another --out, or --overwrite to replace it"
                )

    def __enter__(self) -> "Staging":
        self._created = not self.out.exists()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock: IO[bytes] = (self.root / "lock").open("wb")
        except OSError as error:
            raise DataError(f"--out {self.out}: cannot be written to ({error.strerror}); give another") from None
        try:
            fcntl.flock(self._lock, (fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise DataError(
                f"--out {self.out}: another conversion is writing there; wait for it, or give another"
            ) from None
        return self

    def claim(self, splits: list[str], plan: dict[str, object]) -> None:
        """Begin, or go on with, the conversion that `plan` describes.

        Raises `DataError` when an unfinished conversion of something else stands here.
        """
        self.finish_commit()
        self.check(splits)
        with self.alone():
            self._claim(splits, plan)

    def _claim(self, splits: list[str], plan: dict[str, object]) -> None:
        wanted = {"splits": splits, **plan}
        found = self.plan()
        if found is not None and found != json.loads(json.dumps(wanted)):
            if not self.overwrite:
                raise DataError(
                    f"{self.root}: an unfinished conversion of other input, or with other settings; repeat it as "
                    "it was, give another --out, or --overwrite to discard it"
                )
            for split in found["splits"]:
                shutil.rmtree(self.root / split, ignore_errors=True)
        with replacing(self._plan) as stream:
            stream.write(json.dumps(wanted, indent=2).encode() + b"\n")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other part is in such a block: parts share files under one name."""
        with (self.root / "alone").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def plan(self) -> dict[str, Any] | None:
        """What the conversion under work was claimed with, None where there is none."""
        return json.loads(self._plan.read_bytes()) if self._plan.is_file() else None

    def split(self, name: str) -> Path:
        """The folder of a split under work."""
        return self.root / name

    def commit(self) -> None:
        """Move all splits into place."""
        plan = self.plan()
        assert plan is not None
        with replacing(self._publishing) as stream:  # from here on a kill is made good by the next call
            stream.write(json.dumps(plan["splits"]).encode())
        self._move()

    def finish_commit(self) -> list[str]:
        """Go on with a commit that was killed while it moved the splits; returns their names, if there was one."""
        if not self._publishing.is_file():
            return []
        splits: list[str] = json.loads(self._publishing.read_bytes())
        self._move()
        self.root.mkdir()
        return splits

    def _move(self) -> None:
        for split in json.loads(self._publishing.read_bytes()):
            if not self.split(split).exists():
                continue
            shutil.rmtree(self.split(split) / UNITS, ignore_errors=True)
            if (self.out / split).exists():
                # moved aside, deleted later: a kill finds the old split or the new one, never half of one
                (self.out / split).rename(self.root / f"{split}.replaced")
            self.split(split).rename(self.out / split)
        shutil.rmtree(self.root)

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # other parts are at work in it
                return
            unfinished = self.root.exists() and any(self.root.glob(f"*/{UNITS}/[0-9]*.json"))
            if not unfinished and not self._publishing.is_file():
                shutil.rmtree(self.root, ignore_errors=True)
                if self._created and self.out.exists() and not any(self.out.iterdir()):
                    self.out.rmdir()
