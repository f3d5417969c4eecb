"""The methods and their ablations on one data set, with one budget: `methods.py RECIPE DATA OUT [KEY=VALUE ...]`.

Trains each from the recipe on DATA/train, with DATA/val to choose the checkpoint, evaluates it on DATA/test and
prints a table as it goes. A second call goes on where the first was stopped: finished runs are only read.
Concepts are mined from DATA/train. `--only` takes some of the rows, `--seeds` averages over several.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

OFF = ["loss.prototypes.weight=0", "loss.momentum_contrast.weight=0"]
UNRELATED = ["loss.relations.weight=0", "loss.regulariser.weight=0"]
LEVELS = ("candidate", "pair", "adaptive", "mining")


def levels(*on: str) -> list[str]:
    return [f"loss.ahrl.{level}={str(level in on).lower()}" for level in LEVELS]


ROWS = {
    "clip": ["model.framework=clip"],
    "siglip": ["model.framework=siglip"],
    "aahr": ["model.framework=aahr"],
    "amsps": ["model.framework=amsps", "model.consensus.concepts=CONCEPTS"],
    "aahr+amsps": ["model.framework=aahr+amsps", "model.consensus.concepts=CONCEPTS"],
    "aahr, base loss alone": ["model.framework=aahr", *OFF, *UNRELATED],
    "aahr, distance-weighted negatives": ["model.framework=aahr", "loss.base.negatives=distance-weighted"],
    "aahr without prototypes": ["model.framework=aahr", "loss.prototypes.weight=0"],
    "aahr without momentum contrast": ["model.framework=aahr", "loss.momentum_contrast.weight=0"],
    "aahr without relations": ["model.framework=aahr", *UNRELATED],
    "aahr, momentum towers shared": ["model.framework=aahr", "loss.momentum.towers=shared"],
    "aahr, momentum encoders in bfloat16": ["model.framework=aahr", "loss.momentum.precision=bfloat16"],
    "amsps without consensus": ["model.framework=amsps"],
    "amsps, level 1 alone": ["model.framework=amsps", "model.consensus.concepts=CONCEPTS", *levels()],
    "amsps without mining": [
        "model.framework=amsps",
        "model.consensus.concepts=CONCEPTS",
        *levels("candidate", "pair", "adaptive"),
    ],
}


def itm(*arguments: object) -> None:
    command = [sys.executable, "-m", "trainer.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])


def measure(
    recipe: Path, splits: tuple[Path, Path, Path], run: Path, settings: list[str], processes: int
) -> dict[str, float]:
    """Recalls on test of a run's best checkpoint, and the sum of its last one's on val. Trains it unless it was.

    `splits` are train, val and test.
    """
    train, val, test = splits
    result = run / "test.json"
    if not result.is_file():
        data = [f"data.train={train}", f"data.val={val}"]
        itm("train", recipe, f"run.dir={run}", *data, *settings, "--processes", processes)
        itm("eval", run, "--data", test, "--out", result)
    found = json.loads(result.read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rate = statistics.median(row["samples_per_second"] for row in rows)
    recalls = {f"{side} R@{k}": found[side][f"r{k}"] for side in ("i2t", "t2i") for k in (1, 5, 10)}
    last = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])["rsum"]
    return {**recalls, "rSum": found["rsum"], "last, on val": last, "samples/s": rate}


def row_of(name: str, found: list[dict[str, float]]) -> str:
    """A line of a Markdown table: the means over the seeds, and for rSum the smallest and largest."""
    means = {key: statistics.mean(one[key] for one in found) for key in found[0]}
    spread = f" ({min(one['rSum'] for one in found):.1f} to {max(one['rSum'] for one in found):.1f})"
    cells = [f"{mean:.1f}" + (spread if key == "rSum" and len(found) > 1 else "") for key, mean in means.items()]
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the recipe, for all rows alike")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_intermixed_args()
    options.out.mkdir(parents=True, exist_ok=True)
    concepts = options.out / "concepts.json"
    if not concepts.is_file():
        itm("shards", "concepts", options.data / "train", "--out", concepts)
    header: list[str] = []
    for name in options.only:
        found = []
        for seed in options.seeds:
            row = [setting.replace("CONCEPTS", str(concepts)) for setting in ROWS[name]]
            run = options.out / name.replace(" ", "-").replace(",", "") / str(seed)
            settings = [*options.settings, *row, f"run.seed={seed}"]
            splits = options.data / "train", options.data / "val", options.data / "test"
            found.append(measure(options.recipe, splits, run, settings, options.processes))
        if not header:
            header = list(found[0])
            print("| method | " + " | ".join(header) + " |\n|" + "---|" * (len(header) + 1))
        print(row_of(name, found), flush=True)


if __name__ == "__main__":
    main()
