"""Runs with all that a report can show, on pictures whose captions are as nasty as captions get."""

import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from shards.convert import Options, write_split
from tests.conftest import numbered_record
from trainer.config import Recipe
from trainer.engine import build_encoders, build_framework
from trainer.logs import EVALUATIONS, METRICS

VOID = {"meta", "img", "br", "link", "hr", "input"}
NASTY = (
    "<script>document.body.innerHTML = 'owned'</script><img src=http://example.org/x.png onerror=alert(1)> & \"q\""
)
METHOD: dict[str, Any] = {
    "model": {"framework": "aahr+amsps"},
    "loss": {"prototypes": {"count": 5, "start_step": 2}, "queue": {"size": 8}},
}


class Page(HTMLParser):
    """Collects a page's elements; fails on one that is closed without having been opened, or not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self) -> list[str | None]:
        return [attributes.get("id") for attributes in self.all("section")]


@pytest.fixture(scope="session")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split of 9 pictures with two captions each, of which the first is markup."""
    root = tmp_path_factory.mktemp("nasty")
    records = [numbered_record(number, captions=2) for number in range(9)]
    marked = (replace(one, captions=(f"{NASTY} {one.captions[0]}", one.captions[1])) for one in records)
    write_split(marked, root, dataset="nasty", split="test", options=Options(samples_per_shard=4))
    return root


@pytest.fixture
def make_whole_run(add_checkpoint: Callable[..., Path], tiny_recipe: Callable[..., Recipe]) -> Callable[..., Path]:
    """A run whose checkpoint, of random weights, holds momentum encoders, prototypes and a mining threshold."""

    def make(run: Path, seed: int = 0, threshold: float | None = 0.0, **changes: dict[str, Any]) -> Path:
        sections = {**METHOD, **changes, "run": {"seed": seed, "dir": "<b>folder</b>"}}
        recipe = tiny_recipe(**sections)
        framework = build_framework(build_encoders(recipe.model, seed), recipe, 10, 100)
        weights = {name: value.clone().contiguous() for name, value in framework.state_dict().items()}
        for name, value in weights.items():
            if name.endswith("agreement.histogram") and threshold is not None:
                value[int((threshold + 1) / 2 * len(value))] = 1.0
        add_checkpoint(run, 4, 10.0, recipe, weights)
        write_logs(run, 4)
        return run

    return make


def write_logs(run: Path, steps: int, **more: float) -> None:
    rows = [
        {
            "step": step,
            "loss": 1 / step,
            "ahrl": 0.5,
            "lr": 0.1,
            "samples_per_second": 50.0,
            "data_wait": 0.25,
            **more,
        }
        for step in range(1, steps + 1)
    ]
    recalls = {"r1": 1.0, "r5": 2.0, "r10": 30.0}
    (run / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "lo')
    row = {"step": steps, "split": "val", "i2t": recalls, "t2i": recalls, "rsum": 66.0}
    (run / EVALUATIONS).write_text(json.dumps(row) + "\n")
