"""`itm shards demo`."""

from functools import partial
from typing import Annotated

import typer

from shards.commands.options import DryRun, Out, Overwrite, PerShard, Processes, Writing


def demo(
    out: Out,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other scenes.")] = 0,
    pretrain: Annotated[int, typer.Option(min=1, help="Scenes with one noisy, web-like caption.")] = 6000,
    train: Annotated[int, typer.Option(min=1, help="Scenes with five captions, for fine-tuning.")] = 3000,
    val: Annotated[int, typer.Option(min=1, help="Scenes for choosing the best checkpoint.")] = 500,
    test: Annotated[int, typer.Option(min=1, help="Scenes for the final measurement.")] = 500,
    side: Annotated[int, typer.Option(min=16, help="Width and height of the pictures, in pixels.")] = 96,
    samples_per_shard: PerShard = 1000,
    processes: Processes = 2,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Make the demo data set: rendered scenes of several objects with captions.

    Writes OUT/pretrain, OUT/train, OUT/val and OUT/test. The same seed gives the same bytes.
    """
    from shards.commands.write import write_source
    from shards.convert import Options
    from shards.demo.source import demo_records
    from shards.sources.record import Source, Split
    from shards.sources.stream import Stream

    counts = {"pretrain": pretrain, "train": train, "val": val, "test": test}
    splits = [
        Split(name, Stream(partial(demo_records, name, count, seed, side)), count) for name, count in counts.items()
    ]
    source = Source("demo", splits, {"format": "demo", "scene_seed": seed, "side": side, "counts": counts})
    writing = Writing(out, Options(samples_per_shard), processes=processes, overwrite=overwrite, dry_run=dry_run)
    write_source(source, writing)
