import itertools
import re
from collections import Counter

import pytest

from shards.demo.caption import captions
from shards.demo.scene import COLOURS, SHAPES, Scene
from shards.demo.source import caption_owner, demo_records
from shards.demo.splits import placed_at
from shards.demo.words import COLOUR_WORDS

SEED = 7


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [placed_at("train", SEED, index).scene for index in range(3000)]


def test_five_distinct_captions_of_fair_length(scenes: list[Scene]) -> None:
    for scene in scenes:
        texts = captions(scene)
        assert len({re.sub(r"[^a-z ]", "", text.lower()) for text in texts}) == 5
        assert all(5 <= len(text.split()) <= 25 for text in texts)


def test_the_full_caption_names_every_colour_and_shape_and_no_other(scenes: list[Scene]) -> None:
    named = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
    for scene in scenes:
        told = named.findall(captions(scene)[0])
        assert sorted(told) == sorted((thing.colour, thing.shape) for thing in scene.things)


def colour_names() -> dict[str, str]:
    return {word: colour for colour in COLOURS for word in COLOUR_WORDS.get(colour, (colour,))}


def test_no_caption_names_a_colour_that_the_scene_lacks(scenes: list[Scene]) -> None:
    names = colour_names()
    for scene in scenes:
        present = {thing.colour for thing in scene.things}
        told = [
            names[word] for text in captions(scene) for word in re.findall("[a-z]+", text.lower()) if word in names
        ]
        assert set(told) == present


def test_relation_captions_tell_the_truth(scenes: list[Scene]) -> None:
    checked = Counter[str]()
    sides = {"left": (1, -1), "right": (1, 1), "above": (0, -1), "below": (0, 1)}
    noun = rf"((?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))"
    clear = re.compile(
        rf"(?:\S+ )??{noun} is (?:placed )?(?:to the )?(left|right|above|below)(?: of)? "
        rf"(?:a|an|the) (?:\S+ )??{noun}",
        re.IGNORECASE,
    )
    for scene in scenes:
        things = {f"{thing.colour} {thing.shape}": thing for thing in scene.things}
        for first, side, second in clear.findall(captions(scene)[1]):
            axis, sign = sides[side]
            assert sign * (things[first].cell[axis] - things[second].cell[axis]) > 0
            checked[side] += 1
    assert len(checked) == 4
    assert min(checked.values()) > 20


def test_articles_agree(scenes: list[Scene]) -> None:
    text = " ".join(itertools.chain.from_iterable(captions(scene) for scene in scenes)).lower()
    assert "an orange" in text
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)


def test_pretrain_has_one_noisy_caption_of_which_a_twentieth_belongs_elsewhere() -> None:
    records = list(demo_records("pretrain", 2000, SEED))
    assert all(len(record.captions) == 1 for record in records)
    assert any(record.captions[0].startswith("photo of") for record in records)
    assert min(len(record.captions[0].split()) for record in records) <= 3
    astray = [i for i in range(2000) if caption_owner(SEED, i) != i]
    assert 0.035 < len(astray) / 2000 < 0.065
    names = colour_names()
    foreign = set()
    for index, record in enumerate(records):
        present = {thing.colour for thing in placed_at("pretrain", SEED, index).scene.things}
        told = {names[word] for word in re.findall("[a-z]+", record.captions[0].lower()) if word in names}
        if not told <= present:
            foreign.add(index)
    assert foreign <= set(astray)
    assert len(foreign) > 0.6 * len(astray)
