"""A training step of each method beside CLIP's on the same towers: `step.py [--batch 32] [--rounds 3]`.

Forward, backward and what is brought up to date after a step, without optimiser and data, from random weights, in
one process. Then AAHR without each of its terms, which gives their shares. Methods take turns, round by round; of
each the second step is timed.
"""

import argparse
import statistics
import time
from typing import Any

import torch

import model  # noqa: F401  (lets torchvision import)
from model.caption_tokenizer import build_caption_tokenizer
from model.config import LossConfig, ModelConfig
from model.encoders import DualEncoder
from model.frameworks import Framework
from model.towers.open_clip import tower_widths

TERMS = {
    "prototypes": {"prototypes": {"weight": 0.0}},
    "momentum contrast and its encoders": {"momentum_contrast": {"weight": 0.0}},
    "relations and regulariser": {"relations": {"weight": 0.0}, "regulariser": {"weight": 0.0}},
}
CAPTION = "two dogs run over the wet grass behind a red ball that a man in a blue coat has thrown"


def build(framework: str, architecture: str, batch: int, loss: dict[str, Any]) -> Framework:
    config = ModelConfig.model_validate({"framework": framework, "architecture": architecture, "norm_group": batch})
    at_once = {name: {"start_step": 0} for name in ("prototypes", "relations", "regulariser")}
    merged = {name: at_once.get(name, {}) | loss.get(name, {}) for name in at_once.keys() | loss.keys()}
    terms = LossConfig.model_validate(merged)
    torch.manual_seed(0)
    return Framework(DualEncoder(config), config, terms, steps_per_epoch=1, total_steps=100).train()


def seconds(framework: Framework, inputs: tuple[Any, ...]) -> float:
    taken = 0.0
    for step in (1, 2):
        begin = time.perf_counter()
        framework(*inputs, step)["loss"].backward()
        framework.advance(step)
        taken = time.perf_counter() - begin
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
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
    rows = {"clip": ("clip", {}), "aahr": ("aahr", {}), "amsps": ("amsps", {}), "aahr+amsps": ("aahr+amsps", {})}
    rows |= {f"aahr without {name}": ("aahr", off) for name, off in TERMS.items()}
    everything: dict[str, Any] = {key: value for off in TERMS.values() for key, value in off.items()}
    rows["aahr, base loss alone"] = ("aahr", everything)
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(options.rounds):
        for name, (framework, loss) in rows.items():
            times[name].append(seconds(build(framework, options.architecture, options.batch, loss), inputs))
    clip = times["clip"]
    for name, taken in times.items():
        ratios = [one / other for one, other in zip(taken, clip, strict=True)]
        spread = f"{statistics.median(ratios):.2f}x  ({min(ratios):.2f} .. {max(ratios):.2f})"
        print(f"{name:<48}{statistics.median(taken):>8.2f} s   {spread}")


if __name__ == "__main__":
    main()
