"""A framework: towers, heads and the loss terms that train them."""

import torch
from torch import nn

from model.aahr.head import image_head, text_head
from model.collectives import gather
from model.config import LossConfig, ModelConfig
from model.losses.hinge import hinge_loss
from model.towers.build import build_towers


class DualEncoder(nn.Module):
    """AAHR's two encoders. Images and texts are embedded independently, so both can be indexed."""

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        """`pretrained=False` skips the recipe's weights for the towers, when others are loaded afterwards."""
        super().__init__()
        towers = build_towers(config, load=pretrained)
        self.image_tower, self.text_tower, self.notes = towers.image, towers.text, towers.notes
        self.image_head = image_head(config, towers.image.pooled_width, towers.image.token_width)
        self.text_head = text_head(config, towers.text.pooled_width, towers.text.token_width)

    def encode_image(
        self,
        images: torch.Tensor | None,
        regions: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, side, side, 3) uint8, (B, R, F) float32, (B, R) bool -> (B, D) float32 of length 1.

        What `ModelConfig` does not read may be None.
        """
        embedding: torch.Tensor = self.image_head(self.image_tower(images, regions, region_mask))
        return embedding

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """(C, T) int64 -> (C, D) float32 of length 1."""
        embedding: torch.Tensor = self.text_head(self.text_tower(tokens))
        return embedding


class Framework(nn.Module):
    """The encoders with their losses: what the engine trains."""

    def __init__(
        self, encoders: DualEncoder, loss: LossConfig, steps_per_epoch: int, autocast: torch.dtype | None = None
    ) -> None:
        """`autocast` is the arithmetic of the encoders, None for that of their weights; losses are float32."""
        super().__init__()
        self.encoders = encoders
        self.loss = loss
        self.autocast = autocast
        first = loss.base.all_negatives_steps
        self.all_negatives_steps = steps_per_epoch if first is None else first

    def forward(
        self, images: torch.Tensor, text: torch.Tensor, image_ids: torch.Tensor, valid: torch.Tensor, step: int
    ) -> dict[str, torch.Tensor]:
        """This rank's pairs -> named scalar losses, `loss` the weighted sum.

        (b, side, side, 3) uint8, (b, T) int64, (b,) int64, (b,) bool; `step` counts applied optimiser steps.
        Pairs that are not valid, which only fill a batch, are neither anchors nor negatives. The mean of each
        value over the ranks is its value over the global batch.
        """
        # here and not around the engine, which switches off an autocast that it did not start
        with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
            image, caption = self.encoders.encode_image(images), self.encoders.encode_text(text)
        both = gather(torch.cat([image, caption], dim=1))
        all_images, all_captions = both.chunk(2, dim=1)
        all_ids, all_valid = gather(torch.stack([image_ids, valid.to(image_ids.dtype)], dim=1)).unbind(dim=1)
        excluded = (image_ids.unsqueeze(1) == all_ids) | (all_valid == 0)
        weight = valid * (len(all_valid) / all_valid.sum())
        config, hardest = self.loss.base, step >= self.all_negatives_steps
        base = hinge_loss(image, caption, all_captions, excluded, config.margin, hardest, weight)
        base = base + hinge_loss(caption, image, all_images, excluded, config.margin, hardest, weight)
        return {"loss": config.weight * base, "base": base.detach()}
