import json
from pathlib import Path
from typing import Any

import pytest

from shards.errors import DataError
from shards.sources.coco import read_coco
from shards.sources.karpathy import read_karpathy
from shards.sources.record import Skipped
from tests.shards.sourced import left_out, records

Pairs = list[tuple[int, int, str]]
"""(annotation id, image id, caption)."""


def write(path: Path, images: dict[int, str], annotations: Pairs) -> Path:
    document = {
        "info": {},
        "images": [{"id": one, "file_name": name, "license": 3} for one, name in images.items()],
        "annotations": [{"id": one, "image_id": image, "caption": text} for one, image, text in annotations],
    }
    path.write_text(json.dumps(document))
    return path


def karpathy(path: Path, *entries: tuple[int, str]) -> Path:
    """(COCO id, split), with names as in 2014 whatever the annotations say."""
    images = [
        {"filename": f"COCO_val2014_{one:012d}.jpg", "cocoid": one, "imgid": place, "split": split, "sentences": []}
        for place, (one, split) in enumerate(entries)
    ]
    path.write_text(json.dumps({"dataset": "coco", "images": images}))
    return path


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "train2014", tmp_path / "val2014"]
    for folder in found:
        folder.mkdir()
    return found


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [
        write(
            tmp_path / "captions_train2014.json",
            {9: "COCO_train2014_000000000009.jpg", 25: "COCO_train2014_000000000025.jpg"},
            [(70, 25, "A giraffe ."), (12, 9, "A meal ."), (60, 25, "Two  giraffes\n.")],
        ),
        write(tmp_path / "captions_val2014.json", {42: "COCO_val2014_000000000042.jpg"}, [(1, 42, "Shoes .")]),
    ]


def test_without_karpathy_the_file_names_tell_the_splits(files: list[Path], folders: list[Path]) -> None:
    (folders[1] / "COCO_val2014_000000000042.jpg").write_bytes(b"shoes")
    source = read_coco(files, folders)
    assert source.dataset == "coco"
    assert [(r.key, r.image_id, r.captions, r.caption_ids) for r in records(source)] == [
        ("COCO_train2014_000000000009", 9, ("A meal .",), (12,)),
        ("COCO_train2014_000000000025", 25, ("Two giraffes .", "A giraffe ."), (60, 70)),
    ]
    (shoes,) = records(source, "val")
    assert shoes.load is not None
    assert shoes.load() == b"shoes"
    assert [split.count for split in source.splits] == [2, 1]
    assert not left_out(source)


def test_karpathy_splits_go_by_id_in_its_order_whatever_the_names(tmp_path: Path) -> None:
    """The file of 2017 names images otherwise, and puts images of both years' splits together."""
    (tmp_path / "images").mkdir()
    path = write(
        tmp_path / "captions_train2017.json",
        {one: f"{one:012d}.jpg" for one in (9, 25, 42)},
        [(one, one, f"Image {one}") for one in (9, 25, 42)],
    )
    splits = karpathy(tmp_path / "dataset_coco.json", (42, "restval"), (25, "test"), (9, "train"))
    source = read_coco([path], [tmp_path / "images"], splits)
    assert [record.image_id for record in records(source)] == [42, 9]
    assert [record.key for record in records(source, "test")] == ["000000000025"]
    assert not left_out(source)


def test_images_that_only_one_side_knows_are_listed(files: list[Path], folders: list[Path], tmp_path: Path) -> None:
    splits = karpathy(tmp_path / "k.json", (42, "test"), (77, "test"))
    source = read_coco(files, folders, splits)
    assert [record.image_id for record in records(source, "test")] == [42]
    assert left_out(source) == [
        Skipped("image 77", f"{splits} names it, the annotations do not"),
        Skipped("COCO_train2014_000000000009.jpg", f"{splits} does not name image 9"),
        Skipped("COCO_train2014_000000000025.jpg", f"{splits} does not name image 25"),
    ]


def test_one_folder_may_serve_all_files(files: list[Path], tmp_path: Path) -> None:
    source = read_coco(files, [tmp_path], split="all")
    assert [record.image_id for record in records(source, "all")] == [9, 25, 42]


@pytest.mark.parametrize(
    "name", ["captions_latest", "captions_evaluation", "captions_trainval2014", "train_and_val"]
)
def test_a_name_that_only_looks_like_a_split_tells_none(files: list[Path], folders: list[Path], name: str) -> None:
    path = files[0].rename(files[0].with_name(f"{name}.json"))
    with pytest.raises(DataError, match="the file's name tells no split; give --split"):
        read_coco([path], folders[:1])


