"""Images a second out of training pipelines, in one run on the same photos.

Ours beside open_clip's, plain webdataset, MosaicML streaming (where it is installed) and the limit, decoding
alone: `loader.py FOLDER`, a folder of photos or of shards. Each pipeline is a process of its own that lives
through all rounds; in each round all are timed one after the other, so that a busy machine is busy for all.
Ratios are taken within a round; the table gives medians over the rounds.

MosaicML streaming wants another NumPy than ours; `--streaming-python` names a Python that has it and torch.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from pipelines import PIPELINES

from model.tokenizer import build_tokenizer
from shards.convert import Options, write_split
from shards.images import open_image
from shards.manifest import MANIFEST, read_manifest
from shards.prepare import EXTENSIONS, Resize
from shards.reader import ShardReader
from shards.sources.record import Record

HERE = Path(__file__).parent
WORDS = 12
PHOTOS_A_SHARD = 100
LONGEST_QUEUE = 4  # batches a worker fetches ahead, in any of the pipelines
Result = dict[str, float]


def caption(generator: np.random.Generator, vocabulary: list[str]) -> str:
    """Words of the vocabulary, the frequent ones more often, as in a language."""
    places = np.minimum(generator.zipf(1.3, WORDS), len(vocabulary)) - 1
    return " ".join(vocabulary[place] for place in places).capitalize() + "."


def records(photos: Path) -> Iterator[Record]:
    encoder = build_tokenizer("ViT-B-32").tokenizer.encoder  # type: ignore[attr-defined]
    whole = (token.removesuffix("</w>") for token in encoder if token.endswith("</w>"))
    vocabulary = [word for word in whole if word.isalpha() and word.isascii() and len(word) > 2][:8000]
    generator = np.random.default_rng(0)
    for number, path in enumerate(sorted(path for path in photos.rglob("*") if path.is_file())):
        captions = (caption(generator, vocabulary),)
        yield Record(f"{number:06d}", number, captions, partial(Path.read_bytes, path))


def prepare(source: Path, folder: Path, side: int) -> int:
    """The same photos as shards of ours and as tars of `jpg` and `txt`; returns how many there are."""
    if (source / MANIFEST).is_file():
        (folder / "shards").symlink_to(source.absolute())
    else:
        options = Options(PHOTOS_A_SHARD, resize=Resize(side))
        write_split(list(records(source)), folder / "shards", dataset="photos", split="train", options=options)
    reader = ShardReader(manifest := read_manifest(folder / "shards"))
    (folder / "webdataset").mkdir()
    number = 0
    for shard, count in enumerate(manifest.samples):
        with tarfile.open(folder / "webdataset" / f"{shard:06d}.tar", "w") as tar:
            for row in range(int(count)):
                sample = reader.read(shard, row)
                assert sample.image is not None
                extension = EXTENSIONS[open_image(sample.image).format or ""]
                for name, data in ((extension, sample.image), ("txt", sample.captions[0].encode())):
                    header = tarfile.TarInfo(f"{number:06d}.{name}")
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
                number += 1
    return number


class Pipeline:
    """A pipeline in its process, idle until it is asked for a round."""

    def __init__(self, name: str, folder: Path, side: int, workers: int, python: str) -> None:
        self.name = name
        command = [python, str(HERE / "pipelines.py"), name, str(folder), str(side), str(workers)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def round(self, skip: int, count: int) -> Result:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{skip} {count}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} failed; what it said stands above")
        result: Result = json.loads(answer)
        return result

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


Start = Callable[[str, int], Pipeline]


def measure(names: list[str], rounds: int, batches: int, workers: int, start: Start) -> dict[str, list[Result]]:
    """What each pipeline gave in each round; the order turns from round to round, the first does not count."""
    with ExitStack() as stack:
        pipelines = [start(name, workers) for name in names]
        for pipeline in pipelines:
            stack.callback(pipeline.close)
        results: dict[str, list[Result]] = {name: [] for name in names}
        for turn in range(rounds + 1):
            for place in range(len(pipelines)):
                pipeline = pipelines[(turn + place) % len(pipelines)]
                result = pipeline.round(workers * LONGEST_QUEUE + 2, batches)
                if turn:
                    results[pipeline.name].append(result)
        return results


def table(results: dict[str, list[Result]], workers: int) -> None:
    print(f"\n{workers} workers{'' if workers else ' (one process, one thread)'}")
    print(f"{'pipeline':<20}{'images/s':>10}{'CPU us/image':>14}   itm is (median, least, most)")
    own = [result["rate"] for result in results["itm"]]
    for name, rounds in results.items():
        rates = [result["rate"] for result in rounds]
        # with workers the work is in other processes
        cpu = "" if workers else f"{statistics.median(result['cpu'] for result in rounds):,.0f}"
        ratios = [ours / theirs for ours, theirs in zip(own, rates, strict=True)]
        spread = f"{statistics.median(ratios):.2f}x  ({min(ratios):.2f} .. {max(ratios):.2f})"
        print(f"{name:<20}{statistics.median(rates):>10,.0f}{cpu:>14}   {'' if name == 'itm' else spread}")


def has_streaming(python: str) -> bool:
    probe = subprocess.run([python, "-c", "import model, streaming"], capture_output=True, check=False)
    return probe.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="photos, or shards of ours")
    parser.add_argument("--side", type=int, default=224, help="pixels of the output (default 224)")
    parser.add_argument("--resize", type=int, default=256, help="photos' short side at most (default 256)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=16, help="of 64, timed a round (default 16)")
    parser.add_argument("--only", nargs="+", choices=PIPELINES, default=list(PIPELINES))
    parser.add_argument("--streaming-python", default=sys.executable, metavar="PYTHON")
    options = parser.parse_args()
    names = ["itm"] + [name for name in options.only if name != "itm"]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    if "streaming" in names and not has_streaming(options.streaming_python):
        names.remove("streaming")
        print("streaming: not installed")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        count = prepare(options.folder, folder, options.resize)
        print(f"{count:,} photos, {options.side} pixels, batches of 64, {options.rounds} rounds")

        def start(name: str, workers: int) -> Pipeline:
            python = options.streaming_python if name == "streaming" else sys.executable
            return Pipeline(name, folder, options.side, workers, python)

        for workers in options.workers:
            table(measure(names, options.rounds, options.batches, workers, start), workers)


if __name__ == "__main__":
    main()
