import io
import json
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import DataError
from shards.tarsample import TarSample, members_of, parse_sample

FORMATS = [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]
LABEL = json.dumps({"image_id": 3, "captions": ["a dog", "ein Bär"]}).encode()


def tar(members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT, **fields: object) -> bytes:
    """The members one after the other, without the blocks that end a tar."""
    blocks = []
    for name, data in members:
        header = tarfile.TarInfo(name)
        header.size = len(data)
        for field, value in fields.items():
            setattr(header, field, value)
        blocks += [header.tobuf(form), data, bytes(-len(data) % 512)]
    return b"".join(blocks)


def by_tarfile(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        return [(member.name, opened.extractfile(member).read()) for member in opened if member.isreg()]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("a", {}),
        ("folder/sub.folder/a", {"mode": 0o644, "uname": "someone", "uid": 7}),
        ("n" * 96, {}),
        ("n" * 97, {}),
        ("folder-" * 10 + "/" + "n" * 90, {}),
        ("Bär", {}),
        ("a", {"mtime": 1700000000.5}),
        ("a", {"mtime": 2**40}),
        ("a", {"uid": 2**30}),
        ("a", {"type": tarfile.AREGTYPE}),
        ("a", {"type": tarfile.CONTTYPE}),
    ],
)
def test_members_are_those_that_tarfile_finds(name: str, fields: dict[str, object], form: int) -> None:
    try:
        data = tar([(f"{name}.jpg", b"x" * 700), (f"{name}.txt", b""), (f"{name}.json", LABEL)], form, **fields)
    except ValueError as error:
        pytest.skip(f"the format cannot say it: {error}")
    assert members_of(data) == by_tarfile(data)
    assert parse_sample(data) == TarSample(b"x" * 700, ["a dog", "ein Bär"])


@given(st.lists(st.tuples(st.text("ab./ é", min_size=1, max_size=120), st.binary(max_size=1200)), max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_members_are_those_that_tarfile_finds(members: list[tuple[str, bytes]]) -> None:
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        data = tar(members, form)
        if members:
            assert members_of(data) == by_tarfile(data)


def outcome(read: object, data: bytes) -> object:
    try:
        return read(data)  # type: ignore[operator]
    except (tarfile.TarError, ValueError):
        return "refused"


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_damage_is_seen_as_tarfile_sees_it(data: st.DataObject) -> None:
    whole = bytearray(tar([("a.jpg", b"x" * 700), ("a.json", LABEL)]))
    header = data.draw(st.sampled_from([0, 1536]))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[header + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.sampled_from([len(whole), len(whole) - 1, 1700, 1536, 900, 100]))])
    assert outcome(members_of, damaged) == outcome(by_tarfile, damaged)


def test_links_and_folders_are_no_members() -> None:
    folder, link = tarfile.TarInfo("folder"), tarfile.TarInfo("folder/a.png")
    folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.LNKTYPE, "a.jpg"
    data = folder.tobuf() + tar([("a.jpg", b"x"), ("a.json", LABEL)])
    assert parse_sample(data).image == b"x"
    assert [name for name, _data in members_of(data)] == ["a.jpg", "a.json"]


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([("a.json", LABEL)], "the sample holds no image"),
        ([("a.jpg", b"x")], "the sample holds no captions"),
        ([("a.jpg", b"x"), ("a.json", b'{"captions": []}')], "the sample holds no captions"),
        ([("a.jpg", b"x"), ("a.json", b"{}")], "the sample holds no captions"),
        ([("a.jpg", b"x"), ("a.json", b"[1]")], "the sample holds no captions"),
        ([("a.jpg", b"x"), ("a.json", b"\xff")], "damaged sample"),
        ([], "damaged sample"),
    ],
)
def test_what_is_no_sample_is_refused_by_name(members: list[tuple[str, bytes]], text: str) -> None:
    with pytest.raises(DataError, match=text):
        parse_sample(tar(members))


def test_our_own_samples_need_no_tarfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of `tarfile` on every sample is what the hand-written reading is there to save."""
    data = tar([("a.jpg", b"x" * 700), ("a.json", LABEL)], tarfile.PAX_FORMAT, mode=0o444)
    monkeypatch.setattr(tarfile, "open", None)
    assert parse_sample(data).captions == ["a dog", "ein Bär"]
