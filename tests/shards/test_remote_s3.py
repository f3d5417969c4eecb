"""Shards in a bucket of a real S3 server, and how the S3 client meets faults."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from shards.errors import DataError
from shards.manifest import Manifest, read_manifest
from tests.shards.file_server import serve
from tests.shards.remote_cases import quick_cache, reader_of, samples_at


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_shards: Callable[..., Manifest]) -> Path:
    """Twenty samples in shards of 8; the folder stands in one that can be served as a bucket."""
    root = tmp_path_factory.mktemp("s3") / "bucket" / "train"
    make_shards(root, 20, per_shard=8)
    return root


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of nobody; clients are made anew for each test, since they remember their endpoint."""
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3FileSystem]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    yield S3FileSystem()
    server.stop()


def test_samples_in_a_bucket_are_those_on_the_disk(root: Path, s3: S3FileSystem, tmp_path: Path) -> None:
    s3.mkdir("bucket")
    s3.put(str(root), "bucket/train", recursive=True)
    cache = quick_cache(tmp_path)
    assert samples_at("s3://bucket/train", cache) == samples_at(root)
    with reader_of("s3://bucket/train", quick_cache(tmp_path / "ahead")) as reader:
        for shard in range(3):
            reader.prefetch(shard, 0, 4)
        assert reader.read(2, 3).captions[0] == "caption 0 of picture 19"


def test_what_is_not_there_is_told_at_once(s3: S3FileSystem, tmp_path: Path) -> None:
    s3.mkdir("empty")
    cache = quick_cache(tmp_path, first_pause=60)
    with pytest.raises(DataError, match=r"^s3://empty/train/\w+\.json: no such file \(.*key does not exist\.\)$"):
        read_manifest("s3://empty/train", cache)
    with pytest.raises(DataError, match=r"^s3://none/train/\w+\.json: no such file \(.*bucket does not exist\)$"):
        read_manifest("s3://none/train", cache)


def test_missing_credentials_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"manifest\.json: Unable to locate credentials$"):
        read_manifest("s3://bucket/train", quick_cache(tmp_path, first_pause=60))


@pytest.mark.parametrize("faults", [["503", "503"], ["500"], ["stall"], ["truncate"], ["flip"]])
def test_the_attempts_are_ours_alone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: list[str]
) -> None:
    with serve(root.parents[1]) as server:  # a folder of buckets answers the reads of an S3 client
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        with reader_of("s3://bucket/train", quick_cache(tmp_path, timeout=0.4)) as reader:
            server.faults = list(faults)
            assert reader.read(0, 3).captions[0] == "caption 0 of picture 3"
            assert server.count(".tar") == len(faults) + 1
            server.faults = ["stall"] * 9
            started = time.monotonic()
            with pytest.raises(DataError, match=r"train-000001\.tar: .*\(3 attempts\)$"):
                reader.read(1, 0)
            assert time.monotonic() - started < 4
            assert server.count("train-000001.tar") == 3


def test_a_denied_bucket_is_told_at_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(root.parents[1]) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        with reader_of("s3://bucket/train", quick_cache(tmp_path, first_pause=60)) as reader:
            server.faults = ["403"] * 9
            with pytest.raises(DataError, match=r"train-000000\.tar: access is denied .*check the credentials$"):
                reader.read(0, 0)
            assert server.count(".tar") == 1
