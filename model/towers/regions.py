"""Precomputed regions of an image, such as a detector's, as its local tokens."""

import torch

from model.errors import ModelError
from model.features import Features
from model.towers.open_clip import ImageTower
from model.towers.tower import Tower, at_least_one


class RegionTower(Tower):
    """Regions alone: they are the local tokens, and their mean is the global feature. Has no weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pooled_width = self.token_width = width

    def forward(
        self, _images: torch.Tensor | None, regions: torch.Tensor | None, region_mask: torch.Tensor | None = None
    ) -> Features:
        """(B, R, F) float regions, (B, R) bool, True where a region is real, None when all are -> features.

        An image without any has one region of zeros. Raises `ModelError` for a batch without regions of this
        width.
        """
        if regions is None:
            raise ModelError(
                "the data set holds no regions, which this model reads; give one that was converted with them"
            )
        if regions.shape[-1] != self.token_width:
            raise ModelError(
                f"model.image.region_width: {self.token_width}, but the data set's regions have {regions.shape[-1]}"
            )
        if region_mask is None:
            return Features(regions.mean(dim=1), regions, None)
        valid = at_least_one(region_mask)
        regions = regions.masked_fill(~region_mask.unsqueeze(-1), 0)
        pooled = regions.sum(dim=1) / valid.sum(dim=1, keepdim=True)
        return Features(pooled, regions, valid)


class PixelRegionTower(Tower):
    """The global feature of an image tower, with regions as local tokens, as in AAHR's paper."""

    def __init__(self, clip: ImageTower, region_width: int) -> None:
        super().__init__()
        self.clip, self.regions = clip, RegionTower(region_width)
        self.pooled_width, self.token_width = clip.pooled_width, region_width

    def forward(
        self,
        images: torch.Tensor | None,
        regions: torch.Tensor | None,
        region_mask: torch.Tensor | None = None,
    ) -> Features:
        """(B, side, side, 3) uint8, (B, R, F) float, (B, R) bool or None -> features."""
        local = self.regions(images, regions, region_mask)
        return Features(self.clip(images).pooled, local.tokens, local.valid)
