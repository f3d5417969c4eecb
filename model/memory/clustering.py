"""Dynamic clustering: prototypes re-estimated by k-means, and dead ones re-seeded (all ours).

Both take the whole prototypes and return new ones, the same bits on every rank; the rows' lengths, which
decide how fast the optimiser turns them, are kept. Neither runs in every step.
"""

import numpy as np
import torch
import torch.nn.functional as F

from model.collectives import from_first, rank
from model.errors import ModelError


def check_points(queue_size: int, count: int) -> None:
    """Raise `ModelError` for a queue that never holds as many embeddings as there are prototypes."""
    if 2 * queue_size < count:
        raise ModelError(
            f"loss.prototypes.reestimate_every: the queue holds {2 * queue_size} embeddings, fewer than the "
            f"{count} prototypes; set a larger queue.size or a smaller prototypes.count"
        )


def is_due(step: int, start_step: int, every: int) -> bool:
    """Whether what happens every `every` steps from `start_step` on, 0 for never, happens after `step` steps."""
    return every > 0 and step > start_step and (step - start_step) % every == 0


@torch.no_grad()
def reestimate(
    prototypes: torch.Tensor, points: torch.Tensor | None, seed: int, iterations: int = 10
) -> torch.Tensor:
    """Spherical k-means over `points`, started from the prototypes, so that each keeps its place: (P, D).

    Rank 0 computes: on its GPU with a GPU build of faiss, else on the CPU, where the result does not depend on the
    number of threads. An empty cluster takes half of a large one, as faiss does. All ranks call it together.

    Args:
        prototypes: (P, D).
        points: (N, D) of length 1, N >= P; read on rank 0 alone.
        seed: of faiss; one seed gives one result.
        iterations: of Lloyd's algorithm.
    """
    directions = F.normalize(prototypes.float(), dim=1)
    if rank() == 0:
        assert points is not None
        assert len(points) >= len(prototypes), "check_points refuses such a recipe"
        directions.copy_(_spherical_kmeans(points, directions, seed, iterations))
    lengths = torch.linalg.vector_norm(prototypes, dim=1, keepdim=True)
    return from_first(directions.to(prototypes.dtype) * lengths)


def _spherical_kmeans(points: torch.Tensor, start: torch.Tensor, seed: int, iterations: int) -> torch.Tensor:
    import faiss

    kmeans = faiss.Kmeans(
        start.shape[1],
        start.shape[0],
        niter=iterations,
        spherical=True,
        seed=seed % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),  # else faiss leaves points out
        gpu=min(faiss.get_num_gpus(), 1),  # 0 in a CPU build, which would take no notice of gpu=True
    )
    kmeans.train(points.float().cpu().numpy(), init_centroids=start.cpu().numpy())
    return torch.from_numpy(kmeans.centroids)


@torch.no_grad()
def reseed(
    prototypes: torch.Tensor, usage: torch.Tensor, dead: torch.Tensor, seed: int, step: int, spread: float = 0.1
) -> torch.Tensor:
    """Put each dead prototype beside the densest: (P, D).

    The densest is the one with the largest share of the samples; what it gives away halves its share, so
    several dead ones spread over the dense. The offset is random, a function of (seed, step, prototype).
    All ranks call it together.

    Args:
        prototypes: (P, D).
        usage: (P,) shares of the samples.
        dead: (P,) bool.
        seed: of the run.
        step: the optimiser step.
        spread: length of the offset, relative to the prototype's.
    """
    share = np.where(dead.cpu().numpy(), 0, usage.double().cpu().numpy())
    origin = np.arange(len(share))
    renewed = prototypes.clone()
    for row in dead.nonzero().flatten().tolist():
        densest = int(share.argmax())
        share[[densest, row]] = share[densest] / 2
        origin[row] = origin[densest]
        noise = np.random.default_rng([seed, step, row]).standard_normal(prototypes.shape[1])
        source = prototypes[origin[row]]
        offset = F.normalize(torch.from_numpy(noise).to(source), dim=0) * spread
        renewed[row] = F.normalize(F.normalize(source, dim=0) + offset, dim=0) * torch.linalg.vector_norm(source)
    return from_first(renewed)
