"""The text encoder as a folder of the `transformers` library: `AutoModel.from_pretrained(DIR)` loads it."""

from pathlib import Path
from typing import Any

import torch

from model.towers.transformer import ClipTransformerTower, TransformerTower
from model.transformers_hub import read_tokenizer
from trainer.errors import RunError
from trainer.export.model_folder import Trained


def write_transformers_folder(trained: Trained, out: Path) -> list[str]:
    """Fill an empty folder; returns what the format does not hold, a line each.

    The folder is loaded once to see that it gives the same features. Raises `RunError` for a model without a
    text encoder of the library.
    """
    text: Any = trained.encoders.text_tower
    tower = text.transformer if isinstance(text, ClipTransformerTower) else text
    if not isinstance(tower, TransformerTower):
        raise RunError(f"{trained.source}: its text tower is open_clip's, not of transformers; use open_clip")
    tower.model.save_pretrained(out)
    read_tokenizer(trained.config.text.transformer.name).save_pretrained(out)
    _check(out, tower)
    return ["the image tower and the heads have no place in a text encoder's folder: it holds that alone"]


@torch.no_grad()
def _check(out: Path, tower: TransformerTower) -> None:
    from transformers import AutoModel

    loaded = AutoModel.from_pretrained(out, local_files_only=True).eval()
    tokens = torch.arange(5, 5 + min(8, tower.max_length)).unsqueeze(0)
    theirs, ours = loaded(tokens).last_hidden_state, tower.model(tokens).last_hidden_state
    assert torch.allclose(theirs, ours, atol=1e-5), "transformers gives other features for the exported encoder"
