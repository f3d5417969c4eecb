"""What this package raises at a user's mistake, or at a file that is not what it should be."""


class DataError(Exception):
    """One clear line: what is wrong, where, and how to mend it."""


class SampleError(DataError):
    """One sample is damaged or does not decode; the others can be read."""
