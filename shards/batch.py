"""What the loader hands out."""

from dataclasses import dataclass

import torch


@dataclass
class Batch:
    """Images with their captions. B images, C captions, T tokens.

    In training C = B and caption i belongs to image i; in evaluation an image has any number of captions.
    """

    images: torch.Tensor
    """(B, side, side, 3) uint8; normalised on the device, a quarter of the bytes of float32."""
    text: torch.Tensor
    """(C, T) int64 token ids."""
    caption_image: torch.Tensor
    """(C,) int64: the row of `images` that each caption describes."""
    image_ids: torch.Tensor
    """(B,) int64: pairs with one id are never each other's negatives."""
    samples: torch.Tensor
    """(B,) int64: the sample's number in its folder of shards."""
    captions: list[str]
    """(C,) the captions as text."""

    def pin_memory(self) -> "Batch":
        """Called by the data loader when it pins; moves every tensor to page-locked memory."""
        return Batch(
            self.images.pin_memory(),
            self.text.pin_memory(),
            self.caption_image.pin_memory(),
            self.image_ids.pin_memory(),
            self.samples.pin_memory(),
            self.captions,
        )
