import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shards.errors import DataError
from shards.prepare import Resize, load_sample
from shards.sources.karpathy import read_assignment, read_karpathy
from shards.sources.record import Record, Skipped, Source
from tests.shards.sourced import left_out, records


def entry(
    filename: str = "1.jpg", split: str = "train", captions: tuple[str, ...] = ("A dog .",), **more: Any
) -> dict[str, Any]:
    return {"filename": filename, "split": split, "sentences": [{"raw": caption} for caption in captions], **more}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return tmp_path / "dataset_small.json"


def read(entries: Any, annotations: Path, images: Path, **more: Any) -> Source:
    annotations.write_text(json.dumps({"images": entries, **more}))
    return read_karpathy(annotations, images)


def refused(annotations: Path, images: Path, *phrases: str) -> None:
    with pytest.raises(DataError) as raised:
        read_karpathy(annotations, images)
    message = str(raised.value)
    assert "\n" not in message
    for phrase in phrases:
        assert phrase in message


def test_entries_become_records_by_split(annotations: Path, images: Path) -> None:
    result = read(
        [
            entry("a.jpg", "train", ("One .", "Two ."), imgid=7),
            entry("b.jpg", "val", ("Three .",), imgid=8),
            entry("c.png", "train", ("Four .",), imgid=9),
        ],
        annotations,
        images,
        dataset="small",
    )
    assert result.dataset == "small"
    found = {
        split.name: [(r.key, r.image_id, r.captions) for r in records(result, split.name)]
        for split in result.splits
    }
    assert found == {
        "train": [("a", 7, ("One .", "Two .")), ("c", 9, ("Four .",))],
        "val": [("b", 8, ("Three .",))],
    }
    assert {split.name: split.count for split in result.splits} == {"train": 2, "val": 1}
    assert not left_out(result)


def test_the_image_is_read_from_the_folder_when_the_record_is_loaded(annotations: Path, images: Path) -> None:
    (record,) = records(read([entry("a.jpg")], annotations, images))
    assert load_sample(record, Resize()) == Skipped("a", "the image file is missing")
    stream = io.BytesIO()
    Image.new("RGB", (5, 4)).save(stream, "JPEG")
    (images / "a.jpg").write_bytes(stream.getvalue())
    assert record.load is not None
    assert record.load() == stream.getvalue()


def test_the_coco_layout(annotations: Path, images: Path) -> None:
    """A folder below the images, COCO's own image id, and `restval` as a part of the training split."""
    (images / "val2014").mkdir()
    (images / "val2014" / "COCO_1.jpg").write_bytes(b"bytes")
    result = read(
        [
            entry("COCO_1.jpg", "restval", filepath="val2014", cocoid=391895, imgid=0),
            entry("COCO_2.jpg", "train", filepath="train2014", cocoid=522418, imgid=1),
        ],
        annotations,
        images,
    )
    assert [split.name for split in result.splits] == ["train"]
    assert [record.image_id for record in records(result)] == [391895, 522418]
    load = records(result)[0].load
    assert load is not None
    assert load() == b"bytes"


def test_without_a_name_or_ids_the_file_name_and_the_place_serve(annotations: Path, images: Path) -> None:
    result = read([entry("a.jpg"), entry("b.jpg")], annotations, images)
    assert result.dataset == "dataset_small"
    assert [record.image_id for record in records(result)] == [0, 1]


def test_white_space_in_a_caption_is_single_blanks(annotations: Path, images: Path) -> None:
    result = read([entry(captions=(" A\tdog\n runs  .\u2028",))], annotations, images)
    assert records(result)[0].captions == ("A dog runs .",)


@pytest.mark.parametrize(
    ("filename", "key"),
    [
        ("1000.jpg", "1000"),
        ("no_suffix", "no_suffix"),
        ("a.b c.d.jpg", "a_b_c_d"),
        ("below/1.jpg", "below_1"),
        ("tab\tand\u00a0blank.png", "tab_and_blank"),
        ("東京.jpg", "東京"),
        (".jpg", "_jpg"),
    ],
)
def test_a_key_names_tar_members_safely(annotations: Path, images: Path, filename: str, key: str) -> None:
    assert records(read([entry(filename)], annotations, images))[0].key == key


def test_images_of_one_name_in_two_folders_are_two(annotations: Path, images: Path) -> None:
    result = read([entry("x/1.jpg"), entry("y/1.jpg")], annotations, images)
    assert [record.key for record in records(result)] == ["x_1", "y_1"]


def test_a_second_image_of_one_name_is_refused(annotations: Path, images: Path) -> None:
    with pytest.raises(DataError, match=r"small\.json: a second image named a in split train; names must"):
        read([entry("a.jpg"), entry("a.jpg", "val"), entry("a.jpg", "restval")], annotations, images)


