"""A recipe that says nothing has the constants of the papers, or what docs/algorithm.md gives in their place."""

from typing import Any

from trainer.config import Recipe
from trainer.recipe import flatten

AAHR: dict[str, Any] = {
    "model.framework": "aahr",
    "model.architecture": "ViT-B-32",
    "model.embed_dim": 1024,
    "model.image.region_width": 2048,
    "model.text.transformer.name": "bert-base-uncased",
    "model.aahr.fragment_heads": 16,
    "model.aahr.pooling_heads": 8,
    "model.aahr.dropout": 0.1,
    "model.aahr.top_k": 2,
    "model.aahr.max_weight": 0.8,
    "loss.base.margin": 0.2,
    "loss.base.all_negatives_steps": None,  # the first epoch
    "loss.base.cutoff": 1.7,
    "loss.base.density_dimension": 512,
    "loss.prototypes.count": 384,
    "loss.prototypes.weight": 0.2,
    "loss.prototypes.start_step": 2200,
    "loss.prototypes.temperature": 0.1,
    "loss.prototypes.sinkhorn_iterations": 3,
    "loss.prototypes.sinkhorn_epsilon": 0.1,
    "loss.momentum_contrast.weight": 1,
    "loss.momentum_contrast.start_step": None,  # when the queue is full
    "loss.momentum_contrast.temperature": 0.07,
    "loss.momentum_contrast.query": "fused",
    "loss.queue.size": 2048,
    "loss.momentum.decay": 0.999,
    "loss.momentum.ramp": "constant",
    "loss.relations.start_step": 8000,
    "loss.relations.relevance": "learned",
    "loss.relations.mask_weight": 1,
    "loss.relations.heads": 0,  # the fragment graph's 16
    "loss.relations.dropout": 0.1,
    "loss.relations.gcn_dropout": 0.6,
    "loss.regulariser.weight": 10,
    "loss.regulariser.start_step": 8000,
    "data.global_batch_size": 128,
    "data.mask_words": 0.2,
    "data.drop_regions": 0.2,
    "optimizer.lr": 5e-4,
    "optimizer.weight_decay": 1e-4,
    "optimizer.gradient_clipping": 2,
}
CVSE: dict[str, Any] = {
    "model.consensus.concepts": None,
    "model.consensus.instance_share": 0.85,
    "model.consensus.label_share": 0.4,
    "model.consensus.sharpness": 10,
    "loss.consensus.fused_weight": 3,
    "loss.consensus.instance_weight": 5,
    "loss.consensus.consensus_weight": 1,
    "loss.consensus.divergence_weight": 2,
}
AHRL: dict[str, Any] = {
    **dict.fromkeys((f"loss.ahrl.{level}" for level in ("hard", "candidate", "pair", "adaptive", "mining")), True),
    "loss.ahrl.margin": 0.2,
    "loss.ahrl.candidate_margin": 0,
    "loss.ahrl.candidates": 300,
    "loss.ahrl.alpha": 0.3,
    "loss.ahrl.beta": 1.5,
    "loss.ahrl.max_penalty": 2,
    "loss.ahrl.quantile": 0.999,
    "loss.ahrl.quantile_decay": 0.99,
    "loss.ahrl.min_agreement": 0,
    "loss.ahrl.temperature": 0.07,
    "loss.ahrl.mining_weight": 0.1,
}
OURS: dict[str, Any] = {
    # means over the anchors where the papers sum
    "loss.base.weight": 1,
    "loss.relations.weight": 1,
    "loss.ahrl.weight": 1,
    # groups of 128 for relations and batch norm
    "model.norm_group": 128,
    "loss.relations.group": 0,
    "model.image.inputs": "pixels",
    "model.text.towers": "clip",
    "loss.prototypes.update": "gradient",
    "loss.prototypes.reestimate_every": 0,
    "loss.prototypes.reseed_after": 0,
    "optimizer.betas": [0.9, 0.98],
    "schedule.drop_epochs": [],
}


def test_the_defaults_are_the_constants_of_the_papers() -> None:
    flat, expected = flatten(Recipe().model_dump()), AAHR | CVSE | AHRL | OURS
    assert {key: flat[key] for key in expected} == expected
