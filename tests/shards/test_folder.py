import json
import pickle
from pathlib import Path

import pytest

from shards.errors import DataError
from shards.sources.folder import read_folder
from tests.shards.pictures import FOUR, convert_part
from tests.shards.sourced import left_out, picture, records


def pair(root: Path, name: str, captions: str = "A dog .") -> None:
    """An image file and its captions, one a line."""
    picture(root / name)
    (root / name).with_suffix(".txt").write_text(captions)


def test_images_go_with_the_captions_beside_them_in_sorted_order(tmp_path: Path) -> None:
    pair(tmp_path, "b.jpg", "One .\n\nTwo  words .\r\n")
    pair(tmp_path, "x/y/c.d.PNG")
    picture(tmp_path / "a.jpeg")
    (tmp_path / "a.json").write_text('{"captions": ["Three .", "Four ."], "image_id": 12, "url": "..."}')
    picture(tmp_path / "x" / "e.webp")
    (tmp_path / "x" / "e.json").write_text('{"caption": "Five ."}')
    for name in (".hidden.txt", "notes.md", "x/Thumbs.db"):
        (tmp_path / name).write_text("none")
    source = read_folder(tmp_path)
    assert [(r.key, r.image_id, r.captions) for r in records(source)] == [
        ("a", 12, ("Three .", "Four .")),
        ("b", None, ("One .", "Two words .")),
        ("x_e", None, ("Five .",)),
        ("x_y_c_d", None, ("A dog .",)),
    ]
    assert source.splits[0].count == 4
    assert not left_out(source)
    load = pickle.loads(pickle.dumps(records(source)[3].load))
    assert load() == (tmp_path / "x" / "y" / "c.d.PNG").read_bytes()
    first, again = ([pickle.dumps(item) for item in source.splits[0].items] for _ in range(2))
    assert first == again


def test_what_has_no_counterpart_is_listed_by_name(tmp_path: Path) -> None:
    pair(tmp_path, "good.jpg")
    pair(tmp_path, "empty.jpg", " \n\n")
    pair(tmp_path, "twice.jpg")
    picture(tmp_path / "twice.png")
    picture(tmp_path / "sub" / "lonely.png")
    (tmp_path / "sub" / "stray.txt").write_text("A dog .")
    for name, text in {
        "list": "[]",
        "number": '{"caption": 3}',
        "broken": "{",
        "id": '{"caption": "a", "image_id": "7"}',
    }.items():
        picture(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.json").write_text(text)
    source = read_folder(tmp_path)
    assert [record.key for record in records(source)] == ["good", "twice"]
    reasons = {item.name: item.reason for item in left_out(source)}
    assert reasons.pop("broken.jpg").endswith(
        "not JSON at line 1, column 2: Expecting property name enclosed in double quotes"
    )
    assert reasons == {
        "empty.jpg": "the image has no usable caption",
        "id.jpg": "id.json: the image id '7' is not an integer of 64 bits",
        "list.jpg": "list.json: no text `caption` or list `captions`, found a list",
        "number.jpg": "number.json: no text `caption` or list `captions`, found an object with the keys caption",
        "sub/lonely.png": "no file of captions beside it",
        "sub/stray.txt": "captions without an image",
        "twice.png": "twice.jpg has the same name",
    }


def test_a_text_counts_before_json_beside_it(tmp_path: Path) -> None:
    pair(tmp_path, "a.jpg", "The text .")
    (tmp_path / "a.json").write_text('{"caption": "The notes .", "status": "success"}')
    source = read_folder(tmp_path)
    assert [record.captions for record in records(source)] == [("The text .",)]
    assert not left_out(source)


def test_captions_that_are_not_utf8_are_listed(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\nBar .\n")
    source = read_folder(tmp_path)
    assert [record.captions for record in records(source)] == [("Bar .",)]
    assert [(i.name, i.reason) for i in left_out(source)] == [("a.jpg caption 0", "the caption is not valid UTF-8")]


def test_a_file_name_that_is_not_utf8_is_listed(tmp_path: Path) -> None:
    pair(tmp_path, "a.jpg")
    pair(tmp_path, "caf\udce9.jpg")
    source = read_folder(tmp_path)
    assert [record.key for record in records(source)] == ["a"]
    assert [item.reason for item in left_out(source)] == ["the file name is not valid UTF-8"]


def test_sub_folders_are_splits_where_asked(tmp_path: Path) -> None:
    for split in ("train", "val", "unused"):
        pair(tmp_path / split, "1.jpg", split)
    source = read_folder(tmp_path, ["train", "val"])
    assert [(split.name, split.count) for split in source.splits] == [("train", 1), ("val", 1)]
    assert [record.captions for record in records(source, "val")] == [("val",)]
    assert records(source, "train")[0].key == "1"
    assert [record.key for record in records(read_folder(tmp_path, split="all"), "all")] == [
        "train_1",
        "unused_1",
        "val_1",
    ]


def test_links_are_followed_but_not_round_and_round(tmp_path: Path) -> None:
    root = tmp_path / "root"
    pair(tmp_path / "elsewhere", "1.jpg")
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "self").symlink_to(root)
    (tmp_path / "elsewhere" / "up").symlink_to(root)
    assert [record.key for record in records(read_folder(root))] == ["linked_1"]


def test_the_identity_tells_another_list_of_files(tmp_path: Path) -> None:
    pair(tmp_path, "1.jpg")
    before = read_folder(tmp_path).identity
    assert json.loads(json.dumps(before)) == read_folder(tmp_path).identity
    (tmp_path / "1.jpg").rename(tmp_path / "1.jpeg")
    assert read_folder(tmp_path).identity != before


@pytest.mark.parametrize("name", ["0003.txt", "0003.json"])
def test_a_part_after_a_caption_file_was_mended_is_refused(tmp_path: Path, name: str) -> None:
    """An image that counts again would move all that follow it: some would be lost, others written twice."""
    root, out = tmp_path / "in", tmp_path / "out"
    for number in range(9):
        pair(root, f"{number:04d}.jpg")
    (root / "0003.txt").unlink()
    (root / name).write_text("")
    convert_part(read_folder(root), out, (1, 2), FOUR)
    (root / name).write_text('{"caption": "A dog"}')
    with pytest.raises(DataError, match="unfinished conversion of other input"):
        convert_part(read_folder(root), out, (2, 2), FOUR)


def test_a_caption_file_that_is_a_link_to_nowhere_is_listed(tmp_path: Path) -> None:
    pair(tmp_path, "1.jpg")
    picture(tmp_path / "2.jpg")
    (tmp_path / "2.txt").symlink_to("nowhere")
    assert [item.name for item in left_out(read_folder(tmp_path))] == ["2.jpg"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--root .*nowhere: no such folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no image has a file of captions beside it; expected 0001\.jpg with"):
        read_folder(tmp_path)
    pair(tmp_path / "train", "1.jpg")
    with pytest.raises(DataError, match=r"has no sub-folder val; those that are there: train"):
        read_folder(tmp_path, ["train", "val"])
    with pytest.raises(DataError, match=r"--splits '\.\.'"):
        read_folder(tmp_path, [".."])
    pair(tmp_path, "train_1.jpg")
    with pytest.raises(DataError, match="train_1 and train/1 both give the key train_1; rename one"):
        read_folder(tmp_path)
