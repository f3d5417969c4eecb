"""A training step of each method beside CLIP's on the same towers: `step.py [--batch 32] [--rounds 3]`.

Forward, backward, AdamW and what is brought up to date after a step, without data, from random weights, in one
process. Methods take turns, round by round; of each the second step is timed. Then where a step's time goes, in
parts of a CLIP step: by hooks on the modules in the forward pass, and in the backward pass, which runs the other
way round, by hooks on what they gave.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn

import model  # noqa: F401  (lets torchvision import)
from model.caption_tokenizer import build_caption_tokenizer
from model.config import LossConfig, ModelConfig
from model.encoders import DualEncoder
from model.frameworks import Framework
from model.towers.open_clip import tower_widths

CAPTION = "two dogs run over the wet grass behind a red ball that a man in a blue coat has thrown"
AT_ONCE = {name: {"start_step": 0} for name in ("prototypes", "momentum_contrast", "relations", "regulariser")}
WITHOUT = {name: {"weight": 0.0} for name in ("prototypes", "momentum_contrast", "relations", "regulariser")}
FROZEN = {"image": {"freeze": "all"}, "text": {"freeze": "all"}}
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clip": ({"framework": "clip"}, {}),
    "aahr": ({}, AT_ONCE),
    "aahr, momentum in bfloat16": ({}, AT_ONCE | {"momentum": {"precision": "bfloat16"}}),
    "aahr, momentum towers shared": ({}, AT_ONCE | {"momentum": {"towers": "shared"}}),
    "aahr, towers frozen": (FROZEN, AT_ONCE),
    "aahr, base loss alone": ({}, WITHOUT),
    "amsps": ({"framework": "amsps"}, {}),
    "aahr+amsps": ({"framework": "aahr+amsps"}, AT_ONCE),
}


class Shares:
    """Seconds of a step by what they were spent on."""

    def __init__(self, framework: Framework, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self._backward: list[tuple[float, str]] = []
        self._begun = 0.0
        encoders = framework.encoders
        parts: dict[str, list[nn.Module | None]] = {
            "towers": [encoders.image_tower, encoders.text_tower],
            "heads": [encoders.image_head, encoders.text_head],
        }
        if framework.momentum is not None:
            momentum = framework.momentum.module
            parts["momentum towers"] = [momentum.image_tower, momentum.text_tower]
            parts["momentum heads"] = [momentum.image_head, momentum.text_head]
        parts |= {f"loss: {name}": [term] for name, term in framework.terms.items()}
        for name, modules in parts.items():
            for module in modules:
                assert module is not None
                module.register_forward_pre_hook(self._begin)
                module.register_forward_hook(self._ender(name))

    def _begin(self, *_hooked: Any) -> None:
        self._begun = self.clock()

    def _ender(self, name: str) -> Any:
        def end(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.seconds[f"{name}, forward"] += self.clock() - self._begun
            given = output if isinstance(output, dict) else vars(output)
            for tensor in given.values():
                if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda _grad: self._backward.append((self.clock(), name)))

        return end

    def backward(self, loss: torch.Tensor) -> None:
        """What was made last comes first, and each part ends where the next begins."""
        begin = self.clock()
        loss.backward()
        marks = [(begin, "losses"), *self._backward, (self.clock(), "")]
        for (first, name), (last, _next) in pairwise(marks):
            self.seconds[f"{name}, backward"] += last - first
        self._backward.clear()


def build(options: argparse.Namespace, changes: dict[str, Any], loss: dict[str, Any]) -> Framework:
    sizes = {"norm_group": options.batch, "embed_dim": options.embed_dim}
    config = ModelConfig.model_validate({"architecture": options.architecture, **sizes, **changes})
    torch.manual_seed(0)
    terms = LossConfig.model_validate(loss)
    precision = torch.bfloat16 if options.bfloat16 else None
    return Framework(
        DualEncoder(config), config, terms, steps_per_epoch=1, total_steps=100, autocast=precision
    ).train()


def measure(framework: Framework, inputs: tuple[Any, ...], clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of a second step by part, "whole" among them."""
    optimizer = torch.optim.AdamW([p for p in framework.parameters() if p.requires_grad], lr=1e-5, fused=True)
    shares = Shares(framework, clock)
    for step in (1, 2):
        shares.seconds.clear()
        begin = clock()
        shares.backward(framework(*inputs, step)["loss"])
        before = clock()
        optimizer.step()
        optimizer.zero_grad()
        between = clock()
        framework.advance(step)
        end = clock()
    seconds = dict(shares.seconds)
    seconds |= {"AdamW": between - before, "momentum, queue and prototypes brought up to date": end - between}
    return seconds | {"the rest": end - begin - sum(seconds.values()), "whole": end - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--embed-dim", type=int, default=1024)
    parser.add_argument("--bfloat16", action="store_true", help="as engine.precision: bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processor-time", action="store_true", help="in place of wall time, on a busy machine")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="beside clip")
    options = parser.parse_args()
    clock = time.process_time if options.processor_time else time.perf_counter
    side = tower_widths(options.architecture).image_size
    tokenize = build_caption_tokenizer(ModelConfig(architecture=options.architecture))
    inputs = (
        torch.randint(256, (options.batch, side, side, 3), dtype=torch.uint8),
        None,
        None,
        tokenize([f"{CAPTION} {number}" for number in range(options.batch)]),
        torch.arange(options.batch),
        torch.ones(options.batch, dtype=torch.bool),
    )
    names = [name for name in METHODS if name == "clip" or name in options.methods]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            found[name].append(measure(build(options, *METHODS[name]), inputs, clock))
    print(f"{options.batch} pairs, captions of {inputs[3].shape[1]} tokens, {torch.get_num_threads()} thread(s)")
    clip = [one["whole"] for one in found["clip"]]
    for name, rounds in found.items():
        ratios = [one["whole"] / other for one, other in zip(rounds, clip, strict=True)]
        spread = f"{statistics.median(ratios):.2f}x  ({min(ratios):.2f} .. {max(ratios):.2f})"
        print(f"{name:<48}{statistics.median(one['whole'] for one in rounds):>8.2f} s   {spread}")
    for name, rounds in found.items():
        print(f"\n{name}, of a CLIP step:")
        for part in rounds[0]:
            shares = [one.get(part, 0.0) / other for one, other in zip(rounds, clip, strict=True)]
            if statistics.median(shares) >= 0.0005:
                print(f"  {part:<52}{statistics.median(shares):>8.3f}")


if __name__ == "__main__":
    main()
