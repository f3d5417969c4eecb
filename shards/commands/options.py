"""The options that all commands which write shards share."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shards.convert import Options
    from shards.sources.record import Source

Out = Annotated[Path, typer.Option(help="Folder to write to; one folder a split is made in it.")]
PerShard = Annotated[int, typer.Option(min=1, help="Samples a shard; with --shard-bytes, records a unit of work.")]
Processes = Annotated[int, typer.Option(min=1, help="Processes that read, decode and write, this one among them.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace shards that stand in the folder already.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check the input, say what would be written, and write nothing.")
]


class ImageFormat(StrEnum):
    """What images can be converted to."""

    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"


@dataclass(frozen=True)
class Writing:
    """Where and how a source is written."""

    out: Path
    options: "Options"
    part: tuple[int, int] | None = None
    processes: int = 2
    overwrite: bool = False
    dry_run: bool = False


def writing(
    *,
    out: Out,
    samples_per_shard: PerShard = 1000,
    shard_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Largest size of a shard, such as 300MB or 1GiB.")
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(min=16, metavar="SIDE", help="Make larger images this many pixels on their shorter side."),
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG and WebP that are written anew.")] = 90,
    format: Annotated[
        ImageFormat | None, typer.Option(help="Convert images of other formats; without it, they keep theirs.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**64 - 1,
            help="Shuffle each split by this seed first, held in memory. Training shuffles anyway.",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Write the I-th of N parts, which may run on several machines; then `itm shards merge OUT`.",
        ),
    ] = None,
    processes: Processes = 2,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> Writing:
    """Gather the options. Raises `DataError` for a size or a part that is none."""
    from shards.convert import Options, parse_part
    from shards.prepare import Resize
    from shards.sizes import parse_size

    options = Options(
        samples_per_shard=samples_per_shard,
        shard_bytes=None if shard_bytes is None else parse_size(shard_bytes, "--shard-bytes"),
        resize=Resize(resize, quality, None if format is None else format.value.upper()),
        seed=seed,
    )
    return Writing(out, options, None if part is None else parse_part(part), processes, overwrite, dry_run)


def writing_command(read: Callable[..., "Source"]) -> Callable[..., None]:
    """Make a command of a reader: its options and those of `writing`, then the source is written."""
    shared = inspect.signature(writing).parameters

    def command(**arguments: Any) -> None:
        from shards.commands.write import write_source

        how = writing(**{name: arguments.pop(name) for name in shared})
        write_source(read(**arguments), how)

    own = inspect.signature(read).parameters
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in [*own.values(), *shared.values()]]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    command.__doc__ = read.__doc__
    return command
