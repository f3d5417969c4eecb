"""What this package raises at a user's mistake, or at a file that is not what it should be."""

import json


class DataError(Exception):
    """One clear line: what is wrong, where, and how to mend it."""


def told(error: Exception) -> str:
    """What went wrong in a file that is not of the expected layout, for users who do not know Python."""
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON, line {error.lineno}: {error.msg}" if error.doc.strip() else "it is empty"
    if isinstance(error, KeyError):
        return f"it has no `{error.args[0]}`"
    if isinstance(error, TypeError):  # a list where an object should be, and the like
        return "another layout"
    return str(error)


class SampleError(DataError):
    """One sample is damaged or does not decode; the others can be read."""
