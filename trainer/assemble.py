"""What a rank trains with, put together from a plan: the framework with its weights, and its part of the data."""

import torch

from model.frameworks import Framework
from shards.evaluation import EvaluationDataset
from shards.images import random_resized_crop
from shards.loader import Position, Rank, TrainLoader
from shards.training import TrainDataset
from trainer.checkpoint import WEIGHTS, check_hashes
from trainer.checkpoint_load import load_weights
from trainer.distributed import World
from trainer.engine import build_encoders, build_framework
from trainer.errors import RunError
from trainer.inputs import caption_tokenizer, evaluation_set, image_side
from trainer.plan import Plan

NAMED = 8
"""Weights without counterpart that are named before the rest is counted."""


def assemble_framework(plan: Plan) -> tuple[Framework, list[str]]:
    """The framework that the plan starts from, and a line for each thing to know about its weights.

    Raises `RunError` for a checkpoint of another model, `ModelError` for pretrained weights that do not fit.
    """
    recipe, loaded = plan.recipe, plan.resume or plan.init_from
    encoders = build_encoders(recipe.model, recipe.run.seed, pretrained=loaded is None)
    framework = build_framework(encoders, recipe, plan.steps_per_epoch, plan.total_steps)
    notes = list(encoders.notes)
    if plan.init_from:
        check_hashes(plan.init_from, [WEIGHTS])
    if loaded:
        unmatched = load_weights(framework, loaded, fine_tunes=not plan.resume)
        if unmatched and plan.resume:
            raise RunError(f"{loaded.path}: a checkpoint of another model: {unmatched[0]} ({len(unmatched)} such)")
        own = framework.state_dict().keys()
        notes += [
            f"weights of {loaded.path}",
            *_names("not in the checkpoint, so new", [name for name in unmatched if name in own]),
            *_names("only in the checkpoint, so unused", [name for name in unmatched if name not in own]),
        ]
        if not plan.resume:
            framework.restart()
    trained = any(weight.requires_grad for weight in framework.encoders.parameters())
    if plan.micro_batch_size < plan.share and not trained:
        raise RunError(
            f"engine.micro_batch_size={plan.micro_batch_size}: the encoders are frozen whole and keep nothing "
            "for a backward pass; give null"
        )
    return framework, notes


def _names(what: str, names: list[str]) -> list[str]:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return [f"{what}: {', '.join(names[:NAMED])}{more}"] if names else []


def training_loader(plan: Plan, world: World, device: torch.device) -> TrainLoader:
    """The rank's part of every batch, from where the plan goes on."""
    recipe = plan.recipe
    dataset = TrainDataset(
        plan.train,
        random_resized_crop(image_side(recipe.model), recipe.data.min_crop_scale),
        caption_tokenizer(recipe.model, recipe.data.mask_words),
        recipe.run.seed,
        recipe.data.drop_regions,
    )
    state = plan.resume.progress.loader if plan.resume else Position()
    return TrainLoader(
        dataset,
        recipe.data.global_batch_size,
        Rank(world.rank, world.size),
        workers=recipe.data.workers,
        state=Position(state.epoch, state.position),
        last_batch=recipe.data.last_batch,
        pin_memory=device.type == "cuda",
    )


def validation_set(plan: Plan) -> EvaluationDataset | None:
    """The split on which the checkpoint is chosen, read as in every evaluation."""
    return None if plan.val is None else evaluation_set(plan.recipe.model, plan.val)
