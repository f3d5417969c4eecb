"""The feature of a concept: the text tower's own embedding of its word, so that no word vectors are needed."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F


@torch.no_grad()
def word_features(
    words: Sequence[str],
    tokenize: Callable[[list[str]], torch.Tensor],
    encode_text: Callable[[torch.Tensor], torch.Tensor],
    batch_size: int = 256,
) -> torch.Tensor:
    """(q, width) float32 of length 1, where the tower is; computed once, before training (ours).

    Args:
        words: q concepts.
        tokenize: C texts -> (C, T) int64.
        encode_text: (C, T) int64, on the device that it wants -> (C, width), such as a text tower's global feature
            with the tower in evaluation mode.
        batch_size: words a call.
    """
    batches = [list(words[first : first + batch_size]) for first in range(0, len(words), batch_size)]
    return torch.cat([F.normalize(encode_text(tokenize(batch)).float(), dim=-1) for batch in batches])
