"""What the losses over pairs have in common: no tensor as large as the matrix of all pairs, and no second pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.losses.hinge import distance_weighted_hinge, hinge_loss
from model.losses.info_nce import info_nce
from model.losses.keyed_noise import PairNoise
from model.losses.sigmoid import sigmoid_loss
from model.losses.tiles import Keys, tile_shape
from tests.model.pairs import assert_same_gradients, keys_of, unit_rows

ANCHORS, KEYS, WIDTH = 60, 100, 8
IDS = torch.arange(ANCHORS)

Loss = Callable[[torch.Tensor, torch.Tensor, Keys], torch.Tensor]
LOSSES: dict[str, Loss] = {
    "info_nce": lambda a, p, k: info_nce(a, IDS, p, [k], 14.0),
    "sigmoid": lambda a, p, k: sigmoid_loss(a, IDS, p, k, 10.0, -10.0),
    "hardest": lambda a, p, k: hinge_loss(a, IDS, p, k, 0.2, hardest=True),
    "all negatives": lambda a, p, k: hinge_loss(a, IDS, p, k, 0.2, hardest=False),
    "distance-weighted": lambda a, p, k: distance_weighted_hinge(
        a, IDS, p, k, 0.2, PairNoise(IDS, KEYS, seed=0, step=0), 1.7
    ),
}


class Watch(TorchDispatchMode):
    """The largest tensor that any operation makes, and how many matrix products there are."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.products = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        return result


def watch(loss: Loss, keys_with_gradient: bool) -> Watch:
    anchors, positives, vectors = (unit_rows(n, WIDTH, seed) for seed, n in enumerate((ANCHORS, ANCHORS, KEYS)))
    keys = keys_of(vectors.requires_grad_(keys_with_gradient), [*range(KEYS)])
    with Watch() as seen:
        loss(anchors.requires_grad_(), positives, keys).sum().backward()
    assert anchors.grad is not None
    assert anchors.grad.any()
    return seen


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_no_tensor_is_larger_than_a_tile_or_an_input(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tiles", "negatives"):
        monkeypatch.setattr(f"model.losses.{module}.tile_shape", lambda _device: (20, 20))
    assert watch(loss, keys_with_gradient=True).largest == KEYS * WIDTH


def test_keys_without_gradient_cost_two_products_and_others_four() -> None:
    assert watch(LOSSES["info_nce"], keys_with_gradient=False).products == 2
    assert watch(LOSSES["info_nce"], keys_with_gradient=True).products == 4


def test_evaluation_makes_the_similarities_alone() -> None:
    anchors, vectors = unit_rows(ANCHORS, WIDTH, 0).requires_grad_(), unit_rows(KEYS, WIDTH, 1)
    keys = keys_of(vectors, [*range(KEYS)])
    for name in ("info_nce", "sigmoid", "all negatives"):
        with torch.no_grad(), Watch() as seen:
            without = LOSSES[name](anchors, anchors, keys)
        assert seen.products == 1
        assert torch.equal(without, LOSSES[name](anchors, anchors, keys))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_losses_compile_without_a_break(loss: Loss) -> None:
    anchors, positives, vectors = (unit_rows(n, WIDTH, seed) for seed, n in enumerate((ANCHORS, ANCHORS, KEYS)))
    keys = keys_of(vectors.requires_grad_(), [*range(KEYS)])
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    inputs = [anchors.requires_grad_(), vectors]
    assert_same_gradients(compiled(anchors, positives, keys).sum(), loss(anchors, positives, keys).sum(), inputs)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tiles_fit_the_device(device: str) -> None:
    rows, columns = tile_shape(torch.device(device))
    assert 4 * rows * columns <= {"cpu": 16, "cuda": 256}[device] * 2**20
