"""The queue: one ring of the last M pairs' momentum embeddings, both modalities side by side."""

import torch
from torch import nn

from model.errors import ModelError


def check_queue_size(size: int, global_batch_size: int) -> None:
    """Raise `ModelError` for a queue that one step would overwrite more than once."""
    if size < global_batch_size:
        raise ModelError(
            f"loss.queue.size: {size} is smaller than one global batch; set it to {global_batch_size} at least, "
            "or lower data.global_batch_size"
        )


class MomentumQueue(nn.Module):
    """M slots of image and text embeddings with what masks need to know of them, oldest overwritten first.

    Pairs enter in the order of the global batch, so every rank holds the same queue at any world size. The
    state is in buffers alone, checkpoints save it, and nothing in it waits for the device. Queues of
    momentum keys are MoCo's (He et al., CVPR 2020); one ring for both modalities is ours.
    """

    images: torch.Tensor
    texts: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    steps: torch.Tensor
    filled: torch.Tensor
    head: torch.Tensor

    def __init__(self, size: int, embed_dim: int) -> None:
        """`size` is M; no batch need divide it."""
        super().__init__()
        if size < 1:
            raise ModelError(f"loss.queue.size: {size} holds no pair; set it to one global batch at least")
        self.register_buffer("images", torch.zeros(size, embed_dim))
        self.register_buffer("texts", torch.zeros(size, embed_dim))
        self.register_buffer("ids", torch.full((size,), -1))
        self.register_buffer("positions", torch.full((size,), -1))  # each in the global batch it came with
        self.register_buffer("steps", torch.full((size,), -1))  # at which each entered
        self.register_buffer("filled", torch.tensor(0))
        self.register_buffer("head", torch.tensor(0))  # the slot that the next pair takes

    @property
    def size(self) -> int:
        return self.ids.shape[0]

    @property
    def valid(self) -> torch.Tensor:
        """(M,) bool, False where no pair has entered yet."""
        return torch.arange(self.size, device=self.filled.device) < self.filled

    def ready(self) -> torch.Tensor:
        """() bool, True once every slot is filled: a term that waits for the queue is multiplied by it."""
        return self.filled >= self.size

    def embeddings(self) -> torch.Tensor:
        """(2n, D) images and then texts of the n filled slots. Waits for the device."""
        filled = int(self.filled)
        return torch.cat([self.images[:filled], self.texts[:filled]])

    @torch.no_grad()
    def clear(self) -> None:
        """Forget all pairs."""
        self.filled.zero_()
        self.head.zero_()

    @torch.no_grad()
    def enter(
        self,
        images: torch.Tensor,
        texts: torch.Tensor,
        ids: torch.Tensor,
        positions: torch.Tensor,
        valid: torch.Tensor,
        step: int,
    ) -> None:
        """Take in the valid pairs of a global batch; every rank passes the same gathered rows.

        Args:
            images: (G, D) momentum embeddings, G <= M.
            texts: (G, D) of the same pairs.
            ids: (G,) int64 image ids.
            positions: (G,) int64 places in the global batch.
            valid: (G,) bool; the others leave no trace.
            step: the optimiser step that this batch was trained on.
        """
        assert len(ids) <= self.size, "check_queue_size refuses such a recipe"
        entered = valid.cumsum(dim=0)
        # the invalid come after all valid, onto slots of their own whose contents they put back: no two rows
        # write one slot, and the number of valid ones is not needed here
        place = torch.where(valid, entered - 1, entered[-1] + (~valid).cumsum(dim=0) - 1)
        slots = (self.head + place) % self.size
        new_steps = torch.full_like(ids, step)
        for ring, rows in (
            (self.images, images),
            (self.texts, texts),
            (self.ids, ids),
            (self.positions, positions),
            (self.steps, new_steps),
        ):
            takes = valid.view(-1, *[1] * (ring.ndim - 1))
            ring.index_copy_(0, slots, torch.where(takes, rows.to(ring.dtype), ring[slots]))
        self.head.copy_((self.head + entered[-1]) % self.size)
        self.filled.copy_((self.filled + entered[-1]).clamp(max=self.size))
