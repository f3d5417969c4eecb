"""Shards -> the embeddings of their images and captions on disk, with keys; memory stays flat.

DIR/images.parquet     sample, key and, unless they lie beside it, embedding of each image
    texts.parquet      sample, key, caption and, unless they lie beside it, embedding of each caption
    images.npy         (N, D) float32, texts.npy (C, D) float32, with the format `npy`
    embeddings.json    width, counts, model and data
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from shards.atomic import building
from shards.errors import DataError
from shards.evaluation import evaluation_batches
from shards.loader import Rank
from shards.manifest import Manifest, read_index
from trainer.errors import RunError
from trainer.inference import ImageTextModel
from trainer.inputs import evaluation_set

Format = Literal["parquet", "npy"]
Side = Literal["images", "texts"]
ABOUT = "embeddings.json"
ROWS = 65_536
"""Rows read back at a time."""


@dataclass(frozen=True)
class About:
    """What a folder of embeddings holds."""

    format: Format
    embed_dim: int
    images: int
    texts: int
    model: str
    """Where the weights came from."""
    data: str
    """The folder of shards, or its URL."""
    dataset: str
    split: str


def write_embeddings(
    model: ImageTextModel,
    manifest: Manifest,
    out: Path,
    *,
    format: Format = "parquet",
    batch_size: int = 128,
    workers: int = 0,
    on_batch: Callable[[int], None] = lambda _images: None,
) -> About:
    """Embed every sample once, in the manifest's order, into a new folder, which appears when it is whole.

    Raises `RunError` when the folder is there already, `DataError` for a sample that does not decode.
    """
    if out.exists():
        raise RunError(f"--out {out}: is there already; remove it, or give another folder")
    config = model.config
    about = About(
        format,
        model.embed_dim,
        manifest.num_samples,
        manifest.num_captions,
        model.source,
        str(manifest.location),
        manifest.dataset,
        manifest.split,
    )
    dataset = evaluation_set(config, manifest)
    keys = _keys(manifest)
    out.parent.mkdir(parents=True, exist_ok=True)
    with building(out) as folder:
        with ExitStack() as stack:
            images = stack.enter_context(_Writer(folder, "images", about))
            texts = stack.enter_context(_Writer(folder, "texts", about))
            for batch in evaluation_batches(dataset, batch_size, Rank(0, 1), workers):
                image, text = model.embed_batch(batch)
                samples = batch.samples.numpy()
                named = np.array([next(keys) for _ in samples], dtype=object)
                owner = batch.caption_image.numpy()
                images.add(image, {"sample": samples, "key": named})
                texts.add(text, {"sample": samples[owner], "key": named[owner], "caption": batch.captions})
                on_batch(len(batch))
        (folder / ABOUT).write_text(json.dumps(asdict(about), indent=2) + "\n")
    return about


def _keys(manifest: Manifest) -> Iterator[str]:
    """Of all samples in order."""
    for shard in range(len(manifest.names)):
        yield from read_index(manifest, shard).keys.to_pylist()


class _Writer:
    """One side's table and, with `npy`, its matrix. Use as a context manager."""

    def __init__(self, folder: Path, side: Side, about: About) -> None:
        self.vector = pa.list_(pa.float32(), about.embed_dim)
        fields = [("sample", pa.int64()), ("key", pa.string())]
        fields += [("caption", pa.string())] if side == "texts" else []
        fields += [("embedding", self.vector)] if about.format == "parquet" else []
        self.schema, self.rows = pa.schema(fields), 0
        self._table = pq.ParquetWriter(folder / f"{side}.parquet", self.schema, compression="zstd")
        self._matrix: npt.NDArray[np.float32] | None = None
        if about.format == "npy":
            shape = (getattr(about, side), about.embed_dim)
            self._matrix = np.lib.format.open_memmap(folder / f"{side}.npy", "w+", np.float32, shape)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_error: object) -> None:
        self._table.close()
        if isinstance(self._matrix, np.memmap):
            self._matrix.flush()

    def add(self, embeddings: torch.Tensor, columns: dict[str, object]) -> None:
        """(n, D) embeddings, and the other columns by name."""
        values = embeddings.float().cpu().numpy()
        if self._matrix is not None:
            self._matrix[self.rows : self.rows + len(values)] = values
        else:
            columns = columns | {"embedding": pa.FixedSizeListArray.from_arrays(values.ravel(), type=self.vector)}
        self._table.write_table(pa.table(columns, schema=self.schema))
        self.rows += len(values)


def read_about(folder: Path) -> About:
    """Raises `DataError` for a folder that `write_embeddings` did not write."""
    try:
        return About(**json.loads((folder / ABOUT).read_text()))
    except (OSError, ValueError, TypeError):
        raise DataError(f"{folder}: no embeddings in it; give a folder that `itm embed` wrote") from None


def read_items(folder: Path, side: Side) -> pa.Table:
    """The table of one side without its embeddings."""
    schema = pq.read_schema(folder / f"{side}.parquet")
    return pq.read_table(folder / f"{side}.parquet", columns=[one for one in schema.names if one != "embedding"])


def read_embeddings(folder: Path, side: Side, about: About) -> Iterator[npt.NDArray[np.float32]]:
    """(n, D) blocks in order, n at most `ROWS`."""
    if about.format == "npy":
        matrix = np.load(folder / f"{side}.npy", mmap_mode="r")
        for first in range(0, len(matrix), ROWS):
            yield np.ascontiguousarray(matrix[first : first + ROWS])
        return
    with pq.ParquetFile(folder / f"{side}.parquet") as table:
        for batch in table.iter_batches(ROWS, columns=["embedding"]):
            values = batch.column(0).flatten().to_numpy(zero_copy_only=False)
            yield values.reshape(-1, about.embed_dim)
