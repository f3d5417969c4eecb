"""What anchors gather from keys that come in tiles, so that a (b, K) matrix is never whole.

All without gradient; where one is needed, it follows from what was gathered.
"""

import torch


class Hardest:
    """The most similar key so far."""

    def __init__(self, anchors: torch.Tensor) -> None:
        self.value = anchors.new_full((len(anchors),), -torch.inf)
        self.row = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)

    def add(self, similarity: torch.Tensor, first: int) -> None:
        """(b, T), minus infinity for what does not count, of the keys from row `first` on."""
        value, place = similarity.max(dim=1)
        higher = value > self.value
        self.row = torch.where(higher, place + first, self.row)
        self.value = torch.where(higher, value, self.value)

    @property
    def found(self) -> torch.Tensor:
        """(b,) bool."""
        return self.value > -torch.inf


class MostSimilar:
    """The k most similar keys so far, in no order."""

    def __init__(self, anchors: torch.Tensor, k: int) -> None:
        self.values = anchors.new_full((len(anchors), k), -torch.inf)
        self.rows = torch.zeros(self.values.shape, dtype=torch.int64, device=anchors.device)

    def add(self, similarity: torch.Tensor, first: int) -> None:
        """(b, T), minus infinity for what does not count, of the keys from row `first` on."""
        k = self.values.shape[1]
        top, place = similarity.topk(min(k, similarity.shape[1]), dim=1, sorted=False)
        rows = torch.cat([self.rows, place + first], dim=1)
        self.values, kept = torch.cat([self.values, top], dim=1).topk(k, dim=1, sorted=False)
        self.rows = rows.gather(1, kept)

    @property
    def found(self) -> torch.Tensor:
        """(b, k) bool: the places that hold a key."""
        return self.values > -torch.inf


class SoftTargets:
    """Cross entropy of soft targets: `-sum_j q_j log softmax_j(x . k_j / temperature)`, q sums to 1.

    Keys have no gradient, so the anchor's needs two weighted means of keys, and these are gathered along with the
    value: by the softmax, with a running maximum (Milakov and Gimelshein, arXiv 1805.02867), and by q.
    """

    def __init__(self, anchors: torch.Tensor, matches: torch.Tensor, temperature: float) -> None:
        """(b, D) anchors and (b, D) keys that are their true matches, each of weight 1 before normalisation."""
        self.anchors, self.temperature = anchors, temperature
        self.highest = (anchors * matches).sum(dim=1) / temperature
        self.total = torch.ones_like(self.highest)
        self.keys = matches
        self.weight = torch.ones_like(self.highest)
        self.targets = matches

    def add(self, similarity: torch.Tensor, weights: torch.Tensor, keys: torch.Tensor) -> None:
        """(b, T), minus infinity for what is not in the softmax; (b, T) of q, not normalised; (T, D)."""
        logits = similarity / self.temperature
        highest = torch.maximum(self.highest, logits.amax(dim=1))
        shrink, terms = (self.highest - highest).exp(), (logits - highest.unsqueeze(1)).exp()
        self.total = self.total * shrink + terms.sum(dim=1)
        self.keys = self.keys * shrink.unsqueeze(1) + terms @ keys
        self.highest = highest
        self.weight = self.weight + weights.sum(dim=1)
        self.targets = self.targets + weights @ keys

    def loss(self, anchors: torch.Tensor) -> torch.Tensor:
        """(b,), with gradient to (b, D) `anchors`, which are those of the beginning. Not twice differentiable."""
        target = self.targets / self.weight.unsqueeze(1)
        value = self.highest + self.total.log() - (self.anchors * target).sum(dim=1) / self.temperature
        gradient = (self.keys / self.total.unsqueeze(1) - target) / self.temperature
        linear = (anchors * gradient).sum(dim=1)
        return value + (linear - linear.detach())
