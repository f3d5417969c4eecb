"""Cached gradients against those of the plain step, in one process without DeepSpeed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from model.frameworks import Framework, Part
from model.group_norm import running_statistics
from tests.trainer.gradient_cases import METHODS, ROWS, STEPS, batch, framework_of, recipe_of, write_concepts
from trainer.engine import seed_step
from trainer.gradient_cache import cached_gradients

Gradients = Callable[[Framework, tuple[Any, ...], int], dict[str, torch.Tensor]]


class PlainEngine:
    """What of an engine is needed, and what it was told."""

    def __init__(self, framework: Framework) -> None:
        self.framework, self.boundaries = framework, [True]
        self.backward_at: list[bool] = []

    def __call__(self, *inputs: Any, part: Part = "step") -> Any:
        return self.framework(*inputs, part=part)

    def backward(self, loss: torch.Tensor) -> None:
        self.backward_at.append(self.boundaries[-1])
        loss.backward()

    def set_gradient_accumulation_boundary(self, boundary: bool) -> None:
        self.boundaries.append(boundary)

    def zero_optimization_partition_gradients(self) -> bool:
        return False


def plain(framework: Framework, inputs: tuple[Any, ...], step: int) -> dict[str, torch.Tensor]:
    losses: dict[str, torch.Tensor] = framework(*inputs, step)
    losses["loss"].backward()
    return losses


def cached(size: int) -> Gradients:
    def gradients(framework: Framework, inputs: tuple[Any, ...], step: int) -> dict[str, torch.Tensor]:
        engine = PlainEngine(framework)
        losses = cached_gradients(engine, framework, inputs, step, size, partial(seed_step, 0, step, 0))
        assert engine.backward_at == [False] * (ROWS // size - 1) + [True]
        return losses

    return gradients


def in_one_graph(size: int) -> Gradients:
    """The same draws as `cached`, but everything is kept for one backward pass."""

    def gradients(framework: Framework, inputs: tuple[Any, ...], step: int) -> dict[str, torch.Tensor]:
        *pairs, ids, valid = inputs
        micro_batches = [
            [one if one is None else one[first : first + size] for one in pairs] for first in range(0, ROWS, size)
        ]
        others = []
        with running_statistics(framework, advance=True):
            for number, micro_batch in enumerate(micro_batches[1:], start=1):
                seed_step(0, step, 0, number)
                others.append(framework.encode(*micro_batch))
            seed_step(0, step, 0)
            losses = framework.step(*micro_batches[0], ids, valid, step, others)
        losses["loss"].backward()
        return losses

    return gradients


def run(
    method: str, concepts: Path, gradients: Gradients, dropout: float = 0.0, **engine: str
) -> list[dict[str, torch.Tensor]]:
    """Some steps that change no weight: each one's losses, gradients and buffers."""
    framework = framework_of(recipe_of(method, concepts, dropout, **engine))
    rows = []
    for step in range(STEPS):
        framework.zero_grad()
        losses = gradients(framework, batch(step, METHODS[method]), step)
        framework.advance(step)
        row = {f"loss {name}": value.detach() for name, value in losses.items()}
        row |= {name: one.grad for name, one in framework.named_parameters() if one.grad is not None}
        rows.append(row | {name: one.clone() for name, one in framework.named_buffers()})
    return rows


def assert_alike(found: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            # float32 rounds by a tensor's largest numbers, up to 64 here; in float64 all agree to 2e-14
            atol = max(2e-6, 1e-6 * float(tensor.double().nan_to_num().abs().max())) if tensor.numel() else 0.0
            torch.testing.assert_close(
                ours[name], tensor, rtol=1e-5, atol=atol, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.fixture(scope="module")
def concepts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("concepts") / "concepts.json"
    write_concepts(path)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_losses_gradients_and_what_is_kept_are_those_of_the_plain_step(method: str, concepts: Path) -> None:
    expected = run(method, concepts, plain)
    for size in (ROWS, ROWS // 2, ROWS // 4):
        assert_alike(run(method, concepts, cached(size)), expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_both_passes_draw_the_same_dropout_in_any_precision(precision: str, concepts: Path) -> None:
    for size in (ROWS // 2, ROWS // 4):
        found = run("aahr+amsps", concepts, cached(size), 0.3, precision=precision)
        assert_alike(found, run("aahr+amsps", concepts, in_one_graph(size), 0.3, precision=precision))
    undisturbed = run("aahr+amsps", concepts, plain, precision=precision)
    name = "encoders.text_head.fragment_graph.linear1.weight"
    assert not torch.allclose(found[0][name], undisturbed[0][name], rtol=0.01)


def test_micro_batches_do_not_share_their_dropout(concepts: Path) -> None:
    drawn: list[int] = []
    framework = framework_of(recipe_of("clip", concepts))

    def seed(number: int) -> None:
        seed_step(0, 1, 0, number)
        drawn.append(torch.initial_seed())

    cached_gradients(PlainEngine(framework), framework, batch(1, 0), 1, ROWS // 4, seed)
    assert drawn[:3] == drawn[4:]
    assert len({*drawn[:4]}) == 4
