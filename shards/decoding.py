"""One kind of error for whatever a decoder of somebody else raises on damaged bytes."""

from collections.abc import Iterator
from contextlib import contextmanager


class DecodeError(ValueError):
    """Bytes that are no picture or no array, or a damaged one."""


@contextmanager
def decoding() -> Iterator[None]:
    """Turn every error of the block into `DecodeError`. Only for calls of a decoder, never for code of ours.

    What decoders raise is open-ended: fuzzed pictures gave RuntimeError, NotImplementedError, TypeError,
    struct.error, zlib.error and more, and one damaged picture among a million must not end a run.
    """
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(str(error) or type(error).__name__) from error
