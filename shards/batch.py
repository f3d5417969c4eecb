"""What the loader hands out."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch

from shards.errors import DataError
from shards.images import Pixels
from shards.sources.record import Regions
from shards.worker_memory import batch_memory

NO_ID = -1


@dataclass(frozen=True)
class Undecodable:
    """A sample that was met in training and could not be used; another stands in its place."""

    sample: int
    """Its number in the training set."""
    reason: str
    """One line that names the shard and the key."""


@dataclass
class Batch:
    """Images, or their regions, with their captions. B images, C captions, T tokens, R regions.

    In training C = B and caption i belongs to image i; in evaluation an image has any number of captions.
    Images and regions that a loader's worker made, unless they are pinned, stay as they are until the second next
    batch is taken: what is to last longer is to be copied.
    """

    images: torch.Tensor | None
    """(B, side, side, 3) uint8; normalised on the device, a quarter of the bytes of float32."""
    regions: torch.Tensor | None
    """(B, R, F) float32, zero where there is none."""
    region_mask: torch.Tensor | None
    """(B, R) bool: False where an image has fewer regions than another of the batch."""
    text: torch.Tensor
    """(C, T) int64 token ids."""
    caption_image: torch.Tensor
    """(C,) int64: the image that each caption describes, as a row of the batch."""
    image_ids: torch.Tensor
    """(B,) int64: pairs with one id are never each other's negatives."""
    samples: torch.Tensor
    """(B,) int64: the sample's number in its data set, or in the whole of a mixture."""
    valid: torch.Tensor
    """(B,) bool: False for a sample that only fills the last batch of an epoch."""
    captions: list[str]
    """(C,) the captions as text."""
    caption_ids: torch.Tensor | None = None
    """(C,) int64 in evaluation: the data set's own, `NO_ID` where it has none."""
    undecodable: list[Undecodable] = field(default_factory=list)
    """What was replaced while this batch was made."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def pin_memory(self) -> "Batch":
        """Called by the data loader when it pins; moves every tensor to page-locked memory."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        pinned = {name: value.pin_memory() for name, value in values.items() if isinstance(value, torch.Tensor)}
        return Batch(**values | pinned)


def stack_images(pixels: Sequence[Pixels | None]) -> torch.Tensor | None:
    """(B, side, side, 3) uint8, or None where the data set holds no images."""
    held = [one for one in pixels if one is not None]
    assert len(held) in (0, len(pixels)), "rows without an image would shift the others"
    if not held:
        return None
    stacked = batch_memory("images", (len(held), *held[0].shape), torch.uint8)
    return torch.stack([torch.from_numpy(one) for one in held], out=stacked)


def stack_regions(regions: Sequence[Regions | None]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(B, R, F) float32 and (B, R) bool, R the largest number of regions; None without regions.

    Raises `DataError` where they differ in F.
    """
    held = [one for one in regions if one is not None]
    assert len(held) in (0, len(regions)), "rows without regions would shift the others"
    if not held:
        return None, None
    widths = sorted({one.shape[1] for one in held})
    if len(widths) > 1:
        raise DataError(f"regions of {widths[0]} and of {widths[-1]} features in one data set; convert them alike")
    most = max(len(one) for one in held)
    stacked = batch_memory("regions", (len(held), most, *widths), torch.float32)
    mask = torch.zeros(len(held), most, dtype=torch.bool)
    for row, one in enumerate(held):
        stacked[row, : len(one)] = torch.from_numpy(one)
        stacked[row, len(one) :] = 0
        mask[row, : len(one)] = True
    return stacked, mask
