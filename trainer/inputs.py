"""What a model asks of its data: the side of its pictures, the width of its regions, captions as numbers."""

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from model.caption_tokenizer import CaptionTokenizer, build_caption_tokenizer
from model.config import ModelConfig
from model.towers.open_clip import tower_widths
from shards.augment import mask_words
from shards.evaluation import EvaluationDataset
from shards.images import center_crop
from shards.manifest import IMAGE, REGIONS, Manifest
from shards.tools.concepts import Vocabulary, label_captions, read_vocabulary
from trainer.errors import RunError

NO_PIXELS = 1
"""Side of the pictures of a model that reads none."""


class ConceptTokenizer:
    """A caption's tokens, then a 0 or 1 a concept, as `model.encoders.DualEncoder` takes them."""

    def __init__(self, tokenize: CaptionTokenizer, vocabulary: Vocabulary) -> None:
        self.tokenize = tokenize
        self.form_to_concept, self.size = vocabulary.form_to_concept, len(vocabulary.concepts)

    def __call__(self, captions: list[str], keys: npt.NDArray[np.uint64] | None = None) -> torch.Tensor:
        """C captions, the (C,) keys of their visits in training -> (C, T + q) int64."""
        labels = label_captions(captions, self.form_to_concept, self.size)
        return torch.cat([self.tokenize(captions, keys), torch.from_numpy(labels).long()], dim=1)


def caption_tokenizer(
    config: ModelConfig, mask_share: float = 0.0, cut: bool = True
) -> CaptionTokenizer | ConceptTokenizer:
    """What makes numbers of captions for a model; a share of the words that BERT reads is masked in training.

    Captions are cut to the longest of a call, or with `cut=False` padded to the context length. Raises
    `ModelError`, and `DataError` for a concept file that cannot be read.
    """
    tokenize = build_caption_tokenizer(config, partial(mask_words, share=mask_share) if mask_share else None, cut)
    if not config.has_consensus:
        return tokenize
    assert config.consensus.concepts is not None
    return ConceptTokenizer(tokenize, read_vocabulary(Path(config.consensus.concepts)))


def not_held(config: ModelConfig, manifest: Manifest) -> list[str]:
    """What a model reads of an image and a split does not hold."""
    wanted = {IMAGE: config.reads_pixels, REGIONS: config.reads_regions}
    return [what for what, is_read in wanted.items() if is_read and what not in manifest.holds]


def evaluation_set(config: ModelConfig, manifest: Manifest) -> EvaluationDataset:
    """A split as a model takes it, without augmentation. Raises `RunError` for one without what the model reads."""
    for what in not_held(config, manifest):
        raise RunError(
            f"{manifest.location}: holds no {what}, and this model was trained with "
            f"model.image.inputs={config.image.inputs}; give a split that holds them"
        )
    transform, tokenize = center_crop(image_side(config)), caption_tokenizer(config)
    return EvaluationDataset(manifest, transform, tokenize, region_width(config))


def image_side(config: ModelConfig) -> int:
    """Of the square pictures that a model takes, in pixels. Raises `ModelError`."""
    return tower_widths(config.architecture, config.image.size).image_size if config.reads_pixels else NO_PIXELS


def region_width(config: ModelConfig) -> int | None:
    """Features of the regions that a model takes, None where it takes none."""
    return config.image.region_width if config.reads_regions else None
