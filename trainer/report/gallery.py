"""Queries of a split with their five nearest neighbours, as pictures and sentences."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch

from shards.images import open_image
from shards.manifest import Manifest
from shards.reader import ShardReader
from trainer.embed import Embeddings
from trainer.metrics import retrieval_ranks

TOP = 5
THUMBNAIL = 120
"""Longer side of a picture on the page, in pixels."""


@dataclass(frozen=True)
class Hit:
    """One retrieved item: a picture (data URI) or a sentence, and whether it is a right one."""

    content: str
    right: bool
    score: float


@dataclass(frozen=True)
class Query:
    """A query with its best hits, and the 1-based rank of its first right one."""

    content: str
    rank: int
    hits: list[Hit]


def text_queries(manifest: Manifest, embeddings: Embeddings, count: int, seed: int = 0) -> list[Query]:
    """`count` captions drawn at random, with the five nearest images."""
    _, ranks = retrieval_ranks(embeddings.images, embeddings.texts, embeddings.caption_image)
    pictures = Thumbnails(manifest)
    queries = []
    for caption in _draw(len(embeddings.texts), count, seed):
        scores, images = (embeddings.images @ embeddings.texts[caption]).topk(min(TOP, len(embeddings.images)))
        own = int(embeddings.caption_image[caption])
        hits = [
            Hit(pictures[int(image)], int(image) == own, float(score))
            for score, image in zip(scores, images, strict=True)
        ]
        queries.append(Query(embeddings.captions[caption], int(ranks[caption]) + 1, hits))
    return queries


def image_queries(manifest: Manifest, embeddings: Embeddings, count: int, seed: int = 0) -> list[Query]:
    """`count` images drawn at random, with the five nearest captions."""
    ranks, _ = retrieval_ranks(embeddings.images, embeddings.texts, embeddings.caption_image)
    # images without a caption are no queries, so they have no rank
    queried = torch.unique(embeddings.caption_image).tolist()
    pictures = Thumbnails(manifest)
    queries = []
    for place in _draw(len(queried), count, seed):
        image = queried[place]
        scores, captions = (embeddings.texts @ embeddings.images[image]).topk(min(TOP, len(embeddings.texts)))
        hits = [
            Hit(embeddings.captions[int(caption)], int(embeddings.caption_image[caption]) == image, float(score))
            for score, caption in zip(scores, captions, strict=True)
        ]
        queries.append(Query(pictures[image], int(ranks[place]) + 1, hits))
    return queries


def _draw(total: int, count: int, seed: int) -> list[int]:
    generator = np.random.default_rng(seed)
    return sorted(generator.choice(total, min(count, total), replace=False).tolist())


class Thumbnails:
    """The pictures of a folder of shards by sample number, small, as data URIs."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.reader = manifest, ShardReader(manifest)

    def __getitem__(self, sample: int) -> str:
        shard = int(np.searchsorted(self.manifest.first_sample, sample, side="right")) - 1
        encoded = self.reader.read(shard, sample - int(self.manifest.first_sample[shard])).image
        assert encoded is not None, "a gallery is of a split that was embedded from its images"
        image = open_image(encoded)
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
