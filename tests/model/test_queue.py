"""The queue against a plain list of the pairs that entered."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from model.config import QueueConfig
from model.errors import ModelError
from model.memory.queue import MomentumQueue, check_queue_size

WIDTH = 3


def batch(step: int, valid: list[bool]) -> dict[str, torch.Tensor]:
    """A global batch whose numbers tell the step and the place."""
    numbers = torch.arange(len(valid)) + 100 * step
    return {
        "images": numbers.unsqueeze(1) + torch.tensor([0.1, 0.2, 0.3]),
        "texts": -(numbers.unsqueeze(1) + torch.tensor([0.1, 0.2, 0.3])),
        "ids": numbers % 7,
        "positions": torch.arange(len(valid)),
        "valid": torch.tensor(valid),
    }


def enter_all(queue: MomentumQueue, batches: list[list[bool]]) -> list[tuple[int, int]]:
    """Enter the batches, the first as step 0; (step, place) of every valid pair, in order."""
    for step, valid in enumerate(batches):
        queue.enter(**batch(step, valid), step=step)
    return [(step, place) for step, valid in enumerate(batches) for place, good in enumerate(valid) if good]


def points_of(queue: MomentumQueue, width: int = WIDTH) -> torch.Tensor:
    points = queue.points(width)
    assert points is not None
    return points


def check(queue: MomentumQueue, entered: list[tuple[int, int]]) -> None:
    """The queue holds the last M of `entered`, each in slot (its number among all) % M, and no other."""
    size = queue.size
    slots: dict[int, tuple[int, int]] = {number % size: pair for number, pair in enumerate(entered)}
    assert queue.valid.tolist() == [slot in slots for slot in range(size)]
    assert queue.filled.item() == len(slots)
    assert queue.head.item() == len(entered) % size
    assert queue.ready().item() == (len(entered) >= size)
    for slot in range(size):
        if slot not in slots:
            assert not queue.images[slot].any()
            assert [queue.ids[slot], queue.positions[slot], queue.steps[slot]] == [-1, -1, -1]
            continue
        step, place = slots[slot]
        came = batch(step, [True] * (place + 1))
        assert torch.equal(queue.images[slot], came["images"][place])
        assert torch.equal(queue.texts[slot], came["texts"][place])
        assert queue.ids[slot] == came["ids"][place]
        assert [queue.positions[slot], queue.steps[slot]] == [place, step]


@pytest.mark.parametrize("sharded", [False, True])
@given(
    extra=st.integers(0, 9),
    batches=st.lists(st.lists(st.booleans(), min_size=1, max_size=8), max_size=6),
)
@settings(max_examples=100, deadline=None)
def test_it_holds_the_last_valid_pairs_in_the_order_of_their_batches(
    sharded: bool, extra: int, batches: list[list[bool]]
) -> None:
    queue = MomentumQueue(max((len(valid) for valid in batches), default=1) + extra, WIDTH, sharded)
    check(queue, enter_all(queue, batches))


@pytest.mark.parametrize(("size", "length"), [(8, 8), (10, 4), (7, 5), (5, 5)])
def test_a_size_that_no_batch_divides_and_batches_that_wrap_around(size: int, length: int) -> None:
    queue = MomentumQueue(size, WIDTH)
    batches = [[True] * length] * 7
    for done in range(1, 8):
        queue.enter(**batch(done - 1, batches[0]), step=done - 1)
        check(queue, [(step, place) for step in range(done) for place in range(length)])


def test_only_filled_slots_are_handed_out() -> None:
    queue = MomentumQueue(5, WIDTH)
    assert points_of(queue).shape == (0, WIDTH)
    enter_all(queue, [[True, False, True]])
    came = batch(0, [True] * 3)
    expected = torch.cat([came["images"][[0, 2]], came["texts"][[0, 2]]])
    assert torch.equal(points_of(queue), expected)
    assert torch.equal(points_of(queue, 2), expected[:, :2])


def test_a_term_is_multiplied_by_readiness() -> None:
    queue = MomentumQueue(4, WIDTH)
    term = torch.tensor(3.0, requires_grad=True)
    enter_all(queue, [[True] * 3])
    assert (term * queue.ready()).item() == 0
    enter_all(queue, [[True] * 3])
    assert (term * queue.ready()).item() == 3


def test_gradients_do_not_enter() -> None:
    queue = MomentumQueue(4, WIDTH)
    rows = batch(0, [True, True])
    rows["images"].requires_grad_()
    queue.enter(**rows, step=0)
    assert not queue.images.requires_grad


def test_a_saved_queue_goes_on_as_the_first_would_have() -> None:
    first, second = MomentumQueue(7, WIDTH), MomentumQueue(7, WIDTH)
    enter_all(first, [[True] * 5, [True, False, True]])
    second.load_state_dict(first.state_dict())
    for queue in (first, second):
        queue.enter(**batch(2, [True] * 4), step=2)
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


def test_it_compiles_without_a_break() -> None:
    queue, compiled = MomentumQueue(7, WIDTH), MomentumQueue(7, WIDTH)
    compiled_enter = torch.compile(compiled.enter, fullgraph=True, backend="eager")
    for step, valid in enumerate([[True] * 5, [True, False, True, True, True]]):
        queue.enter(**batch(step, valid), step=step)
        compiled_enter(**batch(step, valid), step=step)
    for name, tensor in queue.state_dict().items():
        assert torch.equal(compiled.state_dict()[name], tensor), name


def test_a_queue_smaller_than_a_global_batch_is_a_users_error() -> None:
    check_queue_size(128, 128)
    with pytest.raises(ModelError, match=r"queue\.size: 127 is smaller than one global batch; set it to 128"):
        check_queue_size(127, 128)
    with pytest.raises(ModelError, match=r"queue\.size: 0"):
        MomentumQueue(0, WIDTH)
    with pytest.raises(ValidationError, match="size"):
        QueueConfig(size=0)
