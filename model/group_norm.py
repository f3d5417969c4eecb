"""Batch norm over fixed-size groups of consecutive samples, the same at any world size."""

from collections.abc import Iterator
from contextlib import contextmanager

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
        self._held: list[torch.Tensor] | None = None

    def forward(self, x: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """(B, n, width) -> the same shape; B is a multiple of the group size in training.

        Tokens that are not `valid` (B, n) take no part in the statistics, so how far a batch is padded changes
        nothing.
        """
        if not self.training:
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            return (x - self.running_mean) * scale + self.bias
        assert x.shape[0] % self.group == 0, "a rank's batch must hold whole groups; the recipe check ensures it"
        groups = x.shape[0] // self.group
        grouped = x.to(self.running_mean.dtype).reshape(groups, -1, x.shape[-1])
        if valid is None:
            count = torch.full((groups, 1, 1), grouped.shape[1], device=x.device)
            var, mean = torch.var_mean(grouped, dim=1, correction=0, keepdim=True)
        else:
            real = valid.reshape(groups, -1, 1)
            count = real.sum(dim=1, keepdim=True).clamp(min=1)
            mean = grouped.masked_fill(~real, 0).sum(dim=1, keepdim=True) / count
            var = (grouped - mean).masked_fill(~real, 0).square().sum(dim=1, keepdim=True) / count
        self._advance(mean, var, count)
        normal = (grouped - mean) * torch.rsqrt(var + self.eps)
        return (normal * self.weight + self.bias).reshape(x.shape)

    @torch.no_grad()
    def _advance(self, mean: torch.Tensor, var: torch.Tensor, count: torch.Tensor) -> None:
        # the unbiased variance, as torch.nn.BatchNorm keeps it
        unbiased = var * (count / (count - 1).clamp(min=1))
        batch = torch.stack([mean.mean(dim=(0, 1)), unbiased.mean(dim=(0, 1))])
        if self._held is None:
            self._move(batch)
        else:
            self._held.append(batch)

    def _move(self, batch: torch.Tensor) -> None:
        mean, var = average(batch)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)

    def hold(self) -> None:
        """Keep what the running statistics would have seen."""
        self._held = []

    @torch.no_grad()
    def release(self, advance: bool) -> None:
        """Show them its mean as that of one batch, or nothing. All ranks call it together."""
        if self._held and advance:
            self._move(torch.stack(self._held).mean(dim=0))
        self._held = None


@contextmanager
def running_statistics(module: nn.Module, advance: bool) -> Iterator[None]:
    """Batches of equal size are parts of one: running statistics advance once, at the end, or not at all."""
    norms = [one for one in module.modules() if isinstance(one, GroupBatchNorm)]
    for norm in norms:
        norm.hold()
    yield
    for norm in norms:
        norm.release(advance)
