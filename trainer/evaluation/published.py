"""Published results, to stand beside ours; `published.yaml` names the source of each."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from trainer.evaluation.protocol import TITLES

FILE = Path(__file__).with_name("published.yaml")
ROUNDING = 7 * 0.05
"""By how much six recalls and their sum, each rounded to one decimal, can disagree."""

Numbers = tuple[float | None, ...]
"""None: the source does not give it."""


@dataclass(frozen=True)
class Published:
    """One method on one protocol, percent."""

    name: str
    source: str
    i2t: Numbers
    t2i: Numbers
    printed_rsum: float | None

    @property
    def rsum(self) -> float | None:
        """The sum of the six recalls, recomputed; None where one is not given."""
        parts = [value for value in (*self.i2t, *self.t2i) if value is not None]
        return round(sum(parts), 1) if len(parts) == len(self.i2t) + len(self.t2i) else None

    @property
    def remark(self) -> str:
        """What is wrong with the printed sum; empty where it adds up."""
        if self.printed_rsum is None or self.rsum is None or abs(self.printed_rsum - self.rsum) < 0.05:
            return ""
        explained = "rounding" if abs(self.printed_rsum - self.rsum) <= ROUNDING else "more than rounding"
        printed, added = f"{self.printed_rsum:.1f}", f"{self.rsum:.1f}"
        return f"{self.name}: the source prints rSum {printed}, its recalls add up to {added} ({explained})"


@cache
def published() -> dict[str, tuple[Published, ...]]:
    """The published rows of each protocol, by its key."""
    rows: dict[str, list[Published]] = {key: [] for key in TITLES}
    for method in yaml.safe_load(FILE.read_text("utf-8")):
        for key in rows.keys() & method.keys():
            numbers = method[key]
            rows[key].append(
                Published(
                    method["name"],
                    method["source"],
                    tuple(numbers["i2t"]),
                    tuple(numbers["t2i"]),
                    numbers.get("rsum"),
                )
            )
    return {key: tuple(of) for key, of in rows.items()}
