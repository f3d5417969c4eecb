"""A framework: towers, heads and the loss terms that train them."""

import torch
from torch import nn

from model.aahr.head import image_head, text_head
from model.collectives import gather
from model.config import LossConfig, ModelConfig
from model.features import Encoded
from model.losses.hinge import hinge_loss
from model.losses.tiles import Keys
from model.towers.open_clip import ImageTower, TextTower, build_towers, tower_widths


class DualEncoder(nn.Module):
    """AAHR's two encoders. Images and texts are embedded independently, so both can be indexed."""

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        """`pretrained=False` skips the recipe's open_clip weights, when others are loaded afterwards."""
        super().__init__()
        widths = tower_widths(config.architecture)
        self.image_tower: ImageTower
        self.text_tower: TextTower
        self.image_tower, self.text_tower = build_towers(config.architecture, config.pretrained, load=pretrained)
        self.image_head = image_head(config, widths.pooled, widths.image_tokens)
        self.text_head = text_head(config, widths.pooled, widths.text_tokens)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """(B, side, side, 3) uint8 -> (B, D) float32 of length 1."""
        return self.represent_image(images).embedding

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """(C, T) int64 -> (C, D) float32 of length 1."""
        return self.represent_text(tokens).embedding

    def represent_image(self, images: torch.Tensor) -> Encoded:
        """(B, side, side, 3) uint8 -> embeddings, and the local path for the losses that need it."""
        encoded: Encoded = self.image_head(self.image_tower(images))
        return encoded

    def represent_text(self, tokens: torch.Tensor) -> Encoded:
        """(C, T) int64 -> embeddings, and the local path for the losses that need it."""
        encoded: Encoded = self.text_head(self.text_tower(tokens))
        return encoded


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
        weight = valid * (len(all_valid) / all_valid.sum())
        config, hardest = self.loss.base, step >= self.all_negatives_steps
        images_keys, captions_keys = (Keys(rows, all_ids, all_valid.bool()) for rows in (all_images, all_captions))
        base = hinge_loss(image, image_ids, caption, captions_keys, config.margin, hardest)
        base = base + hinge_loss(caption, image_ids, image, images_keys, config.margin, hardest)
        base = (base * weight).mean()
        return {"loss": config.weight * base, "base": base.detach()}
