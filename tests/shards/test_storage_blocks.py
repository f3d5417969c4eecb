from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.storage import blocks
from shards.storage.blocks import BlockTable, block_starts

SIZES = st.lists(st.integers(1, 3 * blocks.BYTES), min_size=1, max_size=60) | st.lists(
    st.integers(1, 200_000), min_size=500, max_size=1100
)


def laid_out(sizes: list[int], gaps: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and sizes of samples with `gaps`, repeated as needed, before them."""
    size = np.array(sizes, np.int64)
    before = np.resize(np.array(gaps, np.int64), len(sizes))
    return np.cumsum(size + before) - size, size


@settings(max_examples=80, deadline=None)
@given(SIZES, st.lists(st.sampled_from([0, 0, 0, 512, blocks.GAP, blocks.GAP + 1]), min_size=1, max_size=5))
def test_blocks_cut_a_shard_within_their_bounds(sizes: list[int], gaps: list[int]) -> None:
    offsets, size = laid_out(sizes, gaps)
    starts = block_starts(offsets, size).tolist()
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    for first, after in zip(starts, [*starts[1:], len(sizes)], strict=True):
        assert first // blocks.ROWS == (after - 1) // blocks.ROWS
        assert after == first + 1 or offsets[after - 1] + size[after - 1] - offsets[first] <= blocks.BYTES
        assert (offsets[first + 1 : after] - (offsets + size)[first : after - 1] <= blocks.GAP).all()


def test_blocks_are_few_and_about_equal() -> None:
    offsets, sizes = laid_out([100_000] * 1024, [0])
    starts = block_starts(offsets, sizes)
    lengths = np.diff([*starts.tolist(), 1024])
    assert len(starts) == 8, "51.2 MB a group of 512 samples, at most 16 MiB a block"
    assert lengths.max() - lengths.min() <= 4


def index(crc32: int = 0) -> SimpleNamespace:
    offsets, sizes = laid_out([1000] * 1300, [0])
    checksums = np.full(1300, crc32, np.uint32)

    class Index(SimpleNamespace):
        def __len__(self) -> int:
            return 1300

    return Index(offsets=offsets, sizes=sizes, crc32=checksums)


@pytest.mark.parametrize(
    ("first", "last", "found"),
    [(0, 1, [0]), (511, 512, [0]), (512, 513, [512]), (511, 513, [0, 512]), (0, 1300, [0, 512, 1024])],
)
def test_the_blocks_between_two_rows(first: int, last: int, found: list[int]) -> None:
    table = BlockTable("http://host/a.tar", index())  # type: ignore[arg-type]
    assert [block.first for block in table.between(first, last)] == found
    assert table.holding(first) is table.between(first, last)[0]


def test_other_bytes_have_another_key() -> None:
    tables = [
        BlockTable("http://host/a.tar", index()),  # type: ignore[arg-type]
        BlockTable("http://host/b.tar", index()),  # type: ignore[arg-type]
        BlockTable("http://host/a.tar", index(crc32=1)),  # type: ignore[arg-type]
    ]
    keys = [table.holding(row).key for table in tables for row in (0, 600)]
    assert len(set(keys)) == 6
    again = BlockTable("http://host/a.tar", index())  # type: ignore[arg-type]
    assert again.holding(600).key == keys[1]
