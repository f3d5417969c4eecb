"""The concept vocabulary of a run: that of the checkpoint which it goes on from, wherever the file lies by now."""

from pathlib import Path

from model.amsps.concepts import read_concepts
from trainer.checkpoint import CONCEPTS, Checkpoint, with_concepts
from trainer.config import Recipe
from trainer.errors import RunError


def settle_concepts(recipe: Recipe, resume: Checkpoint | None, init_from: Checkpoint | None) -> Recipe:
    """The recipe with a concept file that can be read and fits the checkpoint; a run keeps a copy of its own.

    Raises `RunError` for a vocabulary that is not the checkpoint's, `ModelError` for a file that is none.
    """
    model, source = recipe.model, resume or init_from
    if resume and model.has_consensus != resume.recipe.model.has_consensus:
        had = "was trained with concepts" if resume.recipe.model.has_consensus else "was trained without concepts"
        raise RunError(
            f"model.consensus.concepts={model.consensus.concepts}: {resume.path} {had}; "
            "resume with the same, or give another run.dir"
        )
    if not model.has_consensus:
        return recipe
    own = Path(recipe.run.dir) / CONCEPTS
    if resume and own.is_file() and not Path(str(model.consensus.concepts)).is_file():
        recipe = with_concepts(recipe, own)
    words = read_concepts(Path(str(recipe.model.consensus.concepts))).words
    theirs = source.path / CONCEPTS if source else None
    if source and theirs and theirs.is_file() and read_concepts(theirs).words != words:
        raise RunError(
            f"model.consensus.concepts={recipe.model.consensus.concepts}: other concepts than those that "
            f"{source.path} was trained with; give {theirs}"
        )
    return recipe
