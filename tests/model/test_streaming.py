"""What is gathered from tiles is what the whole matrix gives."""

import pytest
import torch
from torch.nn.functional import normalize

from model.losses.streaming import Hardest, MostSimilar, SoftTargets

B, K, D = 4, 23, 6


def rows(number: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(number, D, dtype=torch.float64, generator=generator), dim=1)


@pytest.fixture
def similarity() -> torch.Tensor:
    values = rows(B, 0) @ rows(K, 1).T
    values[0, 5:20] = -torch.inf
    values[3] = -torch.inf
    return values


TILES = pytest.mark.parametrize("size", [1, 5, K, 100])


@TILES
def test_hardest(similarity: torch.Tensor, size: int) -> None:
    hardest = Hardest(rows(B, 0))
    for first in range(0, K, size):
        hardest.add(similarity[:, first : first + size], first)
    assert hardest.found.tolist() == [True, True, True, False]
    assert torch.equal(hardest.row[:3], similarity[:3].argmax(dim=1))


@TILES
@pytest.mark.parametrize("k", [1, 3, 10, K])
def test_most_similar(similarity: torch.Tensor, size: int, k: int) -> None:
    similar = MostSimilar(rows(B, 0), k)
    for first in range(0, K, size):
        similar.add(similarity[:, first : first + size], first)
    for row in range(B):
        found = set(similar.rows[row][similar.found[row]].tolist())
        ranked = sorted(range(K), key=lambda key: -similarity[row, key])[:k]
        assert found == {key for key in ranked if similarity[row, key] > -torch.inf}
        assert int(similar.found[row].sum()) == len(found)


@TILES
@pytest.mark.parametrize("temperature", [1.0, 0.07, 1e-4], ids=["flat", "usual", "all but one underflow"])
def test_soft_targets(similarity: torch.Tensor, size: int, temperature: float) -> None:
    anchors, matches, keys = rows(B, 0).requires_grad_(), rows(B, 2), rows(K, 1)
    weights = torch.rand(B, K, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weights[weights < 0.8] = 0
    weights[similarity == -torch.inf] = 0
    soft = SoftTargets(anchors.detach(), matches, temperature)
    for first in range(0, K, size):
        part = slice(first, first + size)
        soft.add(similarity[:, part], weights[:, part], keys[part])
    loss = soft.loss(anchors)

    expected = []
    for i in range(B):
        vectors, target = [matches[i]], [1.0]
        for j in range(K):
            if similarity[i, j] > -torch.inf:
                vectors.append(keys[j])
                target.append(float(weights[i, j]))
        log_softmax = torch.log_softmax(torch.stack(vectors) @ anchors[i] / temperature, dim=0)
        expected.append(-sum(q * term for q, term in zip(target, log_softmax, strict=True)) / sum(target))
    tolerance = 1e-13 / temperature
    torch.testing.assert_close(loss, torch.stack(expected), rtol=0, atol=tolerance)
    factors = torch.arange(1.0, B + 1)
    (ours,) = torch.autograd.grad((loss * factors).sum(), anchors)
    (theirs,) = torch.autograd.grad((torch.stack(expected) * factors).sum(), anchors)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=10 * tolerance)
