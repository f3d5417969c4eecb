"""The page: it renders from runs on disk, needs nothing from elsewhere, and marks the right hits."""

import base64
import io
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from shards.manifest import Manifest, read_manifest
from trainer.embed import Embeddings
from trainer.errors import RunError
from trainer.report.curves import curves
from trainer.report.gallery import Thumbnails, image_queries, text_queries
from trainer.report.page import write_report

VOID = {"meta", "img", "br", "link", "hr", "input"}


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


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(
    tmp_path: Path, demo: Path, make_run: Callable[..., Path]
) -> None:
    runs, out = (
        [make_run(tmp_path / "first", 1), make_run(tmp_path / "second & last", 2)],
        tmp_path / "deep/page.html",
    )
    embedded: list[int] = []
    evaluations = write_report(runs, demo / "val", out, on_batch=embedded.append)
    assert sum(embedded) == 2 * 6
    text = out.read_text(encoding="utf-8")
    assert text.lower().startswith("<!doctype html>")
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object"}
        for name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert "@import" not in text
    assert "url(http" not in text
    assert len(page.all("svg")) == 1
    assert "6 images" in page.text
    assert "first and second & last" in page.text
    assert "<b>folder</b>" not in text  # the recipe's text, not markup
    assert "<b>folder</b>" in page.text
    for evaluation in evaluations:
        assert f"{evaluation.result.rsum:.1f}" in page.text
    assert f"{evaluations[0].chance.rsum:.1f}" in page.text
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def test_marks_on_the_page_are_those_of_the_last_runs_hits(
    tmp_path: Path, demo: Path, make_run: Callable[..., Path]
) -> None:
    out = tmp_path / "page.html"
    *_, last = write_report([make_run(tmp_path / "a", 1), make_run(tmp_path / "b", 2)], demo / "val", out)
    page = Page(out.read_text(encoding="utf-8"))
    pictures, sentences = (make(last.manifest, last.embeddings, 8) for make in (text_queries, image_queries))
    images = [item for item in page.all("img") if item["alt"] != "query"]
    assert [item["src"] for item in images] == [hit.content for query in pictures for hit in query.hits]
    assert [item.get("class") == "right" for item in images] == [hit.right for q in pictures for hit in q.hits]
    lines = page.all("li")
    assert [item.get("class") == "right" for item in lines] == [hit.right for q in sentences for hit in q.hits]
    for query in sentences:
        assert all(hit.content in page.text for hit in query.hits)


def test_runs_of_one_name_are_told_apart_by_their_parents(
    tmp_path: Path, demo: Path, make_run: Callable[..., Path]
) -> None:
    out = tmp_path / "page.html"
    write_report([make_run(tmp_path / "one" / "run", 1), make_run(tmp_path / "two" / "run", 2)], demo / "val", out)
    page = Page(out.read_text(encoding="utf-8"))
    assert "one/run and two/run" in page.text


def test_the_current_folder_can_be_a_run(
    tmp_path: Path, demo: Path, make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_run(tmp_path / "here"))
    write_report([Path()], demo / "val", Path("page.html"))
    assert "here: image-text matching" in Page(Path("page.html").read_text(encoding="utf-8")).text


def test_a_folder_that_is_no_run_is_a_users_error_and_nothing_is_written(tmp_path: Path, demo: Path) -> None:
    with pytest.raises(RunError, match=r"no metrics\.jsonl in it; give the folder of a run"):
        write_report([tmp_path], demo / "val", tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def shown(demo: Path) -> tuple[Manifest, Embeddings]:
    """Six images on the axes, two captions each: the first at its own image, the second at the next one."""
    manifest = read_manifest(demo / "val")
    eye = torch.eye(6)
    owner = torch.arange(6).repeat_interleave(2)
    texts = torch.stack([eye[place // 2 if place % 2 == 0 else (place // 2 + 1) % 6] for place in range(12)])
    # a little of every axis, so that no two scores are equal
    texts = texts + 0.1 * torch.rand(texts.shape, generator=torch.Generator().manual_seed(0))
    return manifest, Embeddings(eye, texts, owner, [f"caption {place}" for place in range(12)])


def test_sentences_find_their_pictures_and_only_those_are_right(shown: tuple[Manifest, Embeddings]) -> None:
    manifest, embeddings = shown
    pictures = Thumbnails(manifest)
    number_of = {pictures[image]: image for image in range(6)}
    queries = text_queries(manifest, embeddings, 100)
    assert [query.content for query in queries] == embeddings.captions
    for place, query in enumerate(queries):
        own = place // 2
        order = (embeddings.images @ embeddings.texts[place]).argsort(descending=True).tolist()
        assert [number_of[hit.content] for hit in query.hits] == order[:5]
        assert [hit.right for hit in query.hits] == [image == own for image in order[:5]]
        assert query.rank == order.index(own) + 1
        assert (query.rank == 1) == (place % 2 == 0)


def test_pictures_find_their_sentences_and_only_those_are_right(shown: tuple[Manifest, Embeddings]) -> None:
    manifest, embeddings = shown
    pictures = Thumbnails(manifest)
    queries = image_queries(manifest, embeddings, 100)
    assert [query.content for query in queries] == [pictures[image] for image in range(6)]
    for image, query in enumerate(queries):
        own = {f"caption {2 * image}", f"caption {2 * image + 1}"}
        assert len(query.hits) == 5
        assert {hit.content for hit in query.hits[:2]} == {
            f"caption {2 * image}",
            f"caption {(2 * image - 1) % 12}",
        }
        assert [hit.right for hit in query.hits] == [hit.content in own for hit in query.hits]
        scores = [hit.score for hit in query.hits]
        assert scores == sorted(scores, reverse=True)


def test_a_picture_without_a_sentence_is_no_query_and_does_not_shift_the_others(
    shown: tuple[Manifest, Embeddings],
) -> None:
    manifest, embeddings = shown
    kept = embeddings.caption_image != 2
    captions = [text for text, keep in zip(embeddings.captions, kept, strict=True) if keep]
    fewer = Embeddings(embeddings.images, embeddings.texts[kept], embeddings.caption_image[kept], captions)
    pictures = Thumbnails(manifest)
    queries = image_queries(manifest, fewer, 100)
    assert [query.content for query in queries] == [pictures[image] for image in (0, 1, 3, 4, 5)]
    for query in queries:
        assert query.rank == [hit.right for hit in query.hits].index(True) + 1


def test_a_gallery_is_drawn_anew_only_with_another_seed(shown: tuple[Manifest, Embeddings]) -> None:
    def drawn(seed: int) -> list[str]:
        return [query.content for query in text_queries(*shown, 4, seed)]

    assert len(set(drawn(0))) == 4
    assert drawn(0) == drawn(0)
    assert any(drawn(0) != drawn(seed) for seed in range(1, 5))


def test_a_thumbnail_is_a_small_jpeg(shown: tuple[Manifest, Embeddings]) -> None:
    head, _, data = Thumbnails(shown[0])[3].partition(",")
    assert head == "data:image/jpeg;base64"
    assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= 120


def test_curves_of_a_run_that_has_logged_nothing_yet_are_still_drawn() -> None:
    svg = curves({"new": ([], []), "a < b & c": ([{"step": 1, "loss": 1.0, "lr": 0.1}], [])})
    assert svg.startswith("<svg")
    Page(svg)
