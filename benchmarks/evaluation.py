"""All of COCO's protocols from embeddings, beside loops over queries: `evaluation.py [--width D] [--images N]`.

The loops are those of the usual evaluation code, which sorts the whole gallery for each query: recalls of 5K and of
the five folds, then the ranked lists for `eccv_caption` and its measures. They run over `--images` images of each
fold, with their captions; their time is scaled up to all. Ours is measured whole, in a process of its own, and the
ranks of those images and captions must be the same.
"""

import argparse
import multiprocessing as mp
import resource
import time
import warnings
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from trainer.evaluation.coco_test import CAPTIONS_AN_IMAGE, FOLDS, IMAGES, coco_test
from trainer.evaluation.measure import measure
from trainer.evaluation.protocol import SplitIds
from trainer.evaluation.protocols import applicable
from trainer.metrics import retrieval_ranks

OWNER = np.repeat(np.arange(IMAGES), CAPTIONS_AN_IMAGE)
FOLD = IMAGES // FOLDS
Array = np.ndarray[Any, Any]


def embeddings(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions near their images, so that recalls are neither 0 nor 100."""
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(IMAGES, width, generator=generator), dim=1)
    noise = torch.randn(len(OWNER), width, generator=generator) * (125 / width) ** 0.5
    return images, normalize(images.repeat_interleave(CAPTIONS_AN_IMAGE, dim=0) + noise, dim=1)


def ours(width: int, results: "mp.SimpleQueue[Any]") -> None:
    torch.set_num_threads(2)
    images, texts = embeddings(width)
    start = time.perf_counter()
    published = coco_test()
    ids = SplitIds("coco", "test", published.images, published.captions, OWNER)
    measured = measure([images], [texts], applicable(ids))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    owner = torch.from_numpy(OWNER)
    ranks = [retrieval_ranks(images, texts, owner)]
    for first in range(0, IMAGES, FOLD):
        words = slice(first * CAPTIONS_AN_IMAGE, (first + FOLD) * CAPTIONS_AN_IMAGE)
        ranks.append(retrieval_ranks(images[first : first + FOLD], texts[words], owner[words] - first))
    results.put((seconds, peak, [one.as_dict() for one in measured], ranks))


def loop_i2t(images: Array, texts: Array, queries: Array) -> list[int]:
    ranks = []
    for query in queries:
        order = np.argsort((images[query : query + 1] @ texts.T).flatten())[::-1]
        own = range(CAPTIONS_AN_IMAGE * query, CAPTIONS_AN_IMAGE * (query + 1))
        ranks.append(min(int(np.where(order == caption)[0][0]) for caption in own))
    return ranks


def loop_t2i(images: Array, texts: Array, queries: Array) -> list[int]:
    ranks = []
    for query in queries:
        scores = texts[CAPTIONS_AN_IMAGE * query : CAPTIONS_AN_IMAGE * (query + 1)] @ images.T
        ranks += [int(np.where(np.argsort(row)[::-1] == query)[0][0]) for row in scores]
    return ranks


def package(images: Array, texts: Array, queries: Array) -> None:
    """The ranked lists that `eccv_caption` takes, and its measures of CxC and ECCV Caption."""
    from eccv_caption import Metrics

    metrics, test = Metrics(), coco_test()
    captions = np.flatnonzero(np.isin(OWNER, queries))
    i2t = {int(test.images[q]): test.captions[np.argsort(images[q] @ texts.T)[::-1]].tolist() for q in queries}
    t2i = {int(test.captions[q]): test.images[np.argsort(texts[q] @ images.T)[::-1]].tolist() for q in captions}
    for name in ("cxc_gts", "eccv_gts"):
        right = getattr(metrics, name)
        some = {"i2t": i2t.keys(), "t2i": t2i.keys()}
        setattr(
            metrics, name, {way: {k: v for k, v in right[way].items() if k in keys} for way, keys in some.items()}
        )
    metrics.coco_gts = {"i2t": {}, "t2i": {}}
    metrics.compute_all_metrics(
        i2t, t2i, ("eccv_map_at_r", "eccv_rprecision", "eccv_r1", "cxc_recalls"), (1, 5, 10)
    )


def loops(width: int, count: int, ranks: list[tuple[Array, Array]]) -> float:
    """Seconds for all queries, from those of `count` images a fold."""
    torch.set_num_threads(2)
    images, texts = (side.numpy() for side in embeddings(width))
    few = np.linspace(0, FOLD - 1, count).astype(int)
    spread = np.linspace(0, IMAGES - 1, FOLDS * count).astype(int)
    start = time.perf_counter()
    found = [(loop_i2t(images, texts, spread), loop_t2i(images, texts, spread))]
    for first in range(0, IMAGES, FOLD):
        words = texts[first * CAPTIONS_AN_IMAGE : (first + FOLD) * CAPTIONS_AN_IMAGE]
        own = images[first : first + FOLD]
        found.append((loop_i2t(own, words, few), loop_t2i(own, words, few)))
    package(images, texts, spread)
    seconds = (time.perf_counter() - start) * FOLD / count
    for queries, mine, theirs in zip([spread, *FOLDS * [few]], ranks, found, strict=True):
        captions = (CAPTIONS_AN_IMAGE * queries[:, None] + np.arange(CAPTIONS_AN_IMAGE)).ravel()
        assert mine[0][queries].tolist() == theirs[0]
        assert mine[1][captions].tolist() == theirs[1]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--images", type=int, default=50, help="images a fold that the loops run over")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    results: mp.SimpleQueue[Any] = mp.get_context("spawn").SimpleQueue()
    process = mp.get_context("spawn").Process(target=ours, args=(options.width, results))
    process.start()
    seconds, peak, measured, ranks = results.get()
    process.join()
    print(f"ours: {seconds:.1f} s, {peak / 1e9:.2f} GB at the peak")
    for one in measured:
        print(f"  {one['title']}: " + ", ".join(f"{way} R@1 {one[way]['r1']:.2f}" for way in ("i2t", "t2i")))
    theirs = loops(options.width, options.images, ranks)
    print(
        f"loops: {theirs:.0f} s for all, from {FOLDS * options.images:,} images: {theirs / seconds:.0f} times ours"
    )
    print("same ranks")


if __name__ == "__main__":
    main()
