"""What a user names on the command line -> tars."""

from pathlib import Path

from shards.errors import DataError
from shards.storage.location import is_remote

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def find_tars(locations: list[str], *, compressed: bool = False) -> list[Path]:
    """The tars that folders, paths and brace patterns such as `{00000..00041}.tar` name, each once.

    A folder gives its tars by name; `compressed` takes those in it that end in `.tar.gz` and the like, too.
    Raises `DataError` when a path does not exist or a folder has no tar.
    """
    tars: dict[Path, None] = {}
    for location in locations:
        for path in _expand(location):
            if path.is_dir():
                tars.update(dict.fromkeys(_tars_in(path, compressed)))
            elif path.is_file():
                tars[path] = None
            else:
                raise DataError(f"{path}: no such file or folder; give tars, a folder of them, or a brace pattern")
    return list({path.absolute(): path for path in tars}.values())


def _expand(location: str) -> list[Path]:
    if is_remote(location):
        raise DataError(f"{location}: tars behind URLs cannot be read here; copy them to a local disk")
    if "{" not in location or Path(location).exists():
        return [Path(location)]
    from braceexpand import braceexpand

    try:
        return [Path(path) for path in braceexpand(location)]
    except ValueError as error:
        raise DataError(
            f"{location}: not a brace pattern ({error}); write it as 'DIR/{{00000..00041}}.tar'"
        ) from None


def _tars_in(folder: Path, compressed: bool) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found = [path for path in files if path.suffix == ".tar"]
    packed = [path for path in files if path.name.endswith(COMPRESSED_SUFFIXES)]
    if compressed:
        found = sorted([*found, *packed])
    if not found:
        hint = "; its compressed ones can be rewritten with `itm shards reshard`" if packed else ""
        raise DataError(f"{folder}: no .tar in this folder{hint}")
    return found


def unique_names(tars: list[Path]) -> list[str]:
    """A name a tar, by which its index is called: the file's, with as many of its folders as tell them apart."""
    parts = [[*path.absolute().parent.parts[1:], path.name.removesuffix(".tar")] for path in tars]
    deepest = max(map(len, parts))
    for depth in range(1, deepest + 1):
        names = ["-".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    raise DataError(f"{tars[0]}: tars of one name; rename them")
