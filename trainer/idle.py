"""Settings that a recipe gives and a run does not read."""

from model.config import ModelConfig
from trainer.config import Recipe


def idle_settings(recipe: Recipe, fine_tunes: bool) -> list[str]:
    """A line for each that has no effect beside the others; `fine_tunes` where `run.init_from` gives weights."""
    model = recipe.model
    found = []
    if model.consensus.concepts is not None and not model.has_consensus:
        found.append(f"model.consensus.concepts has no effect with model.framework={model.framework}")
    if model.pretrained is not None and (beside := _instead_of_pretrained(model, fine_tunes)):
        found.append(f"model.pretrained has no effect with {beside}")
    if model.text.transformer.weights is not None and model.text.towers == "clip":
        found.append("model.text.transformer.weights has no effect with model.text.towers=clip")
    return found


def _instead_of_pretrained(model: ModelConfig, fine_tunes: bool) -> str:
    """What makes the weights of the architecture's towers unread, empty where they are read."""
    if not model.reads_pixels and model.text.towers == "transformer":
        return "model.image.inputs=regions and model.text.towers=transformer"
    return "run.init_from, whose weights are taken" if fine_tunes else ""
