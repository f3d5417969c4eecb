"""What of a data set the order of an epoch draws on at a time, which is what a cache of remote shards must hold."""

from shards.manifest import Manifest
from shards.order import LIVE_RUNS, RUN_LENGTH

SLACK = 1.25
"""For runs at the edges of windows, and for what an eviction frees beyond need."""


def working_set_bytes(manifest: Manifest) -> int:
    """Bytes of tars that all lanes together draw on at a time; of several nodes each needs only its share.

    A cache that holds them transfers each byte about once an epoch; one that is a little smaller, many times,
    because each block is dropped just before its next sample is read (`benchmarks/cache_size.py`).
    """
    samples, size = manifest.num_samples, int(manifest.bytes.sum())
    drawn_on = SLACK * LIVE_RUNS * RUN_LENGTH
    return size if drawn_on >= samples else int(size * drawn_on / samples)
