import io
import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.convert import Options, write_split
from shards.errors import DataError
from shards.manifest import Manifest, read_manifest
from shards.reader import ShardReader
from shards.sources.record import Record
from shards.tools.decontaminate import decontaminate
from shards.tools.perceptual import HashSearch, perceptual_hash

Itm = Callable[..., subprocess.CompletedProcess[str]]


def scene(number: int) -> Image.Image:
    """A picture with large shapes and fine texture, unlike that of any other number."""
    generator = np.random.default_rng(number)
    large = Image.fromarray(generator.integers(0, 256, (6, 8, 3), np.uint8)).resize(
        (240, 180), Image.Resampling.BICUBIC
    )
    texture = generator.integers(-20, 21, (180, 240, 3))
    return Image.fromarray(np.clip(np.asarray(large).astype(int) + texture, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str = "JPEG", quality: int = 90, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, quality=quality, **options)
    return stream.getvalue()


def cropped(image: Image.Image, share: float) -> Image.Image:
    x, y = round(image.width * share / 2), round(image.height * share / 2)
    return image.crop((x, y, image.width - x, image.height - y))


def upside_down_with_a_note(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3  # to be turned by 180 degrees
    return encoded(image.rotate(180), exif=exif)


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "exact": encoded,
    "encoded-anew": lambda image: encoded(image, quality=40),
    "webp": lambda image: encoded(image, "WEBP", 70),
    "png": lambda image: encoded(image, "PNG"),
    "smaller": lambda image: encoded(image.resize((96, 72))),
    "squeezed": lambda image: encoded(image.resize((256, 256))),
    "larger": lambda image: encoded(image.resize((480, 360))),
    "grey": lambda image: encoded(image.convert("L")),
    "cropped": lambda image: encoded(cropped(image, 0.02)),
    "turned": upside_down_with_a_note,
}
TEST_SIZE, OWN = 12, 30


def shards_of(root: Path, pictures: dict[str, bytes], per_shard: int = 7) -> Manifest:
    records = (
        Record(key, None, (f"picture {key}", f"again {key}"), partial(bytes, data))
        for key, data in pictures.items()
    )
    write_split(records, root, dataset="scenes", split=root.name, options=Options(samples_per_shard=per_shard))
    return read_manifest(root)


def flat(shade: int) -> bytes:
    """A grey that is uniform but for the noise of a camera."""
    noise = np.random.default_rng(shade).integers(-1, 2, (60, 80, 3))
    return encoded(Image.fromarray((shade + noise).astype(np.uint8)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`test`, `flat-test`, and `train`: pictures of its own, copies of test pictures, and flat ones."""
    root = tmp_path_factory.mktemp("sets")
    shards_of(root / "test", {f"test-{number}": encoded(scene(number)) for number in range(TEST_SIZE)})
    shards_of(root / "flat-test", {"grey-test": flat(100), "one-test": encoded(scene(0))})
    train = {f"own-{number}": encoded(scene(1000 + number)) for number in range(OWN)}
    train |= {f"copy-{name}": copy(scene(number)) for number, (name, copy) in enumerate(COPIES.items())}
    train |= {"flat-1": flat(100), "flat-2": flat(101), "flat-3": flat(200)}
    shards_of(root / "train", train)
    return root


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def keys(manifest: Manifest) -> list[str]:
    reader = ShardReader(manifest)
    return [
        reader.index(shard).key(row)
        for shard in range(len(manifest.names))
        for row in range(len(reader.index(shard)))
    ]


def test_copies_are_found_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    report = decontaminate(
        read_manifest(folder / "train"), [read_manifest(folder / "test")], listing=tmp_path / "hits.jsonl"
    )
    hits = lines(tmp_path / "hits.jsonl")
    found = {hit["train"]["key"]: hit for hit in hits}  # type: ignore[index]
    assert set(found) == {f"copy-{name}" for name in COPIES}
    assert len(hits) == len(found) == report.images
    for number, name in enumerate(COPIES):
        hit = found[f"copy-{name}"]
        assert hit["test"]["key"] == f"test-{number}"  # type: ignore[index]
        assert hit["test"]["folder"] == str(folder / "test")  # type: ignore[index]
        assert hit["match"] == ("exact" if name == "exact" else "perceptual")
    assert (found["copy-exact"]["distance"], report.exact) == (0, 1)


def test_the_clean_folder_reads_without_what_was_found(folder: Path, tmp_path: Path) -> None:
    train = read_manifest(folder / "train")
    report = decontaminate(train, [read_manifest(folder / "test")], out=tmp_path / "clean")
    clean = read_manifest(tmp_path / "clean")
    expected = [key for key in keys(train) if not key.startswith("copy-")]
    assert keys(clean) == expected
    assert report.kept == clean.num_samples == len(expected)
    assert clean.num_captions == 2 * len(expected)
    assert (clean.dataset, clean.split, clean.holds) == (train.dataset, train.split, train.holds)
    assert clean.fingerprint != train.fingerprint
    assert not list((tmp_path / "clean").glob("*.tar"))
    reader, place = ShardReader(clean), 0
    for shard, samples in enumerate(clean.samples):
        for row in range(samples):
            assert reader.read(shard, row).captions[0] == f"picture {expected[place]}"
            place += 1


def test_a_clean_folder_can_be_cleaned_again(folder: Path, tmp_path: Path) -> None:
    train, test = read_manifest(folder / "train"), read_manifest(folder / "test")
    decontaminate(train, [test], out=tmp_path / "clean")
    again = decontaminate(
        read_manifest(tmp_path / "clean"), [read_manifest(folder / "flat-test")], out=tmp_path / "cleaner"
    )
    assert (again.images, again.exact) == (1, 1)
    assert "flat-1" not in keys(read_manifest(tmp_path / "cleaner"))


def test_flat_pictures_match_by_their_bytes_alone(folder: Path, tmp_path: Path) -> None:
    tests = [read_manifest(folder / "flat-test")]
    decontaminate(read_manifest(folder / "train"), tests, listing=tmp_path / "hits.jsonl")
    found = {hit["train"]["key"]: hit["match"] for hit in lines(tmp_path / "hits.jsonl")}  # type: ignore[index]
    assert found == {"flat-1": "exact", "copy-exact": "exact"}
    assert perceptual_hash(flat(100)) is None
    assert perceptual_hash(encoded(Image.new("L", (50, 50)))) is None


def test_a_shard_of_which_nothing_is_left_is_left_out(folder: Path, tmp_path: Path) -> None:
    train = shards_of(
        tmp_path / "train",
        {"a": encoded(scene(0)), "b": encoded(scene(1)), "c": encoded(scene(500))},
        per_shard=1,
    )
    decontaminate(train, [read_manifest(folder / "test")], out=tmp_path / "clean")
    clean = read_manifest(tmp_path / "clean")
    assert clean.names == (train.names[2],)
    assert keys(clean) == ["c"]


def test_several_test_sets_and_processes_give_the_same(folder: Path, tmp_path: Path, itm: Itm) -> None:
    for processes in (1, 2):
        result = itm(
            *("shards", "decontaminate", folder / "train", "--out", f"clean-{processes}"),
            *("--against", folder / "test", "--against", folder / "flat-test"),
            *("--list", f"hits-{processes}.jsonl", "--processes", processes),
        )
        assert result.returncode == 0, result.stderr
        assert "11 of 43 images stand in a test set, 2 of them byte by byte" in result.stdout
    assert (tmp_path / "hits-1.jsonl").read_bytes() == (tmp_path / "hits-2.jsonl").read_bytes()
    assert read_manifest(tmp_path / "clean-1").fingerprint == read_manifest(tmp_path / "clean-2").fingerprint
    assert len(lines(tmp_path / "hits-1.jsonl")) == 12  # one picture stands in both test sets


def test_an_image_that_does_not_decode_is_counted_and_kept(folder: Path, tmp_path: Path) -> None:
    train = shards_of(tmp_path / "train", {"whole": encoded(scene(500)), "short": encoded(scene(501), "PNG")})
    index = ShardReader(train).index(0)
    with Path(train.shard_location(0)).open("r+b") as tar:
        tar.seek(int(index.offsets[1]) + 2000)
        tar.write(bytes(4000))
    report = decontaminate(train, [read_manifest(folder / "test")], out=tmp_path / "clean")
    assert (report.broken, report.images, report.kept) == (1, 0, 2)


def test_nothing_is_written_when_nothing_would_be_left(folder: Path, tmp_path: Path) -> None:
    train = shards_of(tmp_path / "train", {"a": encoded(scene(0)), "b": encoded(scene(1))})
    with pytest.raises(DataError, match="every image matches a test image"):
        decontaminate(
            train, [read_manifest(folder / "test")], out=tmp_path / "clean", listing=tmp_path / "hits.jsonl"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def regions(root: Path) -> Manifest:
    features = partial(np.ones, (2, 4), np.float32)
    write_split([Record("a", 1, ("a dog",), None, features)], root, dataset="r", split="r")
    return read_manifest(root)


def test_a_test_set_without_images_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images, only regions"):
        decontaminate(read_manifest(folder / "train"), [regions(tmp_path / "r")], out=tmp_path / "clean")


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (("train", "--against", "train", "--out", "clean"), "the same shards as the training set"),
        (("train", "--against", "test"), "give --out"),
        (("train", "--against", "none", "--out", "clean"), "none: no such folder"),
        (("train", "--against", "test", "--against", "test", "--out", "clean"), "give each data set once"),
        (("train", "--against", "test", "--out", "train"), "exists already"),
        (("train", "--against", "test", "--list", "train"), "is a folder"),
        (("train", "--against", "test", "--list", "train/manifest.json/hits.jsonl"), "cannot be written to"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, tmp_path: Path, itm: Itm, arguments: tuple[str, ...], phrase: str
) -> None:
    for name in ("train", "test"):
        (tmp_path / name).symlink_to(folder / name)
    result = itm("shards", "decontaminate", *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("itm: error: ")
    assert result.stderr.count("\n") == 1
    assert phrase in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test", "train"]


def test_a_dry_run_writes_nothing(folder: Path, tmp_path: Path, itm: Itm) -> None:
    result = itm(
        *("shards", "decontaminate", folder / "train", "--against", folder / "test", "--out", "clean", "--dry-run")
    )
    assert result.returncode == 0
    assert "would compare 43 images with 12, and write clean" in result.stdout
    assert not list(tmp_path.iterdir())


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 16), st.integers(0, 2**32 - 1))
def test_the_search_finds_all_pairs(known: int, asked: int, distance: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    base = generator.integers(0, 256, (1, 8), np.uint8)  # few bits apart, so that there is something to find
    hashes, queries = (
        base ^ np.packbits(generator.random((count, 64)) < 0.1, axis=1).reshape(count, 8)
        for count in (known, asked)
    )
    apart = np.unpackbits(queries[:, None] ^ hashes[None], axis=2).sum(axis=2)
    expected = [(q, h, apart[q, h]) for q in range(asked) for h in range(known) if apart[q, h] <= distance]
    assert list(zip(*HashSearch(hashes).within(queries, distance), strict=True)) == expected


def test_real_photos(test_data: Path) -> None:
    paths = sorted((test_data / "photos" / "images").rglob("*.jpg"))[:60]
    photos = [Image.open(path).convert("RGB") for path in paths]
    hashes = [perceptual_hash(encoded(photo)) for photo in photos]
    assert all(one is not None for one in hashes)
    search = HashSearch(np.stack(hashes))  # type: ignore[arg-type]
    for change in (
        lambda photo: encoded(photo, quality=30),
        lambda photo: encoded(photo.resize((photo.width // 2, photo.height // 2))),
        lambda photo: encoded(cropped(photo, 0.02)),
    ):
        copies = np.stack([perceptual_hash(change(photo)) for photo in photos])  # type: ignore[no-untyped-call]
        query, found, _bits = search.within(copies, 8)
        assert query.tolist() == found.tolist() == list(range(len(photos)))
