"""How long the recipes would take, from their arithmetic: `recipes.py [--utilisation 0.25] [--device A100]`.

An estimate, not a measurement: the floating-point operations of a step (`trainer/flops.py`), a third of them once
more for each further forward pass (momentum encoders, gradient checkpointing, a gradient cache), over the share of
the device's peak that is assumed. Losses, optimiser, exchanges, data and evaluation are not counted. Nothing is
computed and nothing is downloaded.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import BertConfig

import model  # noqa: F401  (lets torchvision import)
from model.terms.build import needs_memory
from trainer.config import Recipe
from trainer.flops import PEAKS, Arithmetic, step_flops
from trainer.inputs import image_side
from trainer.recipe import load_recipe

TOWERS = ("ViT-B/32", "towers/vit_b16", "towers/vit_l14")
RUNS = {
    # visits an epoch, GPUs, tokens of the longest caption of a process
    "pretrain/cc3m": (3_000_000, 8, 77),
    "pretrain/cc12m": (11_000_000, 8, 77),
    "pretrain/laion": (414_000_000, 64, 77),
    "finetune/flickr30k": (145_000, 4, 40),
    "finetune/coco": (566_435, 4, 40),
    "finetune/flickr30k_open_clip": (145_000, 4, 40),
    "finetune/coco_open_clip": (566_435, 4, 40),
    "papers/flickr30k": (145_000, 1, 40),
    "papers/coco": (566_435, 1, 40),
}
REGIONS = 36
PAIRS = 8
"""Of which the arithmetic is counted."""


def flops_of_a_pair(recipe: Recipe, tokens: int, share: int) -> float:
    """With all forward passes that a step makes."""
    config, side = recipe.model.model_copy(update={"norm_group": PAIRS}), image_side(recipe.model)
    images = torch.empty(PAIRS, side, side, 3, dtype=torch.uint8, device="meta")
    regions = mask = None
    if config.reads_regions:
        regions = torch.empty(PAIRS, REGIONS, config.image.region_width, device="meta")
        mask = torch.empty(PAIRS, REGIONS, dtype=torch.bool, device="meta")
    length = tokens * (2 if config.text.towers == "clip+transformer" else 1)
    text = torch.empty(PAIRS, length, dtype=torch.int64, device="meta")
    step = step_flops(config, images, regions, mask, text)
    passes = [
        needs_memory(recipe.model, recipe.loss),
        config.image.gradient_checkpointing or config.text.gradient_checkpointing,
        (recipe.engine.micro_batch_size or share) < share,
    ]
    return step / PAIRS * (1 + sum(passes) / 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utilisation", type=float, default=0.25, help="share of the device's peak")
    parser.add_argument("--device", choices=sorted(PEAKS), default="A100")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        BertConfig().save_pretrained(folder)  # bert-base-uncased's numbers
        for name, (visits, gpus, tokens) in RUNS.items():
            for towers in TOWERS if not name.startswith("papers/") else TOWERS[:1]:
                laid = [towers] if "/vit" in towers else []
                recipe = load_recipe(Path(name), [*laid, f"model.text.transformer.name={folder}"])
                arithmetic: Arithmetic = "bfloat16" if recipe.engine.precision == "bfloat16" else "float32"
                pair = flops_of_a_pair(recipe, tokens, recipe.data.global_batch_size // gpus)
                batch = recipe.data.global_batch_size
                steps = round(recipe.schedule.epochs * (visits // batch))
                seconds = pair * batch * steps / (PEAKS[options.device][arithmetic] * 1e12 * options.utilisation)
                print(
                    f"{name:30} {towers:15} {steps:9,} steps of {batch:6,}, {pair / 1e9:6.0f} GFLOP a pair, "
                    f"{arithmetic}: {seconds / 3600:9,.1f} GPU hours, {seconds / 3600 / gpus:7,.1f} h on {gpus}"
                )


if __name__ == "__main__":
    main()