def test_unusable_captions_are_named_and_left_out(annotations: Path, images: Path) -> None:
    result = read([entry("a.jpg", "val", ("", "Good .", " \n", "half \ud83d"))], annotations, images)
    assert records(result, "val")[0].captions == ("Good .",)
    assert left_out(result, "val") == [
        Skipped("a.jpg caption 0", "the caption is empty"),
        Skipped("a.jpg caption 2", "the caption is empty"),
        Skipped("a.jpg caption 3", "the caption is not valid UTF-8"),
    ]


def test_characters_outside_the_basic_plane_are_kept(annotations: Path, images: Path) -> None:
    assert records(read([entry(captions=("cat 🐈",))], annotations, images))[0].captions == ("cat 🐈",)


def test_an_image_left_with_no_caption_is_named_and_left_out(annotations: Path, images: Path) -> None:
    result = read(
        [entry("a.jpg", captions=("",)), entry("b.jpg"), entry("c.jpg", captions=())], annotations, images
    )
    assert [record.key for record in records(result)] == ["b"]
    assert [item.name for item in left_out(result, "train")] == ["a.jpg caption 0", "a.jpg", "c.jpg"]
    assert left_out(result, "train")[-1].reason == "the image has no usable caption"


def test_a_file_name_that_is_no_unicode_is_named_and_left_out(annotations: Path, images: Path) -> None:
    result = read([entry("\udc80.jpg"), entry("b.jpg")], annotations, images)
    assert [record.key for record in records(result)] == ["b"]
    assert left_out(result, "train") == [Skipped("\udc80.jpg", "the file name is not valid UTF-8")]


def test_a_file_without_any_usable_caption_is_refused(annotations: Path, images: Path) -> None:
    with pytest.raises(DataError, match=r"small\.json: no image has a usable caption"):
        read([entry(captions=("",))], annotations, images)


def test_a_split_left_empty_is_not_forgotten(annotations: Path, images: Path) -> None:
    result = read([entry("a.jpg"), entry("b.jpg", "test", ("",))], annotations, images)
    assert records(result, "test") == []
    assert result.splits[1].count == 0


def test_a_missing_folder_of_images_is_named(annotations: Path, tmp_path: Path) -> None:
    refused(annotations, tmp_path / "nowhere", f"--images {tmp_path / 'nowhere'}", "no such folder")


def test_annotations_that_cannot_be_read_are_named(images: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none.json", images, f"--annotations {tmp_path / 'none.json'}", "no such file")
    refused(tmp_path, images, f"--annotations {tmp_path}", "is a folder")
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "x.json", images, f"--annotations {tmp_path / 'file' / 'x.json'}", "cannot be read")


def test_annotations_that_are_not_utf8_are_named_with_the_byte(annotations: Path, images: Path) -> None:
    annotations.write_bytes(b'{"images": [{"filename": "caf\xe9.jpg"}]}')
    refused(annotations, images, str(annotations), "not UTF-8 at byte 29 (0xe9)")


@pytest.mark.parametrize(("text", "where"), [("", "line 1, column 1"), ('{"images":\n [}', "line 2, column 3")])
def test_annotations_that_are_not_json_are_named_with_the_place(
    annotations: Path, images: Path, text: str, where: str
) -> None:
    annotations.write_text(text)
    refused(annotations, images, str(annotations), f"not JSON at {where}")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' + "1" * 5000 + "}"], ids=["brackets", "digits"])
def test_annotations_beyond_all_limits_are_named(annotations: Path, images: Path, text: str) -> None:
    annotations.write_text(text)
    refused(annotations, images, f"{annotations}: not JSON that can be read")


def test_a_byte_order_mark_is_no_fault(annotations: Path, images: Path) -> None:
    annotations.write_bytes(b"\xef\xbb\xbf" + json.dumps({"images": [entry()]}).encode())
    assert len(records(read_karpathy(annotations, images))) == 1


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ([entry()], "a list"),
        ("text", "a str"),
        ({}, "the keys (none)"),
        ({"images": []}, "the keys images"),
        ({"images": {"1": entry()}}, "the keys images"),
        ({"info": {}, "annotations": [], "licenses": []}, "the keys info, annotations, licenses"),
    ],
)
def test_another_layout_is_refused_with_what_was_found(
    annotations: Path, images: Path, document: Any, found: str
) -> None:
    annotations.write_text(json.dumps(document))
    refused(annotations, images, str(annotations), "not the Karpathy layout", found)


def test_the_captions_file_of_coco_itself_is_refused(annotations: Path, images: Path) -> None:
    picture = {"license": 5, "file_name": "COCO_1.jpg", "id": 57870, "height": 480, "width": 640}
    caption = {"image_id": 57870, "id": 787980, "caption": "A restaurant."}
    annotations.write_text(json.dumps({"info": {}, "images": [picture], "annotations": [caption]}))
    refused(annotations, images, f"{annotations}: images[0]", "not the Karpathy layout", "`filename`")


