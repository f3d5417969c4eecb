"""DeepSpeed's settings for a recipe, and what must be set before it is used."""

import logging
import os
import warnings
from typing import Any

import torch

from trainer.config import Recipe


def prepare_deepspeed(backend: str) -> None:
    """Import DeepSpeed quietly and have it join the process group that exists."""
    if backend == "gloo":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    # DeepSpeed calls collectives by names that torch is about to retire
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # else the first collective compiles a shared-memory operator that serves no purpose here
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


BUCKET = 500_000_000
"""Elements that DeepSpeed sends at once, and has room for on a GPU: its own default."""


def deepspeed_config(recipe: Recipe, world_size: int, trained: int) -> dict[str, Any]:
    """The configuration that `deepspeed.initialize` takes for so many trained weights.

    Parameters stay float32; other precisions are an autocast within the forward pass, so that the optimiser, the
    gradients and the running statistics lose nothing.
    """
    zero: dict[str, Any] = {
        "stage": recipe.engine.zero_stage,
        # nothing is kept whole at stage 3, so that every parameter's own part is the truth about it
        "stage3_param_persistence_threshold": 0,
        # room for more than all gradients serves nothing: 2 GB in float32
        "reduce_bucket_size": min(BUCKET, trained),
    }
    offloaded = {
        "offload_optimizer": recipe.engine.offload_optimizer,
        "offload_param": recipe.engine.offload_parameters,
    }
    for key, device in offloaded.items():
        if device:
            zero[key] = {"device": device, "pin_memory": torch.cuda.is_available()}
    return {
        "train_batch_size": recipe.data.global_batch_size,
        "train_micro_batch_size_per_gpu": recipe.data.global_batch_size // world_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.optimizer.gradient_clipping,
        "steps_per_print": 10**9,
        # the optimiser is torch's own: DeepSpeed's would be compiled first
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
