"""Word-region relevance of a group beside the loop over captions of SCAN-style code, one thread.

`relevance.py [PAIRS REGIONS WORDS WIDTH ROUNDS]`: the learned relevance of both directions, forward, and forward
and backward with the fragments detached, as both do it. Every caption has all its words, the loop's best case.
"""

import resource
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from model.aahr.relevance import TOP, FragmentRelevance
from model.config import RelationsConfig

Sides = tuple[torch.Tensor, torch.Tensor]


def with_a_loop(relevance: FragmentRelevance, regions: torch.Tensor, words: torch.Tensor) -> Sides:
    """For each caption: all images at once, both norms, the maxima, their means and the ten largest."""
    regions = F.normalize(regions, dim=-1)
    i2t, i2t_largest, t2i, t2i_largest = [], [], [], []
    for caption in words:
        repeated = F.normalize(caption.repeat(len(regions), 1, 1), dim=-1)
        similarity = F.leaky_relu(torch.bmm(repeated, regions.transpose(1, 2)), 0.1)
        by_word = F.normalize(similarity, dim=1).max(dim=2)[0]
        by_region = F.normalize(similarity, dim=2).max(dim=1)[0]
        t2i.append(by_word.mean(dim=1))
        t2i_largest.append(by_word.topk(TOP, dim=1)[0])
        i2t.append(by_region.mean(dim=1))
        i2t_largest.append(by_region.topk(TOP, dim=1)[0])
    assert relevance.i2t is not None
    assert relevance.t2i is not None
    return (
        torch.stack(i2t, 1) + relevance.i2t(torch.stack(i2t_largest, 1)).squeeze(-1),
        torch.stack(t2i) + relevance.t2i(torch.stack(t2i_largest)).squeeze(-1),
    )


def as_here(relevance: FragmentRelevance, regions: torch.Tensor, words: torch.Tensor) -> Sides:
    cross = relevance(regions, words, None, None, torch.ones(len(words), dtype=torch.bool))
    return cross.i2t[0], cross.t2i[0]


def seconds(step: Callable[[], object]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def megabytes() -> float:
    """The largest that this process has been."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(pairs: int = 128, regions: int = 36, words: int = 24, width: int = 1024, rounds: int = 7) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    relevance = FragmentRelevance(RelationsConfig(group=pairs))
    fragments = torch.randn(pairs, regions, width), torch.randn(pairs, words, width)
    before = megabytes()
    ours = as_here(relevance, *fragments)
    print(f"one tile of {relevance.tile} texts: {megabytes() - before:.0f} MB more at the peak")
    apart = max(
        float((a - b).detach().abs().max()) for a, b in zip(ours, with_a_loop(relevance, *fragments), strict=True)
    )
    print(f"both agree to {apart:.1e}")

    def forward(relate: Callable[..., Sides]) -> None:
        relate(relevance, *fragments)

    def both(relate: Callable[..., Sides]) -> None:
        i2t, t2i = relate(relevance, *fragments)
        (i2t.sum() + t2i.sum()).backward()

    for name, step in (("forward", forward), ("forward and backward", both)):
        # one after the other, so that what else the machine does meets both
        times = [(seconds(lambda: step(with_a_loop)), seconds(lambda: step(as_here))) for _ in range(rounds)]  # noqa: B023
        loop, here = (sorted(column)[rounds // 2] for column in zip(*times, strict=True))
        print(f"{name}: loop {1000 * loop:.0f} ms, here {1000 * here:.0f} ms, {loop / here:.1f} times as fast")
    cosines = torch.randn(pairs * words, width), torch.randn(width, pairs * regions)
    floor = sorted(seconds(lambda: cosines[0] @ cosines[1]) for _ in range(rounds))[rounds // 2]
    print(f"the matrix product alone: {1000 * floor:.0f} ms")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
