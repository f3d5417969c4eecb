"""What momentum encoders, queue and prototypes cost in a training step: `memory.py [--batch 32] [--steps 3]`.

AAHR from random weights in one process, with AdamW and without data: each part is timed within the steps whose time
it is compared with, the first step left out. The re-estimation of the prototypes runs once over the full queue, and
is shared out over the steps between two.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

import model  # noqa: F401  (lets torchvision import)
from model.caption_tokenizer import build_caption_tokenizer
from model.config import LossConfig, ModelConfig
from model.encoders import DualEncoder
from model.frameworks import Framework
from model.memory.clustering import reestimate
from model.terms import prototypes
from model.towers.open_clip import tower_widths

CAPTION = "two dogs run over the wet grass behind a red ball that a man in a blue coat has thrown"
UPKEEP = ("momentum update", "queue entry", "bank", "re-estimation")


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--queue", type=int, default=65536)
    parser.add_argument("--prototypes", type=int, default=768)
    parser.add_argument("--update", choices=("gradient", "average"), default="gradient")
    parser.add_argument("--reestimate-every", type=int, default=1000, help="steps over which one is shared out")
    parser.add_argument("--steps", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    options = read_options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = ModelConfig(architecture=options.architecture, embed_dim=options.width, norm_group=options.batch)
    loss = LossConfig.model_validate(
        {
            "prototypes": {"start_step": 0, "count": options.prototypes, "update": options.update},
            "relations": {"start_step": 0},
            "regulariser": {"start_step": 0},
            "queue": {"size": options.queue},
        }
    )
    torch.manual_seed(0)
    encoders = DualEncoder(config, pretrained=False)
    framework = Framework(encoders, config, loss, steps_per_epoch=1, total_steps=100).to(device).train()
    optimizer = torch.optim.AdamW([p for p in framework.parameters() if p.requires_grad], lr=1e-5, fused=True)
    side, tokenize = tower_widths(options.architecture).image_size, build_caption_tokenizer(config)
    inputs = (
        torch.randint(256, (options.batch, side, side, 3), dtype=torch.uint8, device=device),
        None,
        None,
        tokenize([f"{CAPTION} {number}" for number in range(options.batch)]).to(device),
        torch.arange(options.batch, device=device),
        torch.ones(options.batch, dtype=torch.bool, device=device),
    )
    taken: dict[str, list[float]] = defaultdict(list)
    this_step: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begin = now(device)
            result = function(*args, **kwargs)
            this_step[name] += now(device) - begin
            return result

        return run

    assert framework.momentum is not None
    assert framework.queue is not None
    assert framework.prototypes is not None
    queue, bank = framework.queue, framework.prototypes.bank
    places: list[tuple[str, Any, str]] = [
        ("momentum update", framework.momentum, "update"),
        ("queue entry", queue, "enter"),
        ("momentum encoders' forward", framework.momentum.module, "represent_image"),
        ("momentum encoders' forward", framework.momentum.module, "represent_text"),
        ("bank", bank, "record"),
        ("bank", bank, "follow"),
        ("bank", bank, "dead"),
        ("bank", bank, "usage_entropy"),
        *(("bank", prototypes, name) for name in ("sinkhorn", "nearest_counts", "assigned_sums", "cosines")),
    ]
    for name, owner, attribute in places:
        setattr(owner, attribute, timed(name, getattr(owner, attribute)))
    for step in range(options.steps + 1):
        this_step.clear()
        begin = now(device)
        framework(*inputs, step)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        framework.advance(step)
        this_step["step"] = now(device) - begin
        for name, spent in this_step.items():
            taken[name] += [spent] if step else []

    queue.images.normal_()
    queue.texts.normal_()
    queue.filled.fill_(queue.size)
    begin = now(device)
    reestimate(bank.prototypes.detach(), queue.points(options.width), seed=0)
    once = now(device) - begin
    taken["re-estimation"] = [once / options.reestimate_every]

    whole = statistics.median(taken["step"])
    for name, seconds in taken.items():
        print(f"{name:<30}{statistics.median(seconds) * 1e3:>10.1f} ms  {statistics.median(seconds) / whole:>7.2%}")
    upkeep = sum(statistics.median(taken[name]) for name in UPKEEP)
    print(f"{'upkeep, these four':<30}{upkeep * 1e3:>10.1f} ms  {upkeep / whole:>7.2%}")
    print(f"{'one re-estimation':<30}{once * 1e3:>10.1f} ms")


if __name__ == "__main__":
    main()
