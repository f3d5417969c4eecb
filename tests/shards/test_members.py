import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from shards.members import captions_of, image_of, label_of, split_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("000000012.jpg", ("000000012", "jpg")),
        ("a.b/c.d/e.seg.PNG", ("a.b/c.d/e", "seg.png")),
        ("/etc/passwd.txt", ("/etc/passwd", "txt")),
        ("../../x.jpg", ("../../x", "jpg")),
        ("README", None),
        (".hidden.jpg", None),
        ("folder/._000.jpg", None),
        ("__meta__/info.json", None),
    ],
)
def test_a_name_is_split_at_the_first_dot_of_its_last_part(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected


@given(st.text("ab/._", min_size=1, max_size=12))
def test_keys_and_extensions_are_those_of_webdataset(name: str) -> None:
    split = split_name(name)
    if split is not None:  # webdataset makes samples of hidden files, too
        assert split == base_plus_ext(name)


def captions(**members: bytes) -> list[str]:
    return captions_of(list(members.items()))


def test_the_list_in_the_json_goes_before_the_text_and_that_before_the_single_caption() -> None:
    both = json.dumps({"captions": ["one", "two"], "caption": "three"}).encode()
    single = json.dumps({"caption": "three"}).encode()
    assert captions(json=both, txt=b"text") == ["one", "two"]
    assert captions(json=single, txt=b"text") == ["text"]
    assert captions(txt=b"text") == ["text"]
    assert captions(json=single) == ["three"]
    assert captions(json=single, txt=b" \n") == ["three"]


@pytest.mark.parametrize("wrong", [None, "one", [1, 2], [["one"]], {"a": "b"}, [], ["", " "], ["\ud800"]])
def test_a_list_of_captions_that_holds_none_is_passed_over(wrong: object) -> None:
    assert captions(json=json.dumps({"captions": wrong}).encode(), txt=b"text") == ["text"]


def test_white_space_is_collapsed_and_what_is_empty_left_out_with_its_id() -> None:
    fields = {"captions": [" a\n b ", "", "c"], "caption_ids": [7, 8, 9], "image_id": 5}
    label = label_of([("json", json.dumps(fields).encode())])
    assert (label.captions, label.caption_ids, label.image_id) == (["a b", "c"], (7, 9), 5)


@pytest.mark.parametrize("image_id", ["5", 5.0, True, 2**63, None])
def test_an_image_id_that_is_no_int64_is_none(image_id: object) -> None:
    assert label_of([("json", json.dumps({"image_id": image_id}).encode())]).image_id is None


@pytest.mark.parametrize(
    "members", [{"json": b"{"}, {"json": b"\xff"}, {"txt": b"\xff\xfe"}, {"json": b"[" * 100_000}]
)
def test_what_cannot_be_decoded_is_an_error(members: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match=r"cannot be decoded|not UTF-8"):
        captions(**members)


@pytest.mark.parametrize("data", [b"[1]", b'"text"', b"null", b"3"])
def test_json_that_is_no_object_has_no_captions(data: bytes) -> None:
    assert captions(json=data) == []


def test_the_first_member_that_is_an_image_is_the_image() -> None:
    assert image_of([("txt", b"t"), ("seg.png", b"1"), ("jpg", b"2")]) == b"1"
    assert image_of([("txt", b"t"), ("mp4", b"1")]) is None
