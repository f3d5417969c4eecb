import json
from pathlib import Path

import pytest

from shards.errors import DataError
from shards.sources.flickr30k import read_flickr30k
from shards.sources.karpathy import read_karpathy
from shards.sources.record import Skipped
from tests.shards.sourced import left_out, records

TOKEN = """\
10.jpg#0\tTwo young guys .
10.jpg#1\tThey look at their hands .
7.jpg#1\tIn a yard .
7.jpg#0\tA tree # 3\tand a wall .
8.jpg#0\tA boat .
"""


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "results_20130124.token"
    path.write_text(TOKEN)
    return path


def test_all_images_are_one_split(token: Path, tmp_path: Path) -> None:
    (tmp_path / "7.jpg").write_bytes(b"yard")
    source = read_flickr30k(token, tmp_path, split="pretrain")
    assert source.dataset == "flickr30k"
    assert [(r.key, r.image_id, r.captions) for r in records(source, "pretrain")] == [
        ("10", 0, ("Two young guys .", "They look at their hands .")),
        ("7", 1, ("A tree # 3 and a wall .", "In a yard .")),
        ("8", 2, ("A boat .",)),
    ]
    load = records(source, "pretrain")[1].load
    assert load is not None
    assert load() == b"yard"
    assert not left_out(source)


def test_lists_of_names_with_or_without_extension_tell_the_splits(token: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("8\n10\n")
    (tmp_path / "test.txt").write_text("7.jpg\r\n99.jpg\n\n")
    lists = {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"}
    source = read_flickr30k(token, tmp_path, lists=lists)
    assert [(r.key, r.image_id) for r in records(source)] == [("8", 2), ("10", 0)]
    assert [r.key for r in records(source, "test")] == ["7"]
    assert left_out(source) == [Skipped("99.jpg", f"named in the lists, but {token} has no caption of it")]


def test_images_that_no_list_names_are_listed(token: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("8.jpg\n")
    source = read_flickr30k(token, tmp_path, lists={"train": tmp_path / "train.txt"})
    assert [item.name for item in left_out(source)] == ["10.jpg", "7.jpg"]


def test_an_image_in_two_lists_is_refused(token: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("8.jpg\n")
    lists = {"train": tmp_path / "train.txt", "val": tmp_path / "train.txt"}
    with pytest.raises(DataError, match=r"train\.txt: 8\.jpg stands in the list of train already"):
        read_flickr30k(token, tmp_path, lists=lists)


def test_karpathy_tells_splits_ids_and_order(token: Path, tmp_path: Path) -> None:
    images = [
        {"filename": name, "imgid": number, "split": split}
        for number, (name, split) in enumerate([("7.jpg", "val"), ("8.jpg", "train"), ("10.jpg", "train")])
    ]
    (tmp_path / "k.json").write_text(json.dumps({"images": images}))
    source = read_flickr30k(token, tmp_path, karpathy=tmp_path / "k.json")
    assert [(r.key, r.image_id) for r in records(source)] == [("8", 1), ("10", 2)]
    assert [(r.key, r.image_id) for r in records(source, "val")] == [("7", 0)]


def test_lines_that_do_not_fit_are_listed_by_number(token: Path, tmp_path: Path) -> None:
    with token.open("ab") as stream:
        stream.write(b"\nno caption here\n9.jpg#0\tcaf\xe9 .\n9.jpg#1\tBar .\n9.jpg#2\t\n")
    source = read_flickr30k(token, tmp_path)
    assert records(source)[-1].captions == ("Bar .",)
    assert left_out(source) == [
        Skipped("9.jpg caption 0", "the caption is not valid UTF-8"),
        Skipped("9.jpg caption 2", "the caption is empty"),
        Skipped(f"{token}: line 7", "not of the form NAME.jpg#NUMBER<tab>CAPTION"),
    ]


def test_mistakes_are_named(token: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--token .*none: no such file"):
        read_flickr30k(tmp_path / "none", tmp_path)
    with pytest.raises(DataError, match=r"--token .*: is a folder; give the file"):
        read_flickr30k(tmp_path, tmp_path)
    with pytest.raises(DataError, match=r"--val-list .*none: no such file"):
        read_flickr30k(token, tmp_path, lists={"val": tmp_path / "none"})
    with pytest.raises(DataError, match="--karpathy: give it or --train-list"):
        read_flickr30k(token, tmp_path, lists={"val": token}, karpathy=token)
    (tmp_path / "csv").write_text("image,caption\n")
    with pytest.raises(DataError, match="csv: no line is of the form NAME"):
        read_flickr30k(tmp_path / "csv", tmp_path)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(DataError, match="the lists: no image is named there"):
        read_flickr30k(token, tmp_path, lists={"val": tmp_path / "empty"})


def test_the_published_splits_through_a_token_file(test_data: Path, tmp_path: Path) -> None:
    """Flickr30K's 155,070 captions, put back into the layout that they were published in."""
    published = test_data / "annotations" / "dataset_flickr30k.json"
    entries = json.loads(published.read_text())["images"]
    with (tmp_path / "results_20130124.token").open("w", encoding="utf-8") as stream:
        for entry in sorted(entries, key=lambda entry: entry["filename"]):
            for place, sentence in enumerate(entry["sentences"]):
                stream.write(f"{entry['filename']}#{place}\t{' '.join(sentence['raw'].split())}\n")
    ours = read_flickr30k(tmp_path / "results_20130124.token", tmp_path, karpathy=published)
    theirs = read_karpathy(published, tmp_path)
    assert [(split.name, split.count) for split in ours.splits] == [("train", 29000), ("test", 1000), ("val", 1014)]
    for split in ("train", "val", "test"):
        told = [(r.key, r.image_id, r.captions) for r in records(ours, split)]
        assert told == [(r.key, r.image_id, r.captions) for r in records(theirs, split)]
    assert not left_out(ours)
