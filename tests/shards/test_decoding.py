import struct

import pytest

from shards.decoding import DecodeError, decoding


@pytest.mark.parametrize("error", [RuntimeError("x"), NotImplementedError("x"), struct.error("x"), OSError("x")])
def test_any_error_becomes_one_kind_with_its_text_and_its_cause(error: Exception) -> None:
    with pytest.raises(DecodeError, match=r"^x$") as raised, decoding():
        raise error
    assert raised.value.__cause__ is error


def test_an_error_without_a_text_is_told_by_its_name() -> None:
    with pytest.raises(DecodeError, match=r"^MemoryError$"), decoding():
        raise MemoryError


def test_what_is_a_decode_error_already_stays_as_it_is() -> None:
    with pytest.raises(DecodeError, match=r"^first$") as raised, decoding(), decoding():
        raise DecodeError("first")
    assert raised.value.__cause__ is None


def test_an_interruption_is_no_decode_error() -> None:
    with pytest.raises(KeyboardInterrupt), decoding():
        raise KeyboardInterrupt
