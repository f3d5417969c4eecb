"""The baselines, CLIP's and SigLIP's loss, with their learnable scale and bias."""

import math
from typing import Literal

import torch
from torch import nn

from model.config import ContrastConfig
from model.errors import ModelError
from model.losses.info_nce import info_nce
from model.losses.sigmoid import sigmoid_loss
from model.losses.tiles import Keys

INITIAL_SCALE = {"clip": 1 / 0.07, "siglip": 10.0}


class Contrast(nn.Module):
    """Images and captions of this rank against those of all ranks.

    Its parameters, `log_scale` and for SigLIP `bias`, are (1,), since DeepSpeed cannot share out what has no
    dimension; as vectors they do not decay.
    """

    def __init__(self, kind: Literal["clip", "siglip"], config: ContrastConfig) -> None:
        """Raises ModelError for a scale that starts above its bound."""
        super().__init__()
        scale = INITIAL_SCALE[kind] if config.initial_scale is None else config.initial_scale
        self.max_log_scale = math.log(config.max_scale) if kind == "clip" else math.inf
        if math.log(scale) > self.max_log_scale:
            raise ModelError(f"loss.contrast.initial_scale: {scale:g} is above max_scale {config.max_scale:g}")
        self.log_scale = nn.Parameter(torch.tensor([math.log(scale)]))
        self.bias = nn.Parameter(torch.tensor([config.initial_bias])) if kind == "siglip" else None

    def scale(self) -> torch.Tensor:
        """() what similarities are multiplied by.

        The bound is CLIP's. The gradient passes also beyond it (ours): the scale can come back, and the ranks'
        gradients are still averaged.
        """
        beyond = (self.log_scale - self.max_log_scale).clamp(min=0).detach()
        return (self.log_scale - beyond).exp().squeeze()

    def forward(
        self,
        images: torch.Tensor,
        captions: torch.Tensor,
        ids: torch.Tensor,
        all_images: Keys,
        all_captions: Keys,
    ) -> torch.Tensor:
        """(b, D), (b, D) normalised, (b,), the gathered batch -> (b,), one value a pair.

        CLIP's is the mean of the two directions; SigLIP's covers every pair once, with images as anchors.
        """
        scale = self.scale()
        if self.bias is not None:
            return sigmoid_loss(images, ids, captions, all_captions, scale, self.bias.squeeze())
        to_captions = info_nce(images, ids, captions, [all_captions], scale)
        return (to_captions + info_nce(captions, ids, images, [all_images], scale)) / 2
