import io
import json
import random
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.convert import Options, write_split
from shards.errors import DataError
from shards.manifest import Manifest, read_manifest
from shards.sources.record import Record
from shards.tools.concept_graph import GraphOptions, adjacency
from shards.tools.concepts import Vocabulary, concept_labels, mine_concepts, read_vocabulary, write_vocabulary
from shards.tools.word_classes import Candidate, candidates, tag_captions
from shards.tools.words import count_words, tokens, words

Itm = Callable[..., subprocess.CompletedProcess[str]]

SUBJECTS = ("a young man", "two women", "a brown dog", "three black dogs", "the little girl", "some men")
VERBS = ("rides a red bike", "are riding bikes", "jumped over a wall", "is jumping", "plays with a ball")
PLACES = ("in the park.", "on a white beach", "near the water", "in front of a large building", "")


def caption(number: int) -> str:
    draw = random.Random(number)
    return " ".join((draw.choice(SUBJECTS), draw.choice(VERBS), draw.choice(PLACES))).strip()


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(stream, "PNG")
    return stream.getvalue()


def shards_of(root: Path, captions: list[tuple[str, ...]], per_shard: int = 50) -> Manifest:
    records = (
        Record(f"sample-{number:05d}", number, texts, partial(bytes, picture(number)))
        for number, texts in enumerate(captions)
    )
    write_split(records, root, dataset="words", split="train", options=Options(samples_per_shard=per_shard))
    return read_manifest(root)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """200 samples in four shards, two captions each."""
    captions = [(caption(2 * number), caption(2 * number + 1)) for number in range(200)]
    return shards_of(tmp_path_factory.mktemp("scenes") / "train", captions)


def test_words_of_a_caption() -> None:
    assert words("A dog's red T-shirt, 25 times.") == ["a", "dog", "red", "t-shirt", "times"]
    assert words(f"a {'o' * 40} {'x' * 41} {'n' * 41}'s dog") == ["a", "o" * 40, "dog"]
    assert words("Caf\u00e9 \u2013 the boy\u2019s \u2026 !") == ["caf\u00e9", "the", "boy"]
    assert tokens("No, no.") == ["no", ",", "no", "."]


@given(st.text())
def test_any_text_has_words(text: str) -> None:
    for word in words(text):
        assert word and word == word.lower()
        assert " " not in word


def test_a_word_without_an_end_is_not_tagged() -> None:
    assert {form for form, _ in tag_captions([f"a dog {'abcdefghij' * 60} runs"])} == {"a", "dog", "runs"}


def test_each_caption_counts_a_word_once(tmp_path: Path) -> None:
    manifest = shards_of(tmp_path / "train", [("Dog dog DOG", "a dog"), ("cat", "a dog, a cat")], per_shard=1)
    counted = count_words([manifest], sample=10)
    assert counted.captions == 4
    assert counted.counts == {"dog": 3, "a": 2, "cat": 2}
    assert sorted(counted.sample) == ["Dog dog DOG", "a dog", "a dog, a cat", "cat"]


def test_the_sample_is_about_as_large_as_asked_and_follows_the_seed(scenes: Manifest) -> None:
    first = count_words([scenes], sample=100)
    assert 60 < len(first.sample) < 140
    assert count_words([scenes], sample=100).sample == first.sample
    assert count_words([scenes], sample=100, seed=1).sample != first.sample


@pytest.fixture(scope="module")
def found() -> dict[str, Candidate]:
    captions = [caption(number) for number in range(400)]
    captions += ["a man is swimming", "a boy swims in the sea", "people enjoy swimming in a lake"] * 5
    captions += ["a skateboarder with a skateboard", "three skateboarders", "a man in brown shorts"] * 5
    counts = dict.fromkeys({word for text in captions for word in words(text)}, 1)
    for text in captions:
        for word in set(words(text)):
            counts[word] += 1
    return {one.word: one for one in candidates(counts, tag_captions(captions))}


@pytest.mark.parametrize(
    ("word", "group", "forms"),
    [
        ("man", "object", {"man", "men"}),
        ("dog", "object", {"dog", "dogs"}),
        ("bike", "object", {"bike", "bikes"}),
        ("skateboard", "object", {"skateboard"}),
        ("skateboarder", "object", {"skateboarder", "skateboarders"}),
        ("shorts", "object", {"shorts"}),
        ("red", "property", {"red"}),
        ("young", "property", {"young"}),
    ],
)
def test_inflections_are_one_word(found: dict[str, Candidate], word: str, group: str, forms: set[str]) -> None:
    assert found[word].group == group
    assert set(found[word].forms) == forms


