"""Word-region relevance against one written with loops, in float64."""

from dataclasses import dataclass

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.aahr.relevance import FragmentRelevance, fragment_maxima
from model.config import RelationsConfig

TOP = 10
CASES = {
    "more than ten of both": (13, 12, True),
    "fewer than ten of both": (4, 3, True),
    "all valid": (11, 5, False),
}
"""Regions, words, and whether some of them are padding."""


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@dataclass
class Fragments:
    regions: torch.Tensor
    words: torch.Tensor
    region_valid: torch.Tensor | None
    word_valid: torch.Tensor | None


def fragments(regions: int, words: int, padded: bool, images: int = 4, texts: int = 4) -> Fragments:
    """Some with a single valid one; padding anywhere."""
    if not padded:
        return Fragments(random(images, regions, 6, seed=1), random(texts, words, 6, seed=2), None, None)
    region_valid, word_valid = random(images, regions, seed=3) > -0.5, random(texts, words, seed=4) > -0.5
    region_valid[0], word_valid[1] = torch.arange(regions) == 2, torch.arange(words) == 0
    region_valid[1], word_valid[0] = True, True
    return Fragments(random(images, regions, 6, seed=1), random(texts, words, 6, seed=2), region_valid, word_valid)


def cut(items: torch.Tensor, valid: torch.Tensor | None, number: int) -> torch.Tensor:
    return items[number] if valid is None else items[number][valid[number]]


def best_with_loops(regions: torch.Tensor, words: torch.Tensor) -> tuple[list[float], list[float]]:
    """One image and one text, without padding: each region's best word, each word's best region."""
    s = torch.empty(len(regions), len(words), dtype=torch.float64)
    for r, region in enumerate(regions):
        for w, word in enumerate(words):
            cosine = torch.dot(region, word) / (region.norm() * word.norm())
            s[r, w] = cosine if cosine > 0 else 0.1 * cosine
    by_region, by_word = [], []
    for r in range(len(regions)):
        by_region.append(max(float(s[r, w] / (s[:, w] ** 2).sum().sqrt()) for w in range(len(words))))
    for w in range(len(words)):
        by_word.append(max(float(s[r, w] / (s[r, :] ** 2).sum().sqrt()) for r in range(len(regions))))
    return by_region, by_word


def maxima_with_loops(f: Fragments) -> list[torch.Tensor]:
    """i2t_mean, i2t_largest, t2i_mean, t2i_largest."""
    n, m = len(f.regions), len(f.words)
    i2t_mean, i2t_largest = torch.zeros(n, m, dtype=torch.float64), torch.zeros(n, m, TOP, dtype=torch.float64)
    t2i_mean, t2i_largest = torch.zeros(m, n, dtype=torch.float64), torch.zeros(m, n, TOP, dtype=torch.float64)
    for i in range(n):
        for j in range(m):
            by_region, by_word = best_with_loops(cut(f.regions, f.region_valid, i), cut(f.words, f.word_valid, j))
            i2t_mean[i, j], t2i_mean[j, i] = sum(by_region) / len(by_region), sum(by_word) / len(by_word)
            for place, value in enumerate(sorted(by_region, reverse=True)[:TOP]):
                i2t_largest[i, j, place] = value
            for place, value in enumerate(sorted(by_word, reverse=True)[:TOP]):
                t2i_largest[j, i, place] = value
    return [i2t_mean, i2t_largest, t2i_mean, t2i_largest]


def maxima(f: Fragments, tile: int = 3) -> tuple[torch.Tensor, ...]:
    return fragment_maxima(f.regions, f.words, f.region_valid, f.word_valid, tile)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_maxima_are_those_of_the_loops(case: tuple[int, int, bool]) -> None:
    f = fragments(*case, images=4, texts=5)
    for ours, expected in zip(maxima(f), maxima_with_loops(f), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)


def test_maxima_are_the_same_at_any_tile() -> None:
    f = fragments(13, 12, True, texts=7)
    for tile in (1, 2, 7, 100):
        for ours, expected in zip(maxima(f, tile), maxima(f, 3), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)


def test_padded_fragments_change_nothing() -> None:
    f = fragments(13, 12, True)
    assert f.region_valid is not None
    assert f.word_valid is not None
    other = Fragments(
        torch.where(f.region_valid.unsqueeze(-1), f.regions, 1e6 * f.regions.flip(-1)),
        torch.where(f.word_valid.unsqueeze(-1), f.words, torch.nan),
        f.region_valid,
        f.word_valid,
    )
    for ours, expected in zip(maxima(other), maxima(f), strict=True):
        assert torch.equal(ours, expected)


def test_fragments_of_length_zero_and_opposite_ones_stay_finite() -> None:
    words = random(3, 4, 6, seed=1)
    for regions in (torch.zeros(3, 5, 6, dtype=torch.float64), -words[:, :1].repeat(1, 5, 1)):
        for values in fragment_maxima(regions, words, None, None, 2):
            assert torch.isfinite(values).all()
    zero = fragment_maxima(torch.zeros(3, 5, 6, dtype=torch.float64), words, None, None, 2)
    assert not torch.stack([zero.i2t_mean, zero.t2i_mean]).any()


