"""Concept files as `itm shards concepts` writes them, and the graph against loops."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.amsps.concepts import Concepts, GraphSettings, adjacency, read_concepts
from model.amsps.word_features import word_features
from model.config import ModelConfig
from model.errors import ModelError
from model.tokenizer import build_tokenizer
from model.towers.build import build_towers
from shards.tools.concepts import Vocabulary, concept_labels, write_vocabulary
from shards.tools.word_classes import Candidate

CANDIDATES = (
    Candidate("dog", "object", ("dog", "dogs")),
    Candidate("man", "object", ("man", "men")),
    Candidate("run", "motion", ("run", "running")),
    Candidate("red", "property", ("red",)),
)
COUNTS = [50, 40, 9, 0]
TOGETHER = [[0, 12, 8, 0], [12, 0, 2, 0], [8, 2, 0, 0], [0, 0, 0, 0]]


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(CANDIDATES, np.array(COUNTS), np.array(TOGETHER), 100, ())


@pytest.fixture
def path(tmp_path: Path, vocabulary: Vocabulary) -> Path:
    write_vocabulary(tmp_path / "concepts.json", vocabulary)
    return tmp_path / "concepts.json"


def adjacency_with_loops(counts: list[int], together: list[list[int]], graph: GraphSettings) -> list[list[float]]:
    size = len(counts)
    edge = [[0] * size for _ in counts]
    for i in range(size):
        for j in range(size):
            if i != j and counts[i]:
                scaled = graph.s ** (together[i][j] / counts[i] - graph.u) - graph.s**-graph.u
                edge[i][j] = int(scaled >= graph.threshold)
    weighted = [[float(i == j) for j in range(size)] for i in range(size)]
    for j in range(size):
        into = sum(edge[i][j] for i in range(size))
        for i in range(size):
            if edge[i][j]:
                weighted[i][j] += graph.weight / into
    degree = [sum(row) for row in weighted]
    return [[weighted[j][i] / (degree[i] * degree[j]) ** 0.5 for j in range(size)] for i in range(size)]


def test_a_file_of_the_shards_tool_reads_back(path: Path, vocabulary: Vocabulary) -> None:
    concepts = read_concepts(path)
    assert concepts.words == ("dog", "man", "run", "red")
    assert concepts.counts.tolist() == COUNTS
    assert concepts.co_occurrence.tolist() == TOGETHER
    assert concepts.graph == GraphSettings(s=5, u=0.02, threshold=0.3, weight=0.25)
    np.testing.assert_array_equal(concepts.adjacency, vocabulary.adjacency)
    np.testing.assert_allclose(concepts.adjacency, json.loads(path.read_text())["adjacency"], atol=1e-8)


def test_labels_of_the_shards_tool_are_columns_of_the_words(path: Path, vocabulary: Vocabulary) -> None:
    words = read_concepts(path).words
    labels = concept_labels(["Two men, running DOGS", "nothing known", "red red"], vocabulary)
    named = [[words[column] for column in np.flatnonzero(row)] for row in labels]
    assert named == [["dog", "man", "run"], [], ["red"]]


@pytest.mark.parametrize("seed", range(4))
def test_graph_is_that_of_the_loops(seed: int) -> None:
    draw = np.random.default_rng(seed)
    counts = draw.integers(0, 40, 9)
    shared = np.triu(draw.integers(0, 40, (9, 9)), 1)
    together = np.minimum(shared + shared.T, np.minimum(counts[:, None], counts))
    np.fill_diagonal(together, counts)  # which is not looked at
    graph = GraphSettings(threshold=draw.choice([0.1, 0.3, 1.0]))
    expected = adjacency_with_loops(counts.tolist(), together.tolist(), graph)
    np.testing.assert_allclose(adjacency(counts, together, graph), expected, rtol=1e-12)


def test_the_graphs_defaults_are_those_of_cvse() -> None:
    assert GraphSettings().model_dump() == {"s": 5, "u": 0.02, "threshold": 0.3, "weight": 0.25}


def test_graph_of_two_by_hand() -> None:
    # P_01 = 1/2: 5^0.48 - 5^-0.02 = 1.2 is an edge; P_10 = 1/10: 5^0.08 - 5^-0.02 = 0.17 is none
    concepts = Concepts(("a", "b"), np.array([2, 10]), np.array([[0, 1], [1, 0]]), GraphSettings())
    np.testing.assert_allclose(concepts.adjacency, [[1 / 1.25, 0], [0.25 / 1.25**0.5, 1]], rtol=1e-12)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.json: cannot be read \(No such file.*itm shards concepts"):
        read_concepts(tmp_path / "none.json")


@pytest.mark.parametrize("version", [0, 2, "1"])
def test_another_version_is_refused(path: Path, version: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": version}))
    with pytest.raises(ModelError, match=f"format version {version}, this program reads 1"):
        read_concepts(path)


DAMAGES = {
    "no version": {"format_version": None},
    "no concepts": {"concepts": []},
    "no word": {"concepts": [{"word": "", "count": 1}]},
    "negative count": {"concepts": [{"word": "dog", "count": -1}]},
    "rows missing": {"co_occurrence": TOGETHER[:3]},
    "columns missing": {"co_occurrence": [row[:3] for row in TOGETHER]},
    "not symmetric": {"co_occurrence": [[0, 5, 8, 0], *TOGETHER[1:]]},
    "more than counted": {"co_occurrence": [[0, 12, 10, 0], TOGETHER[1], [10, 2, 0, 0], TOGETHER[3]]},
    "no graph": {"graph": None},
    "a graph that cannot be": {"graph": {"s": 0.0}},
    "a graph that overflows": {"graph": {"s": 1e308, "u": -9}},
    "a graph of infinities": {"graph": {"weight": float("inf")}},
    "a concept twice": {
        "concepts": [{"word": word, "count": 50} for word in ("dog", "man", "dog", "red")],
        "co_occurrence": [[0] * 4] * 4,
    },
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_refused_in_one_line(path: Path, damage: dict[str, object]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(ModelError, match=r"concepts\.json: not a concept file \(.+\); make it with") as caught:
        read_concepts(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b'{"format_version": 1}', b"\xff", b'{"format_ver'])
def test_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ModelError, match=r"not a concept file"):
        read_concepts(tmp_path / "other")


def test_an_object_is_asked_for_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ModelError, match=r"not a concept file \(it should be an object with keys\)"):
        read_concepts(tmp_path / "list.json")


def test_word_features_are_the_towers_own_and_do_not_depend_on_batches() -> None:
    tower = build_towers(ModelConfig(architecture="itm-tiny")).text.eval()
    tokenize = build_tokenizer("itm-tiny")
    words = ["dog", "man", "run", "red", "skateboard"]
    features = word_features(words, tokenize, lambda tokens: tower(tokens).pooled, batch_size=2)
    expected = tower(tokenize(words)).pooled
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features, expected / expected.norm(dim=1, keepdim=True))
    assert (features @ features.T - torch.eye(5)).abs().max() > 1e-3
