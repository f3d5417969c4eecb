"""Embeddings -> an index for nearest neighbours (faiss), by dot product.

DIR/index.faiss      the index
    items.parquet    sample, key and, of texts, caption of each item, in the index's order
    index.json       kind, side, what it was made from
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.atomic import building
from shards.errors import DataError
from trainer.errors import RunError
from trainer.search.embeddings import About, Side, read_about, read_embeddings, read_items

Kind = Literal["flat", "ivf", "hnsw"]
ABOUT, INDEX, ITEMS = "index.json", "index.faiss", "items.parquet"
TRAIN_PER_LIST = 64
"""Embeddings an IVF list is trained on."""
PROBES = 16
"""IVF lists that a query looks into."""
NEIGHBOURS, EF_BUILD, EF_SEARCH = 32, 200, 128
"""HNSW: links an item, candidates kept while building and while searching."""
QUERIES, TOP = 256, 10
"""Items asked for their nearest in the check against exact search."""


@dataclass(frozen=True)
class IndexAbout:
    """What an index holds."""

    kind: Kind
    side: Side
    items: int
    recall: float
    """Share of the 10 nearest that it finds, of a sample of its own items; 1 where it is exact."""
    embeddings: About


def build_index(
    embeddings: Path,
    out: Path,
    side: Side = "images",
    kind: Kind = "flat",
    on_items: Callable[[int], None] = lambda _count: None,
) -> IndexAbout:
    """Index one side of a folder of embeddings into a new folder, which appears when it is whole.

    `flat` compares with everything and is exact; `ivf` looks into the 16 nearest of about 4 sqrt(N) lists; `hnsw`
    walks a graph. Trained on a GPU where this faiss has one. Raises `RunError` or `DataError`.
    """
    import faiss

    if out.exists():
        raise RunError(f"--out {out}: is there already; remove it, or give another folder")
    about = read_about(embeddings)
    count = getattr(about, side)
    if not count:
        raise DataError(f"{embeddings}: holds no {side}")
    index = _new_index(kind, about.embed_dim, count)
    if not index.is_trained:
        _train(index, embeddings, side, about)
    for block in read_embeddings(embeddings, side, about):
        index.add(block)
        on_items(len(block))
    recall = 1.0 if kind == "flat" else _recall(index, embeddings, side, about)
    made = IndexAbout(kind, side, count, recall, about)
    out.parent.mkdir(parents=True, exist_ok=True)
    with building(out) as folder:
        faiss.write_index(index, str(folder / INDEX))
        pq.write_table(read_items(embeddings, side), folder / ITEMS)
        (folder / ABOUT).write_text(json.dumps(asdict(made), indent=2) + "\n")
    return made


def _new_index(kind: Kind, dim: int, count: int) -> Any:
    import faiss

    metric = faiss.METRIC_INNER_PRODUCT
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dim, NEIGHBOURS, metric)
        graph.hnsw.efConstruction, graph.hnsw.efSearch = EF_BUILD, EF_SEARCH
        return graph
    # each list keeps 4 items at least
    lists = max(1, min(round(4 * math.sqrt(count)), count // 4))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, metric)
    index.nprobe = min(PROBES, lists)
    index.cp.min_points_per_centroid = 1  # it would warn on standard output
    return index


def _train(index: Any, embeddings: Path, side: Side, about: About) -> None:
    """On items spread evenly over all."""
    import faiss

    count = getattr(about, side)
    wanted = np.linspace(0, count - 1, min(count, TRAIN_PER_LIST * index.nlist)).astype(np.int64)
    sample = _rows(embeddings, side, about, np.unique(wanted))
    if faiss.get_num_gpus():
        index.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(about.embed_dim))
    index.train(sample)


def _rows(embeddings: Path, side: Side, about: About, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """(n, D) of the (n,) sorted row numbers."""
    found, first = [], 0
    for block in read_embeddings(embeddings, side, about):
        inside = rows[(rows >= first) & (rows < first + len(block))] - first
        found.append(block[inside])
        first += len(block)
    return np.concatenate(found)


def _recall(index: Any, embeddings: Path, side: Side, about: About) -> float:
    """Against exact search, for some of the items as queries."""
    import faiss

    count: int = getattr(about, side)
    top = min(TOP, count)
    rows = np.unique(np.linspace(0, count - 1, min(count, QUERIES)).astype(np.int64))
    queries = _rows(embeddings, side, about, rows)
    exact = faiss.ResultHeap(len(queries), top, keep_max=True)
    first = 0
    for block in read_embeddings(embeddings, side, about):
        scores, places = faiss.knn(queries, block, min(top, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        exact.add_result(scores, places + first)
        first += len(block)
    exact.finalize()
    _, found = index.search(queries, top)
    hits: int = sum(len(np.intersect1d(a, b)) for a, b in zip(exact.I, found, strict=True))
    return round(hits / (top * len(queries)), 4)


@dataclass(frozen=True)
class Index:
    """An index, opened."""

    about: IndexAbout
    faiss: Any
    items: pa.Table

    def search(self, queries: npt.NDArray[np.float32], top: int) -> tuple[npt.NDArray[np.float32], Any]:
        """(Q, D) -> (Q, k) scores, best first, and (Q, k) rows of `items`; k is `top`, or all there are."""
        scores, rows = self.faiss.search(np.ascontiguousarray(queries, np.float32), min(top, self.about.items))
        return scores, rows


def open_index(folder: Path) -> Index:
    """Raises `DataError` for a folder that `build_index` did not write."""
    import faiss

    try:
        settings = json.loads((folder / ABOUT).read_text())
        about = IndexAbout(**settings | {"embeddings": About(**settings["embeddings"])})
        index = faiss.read_index(str(folder / INDEX))
        return Index(about, index, pq.read_table(folder / ITEMS))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{folder}: no index that `itm index` wrote ({reason})") from None
