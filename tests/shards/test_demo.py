import io
import itertools
import pickle
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.demo.kin import ATTRIBUTES
from shards.demo.render import FILL, GRID, PLACE_JITTER, RADIUS, SCALE_JITTER, render
from shards.demo.scene import (
    CELLS,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    Cell,
    Scene,
    Thing,
    arrangement,
    description,
    relation,
)
from shards.demo.shapes import EXTENT, outline
from shards.demo.source import demo_records
from shards.demo.splits import SPLITS, Placed, placed_at, split_of

SEED = 7


@pytest.fixture(scope="module")
def train() -> list[Placed]:
    return [placed_at("train", SEED, index) for index in range(5000)]


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)


def one_thing(**changes: Any) -> Scene:
    usual = Thing((1, 1), "circle", "red", "large", "plain")
    return Scene((replace(usual, **changes),), "white", 3)


@pytest.mark.parametrize("split", SPLITS)
def test_equal_arguments_give_equal_records_and_bytes(split: str) -> None:
    first, second = (list(demo_records(split, 20, SEED)) for _ in range(2))
    assert len(first) == 20
    assert [(r.key, r.captions) for r in first] == [(r.key, r.captions) for r in second]
    assert [r.load() for r in first] == [r.load() for r in second]


def test_another_seed_gives_other_scenes() -> None:
    ours, theirs = ({description(placed_at("val", seed, i).scene) for i in range(100)} for seed in (1, 2))
    assert len(ours & theirs) < 5


@pytest.mark.parametrize("split", SPLITS)
def test_a_larger_count_extends_a_smaller_one(split: str) -> None:
    few, many = list(demo_records(split, 15, SEED)), list(demo_records(split, 40, SEED))
    assert len(many) == 40
    assert [(r.key, r.captions, r.load()) for r in few] == [(r.key, r.captions, r.load()) for r in many[:15]]


def test_keys_and_image_ids_are_unique_and_fit_for_tar_members() -> None:
    records = list(demo_records("test", 200, SEED))
    assert [r.image_id for r in records] == list(range(200))
    assert records[123].key == "test-000123"
    assert len({r.key for r in records}) == 200
    assert not any(re.search(r"[./\s]", r.key) for r in records)


def test_no_split_shares_an_arrangement_with_another_even_across_seeds() -> None:
    seen = {
        split: {arrangement(placed_at(split, seed, i).scene) for seed in (0, SEED) for i in range(500)}
        for split in SPLITS
    }
    for a, b in itertools.combinations(SPLITS, 2):
        assert seen[a].isdisjoint(seen[b])


def test_splits_get_like_shares_of_the_lone_things() -> None:
    shares = Counter(
        split_of(Scene((Thing(*facts),), "white", 0))
        for facts in itertools.product(CELLS, SHAPES, COLOURS, SIZES, TEXTURES)
    )
    assert set(shares) == set(SPLITS)
    assert all(0.22 < share / shares.total() < 0.28 for share in shares.values())


def test_scenes_are_mostly_distinct(train: list[Placed]) -> None:
    assert len({description(placed.scene) for placed in train}) > 4500


def test_near_duplicates_have_the_stated_shares(train: list[Placed]) -> None:
    kinds = Counter(placed.kind for placed in train)
    assert 0.04 < kinds["soft positive"] / len(train) < 0.06
    assert 0.085 < kinds["soft negative"] / len(train) < 0.115


def test_soft_positives_share_the_description_and_differ_in_pixels(train: list[Placed]) -> None:
    pairs = [(p.scene, train[p.partner].scene) for p in train if p.kind == "soft positive"]  # type: ignore[index]
    assert all(description(ours) == description(theirs) for ours, theirs in pairs)
    assert all(ours.render_seed != theirs.render_seed for ours, theirs in pairs)
    for ours, theirs in pairs[:40]:
        assert np.abs(pixels(render(ours)) - pixels(render(theirs))).mean() > 0.5


