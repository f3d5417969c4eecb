import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset

from shards.convert import Options, write_split
from shards.manifest import read_index, read_index_table, read_manifest
from shards.reader import ShardReader
from shards.shard_index import content_hash
from shards.sources.record import Record
from shards.tarsample import parse_sample
from shards.tarwriter import Sample, encode, writing_shard
from tests.shards.pictures import FOUR, encoded, good, record, with_regions


def write(records: object, root: Path, options: Options = FOUR) -> None:
    write_split(records, root, dataset="d", split="val", options=options)  # type: ignore[arg-type]


def plain(root: Path) -> webdataset.WebDataset:
    return webdataset.WebDataset([str(path) for path in sorted(root.glob("*.tar"))], shardshuffle=False)


def test_plain_webdataset_reads_the_shards(tmp_path: Path) -> None:
    write(good(10), tmp_path / "val")
    samples = list(plain(tmp_path / "val"))
    assert [sample["__key__"] for sample in samples] == [f"key-{number:03d}" for number in range(10)]
    assert len({sample["__url__"] for sample in samples}) == 3
    for number, (sample, source) in enumerate(zip(samples, good(10), strict=True)):
        assert sample["jpg"] == encoded(number)
        assert json.loads(sample["json"]) == {"image_id": 50 + number, "captions": list(source.captions)}


def test_the_index_spans_each_sample_with_its_headers(tmp_path: Path) -> None:
    write(good(10), tmp_path / "val")
    manifest = read_manifest(tmp_path / "val")
    number = 0
    for shard in range(3):
        data, index = Path(manifest.shard_location(shard)).read_bytes(), read_index(manifest, shard)
        assert index.offsets[0] == 0
        for row in range(len(index)):
            offset, size = index.offsets[row], index.sizes[row]
            alone = data[offset : offset + size]
            with tarfile.open(fileobj=io.BytesIO(alone)) as tar:
                assert tar.getnames() == [f"{index.key(row)}.jpg", f"{index.key(row)}.json"]
            sample = parse_sample(alone)
            assert sample.image == encoded(number)
            assert index.crc32[row] == zlib.crc32(alone)
            assert index.content[row] == content_hash(encoded(number))
            assert (index.image_ids[row], index.captions[row]) == (50 + number, len(sample.captions))
            number += 1
        assert set(data[offset + size :]) == {0}, "after the last sample only the end of the archive"
        assert len(data) % tarfile.RECORDSIZE == 0
    assert number == 10


def test_the_index_tells_the_pixels(tmp_path: Path) -> None:
    write([record(0, encoded(0, size=(33, 21)))], tmp_path / "val")
    table = read_index_table(read_manifest(tmp_path / "val"), 0)
    assert (table["width"].to_pylist(), table["height"].to_pylist()) == ([33], [21])


def test_long_and_non_ascii_keys_and_captions_survive(tmp_path: Path) -> None:
    keys = [
        "k" * 99,
        "l" * 101,
        "m" * 240,
        "Straße_café",
        "東京" * 40,
        "عربي",
        "🐈" * 60,
        "e\u0301_accent",
    ]
    texts = ("Eine Katze läuft über die Straße.", "東京の猫 🐈", 'a "quoted" \\ caption', "x" * 5000)
    write([record(number, key=key, captions=texts) for number, key in enumerate(keys)], tmp_path / "val")
    reader = ShardReader(read_manifest(tmp_path / "val"))
    for number in range(len(keys)):
        sample = reader.read(number // 4, number % 4)
        assert sample.captions == list(texts)
        assert sample.image == encoded(number)
    assert [*reader.index(0).keys.to_pylist(), *reader.index(1).keys.to_pylist()] == keys
    assert [sample["__key__"] for sample in plain(tmp_path / "val")] == keys


@pytest.mark.parametrize("image", [False, True])
def test_plain_webdataset_decodes_regions(tmp_path: Path, image: bool) -> None:
    write([with_regions(number, image=image) for number in range(6)], tmp_path / "val")
    samples = list(plain(tmp_path / "val").decode())
    assert len(samples) == 6
    for number, sample in enumerate(samples):
        regions = sample["regions.npy"]
        assert (regions.dtype, regions.shape) == (np.float32, (3, 4))
        assert (regions == number).all()
        assert ("jpg" in sample) == image
    manifest = read_manifest(tmp_path / "val")
    assert manifest.holds == (("image", "regions") if image else ("regions",))
    index = read_index(manifest, 0)
    assert index.widths.tolist() == [30 if image else 0] * 4
    assert len(set(index.content.tolist())) == 4


def test_caption_ids_stand_beside_the_captions(tmp_path: Path) -> None:
    one = Record("a", 1, ("x", "y"), record(0).load, caption_ids=(70, 71))
    write([one, record(1)], tmp_path / "val")
    with_ids, without = (json.loads(sample["json"]) for sample in plain(tmp_path / "val"))
    assert with_ids == {"image_id": 1, "captions": ["x", "y"], "caption_ids": [70, 71]}
    assert "caption_ids" not in without


def test_without_an_image_id_copies_of_a_picture_share_one(tmp_path: Path) -> None:
    pictures = [encoded(0), encoded(1), encoded(0)]
    records = [Record(f"k{n}", None, ("x",), record(0, data).load) for n, data in enumerate(pictures)]
    write(records, tmp_path / "val")
    ids = read_index(read_manifest(tmp_path / "val"), 0).image_ids.tolist()
    assert ids[0] == ids[2] != ids[1]
    assert min(ids) >= 0
    assert [json.loads(sample["json"])["image_id"] for sample in plain(tmp_path / "val")] == ids


def test_an_error_leaves_nothing_of_the_shard(tmp_path: Path) -> None:
    table: list[dict[str, object]] = []
    sample = encode(Sample(record(0), encoded(0), "jpg", 30, 20))
    with pytest.raises(RuntimeError), writing_shard(tmp_path, "val-000000", table) as writer:
        writer.add(sample)
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    assert not table


@pytest.mark.parametrize("limit", [20_480, 20_481, 30_719, 40_960])
def test_no_shard_grows_beyond_its_bound(tmp_path: Path, limit: int) -> None:
    records = [record(number, encoded(number, size=(20 + 7 * number, 40))) for number in range(24)]
    write(records, tmp_path / "val", Options(samples_per_shard=100, shard_bytes=limit))
    manifest = read_manifest(tmp_path / "val")
    assert manifest.num_samples == 24
    assert manifest.bytes.max() <= limit
    assert [path.stat().st_size for path in sorted((tmp_path / "val").glob("*.tar"))] == manifest.bytes.tolist()
    # none could have held the next one's first sample too
    for shard in range(len(manifest.names) - 1):
        used = read_index(manifest, shard).sizes.sum() + read_index(manifest, shard + 1).sizes[0] + 1024
        assert -(-used // tarfile.RECORDSIZE) * tarfile.RECORDSIZE > limit


def test_a_sample_beyond_the_bound_has_a_shard_of_its_own(tmp_path: Path) -> None:
    records = [record(0), record(1, encoded(1, "BMP", (100, 100))), record(2)]
    write(records, tmp_path / "val", Options(shard_bytes=20_480))
    manifest = read_manifest(tmp_path / "val")
    assert manifest.samples.tolist() == [1, 1, 1]
    assert manifest.names == ("val-000000-000", "val-000000-001", "val-000000-002")
    assert manifest.bytes[1] > 20_480 >= manifest.bytes[0]
