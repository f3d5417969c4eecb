"""Text towers of the `transformers` library, which is imported only where one is built."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model.config import TransformerConfig
from model.errors import ModelError
from model.features import Features
from model.towers.open_clip import TextTower
from model.towers.tower import Backbone, Tower, at_least_one
from model.towers.weights import load_matching, read_weights
from model.transformers_hub import PLAIN_ATTENTION, WHERE, new_model, no_text_encoder, pretrained_model, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BLOCK = re.compile(r"\.layers?\.(\d+)\.")


class TransformerTower(Backbone):
    """BERT and its kin; the local tokens are the word pieces, without the tokens that begin and end a text."""

    def __init__(self, model: "PreTrainedModel", pooling: str, max_length: int) -> None:
        super().__init__()
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # type: ignore[assignment]  # made for another task; it would be weights without a gradient
        model.config.use_cache = False  # of decoders; a warning with checkpointing
        self.model, self.pooling, self.max_length = model, pooling, max_length
        self.pad = int(model.config.pad_token_id)
        self.pooled_width = self.token_width = int(model.config.hidden_size)
        # from a mask with two axes, transformers finds out whether anything is masked: the host would wait
        self._ready_mask = (
            model.config.model_type in PLAIN_ATTENTION and model.config._attn_implementation == "sdpa"
        )

    def forward(self, tokens: torch.Tensor) -> Features:
        """(C, T) int64 token ids, padded -> features of T - 2 tokens.

        The token that ends an empty text stands for its words.
        """
        attended = tokens != self.pad
        mask = attended[:, None, None, :] if self._ready_mask else attended
        with self.gradient():
            hidden: torch.Tensor = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
            pooled = hidden[:, 0]
            if self.pooling == "mean":
                weight = attended.unsqueeze(-1).to(hidden.dtype)
                pooled = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
        # a token is followed by another unless it is the end or padding
        return Features(pooled, hidden[:, 1:-1], at_least_one(attended[:, 2:]))

    def depths(self) -> tuple[dict[str, int], int]:
        found = {name: _BLOCK.search(name) for name, _ in self.named_parameters()}
        blocks = max((int(match[1]) + 1 for match in found.values() if match), default=0)
        outside = {name: 0 if name.startswith("model.embeddings") else blocks + 1 for name in found}
        return outside | {name: int(match[1]) + 1 for name, match in found.items() if match}, blocks

    def checkpoint_blocks(self) -> None:
        if not self.model.supports_gradient_checkpointing:
            raise ModelError(
                f"{WHERE}.gradient_checkpointing: {self.model.config.model_type} cannot do it; set it to false"
            )
        self.model.activation_checkpointing_enable({"use_reentrant": False})
        # else frozen embeddings would be given a gradient, and with them the frozen blocks that follow
        self.model.disable_input_require_grads()  # type: ignore[no-untyped-call]


class ClipTransformerTower(Tower):
    """The global feature of the CLIP text tower, with the transformer's word tokens, as in AAHR's paper."""

    def __init__(self, clip: TextTower, transformer: TransformerTower) -> None:
        super().__init__()
        self.clip, self.transformer = clip, transformer
        self.pooled_width, self.token_width = clip.pooled_width, transformer.token_width

    def forward(self, tokens: torch.Tensor) -> Features:
        """(C, T1 + T2) int64: a text's ids for CLIP, and after them those for the transformer -> features.

        T1 and T2 are the lengths that the two take, or both are one that is less.
        """
        first, second = self.clip.context_length, self.transformer.max_length
        if tokens.shape[1] < first + second:
            assert tokens.shape[1] % 2 == 0, "the texts come from the tokenizer of another model"
            first = second = tokens.shape[1] // 2
        words = self.transformer(tokens[:, first:])
        return Features(self.clip(tokens[:, :first]).pooled, words.tokens, words.valid)


def transformer_tower(config: TransformerConfig, load: bool = True) -> tuple[TransformerTower, list[str]]:
    """The configured text encoder, and a line for each weight without counterpart.

    With `load=False` the weights stay random, for others to be loaded afterwards. Raises `ModelError`.
    """
    settings = read_config(config.name)
    if load and config.weights is None:
        model, notes = pretrained_model(config.name)
    else:
        model, notes = new_model(config.name, settings), []
    if load and config.weights not in {None, "random"}:
        notes = _load(model, Path(str(config.weights)).expanduser())
    tower = TransformerTower(model, config.pooling, config.max_length)
    _try(tower, config)
    tower.configure(config, WHERE)
    return tower, notes


def _load(model: "PreTrainedModel", path: Path) -> list[str]:
    weights = read_weights(path, f"{WHERE}.weights")
    missing = load_matching(model, weights, "")
    if missing is None:
        raise ModelError(f"{weights.source}: weights of another model: no name in it is known here")
    return [line for line in missing if not line.startswith("pooler.")] + [weights.report()]


@torch.no_grad()
def _try(tower: TransformerTower, config: TransformerConfig) -> None:
    """See whether it runs and has positions enough; how they are counted differs between the families.

    Without values nothing is run: some families ask for them.
    """
    length, positions = config.max_length, getattr(tower.model.config, "max_position_embeddings", None)
    too_many = f"{WHERE}.max_length: {length} tokens are too many for {config.name}"
    if positions is not None and 0 < positions < length:
        raise ModelError(f"{too_many}; it has {positions} positions")
    if any(parameter.is_meta for parameter in tower.parameters()):
        return
    training = tower.training
    text = torch.full((1, length), tower.pad + 1 if tower.pad == 0 else tower.pad - 1)
    try:
        tower.eval()(text[:, :3])
        try:
            tower(text)
        except (IndexError, RuntimeError):
            raise ModelError(f"{too_many}; give fewer") from None
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        raise ModelError(no_text_encoder(config.name, tower.model.config)) from None
    finally:
        tower.train(training)
