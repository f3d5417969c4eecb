"""One pass over a split: embeddings of all images and captions, computed by all ranks together."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from model.encoders import DualEncoder
from shards.evaluation import EvaluationDataset, evaluation_batches
from shards.loader import Rank
from trainer.distributed import World
from trainer.precision import AUTOCAST


@dataclass
class Embeddings:
    """A whole split, in the manifest's order. N images, C captions."""

    images: torch.Tensor
    """(N, D) float32 of length 1."""
    texts: torch.Tensor
    """(C, D) float32 of length 1."""
    caption_image: torch.Tensor
    """(C,) int64: the image that each caption describes."""
    captions: list[str] = field(default_factory=list)
    """This rank's captions as text: all of them where there is one process."""
    image_ids: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """(N,) int64: the data set's own, or hashes of the pictures."""
    caption_ids: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """(C,) int64: the data set's own, `NO_ID` where it has none."""


def autocast(device: torch.device, precision: str) -> "torch.autocast | nullcontext[None]":
    """The arithmetic that the recipe asks for."""
    dtype = AUTOCAST[precision]
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


@torch.no_grad()
def embed_split(
    encoders: DualEncoder,
    dataset: EvaluationDataset,
    world: World,
    device: torch.device,
    *,
    batch_size: int,
    precision: str,
    workers: int = 0,
    on_batch: Callable[[int], None] = lambda _images: None,
) -> Embeddings:
    """Embed every image and every caption of the split once; every rank returns the whole.

    `on_batch` is called with the number of images that this rank has just embedded. The encoders are put
    into evaluation mode and left in it.
    """
    encoders.eval()
    images, texts, owner, captions = [], [], [], []
    image_ids, caption_ids = [], []
    batches = evaluation_batches(dataset, batch_size, Rank(world.rank, world.size), workers)
    for batch in batches:
        inputs = (
            None if part is None else part.to(device) for part in (batch.images, batch.regions, batch.region_mask)
        )
        with autocast(device, precision):
            images.append(encoders.encode_image(*inputs))
            texts.append(encoders.encode_text(batch.text.to(device)))
        owner.append(batch.samples[batch.caption_image].to(device))
        image_ids.append(batch.image_ids.to(device))
        assert batch.caption_ids is not None, "evaluation reads them"
        caption_ids.append(batch.caption_ids.to(device))
        captions.extend(batch.captions)
        on_batch(len(batch))
    return Embeddings(
        _concatenate(torch.cat(images), world),
        _concatenate(torch.cat(texts), world),
        _concatenate(torch.cat(owner), world),
        captions,
        _concatenate(torch.cat(image_ids), world),
        _concatenate(torch.cat(caption_ids), world),
    )


def _concatenate(rows: torch.Tensor, world: World) -> torch.Tensor:
    """(n_r, ...) on rank r -> (sum of n_r, ...) in rank order on every rank."""
    if world.size == 1:
        return rows
    counts = torch.zeros(world.size, dtype=torch.int64, device=rows.device)
    counts[world.rank] = len(rows)
    dist.all_reduce(counts)
    longest = int(counts.max())
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    everyone = rows.new_empty((world.size * longest, *rows.shape[1:]))
    dist.all_gather_single(everyone, padded)
    parts = everyone.view(world.size, longest, *rows.shape[1:])
    return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])