@pytest.mark.parametrize(
    "name", ["captions_val2014", "captions_val", "val", "val2017_captions", "captions-val-mini"]
)
def test_a_name_tells_its_split(files: list[Path], folders: list[Path], name: str) -> None:
    path = files[0].rename(files[0].with_name(f"{name}.json"))
    assert [split.name for split in read_coco([path], folders[:1]).splits] == ["val"]


def test_unusable_captions_and_strays_are_listed(tmp_path: Path) -> None:
    path = write(
        tmp_path / "captions_val2014.json",
        {1: "a.jpg", 2: "b.jpg", 3: "c.jpg"},
        [(10, 1, " "), (11, 1, "Good ."), (12, 2, ""), (13, 99, "Of nothing .")],
    )
    source = read_coco([path], [tmp_path])
    (record,) = records(source, "val")
    assert (record.captions, record.caption_ids) == (("Good .",), (11,))
    assert [(item.name, item.reason) for item in left_out(source)] == [
        ("a.jpg caption 0", "the caption is empty"),
        ("b.jpg caption 0", "the caption is empty"),
        ("b.jpg", "the image has no usable caption"),
        ("c.jpg", "the image has no usable caption"),
        ("annotation 13", f"{path} lists no image 99"),
    ]


@pytest.mark.parametrize(
    ("document", "phrase"),
    [
        ([], "found a list"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}], "info": {}}, "found an object with the keys images, info"),
        ({"images": [], "annotations": []}, "not COCO's caption layout"),
        ({"images": ["a.jpg"], "annotations": [1]}, "images[0]: not COCO's caption layout: an object is expected"),
        (
            {"images": [{"id": 1}], "annotations": [1]},
            "images[0]: not COCO's caption layout: `file_name` is missing",
        ),
        ({"images": [{"id": "1", "file_name": "a"}], "annotations": [1]}, "images[0]"),
        ({"images": [{"id": 2**63, "file_name": "a"}], "annotations": [1]}, "not an integer of 64 bits"),
        (
            {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"id": 1, "image_id": 1, "caption": None}]},
            "annotations[0]: not COCO's caption layout: `caption` is missing",
        ),
        (
            {"images": [{"id": 1, "file_name": "a"}] * 2, "annotations": [1]},
            "images[1]: image 1 stands in {path} already",
        ),
        (
            {
                "images": [{"id": 1, "file_name": "a"}],
                "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 1, 1]}],
            },
            "`caption` is missing",
        ),
    ],
)
def test_another_layout_is_refused_with_its_place(tmp_path: Path, document: Any, phrase: str) -> None:
    path = tmp_path / "captions_val2014.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError) as raised:
        read_coco([path], [tmp_path])
    assert str(raised.value).startswith(str(path))
    assert phrase.format(path=path) in str(raised.value)


def test_an_image_in_two_files_is_refused(files: list[Path], folders: list[Path]) -> None:
    with pytest.raises(DataError, match=r"images\[0\]: image 9 stands in .*captions_train2014\.json already"):
        read_coco([files[0], files[0]], folders)


def test_options_that_do_not_fit_together_are_refused(
    files: list[Path], folders: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="--images: 2 folders for 1 --annotations"):
        read_coco(files[:1], folders)
    with pytest.raises(DataError, match=r"--images .*nowhere: no such folder"):
        read_coco(files[:1], [tmp_path / "nowhere"])
    with pytest.raises(DataError, match="give one of --karpathy and --split"):
        read_coco(files, folders, karpathy(tmp_path / "k.json", (42, "test")), "test")
    with pytest.raises(DataError, match=r"captions\.json: the file's name tells no split; give --split"):
        read_coco([files[0].rename(tmp_path / "captions.json")], folders[:1])
    with pytest.raises(DataError, match="--split 'a/b'"):
        read_coco(files, folders, split="a/b")


def test_cocos_own_layout_and_karpathys_give_the_same_test_split(test_data: Path, tmp_path: Path) -> None:
    """The 5,000 published test images, their captions put back into COCO's layout and out of order."""
    published = test_data / "annotations" / "dataset_coco_karpathy_test.json"
    entries = json.loads(published.read_text())["images"]
    captions = [(s["sentid"], e["cocoid"], s["raw"]) for e in entries for s in e["sentences"]]
    images = {e["cocoid"]: e["filename"] for e in sorted(entries, key=lambda e: e["cocoid"])}
    path = write(tmp_path / "captions_val2014.json", images, captions[::-1])
    ours = read_coco([path], [tmp_path], published)
    theirs = read_karpathy(published, tmp_path)
    told = [(r.key, r.image_id, r.captions, r.caption_ids) for r in records(ours, "test")]
    assert told == [(r.key, r.image_id, r.captions, r.caption_ids) for r in records(theirs, "test")]
    assert len(told) == 5000
    assert not left_out(ours)
