"""A trained model from Python: pictures and sentences in, embeddings out. Needs no part of the training."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from model.encoders import DualEncoder
from model.terms.build import needs_memory
from shards.batch import Batch, stack_images, stack_regions
from shards.images import center_crop
from trainer.checkpoint import Checkpoint
from trainer.checkpoint_folder import find_checkpoint
from trainer.checkpoint_load import load_weights
from trainer.errors import RunError
from trainer.export.model_folder import Trained, is_model_folder, read_model_folder
from trainer.inputs import caption_tokenizer, image_side

Picture = str | Path | bytes | Image.Image
"""A file, its bytes, or an opened image."""
BATCH_SIZE = 128


def load_trained(path: str | Path, momentum: bool = False) -> Trained:
    """The encoders of an exported model, of a run (its best checkpoint on val) or of one checkpoint.

    `momentum` takes the moving average of the encoders, where a checkpoint has one. Raises `RunError`.
    """
    path = Path(path)
    if is_model_folder(path):
        if momentum:
            raise RunError(f"{path}: an exported model holds no momentum encoders; give the run")
        return read_model_folder(path)
    return trained_of(find_checkpoint(path), momentum)


def trained_of(checkpoint: Checkpoint, momentum: bool = False) -> Trained:
    """The encoders of a checkpoint. Raises `RunError`."""
    config, loss = checkpoint.recipe.model, checkpoint.recipe.loss
    if momentum and not needs_memory(config, loss):
        raise RunError(
            f"{checkpoint.path}: this run keeps no momentum encoders, as model.framework={config.framework} with "
            "its losses needs none; leave --momentum out"
        )
    encoders = DualEncoder(config, pretrained=False)
    unmatched = load_weights(encoders, checkpoint, "encoders.")
    if momentum:
        unmatched = _without_shared(load_weights(encoders, checkpoint, "momentum.module."), encoders)
    if unmatched:
        raise RunError(f"{checkpoint.path}: a checkpoint of another model: {unmatched[0]} ({len(unmatched)} such)")
    source = f"{checkpoint.path}{', momentum encoders' * momentum}"
    return Trained(encoders.eval(), config, checkpoint.recipe.engine.precision, source)


def _without_shared(unmatched: list[str], encoders: DualEncoder) -> list[str]:
    """Less the weights of towers that have no average of their own: those of the encoders are theirs, too."""
    names = encoders.state_dict()
    for tower in ("image_tower.", "text_tower."):
        own = {name for name in names if name.startswith(tower)}
        if own <= set(unmatched):
            unmatched = [name for name in unmatched if name not in own]
    return unmatched


class ImageTextModel:
    """Embeds pictures and sentences so that the dot product of a pair tells how well they match."""

    def __init__(self, trained: Trained, device: torch.device) -> None:
        self.config, self.source, self.device = trained.config, trained.source, device
        self.encoders = trained.encoders.to(device)
        self._dtype = torch.bfloat16 if trained.precision == "bfloat16" else None
        self._crop = center_crop(image_side(trained.config))
        self.tokenize = caption_tokenizer(trained.config, cut=False)
        """C captions -> (C, T) int64 of one length T, as `encoders.encode_text` and an ONNX export take them."""
        self._tokenize_short = caption_tokenizer(trained.config)

    @property
    def embed_dim(self) -> int:
        """Width D of the embeddings."""
        return self.encoders.embed_dim

    @torch.inference_mode()
    def encode_text(self, captions: Sequence[str], batch_size: int = BATCH_SIZE) -> torch.Tensor:
        """C captions -> (C, D) float32 of length 1, on the model's device.

        What is longer than the text tower's context is cut.
        """
        if isinstance(captions, str):
            raise TypeError("encode_text takes a list of captions; put the one into brackets")
        parts = [self._empty()]
        for first in range(0, len(captions), batch_size):
            tokens = self._tokenize_short(list(captions[first : first + batch_size])).to(self.device)
            with self._arithmetic():
                parts.append(self.encoders.encode_text(tokens))
        return torch.cat(parts)

    @torch.inference_mode()
    def encode_images(
        self,
        pictures: Sequence[Picture] | None = None,
        regions: Sequence[npt.NDArray[np.float32]] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> torch.Tensor:
        """N pictures, or the (R, F) features of their regions, or both -> (N, D) float32 of length 1.

        Of a picture the largest centred square is seen. Raises `DecodeError` for one that cannot be decoded.
        """
        self._check(pictures, regions)
        given = pictures if pictures is not None else regions
        assert given is not None
        parts = [self._empty()]
        for first in range(0, len(given), batch_size):
            span = slice(first, first + batch_size)
            pixels = None
            if pictures is not None:
                pixels = stack_images([self._crop(_encoded(one), np.uint64(0)) for one in pictures[span]])
            features, mask = stack_regions(regions[span]) if regions is not None else (None, None)
            inputs = (None if part is None else part.to(self.device) for part in (pixels, features, mask))
            with self._arithmetic():
                parts.append(self.encoders.encode_image(*inputs))
        return torch.cat(parts)

    @torch.inference_mode()
    def embed_batch(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch of shards as this model takes it -> (B, D) of its images, (C, D) of its captions, float32."""
        parts = (batch.images, batch.regions, batch.region_mask)
        inputs = (None if part is None else part.to(self.device) for part in parts)
        with self._arithmetic():
            return self.encoders.encode_image(*inputs), self.encoders.encode_text(batch.text.to(self.device))

    def _check(self, pictures: object, regions: object) -> None:
        for name, given, wanted in (
            ("pictures", pictures, self.config.reads_pixels),
            ("regions", regions, self.config.reads_regions),
        ):
            if isinstance(given, str | bytes | Path | Image.Image):
                raise TypeError(f"encode_images takes a list of {name}; put the one into brackets")
            if (given is not None) != wanted:
                raise RunError(f"{self.source}: a model of {self.config.image.inputs}: {name} given or missing")

    def _empty(self) -> torch.Tensor:
        return torch.empty(0, self.embed_dim, device=self.device)

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None)


def _encoded(picture: Picture) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Image.Image):
        stream = io.BytesIO()
        picture.save(stream, "TIFF")  # whatever the mode, as it is
        return stream.getvalue()
    return Path(picture).read_bytes()


def load_model(path: str | Path, device: str | torch.device | None = None) -> ImageTextModel:
    """An exported model, or a run or checkpoint, ready to embed; by default on a GPU where there is one.

        from trainer import load_model
        model = load_model("exported")
        model.encode_text(["two dogs play in the snow"]) @ model.encode_images(["dogs.jpg"]).T

    Raises `RunError` when there is no model in `path`.
    """
    chosen = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    return ImageTextModel(load_trained(path), chosen)
