"""Losses over pairs in tiles beside the same in plain PyTorch, which holds the matrix of all pairs.

Forward and backward of one step, each way in a process of its own. Peak memory is what the step adds to the inputs:
the process's resident memory on a CPU, what PyTorch allocates on a GPU. Where the matrix does not fit, give the
plain way fewer anchors (`--plain-anchors`): its time and memory are then also given times the ratio of anchors,
in which both are linear.

    python benchmarks/tiled_contrast.py [--loss sigmoid] [--plain-anchors 4096] [--device cuda]
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from resident import resident
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from model.losses.hinge import distance_weighted_hinge, hinge_loss
from model.losses.info_nce import info_nce
from model.losses.keyed_noise import PairNoise
from model.losses.sigmoid import sigmoid_loss
from model.losses.tiles import Keys

MARGIN, CUTOFF, DIMENSION = 0.2, 1.7, 512


@dataclass
class Step:
    """(b, D) anchors and positives, a gathered batch with gradient, a queue without; the anchors lead the batch."""

    anchors: torch.Tensor
    positives: torch.Tensor
    batch: Keys
    queue: Keys
    scale: torch.Tensor
    bias: torch.Tensor

    @property
    def ids(self) -> torch.Tensor:
        return self.batch.ids[: len(self.anchors)]


def make_step(anchors: int, batch: int, queue: int, width: int, device: str) -> Step:
    torch.manual_seed(0)

    def rows(count: int) -> torch.Tensor:
        return normalize(torch.randn(count, width, device=device), dim=1)

    def keys(vectors: torch.Tensor, first: int) -> Keys:
        ids = torch.arange(first, first + len(vectors), device=device)
        return Keys(vectors, ids, torch.ones_like(ids, dtype=torch.bool))

    return Step(
        rows(anchors).requires_grad_(),
        rows(anchors).requires_grad_(),
        keys(rows(batch).requires_grad_(), 0),
        keys(rows(queue), batch // 2),  # so that half a batch's images are in the queue too
        torch.tensor(1 / 0.07, device=device, requires_grad=True),
        torch.tensor(-10.0, device=device, requires_grad=True),
    )


def tiled(step: Step, loss: str) -> torch.Tensor:
    anchors, ids, positives, batch = step.anchors, step.ids, step.positives, step.batch
    if loss == "info-nce":
        return info_nce(anchors, ids, positives, [batch, step.queue], step.scale)
    if loss == "sigmoid":
        return sigmoid_loss(anchors, ids, positives, batch, step.scale, step.bias)
    if loss == "distance-weighted":
        noise = PairNoise(torch.arange(len(ids), device=ids.device), len(batch.ids), seed=0, step=0)
        return distance_weighted_hinge(anchors, ids, positives, batch, MARGIN, noise, CUTOFF, DIMENSION)
    return hinge_loss(anchors, ids, positives, batch, MARGIN, hardest=loss == "hardest")


def plain(step: Step, loss: str) -> torch.Tensor:
    positive = (step.anchors * step.positives).sum(dim=1, keepdim=True)
    similarities = step.anchors @ step.batch.vectors.T
    masked = step.ids.unsqueeze(1) == step.batch.ids
    if loss == "info-nce":
        # the queue apart, as MoCo does: in one product its rows would be given gradients that nobody wants
        logits = torch.cat([positive, similarities, step.anchors @ step.queue.vectors.T], dim=1) * step.scale
        in_queue = step.ids.unsqueeze(1) == step.queue.ids
        masked = torch.cat([torch.zeros_like(masked[:, :1]), masked, in_queue], dim=1)
        return cross_entropy(logits.masked_fill(masked, -torch.inf), torch.zeros_like(step.ids), reduction="none")
    if loss == "sigmoid":
        negatives = logsigmoid(-(similarities * step.scale + step.bias)).masked_fill(masked, 0).sum(dim=1)
        return -negatives - logsigmoid(positive.squeeze(1) * step.scale + step.bias)
    if loss == "distance-weighted":
        with torch.no_grad():
            distance = (2 - 2 * similarities).clamp(min=0).sqrt()
            r = distance.clamp(0.5, 1.99)
            log_weight = (2 - DIMENSION) * r.log() - (DIMENSION - 3) / 2 * (1 - r**2 / 4).log()
            log_weight = log_weight.masked_fill(masked | (distance > CUTOFF), -torch.inf)
            drawn = (log_weight - torch.empty_like(r).exponential_().log()).argmax(dim=1)
        return (MARGIN + similarities.gather(1, drawn.unsqueeze(1)) - positive).clamp(min=0).squeeze(1)
    violation = (MARGIN + similarities - positive).clamp(min=0).masked_fill(masked, 0)
    return violation.amax(dim=1) if loss == "hardest" else violation.sum(dim=1) / (~masked).sum(dim=1)


def measure(run: Callable[[], None], device: str, rounds: int) -> dict[str, float]:
    """Seconds of the fastest round, and bytes at the peak above those before."""
    if device == "cpu":
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    else:
        run()  # which loads the kernels
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(rounds):
        if device == "cpu":
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        else:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            seconds.append(begin.elapsed_time(end) / 1000)
    peak = resident("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()
    return {"seconds": min(seconds), "bytes": peak - before}


def child(options: argparse.Namespace) -> None:
    way = {"tiled": tiled, "plain": plain}[options.way]
    small = make_step(64, 64, 64, options.width, options.device)
    way(small, options.loss).mean().backward()  # loads what it needs
    step = make_step(options.anchors, options.batch, options.queue, options.width, options.device)
    inputs = [step.anchors, step.positives, step.batch.vectors, step.scale, step.bias]

    def run() -> None:
        for tensor in inputs:
            tensor.grad = None
        way(step, options.loss).mean().backward()

    print(json.dumps(measure(run, options.device, options.rounds)))


def in_a_process(way: str, anchors: int, options: argparse.Namespace) -> dict[str, float]:
    settings = {**vars(options), "way": way, "anchors": anchors}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if value is not None]
    result = subprocess.run([sys.executable, __file__, *arguments], check=True, text=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(result.stdout)
    print(f"{way:5} {anchors:6} anchors: {found['seconds']:7.2f} s, {found['bytes'] / 2**20:8,.0f} MiB more")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    losses = ["info-nce", "sigmoid", "hardest", "all-negatives", "distance-weighted"]
    parser.add_argument("--loss", choices=losses, default="info-nce")
    parser.add_argument("--anchors", type=int, default=16_384, help="rows of this rank")
    parser.add_argument("--plain-anchors", type=int, help="anchors of the plain way; by default as many")
    parser.add_argument("--batch", type=int, default=16_384, help="rows of the gathered batch")
    parser.add_argument("--queue", type=int, default=65_536, help="rows of the queue, which info-nce alone uses")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=1, help="of which the fastest counts")
    parser.add_argument("--way", choices=["tiled", "plain"], help="one way alone, in this process, as JSON")
    options = parser.parse_args()
    if options.way:
        child(options)
        return
    fewer = options.plain_anchors or options.anchors
    of_plain = in_a_process("plain", fewer, options)
    beside = in_a_process("tiled", fewer, options)
    print(f"time {beside['seconds'] / of_plain['seconds']:.2f} of the plain way's at {fewer} anchors")
    if fewer == options.anchors:
        print(f"memory {100 * beside['bytes'] / of_plain['bytes']:.1f}% of the plain way's")
        return
    whole, ratio = in_a_process("tiled", options.anchors, options), options.anchors / fewer
    print(f"plain {options.anchors} anchors, computed: {ratio * of_plain['seconds']:.1f} s, ", end="")
    print(f"{ratio * of_plain['bytes'] / 2**20:,.0f} MiB; tiled, measured: ", end="")
    print(f"{100 * whole['bytes'] / (ratio * of_plain['bytes']):.1f}% of that memory, ", end="")
    print(f"{whole['seconds'] / (ratio * of_plain['seconds']):.2f} of that time")


if __name__ == "__main__":
    main()
