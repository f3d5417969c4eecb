"""Prototypes re-estimated and re-seeded; over several ranks: test_memory_ranks.py."""

import faiss
import pytest
import torch
from torch.nn.functional import normalize

from model.errors import ModelError
from model.memory.clustering import check_points, is_due, reestimate, reseed


def unit_rows(rows: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, width, generator=generator), dim=1)


def kmeans_with_loops(start: torch.Tensor, points: torch.Tensor, iterations: int) -> torch.Tensor:
    """Lloyd's algorithm on the sphere, float64, where no cluster is ever empty."""
    centroids = [row.double() for row in normalize(start.double(), dim=1)]
    for _ in range(iterations):
        members: list[list[torch.Tensor]] = [[] for _ in centroids]
        for point in points.double():
            cosines = [torch.dot(point, centroid).item() for centroid in centroids]
            members[cosines.index(max(cosines))].append(point)
        assert all(members)
        centroids = [(total := torch.stack(group).sum(dim=0)) / total.norm() for group in members]
    return torch.stack(centroids)


@pytest.mark.parametrize("iterations", [1, 4])
def test_reestimated_prototypes_are_those_of_the_loops(iterations: int) -> None:
    points = unit_rows(60, 4, 0)
    lengths = torch.linspace(0.5, 2, 5).unsqueeze(1)
    start = unit_rows(5, 4, 1) * lengths
    ours = reestimate(start, points, seed=0, iterations=iterations)
    torch.testing.assert_close(ours, (kmeans_with_loops(start, points, iterations) * lengths).float())


def test_prototypes_come_to_the_middle_of_their_own_clusters() -> None:
    centres = torch.eye(6)
    points = normalize(centres.repeat_interleave(50, 0) + 0.05 * unit_rows(300, 6, 0), dim=1)
    start = normalize(centres + 0.4 * unit_rows(6, 6, 1), dim=1)
    found = reestimate(start, points, seed=0)
    assert ((found * centres).sum(dim=1) > 0.999).all(), "each keeps its place"
    torch.testing.assert_close(torch.linalg.vector_norm(found, dim=1), torch.ones(6))


def test_every_point_counts() -> None:
    """faiss alone would leave out what is more than 256 points a cluster."""
    points = unit_rows(2000, 3, 0)
    start = unit_rows(2, 3, 1)
    expected = kmeans_with_loops(start, points, 1)
    torch.testing.assert_close(reestimate(start, points, seed=0, iterations=1), expected.float())


def test_one_seed_gives_the_same_bits_whatever_the_threads() -> None:
    points, start = unit_rows(3000, 32, 0), unit_rows(40, 32, 1)
    threads = faiss.omp_get_max_threads()
    try:
        found = []
        for count in (1, 2, 3, 1):
            faiss.omp_set_num_threads(count)
            found.append(reestimate(start, points, seed=7))
    finally:
        faiss.omp_set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_an_empty_cluster_takes_part_of_a_large_one() -> None:
    points = normalize(torch.tensor([1.0, 0, 0]) + 0.3 * unit_rows(200, 3, 0), dim=1)
    start = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])  # nothing is near the second
    found = reestimate(start, points, seed=0)
    nearest = (points @ found.T).argmax(dim=1).bincount(minlength=2)
    assert nearest.min() > 20


def test_a_queue_too_small_for_the_prototypes_is_a_users_error() -> None:
    check_points(2, 4)
    with pytest.raises(ModelError, match="holds 4 embeddings, fewer than the 5 prototypes"):
        check_points(2, 5)


DEAD = torch.tensor([False, True, False, True, False, True])
USAGE = torch.tensor([0.5, 0.01, 0.3, 0.0, 0.19, 0.0])


def test_dead_prototypes_are_put_beside_the_densest() -> None:
    prototypes = unit_rows(6, 8, 0) * torch.tensor([[2.0], [1], [0.5], [1], [1], [1]])
    found = reseed(prototypes, USAGE, DEAD, seed=3, step=100)
    assert torch.equal(found[~DEAD], prototypes[~DEAD]), "the living stay"
    # 0.5 is split first; then 0.3 is the largest; then the first of the quarters
    for row, donor in ((1, 0), (3, 2), (5, 0)):
        source = prototypes[donor]
        assert torch.linalg.vector_norm(found[row]).item() == pytest.approx(torch.linalg.vector_norm(source).item())
        cosine = torch.cosine_similarity(found[row], source, dim=0)
        assert 0.98 < cosine < 0.9999
    assert not torch.equal(found[1], found[5])


def test_the_offset_is_a_function_of_seed_step_and_prototype() -> None:
    prototypes = unit_rows(6, 8, 0)
    first = reseed(prototypes, USAGE, DEAD, seed=3, step=100)
    torch.manual_seed(99)
    assert torch.equal(reseed(prototypes, USAGE, DEAD, seed=3, step=100), first)
    for seed, step in ((4, 100), (3, 101)):
        other = reseed(prototypes, USAGE, DEAD, seed=seed, step=step)
        assert not (other[DEAD] == first[DEAD]).any()
    only_last = DEAD & (torch.arange(6) == 5)
    assert torch.equal(
        reseed(prototypes, USAGE, only_last, seed=3, step=100)[5] - prototypes[0], first[5] - prototypes[0]
    ), "whatever else is dead"


def test_without_a_dead_prototype_nothing_changes() -> None:
    prototypes = unit_rows(6, 8, 0)
    assert torch.equal(reseed(prototypes, USAGE, torch.zeros(6, dtype=torch.bool), seed=3, step=1), prototypes)


def test_all_dead_are_still_set_to_finite_directions() -> None:
    found = reseed(unit_rows(4, 8, 0), torch.zeros(4), torch.ones(4, dtype=torch.bool), seed=0, step=1)
    torch.testing.assert_close(torch.linalg.vector_norm(found, dim=1), torch.ones(4))


def test_what_happens_every_n_steps() -> None:
    assert [step for step in range(30) if is_due(step, 10, 5)] == [15, 20, 25]
    assert not any(is_due(step, 0, 0) for step in range(30))
