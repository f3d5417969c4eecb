"""Resuming in the middle of 200 million samples: time to the first batch, and memory.

The shards are synthetic: 20,000 names for one real tar of 10,000 small pictures and for its index, so that all is
read as in a real run, from a page cache that one shard's data fits into.
"""

import io
import os
import resource
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from shards.convert import Options, write_split
from shards.images import random_resized_crop
from shards.loader import Position, Rank, TrainLoader
from shards.manifest import SHARD_SCHEMA, read_manifest, write_manifest
from shards.shard_index import Rows, index_name
from shards.sources.record import Record
from shards.training import Part, TrainDataset, TrainingSet, Unkeyed

SHARDS, SAMPLES = 20_000, 10_000
RESUME_AT = 100_000_000
BATCH = 1024


def tokenize(captions: list[str]) -> torch.Tensor:
    return torch.zeros(len(captions), 77, dtype=torch.int64)


def synthetic(root: Path) -> Path:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(stream, "JPEG")
    load = partial(bytes, stream.getvalue())
    records = (Record(f"{number:09d}", number, ("a caption",), load) for number in range(SAMPLES))
    write_split(records, root / "one", dataset="synthetic", split="train", options=Options(SAMPLES))
    one = read_manifest(root / "one")
    many = root / "many"
    many.mkdir()
    shards: Rows = {column: [] for column in SHARD_SCHEMA.names}
    for shard in range(SHARDS):
        name = f"train-{shard:06d}"
        os.link(root / "one" / index_name(one.names[0]), many / index_name(name))
        sha256 = f"{shard:064x}"
        row = (name, one.shard_location(0), SAMPLES, SAMPLES, int(one.bytes[0]), sha256, sha256)
        for column, value in zip(SHARD_SCHEMA.names, row, strict=True):
            shards[column].append(value)
    write_manifest(many, "synthetic", "train", ("image",), shards)
    return many


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        location = synthetic(Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.perf_counter()
        training_set = TrainingSet((Part(read_manifest(location)),))
        read = time.perf_counter()
        dataset = TrainDataset(training_set, random_resized_crop(16, 0.9), Unkeyed(tokenize))
        loader = TrainLoader(dataset, BATCH, Rank(3, 8))
        loader.load_state_dict({"epoch": 0, "position": RESUME_AT})
        batch = next(iter(loader))
        end = time.perf_counter()
        assert loader.state == Position(0, RESUME_AT + BATCH)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{training_set.num_visits:,} samples: manifest {read - begin:.2f} s, resuming at {RESUME_AT:,} to the "
            f"first batch ({len(batch)} samples of rank 3 of 8) {end - read:.2f} s; peak memory of the process "
            f"{peak / 1024:,.0f} MB ({before / 1024:,.0f} MB before)"
        )


if __name__ == "__main__":
    main()
