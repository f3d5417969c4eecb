"""The queue: one ring of the last M pairs' momentum embeddings, both modalities side by side."""

from collections.abc import Mapping

import torch
from torch import nn

from model.collectives import rank
from model.errors import ModelError
from model.losses.pairs import Pairs, Slots
from model.memory.sharded import ShardedPairs, on_first, span

SHARDED = ("images", "texts")
"""The buffers of which a rank holds its slots alone, where the queue is sharded."""


def check_queue_size(size: int, global_batch_size: int) -> None:
    """Raise `ModelError` for a queue that one step would overwrite more than once."""
    if size < global_batch_size:
        raise ModelError(
            f"loss.queue.size: {size} is smaller than one global batch; set it to {global_batch_size} at least, "
            "or lower data.global_batch_size"
        )


class MomentumQueue(nn.Module):
    """M slots of image and text embeddings with what masks need to know of them, oldest overwritten first.

    Pairs enter in the order of the global batch, so every rank holds the same queue at any world size, or, where it
    is sharded, its span of the slots' embeddings and the rest whole. The state is in buffers alone, and nothing in
    it waits for the device. Queues of momentum keys are MoCo's (He et al., CVPR 2020); one ring for both modalities
    is ours.
    """

    images: torch.Tensor
    texts: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    steps: torch.Tensor
    filled: torch.Tensor
    head: torch.Tensor

    def __init__(self, size: int, embed_dim: int, sharded: bool = False) -> None:
        """`size` is M; neither a batch nor the ranks need divide it."""
        super().__init__()
        if size < 1:
            raise ModelError(f"loss.queue.size: {size} holds no pair; set it to one global batch at least")
        self.sharded = sharded
        self.own = span(size, rank()) if sharded else slice(0, size)
        held = self.own.stop - self.own.start
        self.register_buffer("images", torch.zeros(held, embed_dim))
        self.register_buffer("texts", torch.zeros(held, embed_dim))
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

    def kinds(self, number: int) -> list[Slots]:
        """The slots as losses read them, each with one of the kinds of embedding that lie side by side."""
        sides = zip(self.images.chunk(number, dim=1), self.texts.chunk(number, dim=1), strict=True)
        share = ShardedPairs if self.sharded else Pairs
        return [share(images, texts, self.ids, self.valid) for images, texts in sides]

    def points(self, width: int) -> torch.Tensor | None:
        """(2n, width) images and then texts of the n filled slots, their first kind of embedding, on rank 0.

        The others may get None. All ranks call it together. Waits for the device.
        """
        filled = int(self.filled)
        if not self.sharded:
            return torch.cat([self.images[:filled, :width], self.texts[:filled, :width]])
        sides = [on_first(side[:, :width], self.size) for side in (self.images, self.texts)]
        found = [side[:filled] for side in sides if side is not None]
        return torch.cat(found) if found else None

    def whole(self) -> dict[str, torch.Tensor]:
        """The state as a checkpoint holds it, all slots in order, on rank 0. All ranks call it together."""
        state = dict(self.named_buffers())
        if self.sharded:
            for name in SHARDED:
                side = on_first(state.pop(name), self.size)
                if side is not None:
                    state[name] = side
        return state

    def own_part(self, whole: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What this rank keeps of a `whole` state; of a queue of another size it is left as it is."""
        return {
            name: tensor[self.own] if name in SHARDED and len(tensor) == self.size else tensor
            for name, tensor in whole.items()
        }

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
        entered = valid.sum()
        batch = torch.arange(len(ids), device=ids.device)
        order = (~valid).to(torch.uint8).argsort(stable=True)  # the valid ones first
        # the slots after the last of the valid ones get back what they hold: their number is not needed here
        slots = (self.head + batch) % self.size
        _write(self.ids, slots, ids, order, batch < entered)
        _write(self.positions, slots, positions, order, batch < entered)
        _write(self.steps, slots, torch.full_like(ids, step), order, batch < entered)
        if self.sharded:
            own = torch.arange(self.own.start, self.own.stop, device=ids.device)
            place = (own - self.head) % self.size
            slots, order, takes = own - self.own.start, order[place.clamp(max=len(ids) - 1)], place < entered
        else:
            takes = batch < entered
        _write(self.images, slots, images, order, takes)
        _write(self.texts, slots, texts, order, takes)
        self.head.copy_((self.head + entered) % self.size)
        self.filled.copy_((self.filled + entered).clamp(max=self.size))


def _write(
    ring: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor, order: torch.Tensor, takes: torch.Tensor
) -> None:
    """Slot `slots[i]` takes row `order[i]` where `takes[i]`; no two slots are the same."""
    chosen = takes.view(-1, *[1] * (ring.ndim - 1))
    ring.index_copy_(0, slots, torch.where(chosen, rows[order].to(ring.dtype), ring[slots]))
