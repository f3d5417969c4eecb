"""One query against an index: ranked results, in the terminal and as a page."""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from shards.atomic import replacing
from shards.manifest import Manifest
from trainer.errors import RunError
from trainer.inference import ImageTextModel
from trainer.report.pictures import THUMBNAIL, Thumbnails, as_uri
from trainer.search.index import Index


@dataclass(frozen=True)
class Result:
    """One item found."""

    rank: int
    score: float
    """Cosine similarity."""
    key: str
    sample: int
    caption: str | None
    """None where the index is of images."""


@dataclass(frozen=True)
class Query:
    """A sentence, or a picture's file."""

    text: str | None = None
    image: Path | None = None

    def __str__(self) -> str:
        return self.text if self.text is not None else str(self.image)


def search(model: ImageTextModel, index: Index, query: Query, top: int = 10) -> list[Result]:
    """The items nearest to a query, best first. Raises `RunError` where the model and the index do not fit."""
    if model.embed_dim != index.about.embeddings.embed_dim:
        made = index.about.embeddings
        raise RunError(
            f"{model.source}: embeds in {model.embed_dim} dimensions, the index has {made.embed_dim}; "
            f"give the model that it was made with, {made.model}"
        )
    if query.text is not None:
        embedding = model.encode_text([query.text])
    else:
        assert query.image is not None
        embedding = model.encode_images([query.image])
    scores, rows = index.search(embedding.cpu().numpy(), top)
    found = [(float(score), int(row)) for score, row in zip(scores[0], rows[0], strict=True) if row >= 0]
    items = index.items.take([row for _, row in found]).to_pylist()
    return [
        Result(rank, score, item["key"], item["sample"], item.get("caption"))
        for rank, ((score, _), item) in enumerate(zip(found, items, strict=True), 1)
    ]


def write_page(query: Query, results: list[Result], manifest: Manifest, out: Path) -> None:
    """The query and what was found as one self-contained HTML file, with the pictures of `manifest`."""
    pictures = Thumbnails(manifest)
    environment = Environment(
        loader=PackageLoader("trainer.search", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("results.html.j2").render(
        query=str(query),
        picture=_small(query.image) if query.image else None,
        results=[(result, pictures[result.sample]) for result in results],
        split=manifest,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as stream:
        stream.write(page.encode())


def _small(file: Path) -> str:
    """A picture's file as a data URI."""
    return as_uri(file.read_bytes(), 2 * THUMBNAIL)
