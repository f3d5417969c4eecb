"""The towers as an open_clip model: `open_clip.create_model("local-dir:DIR")` loads the folder."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from model.towers.open_clip import ImageTower, TextTower
from model.towers.open_clip_weights import new_clip
from model.towers.regions import PixelRegionTower
from model.towers.transformer import ClipTransformerTower
from trainer.errors import RunError
from trainer.export.model_folder import Trained

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def write_open_clip_folder(trained: Trained, out: Path) -> list[str]:
    """Fill an empty folder; returns what open_clip's format does not hold, a line each.

    The folder is loaded once to see that it gives the same features. Raises `RunError` for a model without both
    towers of an open_clip configuration.
    """
    import open_clip

    image, text = _towers(trained)
    architecture = trained.config.architecture
    clip = new_clip(architecture, image_size=trained.config.image.size)
    clip.visual.load_state_dict(image.visual.state_dict())
    clip.text.load_state_dict(text.text.state_dict())
    state = {name: tensor.detach().contiguous() for name, tensor in clip.state_dict().items()}
    save_file(state, out / WEIGHTS)
    model_config = open_clip.get_model_config(architecture) | {"custom_text": True}
    if trained.config.image.size:
        model_config["vision_cfg"] = model_config["vision_cfg"] | {"image_size": trained.config.image.size}
    pixels = {"mean": image.mean, "std": image.std}
    config = {
        # both towers in modules of their own, as the names of the weights say
        "model_cfg": model_config,
        "preprocess_cfg": {name: (value / 255).flatten().tolist() for name, value in pixels.items()},
    }
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (out / WEIGHTS).chmod((out / CONFIG).stat().st_mode)  # safetensors makes files for their owner alone
    _check(out, image, text)
    notes = []
    if trained.config.framework not in ("clip", "siglip"):
        notes.append(f"the heads of {trained.config.framework} have no place in open_clip's format: towers alone")
    elif not isinstance(getattr(trained.encoders.image_head, "projection", None), torch.nn.Identity):
        notes.append("the towers' features are of two widths; the projections have no place in open_clip's format")
    notes.append("the temperature is open_clip's own at the start: it orders nothing")
    return notes


def _towers(trained: Trained) -> tuple[ImageTower, TextTower]:
    image: Any = trained.encoders.image_tower
    text: Any = trained.encoders.text_tower
    image = image.clip if isinstance(image, PixelRegionTower) else image
    text = text.clip if isinstance(text, ClipTransformerTower) else text
    if not isinstance(image, ImageTower) or not isinstance(text, TextTower):
        raise RunError(
            f"{trained.source}: has not both towers of an open_clip configuration; export it in our own format"
        )
    return image, text


@torch.no_grad()
def _check(out: Path, image: ImageTower, text: TextTower) -> None:
    import open_clip

    clip: Any = open_clip.create_model(f"local-dir:{out}").eval()
    generator = torch.Generator().manual_seed(0)
    size = clip.visual.image_size
    side = size[0] if isinstance(size, tuple | list) else size
    pixels = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, generator=generator)
    seen = (pixels.permute(0, 3, 1, 2).float() - image.mean) / image.std
    words = torch.randint(1, 100, (2, text.context_length), generator=generator)
    words[:, -1] = int(text.text.vocab_size) - 1  # the end of the text has the largest id
    for name, theirs, ours in (
        ("image", clip.encode_image(seen), image(pixels).pooled),
        ("text", clip.encode_text(words), text(words).pooled),
    ):
        gap = float((theirs - ours).abs().max())
        assert math.isclose(gap, 0, abs_tol=1e-4), f"open_clip's {name} features differ by {gap}"
    assert load_file(out / WEIGHTS).keys() == clip.state_dict().keys()
