import json
import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import model.tokenizer
from model.caption_tokenizer import CaptionTokenizer, build_caption_tokenizer
from model.config import ModelConfig
from model.tokenizer import CachedTokenizer, build_tokenizer, ignores_padding

THEIRS = open_clip.get_tokenizer("ViT-B-32")
OURS = build_tokenizer("ViT-B-32")
ODD_TEXTS = [
    "",
    " ",
    "A dog's toy, isn't it?! They'LL 'S 's",
    "tabs\tand\nnew lines\r\nand \x1b[31mcolours\x1b[0m \x00 \x7f",
    "AT&T &amp; &amp;lt; &lt;b&gt; &#39; & amp; &nbsp;end",
    "<start_of_text> a <END_OF_TEXT><end_of_text>",
    "schÃ¶n caf\u00e9 cafe\u0301 ﬁne “quotes” ΌΔΟΣ ΟΔΟΣ. İI ẞ",
    "no\u00a0break\u2003em\u200bzero\u3000wide\x85next\x1cfile",
    "数字 ١٢٣ 123,456.7 🐕‍🦺👩‍👩‍👧 \U0001f1e9\U0001f1ea",
    "word " * 200,
    "x" * 5000,
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts_have_open_clips_ids(text: str) -> None:
    assert isinstance(OURS, CachedTokenizer)
    assert torch.equal(OURS([text]), THEIRS([text]))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=4))
def test_any_text_has_open_clips_ids(texts: list[str]) -> None:
    ours, theirs = OURS(texts), THEIRS(texts)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)


@settings(max_examples=400, deadline=None)
@given(st.text(st.sampled_from("aBs'.,&;#<>_lt39 \t\n\x00é\u0301Σ\u200b"), max_size=40))
def test_any_mixture_of_what_is_special_has_open_clips_ids(text: str) -> None:
    assert torch.equal(OURS([text]), THEIRS([text]))


def test_real_captions_have_open_clips_ids(test_data: Path) -> None:
    images = json.loads((test_data / "flickr8k" / "dataset_flickr8k.json").read_text())["images"]
    captions = [sentence["raw"] for image in images for sentence in image["sentences"]]
    assert len(captions) > 30_000
    assert torch.equal(OURS(captions), THEIRS(captions))


def test_words_are_forgotten_in_time_and_ids_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.tokenizer, "CACHED_WORDS", 10)
    tokenizer = build_tokenizer("ViT-B-32")
    assert isinstance(tokenizer, CachedTokenizer)
    texts = [f"word{number} <end_of_text> dogs" for number in range(50)]
    assert torch.equal(tokenizer(texts), THEIRS(texts))
    assert len(tokenizer._words) <= 10
    assert len(tokenizer.tokenizer.cache) <= 100


def test_a_tokenizer_travels_to_other_processes() -> None:
    assert torch.equal(pickle.loads(pickle.dumps(OURS))(["a dog"]), THEIRS(["a dog"]))


def test_other_tokenizers_are_left_as_they_are() -> None:
    canonical = open_clip.SimpleTokenizer(clean="canonicalize")
    masked = open_clip.SimpleTokenizer(reduction_mask="syntax")
    assert not CachedTokenizer.fits(canonical)
    assert not CachedTokenizer.fits(masked)
    assert not CachedTokenizer.fits(object())
    assert CachedTokenizer.fits(open_clip.SimpleTokenizer())


@pytest.mark.parametrize("context_length", [8, 24])
def test_a_long_text_is_cut_and_still_ends(context_length: int) -> None:
    theirs = open_clip.SimpleTokenizer(context_length=context_length)
    assert torch.equal(CachedTokenizer(theirs)(["a dog " * 30, "a dog"]), theirs(["a dog " * 30, "a dog"]))


@pytest.mark.parametrize(("words", "length"), [(0, 8), (6, 8), (7, 16), (69, 72), (71, 77), (200, 77)])
def test_captions_are_cut_to_a_multiple_of_eight_that_holds_the_longest(words: int, length: int) -> None:
    captions = ["a", "dog " * words, ""]
    tokens = build_caption_tokenizer(ModelConfig(architecture="ViT-B-32"))(captions)
    assert torch.equal(tokens, THEIRS(captions)[:, :length])


def test_captions_keep_their_padding_where_it_has_a_part_in_the_features() -> None:
    assert ignores_padding("ViT-B-32")
    assert ignores_padding("MobileCLIP-B")
    assert not ignores_padding("MobileCLIP-S1"), "its tokens see those after them"
    assert torch.equal(CaptionTokenizer(OURS, None, cut=False)(["a dog"]), THEIRS(["a dog"]))