def test_soft_negatives_differ_in_exactly_one_attribute(train: list[Placed]) -> None:
    found = Counter[str | None]()
    for index, placed in enumerate(train):
        if placed.kind != "soft negative":
            continue
        assert placed.partner is not None
        assert placed.partner < index
        ours, theirs = placed.scene, train[placed.partner].scene
        assert train[placed.partner].kind == "original"
        assert ours.background == theirs.background
        assert [t.cell for t in ours.things] == [t.cell for t in theirs.things]
        changed = [(a, b) for a, b in zip(ours.things, theirs.things, strict=True) if a != b]
        if placed.attribute == "place":
            (a, b), (c, d) = changed
            assert (a.shape, a.colour, a.size, a.texture) == (d.shape, d.colour, d.size, d.texture)
            assert (c.shape, c.colour, c.size, c.texture) == (b.shape, b.colour, b.size, b.texture)
        else:
            ((a, b),) = changed
            differing = [f for f in ("shape", "colour", "size", "texture") if getattr(a, f) != getattr(b, f)]
            assert differing == [placed.attribute]
        found[placed.attribute] += 1
    assert set(found) == set(ATTRIBUTES)
    assert min(found.values()) > 40


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((0, 0), (0, 2), "left"),
        ((2, 1), (0, 1), "below"),
        ((0, 0), (1, 2), "left"),
        ((2, 0), (0, 1), "below"),
        ((0, 2), (1, 1), "above right"),
        ((2, 0), (0, 2), "below left"),
    ],
)
def test_relation_follows_the_longer_axis(ours: Cell, theirs: Cell, expected: str) -> None:
    a, b = (Thing(cell, "star", "red", "small", "plain") for cell in (ours, theirs))
    assert relation(a, b) == expected
    with pytest.raises(ValueError, match="one cell"):
        relation(a, a)


def test_scenes_that_break_the_rules_are_refused() -> None:
    star = Thing((0, 0), "star", "red", "small", "plain")
    for other in (
        Thing((0, 1), "ring", "red", "small", "plain"),
        Thing((0, 0), "ring", "red", "small", "plain"),
        Thing((2, 2), "star", "red", "large", "dotted"),
    ):
        with pytest.raises(ValueError, match="two things"):
            Scene(tuple(sorted((star, other))), "white", 0)
    with pytest.raises(ValueError, match="sorted"):
        Scene((Thing((2, 2), "ring", "red", "small", "plain"), star), "white", 0)


@pytest.mark.parametrize("side", [32, 96, 224])
def test_records_load_as_jpeg_of_the_asked_side_after_pickling(side: int) -> None:
    (record,) = demo_records("test", 1, SEED, side=side)
    image = Image.open(io.BytesIO(pickle.loads(pickle.dumps(record.load))()))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (side, side))


@pytest.mark.parametrize("colour", COLOURS)
def test_a_plain_thing_has_its_colour_where_it_stands(colour: str) -> None:
    for cell in CELLS:
        row, column = (round(96 * (0.22, 0.5, 0.78)[c]) for c in cell)
        found = pixels(render(one_thing(colour=colour, cell=cell)))
        shade = found[row - 2 : row + 3, column - 2 : column + 3].mean(axis=(0, 1))
        nearest = min(FILL, key=lambda name: float(np.abs(np.array(FILL[name]) - shade).sum()))
        assert nearest == colour


def test_things_in_diagonal_cells_and_at_the_rim_have_room() -> None:
    corners = np.concatenate([outline(shape).rim for shape in SHAPES])
    assert np.hypot(*corners.T).max() <= EXTENT
    reach = RADIUS["large"] * max(SCALE_JITTER) * np.hypot(*corners.T).max()
    assert 2 * reach + 2 * np.hypot(PLACE_JITTER, PLACE_JITTER) < np.hypot(*np.diff(GRID))
    assert reach + PLACE_JITTER < GRID[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_size_and_texture_show(shape: str) -> None:
    def red_area(**changes: str) -> int:
        found = pixels(render(one_thing(shape=shape, **changes)))
        return int(((found[..., 0] > 150) & (found[..., 1] < 90)).sum())

    assert red_area(size="large") > 1.5 * red_area(size="small")
    assert red_area(texture="plain") > 1.2 * red_area(texture="striped")
    assert red_area(texture="plain") > 1.2 * red_area(texture="dotted")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dev", 1, 0), "unknown split"),
        (("test", -1, 0), "negative"),
        (("test", 1, -1), "negative"),
        (("test", 1, 0, 8), "16 pixels"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demo_records(*arguments)  # type: ignore[arg-type]
