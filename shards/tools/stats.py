"""What a folder of shards holds, in numbers: captions, words, sizes, copies."""

import math
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from shards.manifest import Manifest
from shards.parallel import ordered_map
from shards.tools.duplicates import count_duplicates
from shards.tools.indexed import one_shard
from shards.tools.tally import Tally, tally_shard, value_of

WORDS = 100
"""Most frequent words in the result."""
_PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
_BINS = 40

Stats = dict[str, Any]
"""Plain numbers, lists and dictionaries, ready for JSON."""


def folder_stats(manifest: Manifest, *, processes: int = 1, on_shard: Callable[[], None] = lambda: None) -> Stats:
    """Count over all shards. Raises `DataError` when one is damaged."""
    total = Tally()
    jobs = (one_shard(manifest, shard) for shard in range(len(manifest.names)))
    for tally in ordered_map(tally_shard, jobs, processes, chunk=1):
        total.add(tally)
        on_shard()
    return summarize(manifest, total)


def summarize(manifest: Manifest, tally: Tally) -> Stats:
    """The statistics of a whole folder from its tally."""
    images, texts = count_duplicates(tally.images), count_duplicates(tally.texts)
    stats: Stats = {
        "location": manifest.location,
        "dataset": manifest.dataset,
        "split": manifest.split,
        "holds": list(manifest.holds),
        "shards": len(manifest.names),
        "samples": tally.samples,
        "captions": tally.captions,
        "bytes": tally.bytes,
        "vocabulary": len(tally.words),
        "words": sorted(tally.words.items(), key=lambda item: (-item[1], item[0]))[:WORDS],
        "total_words": tally.words.total(),
        "duplicate_images": _counts(images),
        "duplicate_captions": _counts(texts),
        "captions_a_sample": distribution(tally.captions_a_sample),
        "words_a_caption": distribution(tally.words_a_caption),
        "sample_bytes": distribution(tally.sample_bytes, value_of, grain=tarfile.BLOCKSIZE),
        "shard_samples": distribution(Counter(manifest.samples.tolist())),
    }
    if tally.width:
        stats |= {
            "width": distribution(tally.width),
            "height": distribution(tally.height),
            "aspect": distribution(tally.aspect, value_of),
            "megapixels": distribution(tally.megapixels, value_of),
        }
    return stats


def _counts(duplicates: Any) -> dict[str, int]:
    return {name: value for name, value in asdict(duplicates).items() if name != "examples"}


def distribution(counts: Counter[int], decode: Callable[[int], float] = float, grain: float = 0) -> dict[str, Any]:
    """Mean, percentiles (nearest rank) and a histogram of counted values.

    `decode` makes values of what was counted; the histogram's bins are equally wide in values, its last one
    open to the end: beyond it lies at most a hundredth. `grain`: between multiples of it values are rare, so bins
    span whole ones.
    """
    keys = np.array(sorted(counts))
    weights = np.array([counts[key] for key in keys.tolist()])
    values = np.array([decode(key) for key in keys.tolist()])
    ranks = np.cumsum(weights)
    total = int(ranks[-1])
    places = np.searchsorted(ranks, [max(1, -(-total * percent // 100)) for percent in _PERCENTILES])
    percentiles = {str(percent): float(values[place]) for percent, place in zip(_PERCENTILES, places, strict=True)}
    half = 0 if decode is float else grain / 2  # the steps' own rounding must not carry a value over an edge
    edges = _edges(percentiles["0"] - half, percentiles["99"], 1 if decode is float else grain)
    histogram, _ = np.histogram(np.minimum(values, edges[-1]), edges, weights=weights)
    return {
        "mean": float((values * weights).sum() / total),
        "percentiles": percentiles,
        "histogram": {"edges": edges.tolist(), "counts": histogram.astype(int).tolist()},
    }


def _edges(low: float, high: float, grain: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    if grain:
        width = max(1, math.ceil(((high - low) / grain + 1) / _BINS)) * grain
        return low + width * np.arange(int((high - low) // width) + 2, dtype=np.float64)
    if high < low * 1.02:  # about as wide as the steps
        return np.array([low, high * 1.01])
    return np.linspace(low, high, _BINS + 1)
