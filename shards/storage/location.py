"""Locations: paths of local files, or URLs of anything that fsspec opens (http, s3, memory, ...)."""

import re
from pathlib import Path

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_remote(location: str) -> bool:
    """Whether `location` is a URL."""
    return _URL.match(location) is not None


def join(base: str, path: str) -> str:
    """`path` as seen from the folder `base`; itself, where it is a URL or an absolute path."""
    if is_remote(path) or Path(path).is_absolute():
        return path
    return f"{base.rstrip('/')}/{path}" if is_remote(base) else str(Path(base) / path)
