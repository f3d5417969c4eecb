"""What all sources do alike with captions, names and input files."""

import json
import re
from pathlib import Path
from typing import IO, Any

from shards.errors import DataError
from shards.sources.record import Skipped


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold `text`: a JSON escape can smuggle in half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean_captions(texts: list[str], name: str) -> tuple[list[int], list[str], list[Skipped]]:
    """The places and texts of the usable captions, white space collapsed, and what was left out.

    `name` is the image's, for the report.
    """
    places, captions, skipped = [], [], []
    for place, text in enumerate(texts):
        caption = " ".join(text.split())
        if not caption:
            skipped.append(Skipped(f"{name} caption {place}", "the caption is empty"))
        elif not is_unicode(caption):
            skipped.append(Skipped(f"{name} caption {place}", "the caption is not valid UTF-8"))
        else:
            places.append(place)
            captions.append(caption)
    return places, captions, skipped


def safe_key(text: str) -> str:
    """`text` without dots, slashes, white space and control characters, which a sample's key must not hold."""
    return re.sub(r"[./\\\s\x00-\x1f\x7f]", "_", text)


def key_of_name(filename: str) -> str:
    """A sample's key from a file name: the path without its extension, and without dots, slashes and spaces."""
    path = Path(filename)
    return safe_key(str(path.parent / path.stem))


def is_int64(value: object) -> bool:
    """Whether `value` is an integer that an index can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def is_split_name(name: str) -> bool:
    """Whether `name` can name a folder and its shards."""
    return re.fullmatch(r"[\w-]+", name) is not None


def check_split_name(name: str, option: str) -> None:
    """Raise `DataError` naming `option` when `name` cannot name a split."""
    if not is_split_name(name):
        raise DataError(f"{option} {name!r}: a split's name is made of letters, digits, _ and -")


def open_text(path: Path, option: str) -> IO[str]:
    """Open a UTF-8 text file line by line; bytes that are no UTF-8 become surrogates (`is_unicode` tells).

    Raises `DataError` naming `option`.
    """
    try:
        return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except FileNotFoundError:
        raise DataError(f"{option} {path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{option} {path}: is a folder; give the file") from None
    except OSError as error:
        raise DataError(f"{option} {path}: cannot be read ({error.strerror})") from None


def file_identity(path: Path) -> dict[str, object]:
    """What tells one state of a file from another, for `Source.identity`."""
    state = path.stat()
    return {"path": str(path.absolute()), "bytes": state.st_size, "mtime_ns": state.st_mtime_ns}


def read_json(path: Path, option: str = "--annotations") -> Any:
    """Read a UTF-8 JSON file. Raises `DataError` naming `option`, or the place of the fault."""
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{option} {path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{option} {path}: is a folder; give the JSON file") from None
    except OSError as error:
        raise DataError(f"{option} {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 at byte {error.start:,} (0x{error.object[error.start]:02x}); convert it to UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise DataError(f"{path}: not JSON that can be read ({error})") from None


def describe(value: Any) -> str:
    """What a JSON value is, in a few words, for an error message."""
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(map(str, list(value)[:6])) or '(none)'}"
    return f"a {type(value).__name__}"
