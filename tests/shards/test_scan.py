import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from shards.errors import DataError
from shards.prepare import Resize, load_sample
from shards.sources.record import Skipped
from shards.sources.scan import read_scan
from shards.tarwriter import Sample
from tests.shards.sourced import jpeg, left_out, picture, records


def features(images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((images, 4, 6)).astype(np.float32)


def write(root: Path, split: str, array: np.ndarray, captions: list[str], ids: list[object] | None = None) -> None:
    root.mkdir(exist_ok=True)
    np.save(root / f"{split}_ims.npy", array)
    (root / f"{split}_caps.txt").write_text("".join(f"{caption}\n" for caption in captions))
    if ids is not None:
        (root / f"{split}_ids.txt").write_text("".join(f"{one}\n" for one in ids))


def captions_of(images: int, each: int = 5) -> list[str]:
    return [f"caption {n} of {image}" for image in range(images) for n in range(each)]


def test_images_that_stand_once_have_five_captions_each(tmp_path: Path) -> None:
    array = features(3)
    write(tmp_path, "dev", array, captions_of(3), [42, 9, 42])
    source = read_scan(tmp_path)
    assert [split.name for split in source.splits] == ["val"]
    found = records(source, "val")
    assert [(r.key, r.image_id, r.load) for r in found] == [
        ("val-000000", 42, None),
        ("val-000001", 9, None),
        ("val-000002", 42, None),
    ]
    assert found[1].captions == tuple(f"caption {n} of 1" for n in range(5))
    for record, row in zip(found, array, strict=True):
        regions = pickle.loads(pickle.dumps(record.regions))()
        assert regions.dtype == np.float32
        np.testing.assert_array_equal(regions, row)
    assert source.identity["layouts"] == {"val": "3 images, one row each, with 5 captions each"}


@pytest.mark.parametrize("ids_each", [1, 5])
def test_images_that_stand_once_a_caption_are_found_out(tmp_path: Path, ids_each: int) -> None:
    array = features(7)
    ids = [100 + image for image in range(7) for _ in range(ids_each)]
    write(tmp_path, "test", array.repeat(5, axis=0), captions_of(7), ids)
    source = read_scan(tmp_path)
    found = records(source, "test")
    assert [record.image_id for record in found] == list(range(100, 107))
    assert found[6].captions[4] == "caption 4 of 6"
    for record, row in zip(found, array, strict=True):
        assert record.regions is not None
        np.testing.assert_array_equal(record.regions(), row)
    assert source.identity["layouts"] == {"test": "7 images, 5 equal rows each, with 5 captions each"}


def test_rows_that_differ_have_one_caption_each(tmp_path: Path) -> None:
    write(tmp_path, "train", features(10), captions_of(10, 1))
    source = read_scan(tmp_path)
    assert [len(record.captions) for record in records(source)] == [1] * 10
    assert [record.image_id for record in records(source)] == list(range(10))
    assert source.identity["layouts"] == {"train": "10 images, one row each, with 1 captions each"}


@pytest.mark.parametrize(("rows", "captions"), [(3, 14), (3, 16), (4, 5), (5, 10), (15, 14)])
def test_numbers_that_do_not_fit_are_refused(tmp_path: Path, rows: int, captions: int) -> None:
    write(tmp_path, "test", features(rows), [f"{n} ." for n in range(captions)])
    with pytest.raises(DataError, match=rf"test_ims\.npy: {rows} rows do not fit {captions} captions; expected 5"):
        read_scan(tmp_path)


def test_partly_equal_rows_are_refused_rather_than_guessed_at(tmp_path: Path) -> None:
    array = features(20)
    array[:5] = array[0]
    write(tmp_path, "test", array, captions_of(20, 1))
    with pytest.raises(DataError, match="20 rows do not fit 20 captions"):
        read_scan(tmp_path)


def test_photos_join_by_the_mapping_of_ids(tmp_path: Path) -> None:
    root = tmp_path / "precomp"
    write(root, "test", features(3), captions_of(3), [42, 9, 77])
    (tmp_path / "id_mapping.json").write_text(json.dumps({"42": "val2014/x.jpg", "9": "val2014/none.jpg"}))
    picture(tmp_path / "images" / "val2014" / "x.jpg", 5)
    source = read_scan(root, tmp_path / "images")
    loaded = [load_sample(record, Resize()) for record in records(source, "test")]
    assert isinstance(loaded[0], Sample)
    assert loaded[0].image == jpeg(5)
    assert loaded[0].regions is not None
    assert loaded[0].regions.shape == (4, 6)
    assert loaded[1] == Skipped("test-000001", "the image file is missing")
    assert left_out(source) == [
        Skipped("test_ims.npy row 2", "id_mapping.json names no usable file for the image id 77")
    ]


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("dev", "val"):
        write(tmp_path, name, features(2), captions_of(2))
    with pytest.raises(DataError, match="val would be a second split val; name those to take with --splits"):
        read_scan(tmp_path)
    assert [split.name for split in read_scan(tmp_path, splits=["dev"]).splits] == ["val"]


def test_the_identity_tells_another_mapping(tmp_path: Path) -> None:
    write(tmp_path / "in", "test", features(2), captions_of(2))
    for place in (tmp_path / "in", tmp_path):
        mapping = place / "id_mapping.json"
        mapping.write_text('["zero.jpg", "one.jpg"]')
        before = read_scan(tmp_path / "in", tmp_path).identity
        assert json.loads(json.dumps(before)) == read_scan(tmp_path / "in", tmp_path).identity
        mapping.write_text('["one.jpg", "zero.jpg", ""]')
        assert read_scan(tmp_path / "in", tmp_path).identity != before
        mapping.unlink()


def test_a_mapping_may_be_a_list(tmp_path: Path) -> None:
    write(tmp_path, "test", features(2), captions_of(2), [1, 0])
    (tmp_path / "id_mapping.json").write_text('["zero.jpg", "one.jpg"]')
    picture(tmp_path / "one.jpg", 1)
    load = records(read_scan(tmp_path, tmp_path), "test")[0].load
    assert load is not None
    assert load() == jpeg(1)


def test_half_precision_and_one_vector_an_image_are_taken(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float16).reshape(2, 6)
    write(tmp_path, "test", array, captions_of(2))
    regions = records(read_scan(tmp_path), "test")[1].regions
    assert regions is not None
    assert regions().dtype == np.float32
    np.testing.assert_array_equal(regions(), array[1:])


def test_numbers_that_are_none_are_left_out_when_they_are_read(tmp_path: Path) -> None:
    array = features(2)
    array[1, 2, 3] = np.nan
    write(tmp_path, "test", array, captions_of(2))
    _, bad = records(read_scan(tmp_path), "test")
    skipped = load_sample(bad, Resize())
    assert isinstance(skipped, Skipped)
    assert "row 1 of test_ims.npy holds NaN or infinity" in skipped.reason


def test_unusable_captions_are_listed_and_an_empty_last_line_is_none(tmp_path: Path) -> None:
    write(tmp_path, "test", features(2), ["", "b", "c", "d", "e", *[" "] * 5, ""])
    source = read_scan(tmp_path)
    assert [record.captions for record in records(source, "test")] == [("b", "c", "d", "e")]
    assert len(left_out(source)) == 1 + 5 + 1


def test_splits_are_chosen_by_the_files_names(tmp_path: Path) -> None:
    for split in ("train", "dev", "testall"):
        write(tmp_path, split, features(2), captions_of(2))
    assert [split.name for split in read_scan(tmp_path).splits] == ["val", "test", "train"]
    assert [split.name for split in read_scan(tmp_path, splits=["train", "dev"]).splits] == ["train", "val"]
    with pytest.raises(DataError, match=r"has no val_ims\.npy; those that are there: dev, testall, train"):
        read_scan(tmp_path, splits=["val"])


def test_the_whole_test_split_of_coco_is_its_test_split(tmp_path: Path) -> None:
    for split in ("test", "testall"):
        write(tmp_path, split, features(2), captions_of(2))
    with pytest.raises(DataError, match="testall would be a second split test; name those to take with --splits"):
        read_scan(tmp_path)
    source = read_scan(tmp_path, splits=["testall"], dataset="coco")
    assert (source.dataset, [split.name for split in source.splits]) == ("coco", ["test"])
    assert records(source, "test")[0].key == "test-000000"


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--root .*nowhere: no such folder"):
        read_scan(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no file named SPLIT_ims\.npy"):
        read_scan(tmp_path)
    write(tmp_path, "test", features(2), captions_of(2))
    with pytest.raises(DataError, match=r"--images: id_mapping\.json, which names the image files, is neither in"):
        read_scan(tmp_path, tmp_path)
    (tmp_path / "id_mapping.json").write_text('"text"')
    with pytest.raises(DataError, match="an object of image ids and file names is expected, found a str"):
        read_scan(tmp_path, tmp_path)
    (tmp_path / "test_ids.txt").write_text("1\n2\n3\n")
    with pytest.raises(DataError, match=r"test_ids\.txt: 3 ids for 2 images"):
        read_scan(tmp_path)
    (tmp_path / "test_ids.txt").write_text(f"1\n{2**63}\n")
    with pytest.raises(DataError, match="id 1, '9223372036854775808', is not an integer of 64 bits"):
        read_scan(tmp_path)
    (tmp_path / "test_caps.txt").unlink()
    with pytest.raises(DataError, match=r"test needs its captions, .*test_caps\.txt: no such file"):
        read_scan(tmp_path)


@pytest.mark.parametrize(
    ("array", "phrase"),
    [
        (np.zeros((2, 4, 6), np.int64), "found int64"),
        (np.zeros((2, 4, 6, 1), np.float32), "found float32"),
        (np.zeros((0, 4, 6), np.float32), "found float32"),
        (np.array([{"a": 1}], dtype=object), "cannot be read as an array"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray, phrase: str) -> None:
    write(tmp_path, "test", array, captions_of(2))
    with pytest.raises(DataError, match=phrase):
        read_scan(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04" + bytes(40), b"\x93NUMPY\x01\x00\x14\x00{'descr': (((((     "]
)
def test_a_file_that_is_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, "test", features(2), captions_of(2))
    (tmp_path / "test_ims.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"test_ims\.npy: cannot be read as an array"):
        read_scan(tmp_path)


def test_an_array_that_goes_in_the_middle_ends_the_work_and_skips_nothing(tmp_path: Path) -> None:
    write(tmp_path, "test", features(2), captions_of(2))
    (_, later) = records(read_scan(tmp_path), "test")
    (tmp_path / "test_ims.npy").unlink()
    with pytest.raises(DataError, match=r"test_ims\.npy: cannot be read as an array"):
        load_sample(later, Resize())


def test_an_array_that_ends_early_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "test", features(2), captions_of(2))
    data = (tmp_path / "test_ims.npy").read_bytes()
    (tmp_path / "test_ims.npy").write_bytes(data[:-100])
    with pytest.raises(DataError, match=r"test_ims\.npy: cannot be read as an array"):
        read_scan(tmp_path)
