import base64
import io
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import DataError
from shards.manifest import Manifest, read_manifest
from shards.tools.choose import Choice, choose
from shards.tools.index import Plan, index_tars
from shards.tools.inspect import THUMBNAIL, contact_sheet
from shards.tools.locate import find_tars
from tests.shards.foreign import picture, write_ours, write_tar
from tests.shards.test_stats import parsed

Itm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_ours(tmp_path_factory.mktemp("inspect") / "train", samples=23, per_shard=5)


def foreign(root: Path, members: list[tuple[str, bytes]]) -> Manifest:
    write_tar(root / "0.tar", members)
    index_tars(Plan(find_tars([str(root)]), root, "web", "train"))
    return read_manifest(root)


def pictures(page: bytes) -> list[Image.Image]:
    uris = [link.partition("base64,")[2] for link in parsed(page).links]
    return [Image.open(io.BytesIO(base64.b64decode(uri))) for uri in uris]


def test_samples_are_drawn_by_the_seed_alone_and_without_repetition(manifest: Manifest) -> None:
    first = choose(manifest, Choice(10, seed=1))
    assert first == choose(manifest, Choice(10, seed=1)) == sorted(set(first))
    assert len(first) == 10
    assert first != choose(manifest, Choice(10, seed=2))
    everything = [(shard, row) for shard in range(5) for row in range(int(manifest.samples[shard]))]
    assert choose(manifest, Choice(100)) == everything


def test_all_samples_are_drawn_in_turn(manifest: Manifest) -> None:
    drawn = {place for seed in range(40) for place in choose(manifest, Choice(5, seed))}
    assert len(drawn) == 23


def test_a_shard_a_key_and_a_word_restrict_the_choice(manifest: Manifest) -> None:
    assert choose(manifest, Choice(9, shard="train-000004")) == [(4, 0), (4, 1), (4, 2)]
    assert choose(manifest, Choice(9, shard="train-000004.tar")) == [(4, 0), (4, 1), (4, 2)]
    assert choose(manifest, Choice(9, key="picture-0007")) == [(1, 2)]
    assert choose(manifest, Choice(9, word="PICTURE 7")) == [(1, 2)]
    assert len(choose(manifest, Choice(4, word="picture"))) == 4
    assert choose(manifest, Choice(2, word="picture", seed=3)) != choose(
        manifest, Choice(2, word="picture", seed=4)
    )
    assert {shard for shard, _ in choose(manifest, Choice(9, word="picture", shard="train-000002"))} == {2}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(1, shard="other"), "--shard other: no such shard; they are called as train-000000"),
        (Choice(1, key="nobody"), "--key nobody: no sample of this key"),
        (Choice(1, word="zebra"), "--grep zebra: no caption with it"),
        (Choice(1, key="picture-0007", shard="train-000000"), "no sample of this key"),
    ],
)
def test_what_is_not_there_is_said(manifest: Manifest, choice: Choice, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        choose(manifest, choice)


def test_the_page_shows_pictures_captions_and_names(manifest: Manifest) -> None:
    page, count = contact_sheet(manifest, Choice(23))
    assert count == len(pictures(page)) == 23
    words = " ".join(parsed(page).words)
    for number in range(23):
        assert f"picture-{number:04d}" in words
        assert f"image id {100 + number}" in words
        assert all(f"caption {place} of picture {number}" in words for place in range(3))
    assert "24 × 24" in words and "train-000004, row 2" in words
    assert "23 of 23 samples" in words


def test_pictures_are_made_small_and_keep_their_shape(tmp_path: Path) -> None:
    (small,) = pictures(
        contact_sheet(foreign(tmp_path, [("a.jpg", picture(size=(1600, 800))), ("a.txt", b"x")]), Choice(1))[0]
    )
    assert small.size == (THUMBNAIL, THUMBNAIL // 2)


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_pictures_of_every_mode_are_shown(tmp_path: Path) -> None:
    images = {
        "rgba": Image.new("RGBA", (8, 8), (255, 0, 0, 0)),
        "palette": Image.new("P", (8, 8)),
        "grey16": Image.fromarray(np.full((8, 8), 128 * 256, np.uint16)),
        "bits": Image.new("1", (8, 8), 1),
    }
    members = [
        each for name, image in images.items() for each in ((f"{name}.png", encoded(image)), (f"{name}.txt", b"x"))
    ]
    shown = pictures(contact_sheet(foreign(tmp_path, members), Choice(9))[0])
    assert [image.convert("RGB").getpixel((4, 4)) for image in shown] == [
        (255, 255, 255),  # transparent: the page's white
        (0, 0, 0),
        (128, 128, 128),
        (255, 255, 255),
    ]


def test_text_from_the_data_is_escaped(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror="alert(2)">'
    page, _ = contact_sheet(foreign(tmp_path, [("<b>a.jpg", picture()), ("<b>a.txt", evil.encode())]), Choice(1))
    assert len(parsed(page).links) == 1, "the picture alone"
    assert b"<script" not in page and b"<b>a" not in page and b'onerror="' not in page
    assert evil in parsed(page).words


def test_what_does_not_decode_is_shown_with_the_reason(tmp_path: Path) -> None:
    members = [
        ("a.jpg", picture(size=(300, 300))[:4000]),
        ("a.txt", b"cut"),
        ("b.jpg", picture()),
        ("b.txt", b"whole"),
    ]
    page, count = contact_sheet(foreign(tmp_path, members), Choice(9))
    assert count == 2
    assert len(pictures(page)) == 1
    assert any("truncated" in word for word in parsed(page).words)
    assert "cut" in parsed(page).words


def test_regions_alone_are_told(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros((36, 8), np.float32))
    page, _ = contact_sheet(
        foreign(tmp_path, [("a.regions.npy", stream.getvalue()), ("a.txt", b"words")]), Choice(1)
    )
    words = " ".join(parsed(page).words)
    assert "no image, regions alone" in words and "regions 36 × 8" in words


def test_the_command_writes_a_page(manifest: Manifest, tmp_path: Path, itm: Itm) -> None:
    done = itm("shards", "inspect", manifest.location, "--samples", "4", "--grep", "caption 1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("inspect.html: 4 samples, ")
    assert len(pictures((tmp_path / "inspect.html").read_bytes())) == 4
    done = itm("shards", "inspect", manifest.location, "--key", "a", "--grep", "b")
    assert (done.returncode, done.stderr) == (1, "itm: error: --key and --grep: give one of them\n")
