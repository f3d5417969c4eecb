"""What pretraining is worth: `fine_tuning.py PRETRAINING.yaml FINE_TUNING.yaml OUT --pretrain DIR --train DIR ...`.

Pretrains, fine-tunes from that, and trains from random weights on the fine-tuning data alone with the same number
of steps: once by the fine-tuning recipe, and once by the pretraining recipe, whose rates and losses are made for
random weights. The checkpoint is chosen on val; prints recalls on test. A second call goes on where the first was
stopped: finished runs are only read. `--seeds` averages over several.
"""

import argparse
from pathlib import Path

from methods import measure, row_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pretraining", type=Path, help="recipe")
    parser.add_argument("fine_tuning", type=Path, help="recipe")
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of both recipes")
    for name, what in (
        ("pretrain", "of the pretraining"),
        ("train", "of the fine-tuning"),
        ("val", ""),
        ("test", ""),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR", help=f"shards {what}".strip())
    parser.add_argument("--pretrain-epochs", type=float, required=True)
    parser.add_argument("--epochs", type=float, required=True, help="of fine-tuning, and of training without it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_intermixed_args()
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in options.seeds:
        folder = options.out / str(seed)
        pretrained = folder / "pretrained"
        pretraining = options.pretraining, options.pretrain, options.pretrain_epochs
        fine_tuning = options.fine_tuning, options.train, options.epochs
        begins = {
            "pretrained alone": (*pretraining, "null"),
            "fine-tuned": (*fine_tuning, pretrained),
            "from random weights": (*fine_tuning, "null"),
            "from random weights, by the pretraining recipe": (options.pretraining, *fine_tuning[1:], "null"),
        }
        for name, (recipe, train, epochs, init_from) in begins.items():
            run = pretrained if name == "pretrained alone" else folder / name.replace(" ", "-").replace(",", "")
            settings = [f"run.init_from={init_from}", f"run.seed={seed}", f"schedule.epochs={epochs}"]
            splits = train, options.val, options.test
            recalls = measure(recipe, splits, run, [*options.settings, *settings], options.processes)
            rows.setdefault(name, []).append(recalls)
    header = list(next(iter(rows.values()))[0])
    print("| | " + " | ".join(header) + " |\n|" + "---|" * (len(header) + 1))
    for name, found in rows.items():
        print(row_of(name, found))


if __name__ == "__main__":
    main()
