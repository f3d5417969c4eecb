"""A quantile that is followed over the steps, the same on every rank at any world size (ours).

A histogram, not a tracker that moves a little each step: counts of all ranks add up exactly, the value is
right from the first step on, and a change of scale in the middle of training is followed at a known rate.
"""

import torch
from torch import nn

BINS = 2048
"""Of equal width over [-1, 1]; within a bin the quantile is interpolated."""
_RESOLUTION = 2**40


def count_in_bins(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """How many of the counted values in [-1, 1] fall in each bin: (BINS,) int64.

    At most 2**24 values, up to which float32 counts exactly.
    """
    outside = 2.0
    return torch.histc(values.masked_fill(~counted, outside), bins=BINS, min=-1, max=1).to(torch.int64)


def quantile_of_bins(histogram: torch.Tensor, quantile: float) -> torch.Tensor:
    """The value below which a share `quantile` of the mass (BINS,) lies: (); infinity where there is no mass."""
    # integers, because a running sum of floats may come out differently on different devices
    mass = (histogram * _RESOLUTION).round().to(torch.int64)
    above = mass.flip(0).cumsum(0).flip(0)
    total = above[:1]
    wanted = (total * (1 - quantile)).clamp(min=1)
    place = ((above >= wanted).sum() - 1).clamp(min=0).view(1)
    inside = (above.index_select(0, place) - wanted) / mass.index_select(0, place).clamp(min=1)
    value = -1 + 2 * (place + inside) / BINS
    return torch.where(total > 0, value, torch.inf).squeeze(0)


class RunningQuantile(nn.Module):
    """Quantile of values in [-1, 1] over the last steps, older ones weighing exponentially less."""

    histogram: torch.Tensor

    def __init__(self, quantile: float, decay: float) -> None:
        super().__init__()
        self.quantile, self.decay = quantile, decay
        self.register_buffer("histogram", torch.zeros(BINS))

    @property
    def value(self) -> torch.Tensor:
        """() the quantile, infinity before the first update."""
        return quantile_of_bins(self.histogram, self.quantile)

    @torch.no_grad()
    def update(self, counts: torch.Tensor) -> None:
        """Take in the counts (BINS,) of a step, of all ranks together or their mean; no values change nothing."""
        everyone = counts.double()
        total = everyone.sum()
        share = (everyone / total.clamp(min=torch.finfo(torch.float64).tiny)).to(self.histogram.dtype)
        mixed = self.decay * self.histogram + (1 - self.decay) * share
        self.histogram.copy_(torch.where(total > 0, mixed, self.histogram))
