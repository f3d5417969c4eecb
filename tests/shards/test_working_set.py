from dataclasses import replace

import numpy as np
import pytest

from benchmarks.cache_size import needed_blocks, transferred
from shards.working_set import working_set_bytes
from tests.shards.fakes import fake_manifest


@pytest.mark.parametrize(("shards", "per_shard"), [(260, 10_000), (1500, 1000)])
def test_a_cache_of_that_size_transfers_each_byte_about_once(shards: int, per_shard: int) -> None:
    total = shards * per_shard
    manifest = replace(
        fake_manifest([]), samples=np.full(shards, per_shard), bytes=np.full(shards, per_shard)
    )  # one byte a sample
    needs = needed_blocks(shards, per_shard)
    need = working_set_bytes(manifest)
    assert need < total
    assert transferred(needs, int(0.95 * need)) < 1.05 * total, "an eviction may free a twentieth too much"
    assert transferred(needs, need // 2) > 5 * total


def test_of_a_small_data_set_all_is_needed() -> None:
    sizes = np.array([30_000, 50_000])
    assert working_set_bytes(replace(fake_manifest([]), samples=sizes, bytes=7 * sizes)) == 7 * 80_000
