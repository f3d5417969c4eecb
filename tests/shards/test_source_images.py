import json
import shutil
from pathlib import Path

import pytest

from shards.errors import DataError
from shards.prepare import Resize, load_sample
from shards.sources.coco import read_coco
from shards.sources.flickr30k import read_flickr30k
from shards.sources.folder import read_folder
from shards.sources.images import read_image
from shards.sources.karpathy import read_karpathy
from shards.sources.record import Skipped, Source
from shards.sources.table import read_table
from shards.tarwriter import Sample
from tests.shards.sourced import jpeg, picture, records


def write_all(root: Path) -> dict[str, Source]:
    """Two images, of which the second is missing, in every layout that names files."""
    images = root / "images"
    picture(images / "1.jpg", 1)
    picture(images / "2.jpg", 2)
    for number in (1, 2):
        (images / f"{number}.txt").write_text("A dog")
    names = ["1.jpg", "2.jpg"]
    karpathy = [{"filename": n, "split": "train", "sentences": [{"raw": "A dog"}]} for n in names]
    coco = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [{"id": n, "image_id": n, "caption": "A dog"} for n in range(2)],
    }
    (root / "karpathy.json").write_text(json.dumps({"images": karpathy}))
    (root / "captions_train.json").write_text(json.dumps(coco))
    (root / "results.token").write_text("".join(f"{name}#0\tA dog\n" for name in names))
    (root / "table.csv").write_text("image,caption\n1.jpg,A dog\n2.jpg,A dog\n")
    sources = {
        "karpathy": read_karpathy(root / "karpathy.json", images),
        "coco": read_coco([root / "captions_train.json"], [images]),
        "flickr30k": read_flickr30k(root / "results.token", images),
        "table": read_table([root / "table.csv"], images),
        "folder": read_folder(images),
    }
    loaded = {name: records(source) for name, source in sources.items()}
    assert all(len(found) == 2 for found in loaded.values())
    (images / "2.jpg").unlink()
    return sources


@pytest.mark.parametrize("name", ["karpathy", "coco", "flickr30k", "table"])
def test_a_missing_file_is_skipped_and_a_missing_folder_ends_the_work(tmp_path: Path, name: str) -> None:
    first, second = records(write_all(tmp_path)[name])
    assert isinstance(load_sample(first, Resize()), Sample)
    assert load_sample(second, Resize()) == Skipped(second.key, "the image file is missing")
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(DataError, match="images: the folder of images is gone"):
        load_sample(first, Resize())


def test_the_folder_itself_may_go(tmp_path: Path) -> None:
    (first, *_) = records(write_all(tmp_path)["folder"])
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(DataError, match="images: the folder of images is gone"):
        load_sample(first, Resize())


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    picture(tmp_path / "a/b.jpg", 3)
    assert read_image(tmp_path, "a/b.jpg") == read_image(tmp_path, Path("a", "b.jpg")) == jpeg(3)
    with pytest.raises(IsADirectoryError):
        read_image(tmp_path, "a")
