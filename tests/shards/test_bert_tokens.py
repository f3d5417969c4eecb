import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizer

from shards.bert_tokens import SPECIAL, BertTokens
from shards.errors import DataError
from shards.keyed_random import mix

WORDS = [
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
    "cafe",
    "Dog",
    "雪",
    "[",
    "]",
    "sep",
]
TOKENS = [*SPECIAL, "[unused0]", *WORDS]
PAD, UNK, CLS, SEP, MASK = range(5)
ID = {token: number for number, token in enumerate(TOKENS)}


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in TOKENS), encoding="utf-8")
    return path


def pieces(row: torch.Tensor) -> list[str]:
    return [TOKENS[number] for number in row.tolist() if number != PAD]


def keys(count: int) -> np.ndarray:
    return mix(np.arange(count, dtype=np.uint64))


def test_captions_become_word_pieces_between_marks(vocab: Path) -> None:
    tokens = BertTokens(vocab, max_length=8)(["A snowboarder.", "the dog", ""])
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [
        [CLS, ID["a"], ID["snow"], ID["##board"], ID["##er"], ID["."], SEP, PAD],
        [CLS, UNK, ID["dog"], SEP, PAD, PAD, PAD, PAD],
        [CLS, SEP, PAD, PAD, PAD, PAD, PAD, PAD],
    ]


def test_no_captions_give_no_rows(vocab: Path) -> None:
    assert BertTokens(vocab, max_length=8)([]).shape == (0, 8)


def test_capitals_and_accents_are_kept_when_asked(vocab: Path) -> None:
    assert pieces(BertTokens(vocab)(["Dog Café"])[0]) == ["[CLS]", "dog", "cafe", "[SEP]"]
    assert pieces(BertTokens(vocab, lowercase=False)(["Dog Café"])[0]) == ["[CLS]", "Dog", "[UNK]", "[SEP]"]


def test_a_long_caption_is_cut_and_still_ends(vocab: Path) -> None:
    row = BertTokens(vocab, max_length=5)(["a dog running, a dog"])[0]
    assert pieces(row) == ["[CLS]", "a", "dog", "run", "[SEP]"]


def test_a_mark_in_a_caption_is_plain_text(vocab: Path) -> None:
    assert pieces(BertTokens(vocab)(["a [SEP] dog"])[0]) == ["[CLS]", "a", "[", "sep", "]", "dog", "[SEP]"]


def test_the_ids_are_those_of_transformers(vocab: Path) -> None:
    theirs = BertTokenizer(vocab=ID, do_lower_case=True)
    captions = ["A dog running, snowboarders.", "Café 雪snow!", "a" * 120, "runs\tdog\n a", "dog's"]
    expected = theirs(captions, padding="max_length", max_length=12, truncation=True)["input_ids"]
    assert BertTokens(vocab, max_length=12)(captions).tolist() == expected


def test_masking_is_drawn_by_the_key_alone(vocab: Path) -> None:
    tokenize = BertTokens(vocab, mask_share=0.5)
    captions = ["a dog running, a snowboarder runs."] * 30
    drawn = tokenize(captions, keys(30))
    assert torch.equal(drawn, tokenize(captions, keys(30)))
    assert len({tuple(row.tolist()) for row in drawn}) > 20
    assert torch.equal(drawn[7:9], tokenize(captions[7:9], keys(30)[7:9])), "not by its place in the batch"


def test_without_keys_nothing_is_masked(vocab: Path) -> None:
    tokens = BertTokens(vocab, mask_share=1.0)(["a dog ."] * 20)
    assert {tuple(pieces(row)) for row in tokens} == {("[CLS]", "a", "dog", ".", "[SEP]")}


def test_words_are_touched_whole(vocab: Path) -> None:
    """The three pieces of "snowboarder" are masked, replaced or deleted together."""
    tokens = BertTokens(vocab, mask_share=1.0)(["snowboarder dog"] * 2000, keys(2000))
    lengths = np.array([len(pieces(row)) - 2 for row in tokens])
    assert set(lengths.tolist()) == {1, 3, 4}
    masks = (tokens == MASK).sum(1)
    assert set(masks.tolist()) <= {0, 1, 3, 4}
    # of two words both are masked in 1/4, both deleted, and so left as they were, in 0.16
    assert (masks == 4).float().mean().item() == pytest.approx(0.25, abs=0.04)
    same = np.mean([pieces(row)[1:-1] == ["snow", "##board", "##er", "dog"] for row in tokens])
    assert same == pytest.approx(0.16, abs=0.04)


def test_replacements_are_words_and_never_marks(vocab: Path) -> None:
    tokens = BertTokens(vocab, mask_share=1.0)(["a dog a dog a dog"] * 1000, keys(1000))
    seen = {token for row in tokens for token in pieces(row)[1:-1]}
    assert seen == {"[MASK]", *WORDS}


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_the_share_of_touched_words(vocab: Path, share: float) -> None:
    words = 20
    tokens = BertTokens(vocab, mask_share=share)(["dog " * words] * 2000, keys(2000))
    total = 2000 * words
    assert int((tokens == MASK).sum()) / total == pytest.approx(share * 0.5, abs=0.01)
    lengths = int((tokens != PAD).sum()) - 2 * 2000
    assert 1 - lengths / total == pytest.approx(share * 0.4, abs=0.01)


def test_it_travels_to_a_worker(vocab: Path) -> None:
    tokenize = BertTokens(vocab, max_length=10)
    captions = ["a dog running.", "A snowboarder, Café"]
    expected = tokenize(captions, keys(2)).tolist()
    assert pickle.loads(pickle.dumps(tokenize))(captions, keys(2)).tolist() == expected


def test_other_line_ends_and_an_empty_last_line_change_nothing(vocab: Path, tmp_path: Path) -> None:
    other = tmp_path / "windows.txt"
    other.write_bytes("\r\n".join([*TOKENS, "", ""]).encode())
    caption = ["a dog running. [x]"] * 50
    assert torch.equal(BertTokens(other)(caption, keys(50)), BertTokens(vocab)(caption, keys(50)))


def test_a_missing_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vocab\.txt: no such file"):
        BertTokens(tmp_path / "vocab.txt")


def test_what_is_no_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a vocabulary"):
        BertTokens(tmp_path)
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match="not a vocabulary"):
        BertTokens(picture)


@pytest.mark.parametrize("missing", SPECIAL)
def test_a_vocabulary_without_a_mark_is_refused(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(token for token in TOKENS if token != missing))
    with pytest.raises(DataError, match=rf"has no \{missing}"):
        BertTokens(path)


def test_a_vocabulary_without_words_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, "[unused0]"]))
    with pytest.raises(DataError, match="holds no words"):
        BertTokens(path)


@pytest.mark.parametrize(("setting", "value"), [("max_length", 2), ("mask_share", 1.5), ("mask_share", -0.1)])
def test_settings_out_of_range_are_refused(vocab: Path, setting: str, value: float) -> None:
    with pytest.raises(DataError, match=f"{setting} is {value}"):
        BertTokens(vocab, **{setting: value})