def test_bfloat16_fragments_are_compared_in_float32() -> None:
    f = fragments(13, 12, True)
    rounded = Fragments(f.regions.bfloat16(), f.words.bfloat16(), f.region_valid, f.word_valid)
    exact = Fragments(rounded.regions.double(), rounded.words.double(), f.region_valid, f.word_valid)
    for ours, expected in zip(maxima(rounded), maxima(exact), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-6)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation makes."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.values = max(self.values, tensor.numel())
        return result


@pytest.mark.parametrize("tile", [1, 4])
def test_memory_is_one_tile_of_the_similarities_and_nothing_of_them_is_kept(tile: int) -> None:
    n, regions, words = 16, 40, 30
    f = fragments(regions, words, False, images=n, texts=n)
    relevance = FragmentRelevance(RelationsConfig(group=n, tile=tile)).double()
    kept: list[int] = []
    with (
        Largest() as largest,
        torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t),
    ):
        cross = relevance(f.regions, f.words, None, None, torch.ones(n, dtype=torch.bool))
        (cross.i2t.sum() + cross.t2i.sum()).backward()
    assert largest.values == tile * n * regions * words
    assert max(kept) == n * n * TOP


def settings(kind: str = "learned", group: int = 4) -> RelationsConfig:
    return RelationsConfig.model_validate({"group": group, "relevance": kind, "tile": 3})


def mlp(layers: torch.nn.Sequential, largest: torch.Tensor) -> torch.Tensor:
    first, _, second = layers
    hidden = largest @ first.weight.T + first.bias
    return (torch.where(hidden > 0, hidden, 0) @ second.weight.T + second.bias).squeeze(-1)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_learned_relevance_is_the_average_and_the_mlp_on_the_ten_largest(case: tuple[int, int, bool]) -> None:
    torch.manual_seed(0)
    relevance, f = FragmentRelevance(settings()).double(), fragments(*case)
    assert relevance.i2t is not relevance.t2i
    cross = relevance(f.regions, f.words, f.region_valid, f.word_valid, torch.ones(4, dtype=torch.bool))
    i2t_mean, i2t_largest, t2i_mean, t2i_largest = maxima_with_loops(f)
    expected = i2t_mean + mlp(relevance.i2t, i2t_largest), t2i_mean + mlp(relevance.t2i, t2i_largest)
    weights = random(4, 4, seed=8), random(4, 4, seed=9)
    mine, theirs = (
        torch.autograd.grad(sum((s * w).sum() for s, w in zip(sides, weights, strict=True)), relevance.parameters())
        for sides in ((cross.i2t[0], cross.t2i[0]), expected)
    )
    for ours, other in zip((*cross, *mine), (*expected, i2t_mean, t2i_mean, *theirs), strict=True):
        torch.testing.assert_close(ours.squeeze(0) if ours.ndim == 3 else ours, other, rtol=0, atol=1e-12)


def test_fragments_get_no_gradient_and_the_average_has_no_parameters() -> None:
    f, valid = fragments(13, 12, True), torch.ones(4, dtype=torch.bool)
    f.regions.requires_grad_()
    f.words.requires_grad_()
    average, learned = FragmentRelevance(settings("average")).double(), FragmentRelevance(settings()).double()
    assert not list(average.parameters())
    plain = average(f.regions, f.words, f.region_valid, f.word_valid, valid)
    assert not any(part.requires_grad for part in plain)
    assert torch.equal(plain.i2t, plain.i2t_mean)
    assert torch.equal(plain.t2i, plain.t2i_mean)
    cross = learned(f.regions, f.words, f.region_valid, f.word_valid, valid)
    (cross.i2t.sum() + cross.t2i.sum()).backward()
    assert f.regions.grad is None
    assert f.words.grad is None
    assert all(parameter.grad is not None for parameter in learned.parameters())


@pytest.mark.parametrize("kind", ["average", "learned"])
def test_a_filling_pair_is_zero_and_reaches_neither_values_nor_gradients(kind: str) -> None:
    torch.manual_seed(0)
    relevance, f = FragmentRelevance(settings(kind)).double(), fragments(13, 12, True)
    valid = torch.tensor([True, True, False, True])

    def found(regions: torch.Tensor, words: torch.Tensor) -> list[torch.Tensor]:
        cross = relevance(regions, words, f.region_valid, f.word_valid, valid)
        if kind == "average":
            return list(cross)
        return [*cross, *torch.autograd.grad(cross.i2t.sum() + cross.t2i.sum(), relevance.parameters())]

    other = f.regions.clone(), f.words.clone()
    other[0][2], other[1][2] = torch.nan, 7.0
    before, after = found(f.regions, f.words), found(*other)
    for part in after[:4]:
        assert not part[0, 2].any()
        assert not part[0, :, 2].any()
        assert part[0, 0, 1] != 0
    for one, two in zip(before, after, strict=True):
        assert torch.equal(one, two)


def test_groups_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    relevance, f = FragmentRelevance(settings()).double(), fragments(6, 5, True, images=8, texts=8)
    valid = torch.ones(8, dtype=torch.bool)
    together = relevance(f.regions, f.words, f.region_valid, f.word_valid, valid)
    assert together.i2t.shape == (2, 4, 4)
    for number in range(2):
        rows = slice(4 * number, 4 * number + 4)
        alone = relevance(f.regions[rows], f.words[rows], f.region_valid[rows], f.word_valid[rows], valid[rows])
        for all_groups, own in zip(together, alone, strict=True):
            torch.testing.assert_close(all_groups[number], own[0], rtol=0, atol=1e-14)
