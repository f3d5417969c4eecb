import pytest

from shards.errors import DataError
from shards.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("300MB", 300_000_000),
        ("1 GiB", 2**30),
        ("1.5g", 1_500_000_000),
        ("12kB", 12_000),
        ("64KiB", 65_536),
        ("2T", 2 * 10**12),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text, "--size") == size


@pytest.mark.parametrize("text", ["", "0", "-1MB", "MB", "3XB", "1e9", "1 GB GB", "0.1", "3IB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"--size .*: not a size; write one such as 300MB, 1GB or 1GiB"):
        parse_size(text, "--size")
