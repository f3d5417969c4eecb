"""Training pipelines that read the same photos, one a process: `pipelines.py NAME FOLDER SIDE WORKERS`.

`loader.py` starts it. For each line on the standard input, `SKIP COUNT`, it draws SKIP batches, then times COUNT
more and answers with a line of JSON: images a second, and CPU microseconds an image of this process alone.
"""

import io
import json
import sys
import time
import types
from collections.abc import Iterator
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import model  # noqa: F401  (lets torchvision import)

BATCH = 64
MIN_SCALE = 0.9  # open_clip's default
SHUFFLE_BUFFER = 1000
COPIES = 10  # of the photos in streaming's epoch, so that its start weighs little


def ours(folder: Path, side: int, workers: int) -> Iterator[Any]:
    from model.tokenizer import build_tokenizer
    from shards.images import random_resized_crop
    from shards.loader import Rank, TrainLoader
    from shards.manifest import read_manifest
    from shards.training import Part, TrainDataset, TrainingSet, Unkeyed

    manifest = read_manifest(folder / "shards")
    crop, tokenize = random_resized_crop(side, MIN_SCALE), Unkeyed(build_tokenizer("ViT-B-32"))
    dataset = TrainDataset(TrainingSet((Part(manifest),)), crop, tokenize)
    yield from TrainLoader(dataset, BATCH, Rank(), workers)


def open_clip(folder: Path, side: int, workers: int) -> Iterator[Any]:
    """What open_clip_train runs for `--dataset-type webdataset --dataset-resampled`."""
    from open_clip import get_tokenizer, image_transform

    if find_spec("pandas") is None:  # it is imported for CSV files alone
        sys.modules["pandas"] = module_from_spec(ModuleSpec("pandas", None))
    from open_clip_train import data

    # WebDataset 1.0 marks the end of each tar, which open_clip_train does not know of
    data.tar_file_expander = partial(data.tar_file_expander, eof_value=None)
    # a buffer that is still growing reads two samples for each that it gives: full from the start is its best
    data._SAMPLE_SHUFFLE_SIZE = data._SAMPLE_SHUFFLE_INITIAL = SHUFFLE_BUFFER
    arguments = types.SimpleNamespace(
        train_data="::".join(map(str, sorted((folder / "webdataset").iterdir()))),
        train_data_upsampling_factors=None,
        train_num_samples=10**9,
        dataset_resampled=True,
        batch_size=BATCH,
        workers=workers,
        world_size=1,
        seed=0,
    )
    transform = image_transform(side, is_train=True)
    loaded = data.get_wds_dataset(arguments, transform, is_train=True, tokenizer=get_tokenizer("ViT-B-32"))
    yield from loaded.dataloader


def _random_resized_crop(side: int) -> Any:
    """open_clip's crop, left as bytes."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                side, scale=(MIN_SCALE, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.PILToTensor(),
        ]
    )


def webdataset(folder: Path, side: int, workers: int) -> Iterator[Any]:
    """Captions stay text."""
    import webdataset as wds

    urls = sorted(map(str, (folder / "webdataset").iterdir()))
    dataset = (
        wds.WebDataset(urls, resampled=True, empty_check=False)
        .shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER)
        .decode("pilrgb")
        .to_tuple("jpg;png;jpeg;webp", "txt")
        .map_tuple(_random_resized_crop(side), str)
        .batched(BATCH)
    )
    yield from wds.WebLoader(dataset, batch_size=None, num_workers=workers)


def streaming(folder: Path, side: int, workers: int) -> Iterator[Any]:
    """MosaicML streaming, captions stay text."""
    import webdataset as wds
    from streaming import MDSWriter, StreamingDataset

    urls = sorted(map(str, (folder / "webdataset").iterdir()))
    local = folder / f"streaming-{workers}"
    with MDSWriter(out=str(local), columns={"image": "bytes", "caption": "str"}) as writer:
        for _ in range(COPIES):
            for image, caption in wds.WebDataset(urls, shardshuffle=False).to_tuple("jpg;png;jpeg;webp", "txt"):
                writer.write({"image": image, "caption": caption.decode()})
    crop = _random_resized_crop(side)

    class Photos(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: int) -> tuple[torch.Tensor, str]:
            sample = super().__getitem__(at)
            return crop(Image.open(io.BytesIO(sample["image"])).convert("RGB")), sample["caption"]

    dataset = Photos(local=str(local), shuffle=True, batch_size=BATCH)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0, drop_last=True
    )
    while True:
        yield from loader


class _DecodeOnly(Dataset[int]):
    def __init__(self, folder: Path, decoder: str) -> None:
        import webdataset as wds

        urls = sorted(map(str, (folder / "webdataset").iterdir()))
        samples = wds.WebDataset(urls, shardshuffle=False).to_tuple("jpg;png;jpeg;webp")
        self.images = [image for (image,) in samples]
        self.decoder = decoder

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, batch: int) -> int:
        import simplejpeg

        for place in range(batch * BATCH, (batch + 1) * BATCH):
            data = self.images[place % len(self.images)]
            if self.decoder == "pillow":
                Image.open(io.BytesIO(data)).load()
            else:
                simplejpeg.decode_jpeg(data)
        return BATCH


def decode_pillow(folder: Path, _side: int, workers: int) -> Iterator[Any]:
    """The limit: nothing is read, cropped, resized or handed over."""
    yield from DataLoader(_DecodeOnly(folder, "pillow"), batch_size=None, num_workers=workers)


def decode_simplejpeg(folder: Path, _side: int, workers: int) -> Iterator[Any]:
    """The limit with the decoder that the project uses for JPEG."""
    yield from DataLoader(_DecodeOnly(folder, "simplejpeg"), batch_size=None, num_workers=workers)


PIPELINES = {
    "itm": ours,
    "open_clip": open_clip,
    "webdataset": webdataset,
    "streaming": streaming,
    "decode-pillow": decode_pillow,
    "decode-simplejpeg": decode_simplejpeg,
}


def main(name: str, folder: str, side: str, workers: str) -> None:
    torch.set_num_threads(1)
    batches = PIPELINES[name](Path(folder), int(side), int(workers))
    for line in sys.stdin:
        skip, count = map(int, line.split())
        for _ in range(skip):
            next(batches)
        begin, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            next(batches)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        images = count * BATCH
        print(json.dumps({"rate": images / seconds, "cpu": 1e6 * cpu / images}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
