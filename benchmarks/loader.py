"""Images a second that one process gets out of shards, beside decoding alone: `loader.py FOLDER_OF_SHARDS`.

Decoding alone is the floor: the same bytes through Pillow at full size, nothing cropped, no text.
"""

import sys
import time
from pathlib import Path

from model.tokenizer import build_tokenizer
from shards.dataset import ShardDataset
from shards.images import open_image, random_resized_crop
from shards.loader import Rank, TrainLoader
from shards.manifest import read_manifest
from shards.reader import ShardReader

BATCH = 64
SIDE = 112


def main(folder: str) -> None:
    manifest = read_manifest(Path(folder))
    batches = min(20, manifest.num_samples // BATCH)
    images = batches * BATCH

    reader = ShardReader(manifest)
    rows = [(shard, row) for shard, count in enumerate(manifest.samples) for row in range(int(count))][:images]
    begin = time.perf_counter()
    for shard, row in rows:
        open_image(reader.read(shard, row).image).load()
    decoding = images / (time.perf_counter() - begin)

    dataset = ShardDataset(manifest, random_resized_crop(SIDE, 0.5), build_tokenizer("itm-small"))
    stream = iter(TrainLoader(dataset, BATCH, Rank()))
    begin = time.perf_counter()
    for _ in range(batches):
        next(stream)
    loading = images / (time.perf_counter() - begin)
    print(
        f"{images:,} images: decoding alone {decoding:,.0f}/s, batches {loading:,.0f}/s: {loading / decoding:.2f}"
    )


if __name__ == "__main__":
    main(sys.argv[1])
