from collections.abc import Callable
from pathlib import Path

import pytest

from shards.errors import DataError
from shards.manifest import Manifest, read_index, read_manifest
from shards.storage.location import is_remote, join, resolve


@pytest.mark.parametrize("location", ["http://host/a", "s3://bucket/a", "memory://a", "HTTPS://host/a", "gs://b"])
def test_urls_are_remote(location: str) -> None:
    assert is_remote(location)


@pytest.mark.parametrize("location", ["a/b", "/a/b", "./http", "a:b", "C:/x", "a b://c"])
def test_paths_are_not_remote(location: str) -> None:
    assert not is_remote(location)


@pytest.mark.parametrize(
    ("base", "path", "joined"),
    [
        ("data/train", "a.tar", "data/train/a.tar"),
        ("http://host/train/", "sub/a.tar", "http://host/train/sub/a.tar"),
        ("data/train", "s3://bucket/a.tar", "s3://bucket/a.tar"),
        ("http://host/train", "/disk/a.tar", "/disk/a.tar"),
        ("data/train", "file:///disk/a.tar", "/disk/a.tar"),
    ],
)
def test_a_path_is_seen_from_its_folder(base: str, path: str, joined: str) -> None:
    assert join(base, path) == joined


def test_a_file_url_is_the_path_it_stands_for(tmp_path: Path, make_shards: Callable[..., Manifest]) -> None:
    manifest = make_shards(tmp_path / "train set", 7)
    url = (tmp_path / "train set").as_uri()
    assert "%20" in url
    assert resolve(url) == str(tmp_path / "train set")
    found = read_manifest(url)
    assert (found.location, found.fingerprint) == (manifest.location, manifest.fingerprint)
    assert read_index(found, 0).key(0) == "picture-0000"


def test_a_file_url_of_another_host_is_refused() -> None:
    with pytest.raises(DataError, match="file://data/train: the URL of a file has three slashes"):
        read_manifest("file://data/train")
