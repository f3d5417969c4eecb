"""What may go wrong in a transfer: which errors pass, which stay, and how to tell them in one line."""

import sys

_LIBRARIES = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
    ("requests", "RequestException"),
    ("http.client", "HTTPException"),
)
"""Errors of the libraries beneath fsspec that are not all `OSError`."""

_WRONG_SETTINGS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError")
_PASSING_STATUS = (408, 425, 429)
"""Of 400 to 499: try later."""


def transfer_errors() -> tuple[type[Exception], ...]:
    """What a transfer may raise; anything else is a mistake in a program."""
    loaded = [getattr(sys.modules[module], name) for module, name in _LIBRARIES if sys.modules.get(module)]
    return (OSError, ValueError, ImportError, *loaded)


def is_permanent(error: Exception) -> bool:
    """Whether another attempt is bound to fail as well."""
    if isinstance(error, TimeoutError):
        return False
    if isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError, ValueError, ImportError)):
        return True
    status = http_status(error)
    if status is not None:
        return 400 <= status < 500 and status not in _PASSING_STATUS
    return type(error).__name__ in _WRONG_SETTINGS


def http_status(error: Exception) -> int | None:
    """The status of the answer that an error of a library reports."""
    if isinstance(response := getattr(error.__cause__, "response", None), dict):  # botocore's, translated by s3fs
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) or None
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            if isinstance(status := getattr(holder, name, None), int):
                return status
    return None


def describe(error: Exception, location: str) -> str:
    """What went wrong and, where that can be told, how to mend it; `location` stands before it."""
    lines = str(error).strip().splitlines()
    said = lines[0] if lines else type(error).__name__
    status = http_status(error)
    if status is not None and isinstance(reason := getattr(error, "message", None), str):  # aiohttp
        said = f"HTTP {status} {reason}".strip()
    more = "" if said in location else f" ({said})"
    if isinstance(error, ImportError):
        return f"a package is missing ({said}); http and s3 need `pip install 'itm-scale[remote]'`"
    if isinstance(error, FileNotFoundError):
        return f"no such file{more}"
    if isinstance(error, PermissionError) or status in (401, 403):
        return f"access is denied{more}; check the credentials"
    if status == 416:
        return "the file is shorter than its index says; index it again"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return said
