import bz2
import gzip
import io
import lzma
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.tarwalk import DamagedTarError, everything, nothing, samples_in, samples_of, walk
from tests.shards.foreign import img2dataset_members, write_tar

MEMBERS = [
    (f"{key}.{extension}", f"{key} {extension}".encode() * 50) for key in "abc" for extension in ("jpg", "txt")
]


def tar_bytes(members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


LONG = "folder/" * 12 + "k" * 90  # 174 characters: beyond the header's own 100
NAMES = {
    "pax": (tarfile.PAX_FORMAT, LONG * 3),
    "gnu": (tarfile.GNU_FORMAT, LONG * 3),
    "ustar prefix": (tarfile.USTAR_FORMAT, LONG),
    "pax unicode": (tarfile.PAX_FORMAT, "schlüssel-鍵"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_sample_spans_its_headers_whatever_their_format(kind: str) -> None:
    form, key = NAMES[kind]
    data = tar_bytes([("a.jpg", b"1"), (f"{key}.jpg", b"22"), (f"{key}.txt", b"333"), ("z.jpg", b"4")], form)
    samples = list(walk(io.BytesIO(data), "here", everything))
    assert [sample.key for sample in samples] == ["a", key, "z"]
    ends = [sample.offset + sample.size for sample in samples]
    assert [sample.offset for sample in samples] == [0, *ends[:-1]], "without a gap"
    for sample in samples:
        (alone,) = samples_in(data[sample.offset : sample.offset + sample.size])
        assert (alone.key, alone.members) == (sample.key, sample.members)
        assert [data[part.start : part.start + part.size] for part in sample.parts] == [
            d for _, d in sample.members
        ]


def test_only_wanted_members_are_read() -> None:
    (sample, *_) = walk(io.BytesIO(tar_bytes(MEMBERS)), "here", lambda extension: extension == "txt")
    assert [part.data for part in sample.parts] == [None, MEMBERS[1][1]]
    assert [name for name, _ in sample.members] == ["txt"]


def test_links_folders_and_files_of_no_sample_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, kind in (("a.jpg", tarfile.REGTYPE), ("README", tarfile.REGTYPE), ("d.d", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info, io.BytesIO())
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("a.txt")
            link.type, link.linkname = kind, str(tmp_path / "secret.txt")
            tar.addfile(link)
        tar.addfile(tarfile.TarInfo("a.json"), io.BytesIO())
    (sample,) = walk(io.BytesIO(stream.getvalue()), "here", everything)
    assert [part.extension for part in sample.parts] == ["jpg", "json"]


def test_every_cut_is_damage_but_one_after_the_end_mark() -> None:
    data = tar_bytes(MEMBERS)
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    for cut in [0, 1, 511, 512, 513, 700, 1024, 2048, 5000, end - 1, end, end + 511]:
        for wanted in (everything, nothing):
            with pytest.raises(DamagedTarError):
                list(walk(io.BytesIO(data[:cut]), "here", wanted))
    assert len(list(walk(io.BytesIO(data[: end + 1024]), "here", nothing))) == 3


def test_a_header_overwritten_in_the_middle_is_damage_not_the_end() -> None:
    data = tar_bytes(MEMBERS)
    second = 512 * 2
    for junk in (bytes(512), b"\x01" * 512):
        broken = data[:second] + junk + data[second + 512 :]
        with pytest.raises(DamagedTarError):
            list(walk(io.BytesIO(broken), "here", everything))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 6 * 1024), st.binary(min_size=1, max_size=40))
def test_any_bytes_give_samples_or_damage(place: int, junk: bytes) -> None:
    data = bytearray(tar_bytes([(f"{LONG}.jpg", b"1" * 700), ("b.jpg", b"2")]))
    data[place : place + len(junk)] = junk
    try:
        for sample in walk(io.BytesIO(bytes(data)), "here", everything):
            assert sample.offset + sample.size <= len(data)
    except DamagedTarError:
        pass


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_streamed_and_its_cut_noticed(tmp_path: Path, suffix: str) -> None:
    path = write_tar(tmp_path / f"a.tar.{suffix}", img2dataset_members(0, 5), mode=f"w:{suffix}")
    samples = list(samples_of(str(path), nothing))
    assert [sample.members for sample in samples] == [
        [(name.partition(".")[2], data) for name, data in img2dataset_members(number, 1)] for number in range(5)
    ]
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DamagedTarError):
        list(samples_of(str(path), nothing))


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def keys_in(path: Path, data: bytes) -> list[str]:
    path.write_bytes(data)
    return [sample.key for sample in samples_of(str(path), nothing)]


@pytest.mark.parametrize("suffix", PACK)
def test_a_tar_compressed_in_pieces_is_whole(tmp_path: Path, suffix: str) -> None:
    data, pack = tar_bytes(MEMBERS), PACK[suffix]
    assert keys_in(tmp_path / "a", pack(data[:700]) + pack(data[700:2000]) + pack(data[2000:])) == ["a", "b", "c"]


@pytest.mark.parametrize("suffix", PACK)
def test_a_second_tar_behind_a_compressed_one_is_not_dropped_in_silence(tmp_path: Path, suffix: str) -> None:
    one = PACK[suffix](tar_bytes(MEMBERS))
    with pytest.raises(DamagedTarError, match="several tars in one"):
        keys_in(tmp_path / "a", one + one)
    with pytest.raises(DamagedTarError, match="several tars in one"):
        keys_in(tmp_path / "a", PACK[suffix](2 * tar_bytes(MEMBERS)))


@pytest.mark.parametrize("suffix", PACK)
def test_a_changed_byte_of_a_compressed_tar_is_damage(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).bytes(30_000)  # which does not compress: no byte but counts
    data = PACK[suffix](tar_bytes([("a.jpg", noise), ("a.txt", b"words")]))
    for place in range(len(data) // 3, len(data), 3001):
        with pytest.raises(DamagedTarError):
            keys_in(tmp_path / "a", data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def test_the_checksum_behind_a_compressed_tar_counts(tmp_path: Path) -> None:
    data = gzip.compress(tar_bytes(MEMBERS))
    with pytest.raises(DamagedTarError, match="CRC check failed"):
        keys_in(tmp_path / "a", data[:-6] + bytes([data[-6] ^ 1]) + data[-5:])
    with pytest.raises(DamagedTarError, match="Not a gzipped file"):
        keys_in(tmp_path / "a", data + b"junk")
