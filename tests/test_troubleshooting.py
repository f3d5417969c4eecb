"""docs/troubleshooting.md is searched by what the programs print, so it names only what they do print."""

import ast
import re

from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs/troubleshooting.md"
VALUE = "\0"


def printed() -> list[str]:
    """Every text of the programs, with a mark in the place of each value."""
    texts = [path.read_text() for path in (REPOSITORY / "slurm").glob("*.sbatch")]
    for package in ("shards", "model", "trainer", "slurm"):
        for path in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


def test_every_line_that_it_explains_is_one_that_is_printed() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    shown = [text for row in rows for text in re.findall("`([^`]+)`", row.split(" | ")[0])]
    assert len(shown) > 30
    known = printed()
    for text in shown:
        pattern = ".*".join(re.escape(part) for part in text.split("..."))
        assert any(re.search(pattern, one, re.DOTALL) for one in known), text
