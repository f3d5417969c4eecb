"""The concept vocabulary of a data set: its most frequent objects, motions and properties, and how they meet.

Mined in two passes over the captions, each bounded in memory and parallel over shards: the first counts word
forms and draws a sample of captions, which a tagger reads to find the words' classes and inflections; the
second counts, caption by caption, which concepts are named together.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.atomic import replacing
from shards.errors import DataError, told
from shards.manifest import Manifest
from shards.progress import counted
from shards.reader import ShardReader
from shards.tools.concept_graph import GraphOptions, adjacency
from shards.tools.sweep import ShardWork, sweep
from shards.tools.word_classes import GROUPS, Candidate, candidates, tag_captions
from shards.tools.words import count_words, shard_captions, words

FORMAT_VERSION = 1
SHARES = (7, 2, 1)
"""Objects : motions : properties."""
TAGGED = 20_000
"""Captions, about, that the tagger reads."""
_SPARE = 1.25  # candidates that the second pass counts, for each that is wanted: only it counts captions exactly
_BLOCK = 8192  # captions; float32 adds up so many ones exactly


@dataclass(frozen=True)
class Vocabulary:
    """The q concepts, grouped as `GROUPS`, the most frequent first in each group."""

    concepts: tuple[Candidate, ...]
    counts: npt.NDArray[np.int64]
    """(q,): captions that name the concept."""
    co_occurrence: npt.NDArray[np.int64]
    """(q, q), symmetric: captions that name both; zeros on the diagonal."""
    captions: int
    """All captions that were read."""
    sources: tuple[dict[str, object], ...]
    """The data sets: name, split, manifest fingerprint, samples and captions of each."""
    graph: GraphOptions = field(default_factory=GraphOptions)

    @cached_property
    def form_to_concept(self) -> dict[str, int]:
        """Word form -> the index of its concept."""
        return forms_of(self.concepts)

    @property
    def adjacency(self) -> npt.NDArray[np.float64]:
        """(q, q): see `shards.tools.concept_graph.adjacency`."""
        return adjacency(self.counts, self.co_occurrence, self.graph)


def forms_of(concepts: Sequence[Candidate]) -> dict[str, int]:
    return {form: index for index, concept in enumerate(concepts) for form in concept.forms}


def label_captions(captions: Sequence[str], form_to_concept: dict[str, int], size: int) -> npt.NDArray[np.bool_]:
    """Which of `size` concepts each of C captions names: (C, size) bool."""
    labels = np.zeros((len(captions), size), np.bool_)
    for row, caption in enumerate(captions):
        for word in words(caption):
            if (concept := form_to_concept.get(word)) is not None:
                labels[row, concept] = True
    return labels


def concept_labels(captions: Sequence[str], vocabulary: Vocabulary) -> npt.NDArray[np.bool_]:
    """Which concepts each of C captions names: (C, q) bool. Needs no tagger."""
    return label_captions(captions, vocabulary.form_to_concept, len(vocabulary.concepts))


def mine_concepts(
    manifests: Sequence[Manifest],
    size: int = 300,
    *,
    graph: GraphOptions | None = None,
    tagged: int = TAGGED,
    processes: int = 1,
    progress: Callable[[str, int], None] = lambda _stage, _count: None,
) -> Vocabulary:
    """Find the `size` concepts of the captions; fewer where a group has not so many words.

    `progress` is called with "count" and "relate" and the samples done, and with "tag" and the captions tagged.
    Raises `DataError` when the captions hold no such word at all.
    """
    progress("count", 0)
    total = count_words(
        manifests, sample=tagged, processes=processes, on_samples=lambda count: progress("count", count)
    )
    progress("tag", 0)
    tags = tag_captions(total.sample, processes=processes, on_captions=lambda count: progress("tag", count))
    shortlist = _most_frequent(candidates(total.counts, tags), _group_sizes(round(_SPARE * size)))
    if not shortlist:
        names = ", ".join(manifest.location for manifest in manifests)
        raise DataError(
            f"{names}: no word of {counted(total.captions, 'caption')} can be a concept: an English noun, verb or "
            "adjective, but none of place, of amount, or like `picture`; give more captions, or others"
        )
    progress("relate", 0)
    together = np.zeros((len(shortlist), len(shortlist)), np.int64)
    relate = partial(_relate_shard, forms_of(shortlist), len(shortlist))
    for part in sweep(relate, manifests, processes=processes, on_samples=lambda count: progress("relate", count)):
        together += part
    exact = together.diagonal()
    chosen = _choose(shortlist, exact, _group_sizes(size))
    co_occurrence = together[np.ix_(chosen, chosen)]
    np.fill_diagonal(co_occurrence, 0)
    concepts = tuple(shortlist[place] for place in chosen)
    return Vocabulary(
        concepts, exact[chosen], co_occurrence, total.captions, _sources(manifests), graph or GraphOptions()
    )


def _group_sizes(size: int) -> dict[str, int]:
    small = {group: round(size * share / sum(SHARES)) for group, share in zip(GROUPS[1:], SHARES[1:], strict=True)}
    return {GROUPS[0]: size - sum(small.values()), **small}


def _most_frequent(found: Sequence[Candidate], sizes: dict[str, int]) -> list[Candidate]:
    return [one for group in GROUPS for one in [one for one in found if one.group == group][: sizes[group]]]


def _choose(shortlist: list[Candidate], exact: npt.NDArray[np.int64], sizes: dict[str, int]) -> list[int]:
    chosen = []
    for group in GROUPS:
        places = [place for place, one in enumerate(shortlist) if one.group == group]
        chosen += sorted(places, key=lambda place: (-exact[place], shortlist[place].word))[: sizes[group]]
    return chosen


def _relate_shard(forms: dict[str, int], size: int, reader: ShardReader, work: ShardWork) -> npt.NDArray[np.int64]:
    """(size, size): captions of a shard that name both; on the diagonal, captions that name the one."""
    together = np.zeros((size, size), np.int64)
    pending: list[str] = []
    for captions in shard_captions(reader, work.shard):
        pending += captions
        if len(pending) >= _BLOCK:
            together += _relate(pending, forms, size)
            pending = []
    return together + _relate(pending, forms, size)


def _relate(captions: list[str], forms: dict[str, int], size: int) -> npt.NDArray[np.int64]:
    labels = label_captions(captions, forms, size).astype(np.float32)
    return (labels.T @ labels).astype(np.int64)


def _sources(manifests: Sequence[Manifest]) -> tuple[dict[str, object], ...]:
    return tuple(
        {
            "dataset": manifest.dataset,
            "split": manifest.split,
            "fingerprint": manifest.fingerprint,
            "samples": manifest.num_samples,
            "captions": manifest.num_captions,
        }
        for manifest in manifests
    )


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """Write the concepts, their counts and the finished graph as one JSON file, a concept a line."""
    concepts = [
        {"word": concept.word, "group": concept.group, "count": int(count), "forms": list(concept.forms)}
        for concept, count in zip(vocabulary.concepts, vocabulary.counts, strict=True)
    ]
    # rounded: the last bits of a power are another library's choice
    graph = [[round(value, 8) or 0 for value in row] for row in vocabulary.adjacency.tolist()]
    header = {
        "format_version": FORMAT_VERSION,
        "sources": list(vocabulary.sources),
        "captions": vocabulary.captions,
        "graph": asdict(vocabulary.graph),
    }
    head = json.dumps(header, indent=2).removesuffix("\n}")
    tables = {"concepts": concepts, "co_occurrence": vocabulary.co_occurrence.tolist(), "adjacency": graph}
    with replacing(path) as stream:
        stream.write(head.encode())
        for name, rows in tables.items():
            lines = ",\n    ".join(json.dumps(row, ensure_ascii=False) for row in rows)
            stream.write(f',\n  "{name}": [\n    {lines}\n  ]'.encode())
        stream.write(b"\n}\n")


def _read_candidates(rows: list[dict[str, Any]]) -> tuple[Candidate, ...]:
    taken: dict[str, str] = {}
    for row in rows:
        word, forms = row["word"], row["forms"]
        if not isinstance(forms, list) or not all(isinstance(form, str) for form in forms):
            raise ValueError(f"the forms of {word!r} are {forms!r}, not a list of words")
        for form in forms:
            if form in taken:
                raise ValueError(f"the form {form!r} of {word!r} is there already, of {taken[form]!r}")
            taken[form] = word
    return tuple(Candidate(row["word"], row["group"], tuple(row["forms"])) for row in rows)


def read_vocabulary(path: Path) -> Vocabulary:
    """Read what `write_vocabulary` wrote. Raises `DataError` when the file is missing or something else."""
    try:
        document = json.loads(path.read_bytes())
        if (version := document["format_version"]) != FORMAT_VERSION:
            raise DataError(f"{path}: format version {version}, this program reads {FORMAT_VERSION}")
        rows = document["concepts"]
        size = len(rows)
        return Vocabulary(
            _read_candidates(rows),
            np.array([row["count"] for row in rows], np.int64),
            np.array(document["co_occurrence"], np.int64).reshape(size, size),
            document["captions"],
            tuple(document["sources"]),
            GraphOptions(**document["graph"]),
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); `itm shards concepts` makes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a concept file ({told(error)}); make it with `itm shards concepts`") from None
