"""Which terms a framework is trained on."""

from model.config import BaseLossConfig, LossConfig, ModelConfig
from model.terms.contrast import ContrastTerm
from model.terms.momentum_contrast import MomentumContrastTerm
from model.terms.prototypes import PrototypeTerm
from model.terms.ranking import AhrlRanker, HingeRanker, RankingTerm
from model.terms.relations import RelationsTerm
from model.terms.term import Term


def build_terms(model: ModelConfig, loss: LossConfig, embed_dim: int, steps_per_epoch: int) -> dict[str, Term]:
    """The terms of `model.framework` by name, but those of weight 0, which would only cost time.

    AMSPS's AHRL takes the place of the hinge in L_base. In L_rel, whose embeddings exist within a group alone and
    in no queue, it is its first level, the hinge with the hardest negative (ours). Raises `ModelError`.
    """
    if model.framework in ("clip", "siglip"):
        return {"contrast": ContrastTerm(model.framework, loss.contrast)}
    views = 3 if model.has_consensus else 1
    mines = model.framework != "aahr"
    base = _first_level(loss) if mines else loss.base
    hinge = HingeRanker(base, steps_per_epoch)
    if mines:
        rankers = [AhrlRanker(loss.ahrl, hinge) for _ in range(views)]
        ranking = RankingTerm("ahrl", loss.ahrl.weight, base.start_step, rankers, loss.consensus)
    else:
        ranking = RankingTerm("base", base.weight, base.start_step, [hinge] * views, loss.consensus)
    terms: dict[str, Term] = {"ranking": ranking}
    if model.framework != "amsps":
        terms["prototypes"] = PrototypeTerm(loss.prototypes, embed_dim)
        terms["momentum_contrast"] = MomentumContrastTerm(loss.momentum_contrast)
        relations = loss.relations.model_copy(update=_sizes(model, loss))
        terms["relations"] = RelationsTerm(relations, loss.regulariser, embed_dim, hinge)
    return {name: term for name, term in terms.items() if any(term.weights.values())}


def relation_group(model: ModelConfig, loss: LossConfig) -> int:
    """Consecutive pairs that see each other."""
    return loss.relations.group or model.norm_group


def _sizes(model: ModelConfig, loss: LossConfig) -> dict[str, int]:
    heads = loss.relations.heads or model.aahr.fragment_heads
    return {"group": relation_group(model, loss), "heads": heads}


def _first_level(loss: LossConfig) -> BaseLossConfig:
    return loss.base.model_copy(update={"margin": loss.ahrl.margin, "negatives": "hardest"})


def relates(model: ModelConfig, loss: LossConfig) -> bool:
    """Whether pairs are related within groups."""
    return model.has_aahr and (loss.relations.weight > 0 or loss.regulariser.weight > 0)


def needs_memory(model: ModelConfig, loss: LossConfig) -> bool:
    """Whether any term asks for the momentum encoders and the queue."""
    ahrl = loss.ahrl
    levels = ahrl.draws_candidates or ahrl.mining
    mines = model.framework in ("amsps", "aahr+amsps") and ahrl.weight > 0 and levels
    contrasts = model.has_aahr and loss.momentum_contrast.weight > 0
    return mines or contrasts or clusters(model, loss)


def clusters(model: ModelConfig, loss: LossConfig) -> bool:
    """Whether prototypes are re-estimated from the queue."""
    bank = loss.prototypes
    return model.has_aahr and bank.weight > 0 and bank.reestimate_every > 0
