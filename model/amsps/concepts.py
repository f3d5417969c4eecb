"""The concept vocabulary: a file that `itm shards concepts` wrote, and the graph that its counts give.

Which concepts a caption names is told by the one who cut the captions into words, `concept_labels` in
`shards/tools/concepts.py`: its column k is concept k here.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError

from model.errors import ModelError

FORMAT_VERSION = 1

_Count = Annotated[int, Field(ge=0)]


class GraphSettings(BaseModel):
    """How counts become edges (CVSE, section 3.2), within bounds that no power overflows."""

    s: float = Field(5.0, ge=1e-6, le=1e6)
    u: float = Field(0.02, ge=-1, le=1)
    threshold: float = Field(0.3, allow_inf_nan=False)
    """Of the scaled confidence, from which on there is an edge."""
    weight: float = Field(0.25, ge=0, le=1e6)
    """What the edges into a concept sum to, against 1 for itself."""


class _Concept(BaseModel):
    word: str = Field(min_length=1)
    count: _Count


class _Document(BaseModel):
    """What is read of the file; it has more."""

    format_version: int
    graph: GraphSettings
    concepts: list[_Concept] = Field(min_length=1)
    co_occurrence: list[list[_Count]]


@dataclass(frozen=True)
class Concepts:
    """The q concepts and how often captions name them."""

    words: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    """(q,): captions that name the concept."""
    co_occurrence: npt.NDArray[np.int64]
    """(q, q), symmetric: captions that name both. The diagonal is not looked at."""
    graph: GraphSettings

    @property
    def adjacency(self) -> npt.NDArray[np.float64]:
        """(q, q): see `adjacency`."""
        return adjacency(self.counts, self.co_occurrence, self.graph)


def adjacency(
    counts: npt.NDArray[np.int64], co_occurrence: npt.NDArray[np.int64], graph: GraphSettings
) -> npt.NDArray[np.float64]:
    """Counts N (q,) and co-occurrence E (q, q) -> the symmetrically normalised adjacency (q, q).

    `P_ij = E_ij / N_i`; `B_ij = s^(P_ij - u) - s^(-u)`; `H_ij = [B_ij >= threshold]`, without self-loops;
    `A = weight * H_ij / sum_i H_ij + I`; the result is `D^-1/2 A^T D^-1/2` with `D_i = sum_j A_ij`: a concept
    gathers from those that lead to it (CVSE, Wang et al., ECCV 2020, section 3.2; the transpose is its code's). A
    concept that none leads to has no edges, instead of a division by zero (ours).
    """
    probability = co_occurrence / np.maximum(counts, 1)[:, None]
    confidence = graph.s ** (probability - graph.u) - graph.s**-graph.u
    edges = confidence >= graph.threshold
    np.fill_diagonal(edges, False)
    weighted = graph.weight * edges / np.maximum(edges.sum(axis=0), 1) + np.eye(len(counts))
    scale = weighted.sum(axis=1) ** -0.5
    normalised: npt.NDArray[np.float64] = scale[:, None] * weighted.T * scale
    return normalised


def read_concepts(path: Path) -> Concepts:
    """Read a concept file. Raises `ModelError` when it is missing, damaged or of another version."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); `itm shards concepts` makes it") from None
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version is not None and version != FORMAT_VERSION:
        raise ModelError(
            f"{path}: format version {version}, this program reads {FORMAT_VERSION}; "
            "make it anew with `itm shards concepts`"
        )
    try:
        document = _Document.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        reason = "should be an object with keys" if first["type"] == "model_type" else first["msg"]
        raise _damaged(path, f"{place}: {reason}" if place else f"it {reason}") from None
    words = tuple(concept.word for concept in document.concepts)
    size = len(words)
    if len(set(words)) < size:
        raise _damaged(path, f"the concept {max(words, key=words.count)!r} is given twice")
    if any(len(row) != size for row in document.co_occurrence) or len(document.co_occurrence) != size:
        raise _damaged(path, f"co_occurrence is not {size} x {size}, as its concepts are")
    counts = np.array([concept.count for concept in document.concepts], np.int64)
    together = np.array(document.co_occurrence, np.int64)
    apart = ~np.eye(size, dtype=np.bool_)
    if (together != together.T).any() or (together > np.minimum(counts[:, None], counts))[apart].any():
        raise _damaged(path, "co_occurrence and counts contradict each other")
    return Concepts(words, counts, together, document.graph)


def _damaged(path: Path, reason: str) -> ModelError:
    return ModelError(f"{path}: not a concept file ({reason}); make it with `itm shards concepts`")
