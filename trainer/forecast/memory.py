"""What each GPU holds at its fullest, by component, at each ZeRO stage.

Which of DeepSpeed's buffers exist at which stage was read in its source (0.19.8, `runtime/zero/`), and compared
with real engines (`benchmarks/forecast.py`).
"""

from dataclasses import dataclass

from trainer.config import EngineConfig
from trainer.deepspeed_setup import BUCKET
from trainer.forecast.empty_model import Counts
from trainer.forecast.step import StepCost

FLOAT = 4
"""Bytes of a weight, a gradient, a moment: all are float32 at any `engine.precision`."""
MOST_GATHERED = 1_000_000_000
"""Numbers of weights that stage 3 leaves gathered at most, and leaves there while a step still needs them."""
PREFETCHED = 50_000_000
"""Numbers of weights that stage 3 gathers ahead of their use."""
CONTEXT = 1.5e9
"""Allowance for the CUDA context, the libraries' workspaces and NCCL's buffers; a guess, not measured here."""
FRAGMENTATION = 0.05
"""Allowance for what the allocator cannot use, of what comes and goes in a step; a guess, not measured here."""
TILE = (8192, 4096)
"""Anchors and keys in a tile of the losses on a GPU: `model.losses.tiles.tile_shape`."""
TILES = 3
"""Of them alive at a time: similarities, what is excluded, weights."""


@dataclass(frozen=True)
class Memory:
    """Bytes a process needs at one stage."""

    stage: int
    gpu: dict[str, float]
    """By component, at the step's fullest moment; the parts add up to `total`."""
    host: dict[str, float]
    """By component, of what is offloaded."""

    @property
    def total(self) -> float:
        return sum(self.gpu.values())


def memory(
    counts: Counts, step: StepCost, engine: EngineConfig, stage: int, processes: int, tile_keys: tuple[int, int]
) -> Memory:
    """Of one process at a ZeRO stage, with the engine's offloading where that stage can do it.

    `tile_keys` are the pairs of a process and the keys that they are compared with: the batch, or the queue.
    """
    part = 1 / processes
    weights_part = part if stage == 3 else 1.0
    trained = FLOAT * counts.trained
    kept = {
        "weights": FLOAT * (counts.trained - counts.prototypes + counts.frozen) * weights_part,
        "momentum encoders": FLOAT * counts.momentum * weights_part,
        "prototypes": FLOAT * counts.prototypes * weights_part + counts.bank,
    }
    # at stages 1 and 2 the optimiser's own copy of its part of the weights; at 0 and 3 it works on them
    copies = {0: 0.0, 1: part, 2: part, 3: 0.0}[stage]
    optimizer = trained * (2 * (part if stage else 1.0) + copies)
    host: dict[str, float] = {}
    if engine.offload_parameters and stage == 3:
        host["weights"] = sum(kept.values()) - counts.bank
        kept = dict.fromkeys(kept, 0.0) | {"prototypes": float(counts.bank)}
    offloads = engine.offload_optimizer is not None and stage > 0
    if offloads:
        # there with its copy of the weights, the gradients, and at stages 1 and 2 what goes back
        host["optimiser"] = trained * part * (2 + 1 + 1 + (1 if stage < 3 else 0))
        optimizer = 0.0
    lasting = kept | {"optimiser": optimizer, "queue": float(counts.queue_rows + counts.queue_notes)}
    lasting["buffers"] = float(counts.buffers)
    if stage == 3:
        # those of the momentum encoders go again, module by module: no backward pass comes back to them
        lasting["gathered weights"] = FLOAT * float(min(counts.trained + counts.frozen, MOST_GATHERED))
    moments = _moments(counts, step, stage, processes, offloads)
    fullest = max(moments, key=lambda moment: sum(moment.values()))
    anchors, keys = tile_keys
    fullest["loss tiles"] = float(TILES * FLOAT * min(anchors, TILE[0]) * min(keys, TILE[1]))
    gpu = lasting | fullest
    comes_and_goes = sum(fullest.values()) + gpu.get("gathered weights", 0.0)
    gpu["allowance"] = CONTEXT + FRAGMENTATION * comes_and_goes
    return Memory(stage, gpu, host)


def _moments(
    counts: Counts, step: StepCost, stage: int, processes: int, offloads: bool
) -> tuple[dict[str, float], ...]:
    """What comes and goes, at the fullest moment of the backward pass, and when gradients meet the optimiser."""
    trained, part, bucket = float(FLOAT * counts.trained), 1 / processes, float(FLOAT * min(BUCKET, counts.trained))
    before, after, largest = step.before, step.after, float(FLOAT * counts.largest)
    if stage == 0:
        forward = _moment(0.0, before.temporary, 0.0)
        backward = _moment(after.gradients, after.both - after.gradients, 0.0)
        return forward, backward, _moment(trained, 0.0, bucket if processes > 1 else 0.0)
    if stage == 3:
        own = 0.0 if offloads else trained * part
        scattering = bucket if trained > bucket else 0.0
        forward, backward = (_moment(own, peak.temporary, bucket) for peak in (before, after))
        backward["buckets"] += scattering
        # before the first block: what is gathered ahead for the momentum encoders, and both largest weights apart
        ahead = FLOAT * min(counts.momentum, PREFETCHED) + 2 * largest
        return forward, backward, _moment(own, 0.0, bucket + max(bucket, own, ahead))
    # gradients of all weights of which a rank has any part; they stay until the next step's take their place
    own = 0.0 if offloads else trained if processes == 1 else min(trained, trained * part + largest)
    held = own * (2 if stage == 2 and step.micro_batches > 1 else 1)
    staging = largest if offloads else 0.0
    forward = _moment(held, before.temporary, staging)
    # in a flat copy of what is in the bucket; gradients of the step before may wait for the garbage collector
    reducing = _moment(held + own, 0.0, 2 * bucket + staging)
    if stage == 1:
        backward = _moment(after.gradients + held, after.both - after.gradients, bucket + staging)
    else:
        backward = _moment(held, after.temporary, bucket + staging)
    return forward, backward, reducing


def _moment(gradients: float, activations: float, buckets: float) -> dict[str, float]:
    return {"gradients": float(gradients), "activations": float(activations), "buckets": float(buckets)}