def test_verbs_are_motions_with_all_their_forms(found: dict[str, Candidate]) -> None:
    by_form = {form: one for one in found.values() for form in one.forms}
    for forms in (("rides", "riding"), ("jumped", "jumping"), ("swimming", "swims")):
        assert len({by_form[form] for form in forms}) == 1
        assert by_form[forms[0]].group == "motion"


@pytest.mark.parametrize("word", ["a", "the", "is", "are", "three", "two", "in", "some", "front", "with"])
def test_function_words_and_auxiliaries_are_no_concepts(found: dict[str, Candidate], word: str) -> None:
    assert word not in {form for one in found.values() for form in one.forms}


def test_forms_belong_to_one_word(found: dict[str, Candidate]) -> None:
    forms = [form for one in found.values() for form in one.forms]
    assert len(forms) == len(set(forms))
    assert all(one.word in one.forms for one in found.values())


def test_counts_are_of_captions(scenes: Manifest) -> None:
    spoken = [set(words(caption(number))) for number in range(400)]
    vocabulary = mine_concepts([scenes], size=20)
    assert vocabulary.captions == 400
    for first, one in enumerate(vocabulary.concepts):
        named = [bool(set(one.forms) & said) for said in spoken]
        assert vocabulary.counts[first] == sum(named)
        for second, other in enumerate(vocabulary.concepts):
            both = [bool(set(one.forms) & said and set(other.forms) & said) for said in spoken]
            assert vocabulary.co_occurrence[first, second] == (sum(both) if first != second else 0)


def test_groups_are_in_order_the_most_frequent_first(scenes: Manifest) -> None:
    vocabulary = mine_concepts([scenes], size=20)
    order = ["object", "motion", "property"]
    keys = [
        (order.index(one.group), -count) for one, count in zip(vocabulary.concepts, vocabulary.counts, strict=True)
    ]
    assert keys == sorted(keys)
    groups = [one.group for one in vocabulary.concepts]
    assert (groups.count("motion"), groups.count("property")) == (3, 2)  # 4 were wanted, the captions have 3
    assert groups.count("object") <= 14


def test_labels_need_no_tagger(scenes: Manifest) -> None:
    vocabulary = mine_concepts([scenes], size=20)
    labels = concept_labels(["Some Men riding!", "nothing", "", "a dog, dogs, DOGS"], vocabulary)
    assert labels.shape == (4, len(vocabulary.concepts))
    assert labels.dtype == np.bool_
    named = [[vocabulary.concepts[index].word for index in np.flatnonzero(row)] for row in labels]
    assert named[0][0] == "man"
    assert len(named[0]) == 2
    assert named[1:] == [[], [], ["dog"]]


