"""Locations: paths of local files, or URLs of anything that fsspec opens (http, s3, memory, ...)."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from shards.errors import DataError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_remote(location: str) -> bool:
    """Whether `location` is a URL."""
    return _URL.match(location) is not None


def resolve(location: str) -> str:
    """`location`, a `file://` URL as the path that it stands for. Raises `DataError` where it stands for none."""
    if not location.lower().startswith("file://"):
        return location
    url = urlsplit(location)
    if url.netloc not in ("", "localhost"):
        raise DataError(f"{location}: the URL of a file has three slashes and an absolute path, file:///a/b")
    return unquote(url.path)


def join(base: str, path: str) -> str:
    """`path` as seen from the folder `base`; itself, where it is a URL or an absolute path."""
    path = resolve(path)
    if is_remote(path) or Path(path).is_absolute():
        return path
    return f"{base.rstrip('/')}/{path}" if is_remote(base) else str(Path(base) / path)
