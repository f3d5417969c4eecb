"""What a run's prototypes stand for: the images nearest to each, the words of its captions, how much it is used."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from model.terms.prototypes import DEAD_AFTER
from trainer.checkpoint import Checkpoint
from trainer.config import Recipe
from trainer.embed import Embeddings
from trainer.report.contest import blocks
from trainer.report.tensors import read_tensors
from trainer.report.words import Word, telling_words

PICTURES, WORDS = 4, 6
"""Of each prototype."""
_BANK = "terms.prototypes.bank."


@dataclass(frozen=True)
class Prototype:
    """One prototype on a split. An item belongs to the one of the largest cosine, as in the log of training."""

    number: int
    images: int
    captions: int
    """Items that are nearest to it."""
    nearest: list[tuple[int, float]]
    """Images with their cosines, the nearest of all, whether or not they belong to it."""
    words: list[Word]


@dataclass(frozen=True)
class Prototypes:
    """The bank on a split."""

    prototypes: list[Prototype]
    """The most used first."""
    image_shares: list[float]
    caption_shares: list[float]
    """Of each, in that order."""
    unused: int
    """Nearest to no item of the split."""
    dead: int
    """Nearest to no sample in the last steps of training."""
    dead_after: int
    """So many."""
    in_use: float
    """exp of the entropy of the usage: so many prototypes, all used alike, would have the same."""
    agree: float
    """Share of the captions that have the prototype of their image."""
    chance: float
    """The same, were captions dealt to images at random."""


def has_prototypes(recipe: Recipe) -> bool:
    """Whether a run keeps a bank."""
    return recipe.model.has_aahr and recipe.loss.prototypes.weight > 0


@torch.no_grad()
def describe(checkpoint: Checkpoint, embeddings: Embeddings) -> Prototypes:
    """The checkpoint's bank on an embedded split."""
    bank = read_tensors(checkpoint, [_BANK + name for name in ("prototypes", "last_used")])
    dead_after = checkpoint.recipe.loss.prototypes.reseed_after or DEAD_AFTER
    idle = checkpoint.step - bank[f"{_BANK}last_used"]
    prototypes = F.normalize(bank[f"{_BANK}prototypes"].float(), dim=1)
    return describe_bank(prototypes, embeddings, int((idle >= dead_after).sum()), dead_after)


@torch.no_grad()
def describe_bank(prototypes: torch.Tensor, embeddings: Embeddings, dead: int, dead_after: int) -> Prototypes:
    """(P, D) prototypes of length 1."""
    prototypes = prototypes.to(embeddings.images.device)
    total = len(prototypes)
    by_image, by_caption = (_belongs(side, prototypes) for side in (embeddings.images, embeddings.texts))
    images, captions = (np.bincount(one, minlength=total) for one in (by_image, by_caption))
    nearest = _nearest(prototypes, embeddings.images)
    words = telling_words(embeddings.captions, by_caption.tolist(), total, WORDS)
    image_shares, caption_shares = (counts / max(1, counts.sum()) for counts in (images, captions))
    usage = (image_shares + caption_shares) / 2
    order = np.argsort(-usage, kind="stable")
    of_image = by_image[embeddings.caption_image.cpu().numpy()]
    return Prototypes(
        [
            Prototype(number, int(images[number]), int(captions[number]), nearest[number], words[number])
            for number in order.tolist()
        ],
        image_shares[order].tolist(),
        caption_shares[order].tolist(),
        unused=int((images + captions == 0).sum()),
        dead=dead,
        dead_after=dead_after,
        in_use=float(np.exp(-(usage[usage > 0] * np.log(usage[usage > 0])).sum())),
        agree=float((of_image == by_caption).mean()),
        chance=float((np.bincount(of_image, minlength=total) / len(of_image)) @ caption_shares),
    )


def _belongs(items: torch.Tensor, prototypes: torch.Tensor) -> np.ndarray:
    """(N,) the nearest prototype."""
    parts = [(items[rows] @ prototypes.T).argmax(dim=1) for rows in blocks(len(items), len(prototypes))]
    return torch.cat(parts).cpu().numpy()


def _nearest(prototypes: torch.Tensor, images: torch.Tensor) -> list[list[tuple[int, float]]]:
    found = []
    for rows in blocks(len(prototypes), len(images)):
        scores, places = (prototypes[rows] @ images.T).topk(min(PICTURES, len(images)), dim=1)
        found += [list(zip(*pair, strict=True)) for pair in zip(places.tolist(), scores.tolist(), strict=True)]
    return found
