"""Our own format of a trained model: what is needed to embed, and nothing of the training.

DIR/model.safetensors   weights and buffers of the encoders, float32, by name
    itm_model.json      the model's settings, where the weights came from, format version
    concepts.json       the concept vocabulary, where the model has one
    transformer/        settings and tokenizer of the `transformers` text encoder, where it has one
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model.config import ModelConfig
from model.encoders import DualEncoder
from trainer.errors import RunError

FORMAT_VERSION = 1
SETTINGS, WEIGHTS, CONCEPTS, TRANSFORMER = "itm_model.json", "model.safetensors", "concepts.json", "transformer"


@dataclass(frozen=True)
class Trained:
    """Encoders with trained weights."""

    encoders: DualEncoder
    """In evaluation mode, on the CPU."""
    config: ModelConfig
    precision: str
    """The arithmetic that they were trained and chosen in; see `trainer.config.EngineConfig`."""
    source: str
    """Where the weights came from."""


def is_model_folder(path: Path) -> bool:
    return (path / SETTINGS).is_file()


def write_model_folder(trained: Trained, out: Path) -> None:
    """Fill an empty folder."""
    config = trained.config
    weights = {name: tensor.contiguous() for name, tensor in trained.encoders.state_dict().items()}
    save_file(weights, out / WEIGHTS)
    if config.has_consensus:
        (out / CONCEPTS).write_bytes(Path(str(config.consensus.concepts)).read_bytes())
    if config.text.towers != "clip":
        from model.transformers_hub import read_config, read_tokenizer

        name = config.text.transformer.name
        read_config(name).save_pretrained(out / TRANSFORMER)
        read_tokenizer(name).save_pretrained(out / TRANSFORMER)
    settings = {
        "format_version": FORMAT_VERSION,
        "source": trained.source,
        "precision": trained.precision,
        "model": _without_training(config).model_dump(),
    }
    (out / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    # safetensors makes files for their owner alone
    (out / WEIGHTS).chmod((out / SETTINGS).stat().st_mode)


def _without_training(config: ModelConfig) -> ModelConfig:
    """The settings that say what the model is; those of how it was trained, or where from, at their defaults."""
    settings = config.model_dump()
    settings["pretrained"] = None
    towers = settings["image"], settings["text"], settings["text"]["transformer"]
    for tower in towers:
        tower |= {"freeze": None, "gradient_checkpointing": False}
    settings["text"]["transformer"]["weights"] = None
    if config.text.towers == "clip":
        settings["text"]["transformer"] = {}
    else:
        settings["text"]["transformer"]["name"] = TRANSFORMER
    settings["consensus"]["concepts"] = CONCEPTS if config.has_consensus else None
    return ModelConfig.model_validate(settings)


def read_model_folder(path: Path) -> Trained:
    """Load an exported model. Executes nothing of what is read. Raises `RunError`."""
    try:
        settings = json.loads((path / SETTINGS).read_text())
        if settings["format_version"] != FORMAT_VERSION:
            raise RunError(
                f"{path}: a model of format {settings['format_version']}, this program reads {FORMAT_VERSION}"
            )
        config = ModelConfig.model_validate(_placed(settings["model"], path))
        precision, source = str(settings["precision"]), str(settings["source"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{path / SETTINGS}: damaged ({reason}); export the model again") from None
    encoders = DualEncoder(config, pretrained=False)
    _fill(encoders, path / WEIGHTS)
    return Trained(encoders.eval(), config, precision, source)


def _placed(model: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings with the places of files in the folder, wherever it lies by now."""
    if model["consensus"]["concepts"] is not None:
        model["consensus"]["concepts"] = str(path / CONCEPTS)
    if model["text"]["towers"] != "clip":
        model["text"]["transformer"]["name"] = str(path / TRANSFORMER)
    return model


def _fill(encoders: DualEncoder, path: Path) -> None:
    try:
        weights: dict[str, torch.Tensor] = load_file(path)
        encoders.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{path}: not this model's weights ({reason}); export the model again") from None
