"""One step of a recipe run without storage: what it holds, computes and exchanges."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from model.encodings import map_tensors
from model.errors import ModelError
from model.frameworks import Framework
from model.towers.open_clip import tower_widths
from trainer.config import Recipe
from trainer.flops import step_flops
from trainer.forecast.checkpoint_size import CheckpointSize, checkpoint_size
from trainer.forecast.empty_model import Counts, count, empty_framework
from trainer.forecast.exchanges import Exchanges, as_first_of
from trainer.forecast.live_bytes import LiveBytes, Peak
from trainer.gradient_cache import cached_gradients
from trainer.inputs import image_side

STAGES = (0, 1, 2, 3)
"""Of ZeRO."""
REGIONS = 36
"""Regions an image that is reckoned with, as bottom-up attention gives them (Anderson et al., CVPR 2018)."""


@dataclass(frozen=True)
class StepCost:
    """Of one process, in bytes."""

    before: Peak
    """Of what is alive beside weights, until the first of their gradients: above all activations that are kept."""
    after: Peak
    """The same since then, where gradients stay until the optimiser's step."""
    flops: float
    """Operations of matrix products, convolutions and attention, all that are really done."""
    exchanges: dict[str, tuple[int, int]]
    """Of the method itself, not of ZeRO: how many a step of each kind, and the bytes of the whole."""
    micro_batches: int
    useful_flops: float
    """Of them those that `trainer.flops` counts."""


@dataclass(frozen=True)
class Inputs:
    """Shapes of what a model reads."""

    side: int | None
    """Of pictures, in pixels."""
    regions: int | None
    """Regions an image."""
    region_width: int
    tokens: int
    """A caption, where it is as long as it may be."""

    def make(self, pairs: int, device: str = "cpu") -> tuple[torch.Tensor | None, ...]:
        """A batch as `Framework.step` takes it, with whatever is in memory."""
        images = regions = mask = None
        with torch.device(device):
            if self.side is not None:
                images = torch.empty(pairs, self.side, self.side, 3, dtype=torch.uint8)
            if self.regions is not None:
                regions = torch.empty(pairs, self.regions, self.region_width)
                mask = torch.empty(pairs, self.regions, dtype=torch.bool)
            text = torch.empty(pairs, self.tokens, dtype=torch.int64)
            ids, valid = torch.empty(pairs, dtype=torch.int64), torch.empty(pairs, dtype=torch.bool)
        return images, regions, mask, text, ids, valid


def inputs_of(recipe: Recipe, num_concepts: int) -> Inputs:
    """What a recipe's model reads, captions at their longest."""
    model = recipe.model
    text = 0
    if model.text.towers != "transformer":
        text += tower_widths(model.architecture).context_length
    if model.text.towers != "clip":
        text += model.text.transformer.max_length
    return Inputs(
        side=image_side(model) if model.reads_pixels else None,
        regions=REGIONS if model.reads_regions else None,
        region_width=model.image.region_width,
        tokens=text + num_concepts,
    )


@dataclass(frozen=True)
class Measured:
    """What one step without storage has told of a recipe."""

    counts: Counts
    step: StepCost
    inputs: Inputs
    checkpoints: dict[int, CheckpointSize]
    """By ZeRO stage."""


@contextmanager
def _without_values() -> Iterator[None]:
    """What torch says of a tensor without storage whose value is asked for, as one line."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, DataDependentOutputException) and "meta tensors" not in str(error):
            raise
        raise ModelError(
            "the towers look at values of their tensors, so that they cannot be run without any: nothing can be "
            "forecast of this model; measure some steps of it"
        ) from None


@_without_values()
def measure_step(recipe: Recipe, processes: int, steps_per_epoch: int, total_steps: int) -> Measured:
    """One of the last steps of a run, when every term has joined, as rank 0 of so many processes.

    Nothing is computed and no memory is taken. Raises `ModelError`.
    """
    share = recipe.data.global_batch_size // processes
    size = min(recipe.engine.micro_batch_size or share, share)
    with as_first_of(processes), empty_framework(recipe, steps_per_epoch, total_steps) as framework:
        inputs = inputs_of(recipe, framework.encoders.num_concepts)
        engine, exchanges, live = _Engine(framework), Exchanges(), LiveBytes(framework)
        with _FusedAttention(), live, exchanges, engine.counter:
            batch = inputs.make(share)
            cached_gradients(engine, framework, batch, total_steps - 1, size, lambda _part: None)
            framework.advance(total_steps - 1)
        counts = count(framework)
        checkpoints = {stage: checkpoint_size(framework, processes, stage) for stage in STAGES}
    images, regions, mask, text, *_ = inputs.make(share, "meta")
    assert text is not None
    step = StepCost(
        before=live.before,
        after=live.after,
        flops=engine.flops(),
        useful_flops=step_flops(recipe.model, images, regions, mask, text),
        exchanges={kind: (exchanges.calls[kind], exchanges.bytes[kind]) for kind in exchanges.calls},
        micro_batches=share // size,
    )
    return Measured(counts, step, inputs, checkpoints)


class _Engine:
    """In the place of DeepSpeed's. Of the micro-batches after the first, which are all alike, only one is run."""

    def __init__(self, framework: Framework) -> None:
        self._framework, self._encoded = framework, None
        self._times = {"step": 0, "encode": 0, "surrogate": 0}
        self._flops = dict.fromkeys(self._times, 0)
        self._part = "step"
        self.counter = FlopCounterMode(display=False)

    def zero_optimization_partition_gradients(self) -> bool:
        return False

    def set_gradient_accumulation_boundary(self, _boundary: bool) -> None:
        pass

    def __call__(self, *inputs: Any, part: str = "step") -> Any:
        self._part = part
        self._times[part] += 1
        if self._times[part] == 1:
            before = self.counter.get_total_flops()
            made = self._framework(*inputs, part=part)
            self._flops[part] += self.counter.get_total_flops() - before
            self._encoded = made if part == "encode" else self._encoded
            return made
        if part == "encode":
            return map_tensors(lambda one: torch.empty_like(one[0]), [self._encoded])
        return torch.zeros((), requires_grad=True)

    def backward(self, loss: torch.Tensor) -> None:
        before = self.counter.get_total_flops()
        loss.backward()
        self._flops[self._part] += self.counter.get_total_flops() - before

    def flops(self) -> float:
        """Of all parts as often as they were asked for."""
        return float(sum(self._times[part] * flops for part, flops in self._flops.items()))


class _FusedAttention(TorchFunctionMode):
    """Attention without dropout: with it a CPU, unlike a GPU, would keep the whole matrix of weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            kwargs["dropout_p"] = 0.0
            args = (*args[:4], *args[5:]) if len(args) > 4 else args
        return func(*args, **kwargs)
