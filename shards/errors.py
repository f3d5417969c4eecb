"""The one exception with which this package tells a user what to mend."""


class DataError(Exception):
    """A user's mistake about data: one line that says what is wrong, where, and how to mend it."""