@pytest.mark.parametrize(
    ("broken", "phrase"),
    [
        ("a.jpg", "an object is expected, found a str"),
        ({**entry(), "filename": None}, "`filename` is missing"),
        ({**entry(), "filename": ""}, "`filename` is missing"),
        ({**entry(), "sentences": None}, "`sentences` is missing"),
        ({**entry(), "sentences": ["A dog ."]}, "sentences[0] has no text `raw`"),
        ({**entry(), "sentences": [{"raw": "A dog ."}, {"tokens": ["a"]}]}, "sentences[1] has no text `raw`"),
        ({**entry(), "split": "dev"}, "(1.jpg): split 'dev' is none of train, restval, val, test"),
        ({"filename": "1.jpg", "sentences": []}, "(1.jpg): split None is none of"),
        (entry(imgid="7"), "the image id '7' is not an integer"),
        (entry(filepath=None), "`filepath` is not a text"),
    ],
)
def test_a_broken_entry_is_named_by_its_place(annotations: Path, images: Path, broken: Any, phrase: str) -> None:
    annotations.write_text(json.dumps({"images": [entry("0.jpg"), broken]}))
    refused(annotations, images, f"{annotations}: images[1]", phrase)


def test_the_published_flickr30k_file(test_data: Path) -> None:
    result = read_karpathy(test_data / "annotations" / "dataset_flickr30k.json", test_data)
    assert {split.name: split.count for split in result.splits} == {"train": 29000, "val": 1014, "test": 1000}
    assert {len(item.captions) for split in result.splits for item in split.items if isinstance(item, Record)} == {
        5
    }
    assert not left_out(result)


def test_the_published_coco_test_split(test_data: Path) -> None:
    result = read_karpathy(test_data / "annotations" / "dataset_coco_karpathy_test.json", test_data)
    assert {split.name: split.count for split in result.splits} == {"test": 5000}
    assert min(len(record.captions) for record in records(result, "test")) == 5
    assert len({record.image_id for record in records(result, "test")}) == 5000


def test_the_sentences_own_ids_stay_with_their_captions(annotations: Path, images: Path) -> None:
    numbered = {"filename": "a.jpg", "split": "val", "imgid": 3, "sentences": []}
    numbered["sentences"] = [{"raw": raw, "sentid": 70 + n} for n, raw in enumerate(("One", "", "Three"))]
    partly = {**entry("b.jpg", "val", ("One", "Two"))}
    partly["sentences"][1]["sentid"] = 4
    both = records(read([numbered, partly], annotations, images), "val")
    assert [record.caption_ids for record in both] == [(70, 72), ()]


@pytest.mark.parametrize("image_id", [2**63, -(2**63) - 1, 1.5, True, None])
def test_an_image_id_that_the_index_cannot_hold_is_refused(annotations: Path, images: Path, image_id: Any) -> None:
    annotations.write_text(json.dumps({"images": [entry(imgid=image_id)]}))
    refused(annotations, images, "images[0] (1.jpg)", "is not an integer of 64 bits")


def test_the_identity_tells_another_state_of_the_file(annotations: Path, images: Path) -> None:
    before = read([entry("a.jpg")], annotations, images).identity
    assert read([entry("a.jpg")], annotations, images).identity["images"] == before["images"]
    assert read([entry("b_longer.jpg")], annotations, images).identity != before


def test_splits_are_given_out_by_coco_id_or_name(annotations: Path) -> None:
    entries = [entry("b.jpg", "restval", cocoid=42, imgid=7), entry("a.jpg", "test", cocoid=5, imgid=1)]
    annotations.write_text(json.dumps({"images": entries}))
    assert list(read_assignment(annotations, "cocoid").items()) == [(42, ("train", 7)), (5, ("test", 1))]
    assert read_assignment(annotations, "filename") == {"b.jpg": ("train", 7), "a.jpg": ("test", 1)}


@pytest.mark.parametrize(
    ("entries", "phrase"),
    [
        ([entry("a.jpg")], "images[0]: no usable `cocoid`; is it the Karpathy file of this data set?"),
        ([entry("a.jpg", cocoid=1), entry("b.jpg", cocoid=1)], "images[1]: a second image with cocoid 1"),
        ([entry("a.jpg", "dev", cocoid=1)], "split 'dev' is none of"),
        (["a.jpg"], "an object is expected, found a str"),
    ],
)
def test_a_file_that_cannot_give_out_splits_is_refused(annotations: Path, entries: Any, phrase: str) -> None:
    annotations.write_text(json.dumps({"images": entries}))
    with pytest.raises(DataError) as raised:
        read_assignment(annotations, "cocoid")
    assert phrase in str(raised.value)
