import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shards.errors import DataError
from shards.manifest import Manifest, read_index
from shards.reader import ShardReader
from shards.storage.local import LocalReader
from shards.storage.open_files import OpenFiles
from shards.tarsample import parse_sample
from tests.conftest import ENVIRONMENT


@pytest.fixture
def manifest(tmp_path: Path, make_shards: Callable[..., Manifest]) -> Manifest:
    """Twelve samples in shards of 5, 5 and 2."""
    return make_shards(tmp_path / "train", 12)


@pytest.fixture
def reader(manifest: Manifest) -> Iterator[ShardReader]:
    reader = ShardReader(manifest)
    yield reader
    reader.close()


def open_shards(manifest: Manifest) -> list[str]:
    """The shards of the folder that this process holds open."""
    targets = (os.path.realpath(descriptor) for descriptor in Path("/proc/self/fd").iterdir())
    return [target for target in targets if target.startswith(manifest.location) and target.endswith(".tar")]


def test_every_sample_is_found_at_its_place(reader: ShardReader) -> None:
    places = [(shard, row) for shard, size in enumerate((5, 5, 2)) for row in range(size)]
    for number, (shard, row) in reversed(list(enumerate(places))):
        sample = reader.read(shard, row)
        assert sample.captions == [f"caption {place} of picture {number}" for place in range(3)]
        assert sample.image.startswith(b"\xff\xd8\xff")
        assert reader.index(shard).key(row) == f"picture-{number:04d}"


def test_all_readers_of_a_process_together_keep_few_shards_open(manifest: Manifest) -> None:
    files = OpenFiles(most=2)
    readers = [ShardReader(manifest) for _ in range(3)]
    for reader in readers:
        reader._local = LocalReader(files)
    for shard in (0, 1, 2, 0, 1, 2):
        for reader in readers:
            assert reader.read(shard, 1).captions
            assert 1 <= len(open_shards(manifest)) <= 2
    for reader in readers:
        reader.close()
    assert not open_shards(manifest)


def test_a_reader_closes_only_what_it_has_opened(manifest: Manifest) -> None:
    one, other = ShardReader(manifest), ShardReader(manifest)
    for reader in (one, other):
        reader.read(0, 0)
    one.close()
    assert len(open_shards(manifest)) == 1
    other.close()
    assert not open_shards(manifest)


LIMITED = """
import resource, sys
from shards.manifest import read_manifest
from shards.reader import ShardReader

resource.setrlimit(resource.RLIMIT_NOFILE, (40, int(sys.argv[2])))
readers = [ShardReader(read_manifest(sys.argv[1])) for _ in range(4)]
for _ in range(2):
    for shard in range(25):
        for reader in readers:
            reader.prefetch(shard, 0, 1)
            assert reader.read(shard, 0).captions
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize("hard", [40, 400])
def test_a_mixture_is_read_within_what_a_process_may_open(
    tmp_path: Path, make_shards: Callable[..., Manifest], hard: int
) -> None:
    make_shards(tmp_path / "train", 25, per_shard=1)
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "train"), str(hard)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.stdout, done.stderr) == (f"{hard}\n", ""), "the limit is raised as far as is allowed"


def test_shards_are_closed_with_a_forgotten_reader(manifest: Manifest) -> None:
    reader = ShardReader(manifest)
    reader.read(0, 0)
    assert open_shards(manifest)
    del reader
    assert not open_shards(manifest)


def test_a_shard_that_ends_early_is_named_with_the_sample(reader: ShardReader, manifest: Manifest) -> None:
    path = Path(manifest.shard_location(1))
    path.write_bytes(path.read_bytes()[: int(read_index(manifest, 1).offsets[2]) + 700])
    assert reader.read(1, 1).captions
    with pytest.raises(DataError, match=r"train-000001\.tar: sample picture-0007: the shard ends early"):
        reader.read(1, 2)


def test_damaged_bytes_are_named_with_the_sample(reader: ShardReader, manifest: Manifest) -> None:
    path, offset = Path(manifest.shard_location(1)), int(read_index(manifest, 1).offsets[2])
    data = bytearray(path.read_bytes())
    data[offset : offset + 512] = b"x" * 512
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-000001\.tar: sample picture-0007: damaged sample"):
        reader.read(1, 2)


@pytest.mark.parametrize(("member", "lost"), [("jpg", "image"), ("json", "captions")])
def test_a_sample_without_one_of_its_members_is_named(manifest: Manifest, member: str, lost: str) -> None:
    index = read_index(manifest, 0)
    data = Path(manifest.shard_location(0)).read_bytes()[: int(index.sizes[0])]
    renamed = data.replace(f"picture-0000.{member}".encode(), f"picture-0000.{'t' * len(member)}".encode())
    # the header's checksum is the sum of its bytes
    fixed = bytearray(renamed)
    for start in range(0, len(fixed), 512):
        if fixed[start : start + 12] == b"picture-0000":
            fixed[start + 148 : start + 156] = b" " * 8
            fixed[start + 148 : start + 156] = b"%06o\0 " % sum(fixed[start : start + 512])
    assert parse_sample(data).captions
    with pytest.raises(DataError, match=f"the sample holds no {lost}"):
        parse_sample(bytes(fixed))
