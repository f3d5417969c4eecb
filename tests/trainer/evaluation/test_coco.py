"""COCO's protocols against the package `eccv_caption`: on small invented data with ties, and on its own data."""

from collections.abc import Sequence
from copy import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from eccv_caption import Metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.evaluation.coco import coco_protocols
from trainer.evaluation.coco_test import Annotation, CocoTest, coco_test
from trainer.evaluation.measure import Measured, measure
from trainer.evaluation.protocol import Applicable, SplitIds, View
from trainer.evaluation.protocols import applicable

Lists = dict[int, list[int]]
TARGETS = ("eccv_r1", "eccv_map_at_r", "eccv_rprecision", "coco_1k_recalls", "coco_5k_recalls", "cxc_recalls")


PACKAGE = Metrics()


def package_on(test: CocoTest) -> Metrics:
    """The package with the annotations of `test`."""
    metrics = copy(PACKAGE)
    metrics.coco_ids = test.captions
    owner = {int(caption): [int(test.images[place // 5])] for place, caption in enumerate(test.captions)}
    own = {int(image): test.captions[5 * row : 5 * row + 5].tolist() for row, image in enumerate(test.images)}
    metrics.coco_gts = {"i2t": own, "t2i": owner}
    metrics.cxc_gts, metrics.eccv_gts = vars(test.cxc), vars(test.eccv)
    return metrics


def ranked(scores: np.ndarray, queries: Sequence[int], items: np.ndarray, right: Lists, sign: int) -> Lists:
    """All items of each query, best first; of equal scores the wrong ones first, or last with sign -1."""
    return {
        int(query): [
            int(items[place])
            for place in sorted(
                range(len(items)),
                key=lambda place: (-row[place], sign * (int(items[place]) in right.get(int(query), ()))),
            )
        ]
        for query, row in zip(queries, scores, strict=True)
    }


def by_package(test: CocoTest, scores: np.ndarray, sign: int = 1) -> dict[str, Any]:
    """Every measure from the package, each with lists that break ties against its own right items, with -1 for."""
    metrics, found = package_on(test), {}
    for names, right in (
        (("coco_1k", "coco_5k"), metrics.coco_gts),
        (("cxc",), metrics.cxc_gts),
        (("eccv",), metrics.eccv_gts),
    ):
        i2t = ranked(scores, test.images, test.captions, right["i2t"], sign)
        t2i = ranked(scores.T, test.captions, test.images, right["t2i"], sign)
        all_of = metrics.compute_all_metrics(i2t, t2i, TARGETS, (1, 5, 10))
        found |= {key: value for key, value in all_of.items() if key.startswith(names)}
    return found


def as_package(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Our results under the package's names, as shares."""
    names = {"r1": "r1", "r5": "r5", "r10": "r10", "map_at_r": "map_at_r", "r_precision": "rprecision"}
    return {
        f"{one.key.removesuffix('_caption')}_{names[name]}": {
            "i2t": one.i2t.values[name] / 100,
            "t2i": one.t2i.values[name] / 100,
        }
        for one in measured
        for name in one.i2t.values
    }


@st.composite
def invented(draw: st.DrawFn) -> tuple[CocoTest, torch.Tensor, torch.Tensor]:
    """Five or ten images with more right items than their own; embeddings repeat, so scores are often equal."""
    count = draw(st.sampled_from([5, 10]))
    images, captions = 1000 + np.arange(count), 7 * np.arange(5 * count) + 3
    absent = 999_999  # ECCV Caption has right captions that are not among the 25,000

    def annotation(queries: np.ndarray, items: np.ndarray, extra: list[int]) -> Lists:
        chosen = draw(st.lists(st.sampled_from(queries.tolist()), min_size=1, unique=True))
        some = st.lists(st.sampled_from(items.tolist()), min_size=1, max_size=8, unique=True)
        return {query: draw(some) + draw(st.sampled_from([[], extra])) for query in chosen}

    cxc, eccv = (
        Annotation(annotation(images, captions, extra), annotation(captions, images, []))
        for extra in ([], [absent])
    )
    width = draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    sides = [torch.randint(-1, 2, (size, width), generator=generator).float() for size in (count, 5 * count)]
    return CocoTest(images, captions, cxc, eccv), sides[0], sides[1]


@given(invented())
@settings(max_examples=30, deadline=None)
def test_with_ties_ours_are_the_packages_for_the_worst_order(
    case: tuple[CocoTest, torch.Tensor, torch.Tensor],
) -> None:
    test, images, texts = case
    view = View(coco_protocols(test, annotated=True))
    ours = as_package(measure([images], [texts], Applicable([view])))
    scores = (images @ texts.T).numpy()
    worst, best = by_package(test, scores), by_package(test, scores, -1)
    assert ours.keys() == worst.keys()
    for name, ways in ours.items():
        for way, value in ways.items():
            assert value == pytest.approx(worst[name][way], abs=1e-12), name
            assert value <= best[name][way] + 1e-12


@given(invented(), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_without_ties_ours_are_the_packages(case: tuple[CocoTest, torch.Tensor, torch.Tensor], seed: int) -> None:
    test, images, texts = case
    generator = torch.Generator().manual_seed(seed)
    images, texts = (torch.randn(len(one), 6, generator=generator) for one in (images, texts))
    ours = as_package(measure([images], [texts], Applicable([View(coco_protocols(test, annotated=True))])))
    for name, ways in by_package(test, (images @ texts.T).numpy()).items():
        assert ours[name] == pytest.approx(ways, abs=1e-12)


WIDTH = 12


@pytest.fixture(scope="module")
def published() -> SimpleNamespace:
    """Embeddings of the whole published split, some images and captions copies of others."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5000, WIDTH, generator=generator)
    images[100:200] = images[4000:4100]
    texts = images.repeat_interleave(5, dim=0) + torch.randn(25_000, WIDTH, generator=generator)
    test = coco_test()
    ids = SplitIds("coco", "test", test.images, test.captions, np.repeat(np.arange(5000), 5))
    measured = measure([images], [texts], applicable(ids))
    return SimpleNamespace(images=images, texts=texts, test=test, ids=ids, measured=measured)


def shortened(scores: torch.Tensor, queries: np.ndarray, items: np.ndarray, fold: int) -> Lists:
    """The best items of each query and the best of its own fold, in order: all that the package looks at.

    Equal scores keep the order of the items, here as in a stable `argsort` of the whole.
    """
    step = len(queries) // 5
    lists = {}
    for start in range(0, len(queries), step):
        own = slice(start // step * fold, start // step * fold + fold)
        for row in range(start, start + step):
            numbers = scores[row].numpy()
            level = np.partition(numbers, -60)[-60]
            fold_level = np.partition(numbers[own], -12)[-12]
            wanted = np.flatnonzero(numbers >= level)
            wanted = np.union1d(wanted, own.start + np.flatnonzero(numbers[own] >= fold_level))
            order = np.argsort(-numbers[wanted], kind="stable")
            lists[int(queries[row])] = items[wanted[order]].tolist()
    return lists


def test_on_the_published_split_ours_are_the_packages(published: SimpleNamespace) -> None:
    test, images, texts = published.test, published.images, published.texts
    images = images + 0.01 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))  # no ties
    what = applicable(published.ids)
    assert what.left_out == {"Flickr30K 1K": "the data set is coco"}
    assert what.notes == []
    measured = measure([images], [texts], what)
    assert [one.key for one in measured] == ["coco_5k", "coco_1k", "cxc", "eccv_caption"]
    scores = images @ texts.T
    i2t = shortened(scores, test.images, test.captions, 5000)
    t2i = shortened(scores.T.contiguous(), test.captions, test.images, 1000)
    theirs = PACKAGE.compute_all_metrics(i2t, t2i, TARGETS, (1, 5, 10))
    ours = as_package(measured)
    assert ours.keys() == theirs.keys()
    for name, ways in theirs.items():
        assert ours[name] == pytest.approx(ways, abs=1e-12), name
    assert [one.i2t.num_queries for one in measured] == [5000, 5000, 5000, 1261]
    assert [one.t2i.num_queries for one in measured] == [25_000, 25_000, 24_972, 1332]


def test_the_order_of_the_shards_changes_nothing(published: SimpleNamespace) -> None:
    generator = np.random.default_rng(0)
    images, captions = generator.permutation(5000), generator.permutation(25_000)
    row = np.argsort(images)
    ids = SplitIds(
        "coco",
        "test",
        published.ids.image_ids[images],
        published.ids.caption_ids[captions],
        row[published.ids.caption_image[captions]],
    )
    mixed = measure([published.images[images]], [published.texts[captions]], applicable(ids))
    assert [one.as_dict() for one in mixed] == [one.as_dict() for one in published.measured]


def test_more_than_five_captions_are_said_and_measured_apart(published: SimpleNamespace) -> None:
    owner = np.append(published.ids.caption_image, [17, 3])
    ids = SplitIds("coco", "test", published.ids.image_ids, np.append(published.ids.caption_ids, [-1, 5]), owner)
    what = applicable(ids)
    texts = torch.cat([published.texts, published.images[[17, 3]]])
    first, *coco = measure([published.images], [texts], what)
    assert (first.title, first.t2i.num_queries) == ("coco test", 25_002)
    assert what.notes == ["COCO: of 25,002 captions its protocols take five of each image"]
    assert [one.as_dict() for one in coco] == [one.as_dict() for one in published.measured]


def test_what_needs_ids_is_left_out_without_them(published: SimpleNamespace) -> None:
    ids = published.ids
    unnamed = SplitIds("coco", "test", ids.image_ids, np.full(25_000, -1), ids.caption_image)
    foreign = SplitIds("coco", "test", np.arange(5000), ids.caption_ids, ids.caption_image)
    swapped = SplitIds("coco", "test", ids.image_ids, ids.caption_ids[::-1].copy(), ids.caption_image)
    for case, reason in (
        (unnamed, "the captions have no ids"),
        (foreign, "the image ids are not COCO's"),
        (swapped, "the captions have no ids, or not COCO's"),
    ):
        what = applicable(case)
        assert [one.key for one in what.views[0].protocols] == ["coco_5k", "coco_1k"]
        assert what.left_out.keys() == {"Flickr30K 1K", "CxC", "ECCV Caption"}
        assert what.left_out["CxC"].startswith(reason)
    assert "the folds follow the order of the shards" in applicable(foreign).notes[0]
