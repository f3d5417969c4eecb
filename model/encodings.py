"""What the losses of a step read of the encoders."""

from dataclasses import dataclass

import torch

from model.features import Encoded

Kind = tuple[torch.Tensor, torch.Tensor]
"""(b, D) embeddings of one kind, of the images and of the texts."""


@dataclass(frozen=True)
class Encodings:
    """b pairs after the encoders. The losses see nothing else of them."""

    image: Encoded
    text: Encoded
    kinds: list[Kind]
    """The embedding used for retrieval first; with consensus then the instance's and the consensus's."""
    concepts: tuple[torch.Tensor, torch.Tensor] | None
    """(b, q) log distributions of the images and of the texts over the concepts."""
