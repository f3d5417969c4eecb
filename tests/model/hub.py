"""Tiny text encoders of the `transformers` library, saved as the hub would have them."""

import json
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "[unused0]",
    "a",
    "dog",
    "run",
    "##ning",
    "##s",
    ".",
    ",",
    "snow",
    "##board",
    "##er",
    "[",
    "]",
    "sep",
    "pad",
]
VOCABULARY = [*SPECIAL, *WORDS]
PAD, UNK, CLS, SEP, MASK = range(5)
ID = {token: number for number, token in enumerate(VOCABULARY)}
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
CAPTIONS = ["a dog", "a snowboarder running , a dog .", "", "dogs", "a running dog runs a dog . a dog runs , " * 4]


def bert_config() -> BertConfig:
    return BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=24, **SHAPE)


def save_bert(folder: Path, *, masked_lm: bool = False, vocab_file: bool = False) -> Path:
    """A BERT with its tokenizer, as a bare encoder or as it was pretrained."""
    return _save(BertForMaskedLM(bert_config()) if masked_lm else BertModel(bert_config()), folder, vocab_file)


def save_distilbert(folder: Path) -> Path:
    shape = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    config = DistilBertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=24, **shape)
    return _save(DistilBertModel(config), folder)


def save_electra(folder: Path) -> Path:
    config = ElectraConfig(vocab_size=len(VOCABULARY), embedding_size=8, max_position_embeddings=24, **SHAPE)
    return _save(ElectraModel(config), folder)


def _save(model: PreTrainedModel, folder: Path, vocab_file: bool = False) -> Path:
    torch.manual_seed(len(folder.name))
    for parameter in model.parameters():  # as if trained: all that is saved is distinctive
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    if vocab_file:
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY))
    else:
        BertTokenizer(vocab=ID, do_lower_case=True).save_pretrained(folder)
    return folder


def save_roberta(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    bytes_and_pairs = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bytes_and_pairs.train_from_iterator(CAPTIONS * 3, vocab_size=290, special_tokens=special, show_progress=False)
    bytes_and_pairs.save_model(str(folder))
    size = len(json.loads((folder / "vocab.json").read_text()))
    # 24 tokens, counted from pad + 1
    config = RobertaConfig(
        vocab_size=size, max_position_embeddings=26, pad_token_id=1, bos_token_id=0, eos_token_id=2, **SHAPE
    )
    model = RobertaModel(config)
    torch.manual_seed(5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


FAMILIES = {"bert": save_bert, "roberta": save_roberta, "distilbert": save_distilbert, "electra": save_electra}