def adjacency_by_loops(counts: list[int], pairs: list[list[int]], options: GraphOptions) -> list[list[float]]:
    size = len(counts)
    edge = [[0] * size for _ in range(size)]
    for i in range(size):
        for j in range(size):
            scaled = options.s ** (pairs[i][j] / counts[i] - options.u) - options.s ** (-options.u)
            edge[i][j] = int(i != j and scaled >= options.threshold)
    matrix = [[0.0] * size for _ in range(size)]
    for j in range(size):
        into = sum(edge[i][j] for i in range(size))
        for i in range(size):
            matrix[i][j] = (options.weight * edge[i][j] / into if into else 0.0) + (i == j)
    degree = [sum(row) for row in matrix]
    return [[matrix[j][i] / (degree[i] * degree[j]) ** 0.5 for j in range(size)] for i in range(size)]


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_adjacency_is_the_published_formula(size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.random((30, size)) < 0.4
    labels[0] = True
    together = (labels.T.astype(np.int64)) @ labels.astype(np.int64)
    counts = together.diagonal().copy()
    options = GraphOptions()
    result = adjacency(counts, together, options)
    np.testing.assert_allclose(result, adjacency_by_loops(counts.tolist(), together.tolist(), options))


def test_the_file_does_not_depend_on_processes(scenes: Manifest, tmp_path: Path, itm: Itm) -> None:
    for processes in (1, 2):
        result = itm(
            "shards",
            "concepts",
            scenes.location,
            "--out",
            f"{processes}.json",
            "--size",
            20,
            "--processes",
            processes,
        )
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert "of 400 captions" in result.stdout


def test_a_file_reads_back_and_holds_the_finished_graph(scenes: Manifest, tmp_path: Path) -> None:
    vocabulary = mine_concepts([scenes], size=20)
    write_vocabulary(tmp_path / "concepts.json", vocabulary)
    again = read_vocabulary(tmp_path / "concepts.json")
    assert again.concepts == vocabulary.concepts
    np.testing.assert_array_equal(again.counts, vocabulary.counts)
    np.testing.assert_array_equal(again.co_occurrence, vocabulary.co_occurrence)
    document = json.loads((tmp_path / "concepts.json").read_bytes())
    np.testing.assert_allclose(document["adjacency"], vocabulary.adjacency, atol=1e-8)
    assert document["sources"][0]["fingerprint"] == scenes.fingerprint


def test_two_data_sets_are_counted_together(scenes: Manifest, tmp_path: Path) -> None:
    other = shards_of(tmp_path / "other", [("a zebra", "a zebra runs")] * 300, per_shard=300)
    vocabulary = mine_concepts([scenes, other], size=20)
    assert vocabulary.captions == 1000
    assert vocabulary.concepts[0].word == "zebra"
    assert vocabulary.counts[0] == 600


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b" ", "it is empty"),
        (b"{}", "it has no `format_version`"),
        (b"[]", "another layout"),
        (b'{"format_version": 1}', "it has no `concepts`"),
        (b'{"a":\n1', "no JSON, line 2: "),
        (b"\xff", "'utf-8' codec can't decode"),
    ],
)
def test_another_file_is_refused_in_plain_words(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "concepts.json").write_bytes(content)
    with pytest.raises(DataError, match="not a concept file") as raised:
        read_vocabulary(tmp_path / "concepts.json")
    assert f"not a concept file ({reason}" in str(raised.value)


@pytest.mark.parametrize(
    ("forms", "reason"),
    [
        ("dog", "the forms of 'dog' are 'dog', not a list of words"),
        ([1], r"the forms of 'dog' are \[1\], not a list of words"),
        (["dog", "zebras"], "the form 'zebras' of 'zebra' is there already, of 'dog'"),
    ],
)
def test_forms_are_words_of_one_concept(tmp_path: Path, forms: object, reason: str) -> None:
    concepts = (Candidate("dog", "object", ("dog",)), Candidate("zebra", "object", ("zebras",)))
    path = tmp_path / "concepts.json"
    write_vocabulary(path, Vocabulary(concepts, np.array([1, 1]), np.zeros((2, 2), np.int64), 2, ()))
    document = json.loads(path.read_bytes())
    document["concepts"][0]["forms"] = forms
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=rf"not a concept file \({reason}\)"):
        read_vocabulary(path)


def test_one_concept_is_not_several(tmp_path: Path, itm: Itm) -> None:
    shards_of(tmp_path / "train", [("a red dog",)])
    result = itm("shards", "concepts", "train", "--out", "new/concepts.json", "--processes", 1)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "new/concepts.json: 1 object, 0 motions, 1 property of 1 caption\n"


def test_captions_without_english_words_are_refused(tmp_path: Path) -> None:
    manifest = shards_of(tmp_path / "train", [("12 34", "!!!")])
    with pytest.raises(DataError, match="no word of 2 captions can be a concept: an English noun"):
        mine_concepts([manifest])


def test_what_stands_at_the_output_stays(scenes: Manifest, tmp_path: Path, itm: Itm) -> None:
    (tmp_path / "concepts.json").write_text("mine")
    result = itm("shards", "concepts", scenes.location, "--out", "concepts.json")
    assert result.returncode == 1
    assert result.stderr.startswith("itm: error: --out concepts.json: exists already; give another, or --overwrite")
    assert (tmp_path / "concepts.json").read_text() == "mine"
    assert itm("shards", "concepts", scenes.location, "--out", "new.json", "--dry-run").returncode == 0
    assert not (tmp_path / "new.json").exists()
