"""A training step made by hand, in which no two tensors are alike: a term that takes the wrong one is found."""

import torch

from model.features import Encoded
from model.losses.pairs import Memory, Pairs
from model.step import Step, View
from tests.model.pairs import unit_rows

B, G, M, D = 4, 8, 6, 8
"""Pairs of the rank, of all ranks, slots of the queue, width."""
FIRST = 4
"""The place of the rank's first pair in the global batch."""
QUEUE_IDS = [3, 10, 11, 3, 12, 11]


def pairs_of(seed: int, ids: list[int], valid: list[bool] | None = None) -> Pairs:
    images, texts = (unit_rows(len(ids), D, seed + side).requires_grad_() for side in range(2))
    return Pairs(images, texts, torch.tensor(ids), torch.tensor(valid or [True] * len(ids)))


def view_of(seed: int, ids: list[int], queue_valid: list[bool]) -> View:
    """Own pairs, batch, and keys each with vectors of their own; ids are those of the batch."""
    own_ids = ids[FIRST : FIRST + B]
    queue = pairs_of(seed + 8, QUEUE_IDS, queue_valid)
    memory = Memory(pairs_of(seed + 4, own_ids), pairs_of(seed + 6, ids), queue)
    return View(pairs_of(seed, own_ids), pairs_of(seed + 2, ids), memory)


def encoded(seed: int) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(B, 3, D, dtype=torch.float64, generator=generator)
    valid = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [True, True, True]])
    local = unit_rows(B, D, seed + 1).requires_grad_()
    return Encoded(unit_rows(B, D, seed + 2), local, tokens, valid)


def step_of(number: int = 3, views: int = 3, full: bool = True, concepts: int = 5) -> Step:
    ids = [0, 1, 2, 1, 3, 4, 3, 5]
    logs = [
        torch.randn(B, concepts, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).log_softmax(1)
        for seed in (901, 902)
    ]
    return Step(
        number=number,
        seed=17,
        positions=torch.arange(FIRST, FIRST + B),
        weight=torch.tensor([1.0, 0.5, 2.0, 1.5], dtype=torch.float64),
        image=encoded(700),
        text=encoded(800),
        views=[
            view_of(20 * place, ids, [True] * M if full else [True] * 3 + [False] * 3) for place in range(views)
        ],
        concepts=(logs[0].requires_grad_(), logs[1].requires_grad_()),
        queue_ready=torch.tensor(full),
    )


def weighted(step: Step, per_pair: list[torch.Tensor]) -> torch.Tensor:
    """The rank's mean."""
    return sum((w * one for w, one in zip(step.weight, per_pair, strict=True)), torch.zeros(())) / B
