"""Batch norm over fixed-size groups of consecutive samples, the same at any world size."""

import torch
from torch import nn

from model.collectives import average


class GroupBatchNorm(nn.Module):
    """Batch norm whose statistics come from groups of `group` consecutive samples of the global batch.

    Ordinary batch norm sees whatever one rank holds, so its result changes with the world size. Here a group
    is whole on one rank, and the running statistics advance by the mean over all groups of all ranks.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, width: int, group: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.group, self.momentum, self.eps = group, momentum, eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, n, width) -> the same shape; B is a multiple of the group size in training."""
        if not self.training:
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            return (x - self.running_mean) * scale + self.bias
        assert x.shape[0] % self.group == 0, "a rank's batch must hold whole groups; the recipe check ensures it"
        grouped = x.to(self.running_mean.dtype).reshape(x.shape[0] // self.group, -1, x.shape[-1])
        var, mean = torch.var_mean(grouped, dim=1, correction=0, keepdim=True)
        self._advance(mean, var, grouped.shape[1])
        normal = (grouped - mean) * torch.rsqrt(var + self.eps)
        return (normal * self.weight + self.bias).reshape(x.shape)

    @torch.no_grad()
    def _advance(self, mean: torch.Tensor, var: torch.Tensor, count: int) -> None:
        # the unbiased variance, as torch.nn.BatchNorm keeps it
        unbiased = var * (count / max(count - 1, 1))
        batch = average(torch.stack([mean.mean(dim=(0, 1)), unbiased.mean(dim=(0, 1))]))
        self.running_mean.lerp_(batch[0], self.momentum)
        self.running_var.lerp_(batch[1], self.momentum)
