"""The one exception with which this package tells a user what to mend."""


class RunError(Exception):
    """A user's mistake: one line that says what is wrong, where, and how to mend it."""
