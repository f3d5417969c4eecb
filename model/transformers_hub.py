"""Reads what the `transformers` library keeps in a folder or fetches from its hub. No code comes with it.

Weights are read as safetensors, or as pickles that may hold tensors only; code that a repository brings
along is not run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from model.errors import ModelError
from model.towers.weights import UNREADABLE, grouped, require_finite, what_is_wrong

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WHERE = "model.text.transformer"
PLAIN_ATTENTION = {"albert", "bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"}
"""Families in which every token attends to every other that is not masked, and nothing else mixes tokens: the mask
may come ready-made, and how far a text is padded changes nothing."""


_MEND = "give a folder that save_pretrained wrote, or a hub name"


@contextmanager
def _reading(name: str, mend: str = _MEND) -> Iterator[dict[str, Any]]:
    """Quietly, with the library's many errors as one line. Gives the arguments of `from_pretrained`."""
    from transformers.utils import logging

    local = Path(name).expanduser()
    if not local.is_dir() and _means_a_folder(name):
        raise ModelError(f"{WHERE}.name {name!r}: no such folder; {_MEND}")
    hub = getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(ERROR)  # it tells of each try to connect
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(ERROR)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield {
            "pretrained_model_name_or_path": str(local) if local.is_dir() else name,
            "local_files_only": local.is_dir(),
            "trust_remote_code": False,
        }
    except (*UNREADABLE, ImportError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        if isinstance(error, KeyError):
            reason = f"the library knows no {reason}"
        if isinstance(error, (SafetensorError, UnpicklingError)):
            reason = f"a weights file of it {what_is_wrong(error)}"
        if isinstance(error, OSError) and not local.is_dir():
            reason = f"neither a folder here nor to be had from the hub ({reason})"
        raise ModelError(f"{WHERE}.name {name!r}: {reason}; {mend}") from None
    finally:
        hub.setLevel(level)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _means_a_folder(name: str) -> bool:
    """Whether no hub name can be meant: those have one slash at most, and what is a folder here is nobody there."""
    parts = Path(name).parts
    return name.startswith((".", "~", "/")) or len(parts) > 2 or (len(parts) == 2 and Path(parts[0]).is_dir())


def read_config(name: str) -> "PreTrainedConfig":
    """A text encoder's settings. Raises `ModelError` when there are none, or for another kind of model."""
    with _reading(name) as arguments:
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

        config: PreTrainedConfig = AutoConfig.from_pretrained(**arguments)
    wanted = ("vocab_size", "hidden_size", "pad_token_id")
    # to fill in a masked word a model must see what is before and after it, as a decoder does not
    encodes = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_encoder_decoder
    if not encodes or any(getattr(config, key, None) is None for key in wanted):
        raise ModelError(no_text_encoder(name, config))
    if getattr(config, "is_decoder", False):
        raise ModelError(f"{WHERE}.name {name!r}: is_decoder is set in its config.json; an encoder is needed")
    return config


def no_text_encoder(name: str, config: "PreTrainedConfig") -> str:
    return f"{WHERE}.name {name!r}: {config.model_type} is no text encoder such as BERT or RoBERTa; {_MEND} of one"


def new_model(name: str, config: "PreTrainedConfig") -> "PreTrainedModel":
    """A model with random weights. Raises `ModelError` for a configuration of which none can be made."""
    with _reading(name, f"mend its config.json, or {_MEND}"):
        import torch
        from transformers import AutoModel

        model: PreTrainedModel = AutoModel.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    return model


def pretrained_model(name: str) -> tuple["PreTrainedModel", list[str]]:
    """A model, its weights in float32, and a line for each that was not there and one for what was not used."""
    with _reading(name) as arguments:
        import torch
        from transformers import AutoModel

        # or else the shapes would be in a table that the library prints
        asked: dict[str, Any] = {
            "dtype": torch.float32,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,
        }
        loaded = AutoModel.from_pretrained(**arguments, **asked)
    model: PreTrainedModel = loaded[0]
    if other := sorted(loaded[1]["mismatched_keys"]):
        key, there, here = other[0]
        raise ModelError(
            f"{WHERE}.name {name!r}: its weights do not fit its config.json: {key} is {list(there)} there and "
            f"{list(here)} here ({len(other)} such)"
        )
    missing = {key for key in loaded[1]["missing_keys"] if not key.startswith("pooler.")}
    if missing >= {key for key in model.state_dict() if not key.startswith("pooler.")}:
        raise ModelError(f"{WHERE}.name {name!r}: its weights are those of another model; no name is known here")
    for key, weight in model.named_parameters():
        require_finite(f"{WHERE}.name {name!r}", key, weight)
    unused = grouped(loaded[1]["unexpected_keys"], model.state_dict())
    return model, [
        *(f"{key}: not in {name}, left random" for key in sorted(missing)),
        *([f"{name}: not used: {', '.join(unused)}"] if unused else []),
    ]


def read_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """The tokenizer that belongs to a model. Raises `ModelError`."""
    with _reading(name) as arguments:
        from transformers import AutoTokenizer

        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**arguments)
    return tokenizer
