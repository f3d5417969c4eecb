"""Places of right items against sorting with loops, ties and all; one process and several."""

import multiprocessing as mp
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.spawn import spawn

from trainer.distributed import World
from trainer.evaluation import similarities
from trainer.evaluation.ranks import NOWHERE, Task, group, places
from trainer.evaluation.similarities import Similarities


def by_sorting(scores: list[float], right: list[int]) -> list[int]:
    """Places of the right items; of equal scores the wrong items come first."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], item in right))
    return [place for place, item in enumerate(order) if item in right]


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Queries and gallery as small integer vectors (exact scores, many ties), and each query's right items."""
    width, items = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    vector = st.lists(st.integers(-1, 1), min_size=width, max_size=width)
    queries = draw(st.lists(vector, min_size=1, max_size=6))
    gallery = draw(st.lists(vector, min_size=items, max_size=items))
    right = st.lists(st.integers(0, items - 1), min_size=1, unique=True)
    return queries, gallery, [draw(right) for _ in queries]


@given(rankings(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_places_of_all_right_items_are_those_of_sorting(
    case: tuple[list[list[int]], list[list[int]], list[list[int]]], by_text: bool
) -> None:
    queries, gallery, right = case
    table = np.array([one + [-1] * (len(gallery) - len(one)) for one in right])
    sides = [torch.tensor(queries).float()], [torch.tensor(gallery).float()]
    scores = Similarities(*(reversed(sides) if by_text else sides))
    rows = np.arange(len(queries))
    every, best = (Task(rows, table, 0, len(gallery), one) for one in (True, False))
    found, first = places(scores, [every, best], by_text=by_text)
    expected = [
        by_sorting([sum(a * b for a, b in zip(query, item, strict=True)) for item in gallery], own)
        for query, own in zip(queries, right, strict=True)
    ]
    assert [row[row < NOWHERE].tolist() for row in found] == expected
    assert first[:, 0].tolist() == [one[0] for one in expected]


def test_a_task_looks_at_its_own_queries_and_range_alone() -> None:
    images, texts = torch.eye(4), torch.eye(4)[[3, 0, 1, 2]]
    some = Task(np.array([0, 3]), np.array([[1], [2]]), 1, 3)
    (found,) = places(Similarities([images], [texts]), [some], by_text=False)
    assert found.tolist() == [[0], [1]]  # the caption of image 3 lies outside; what is left scores 0


def test_the_similarities_of_an_ensemble_are_added() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(5, width, generator=generator) for width in (3, 7)]
    texts = [torch.randn(9, width, generator=generator) for width in (3, 7)]
    both = Similarities(images, texts)
    expected = sum((a @ b.T for a, b in zip(images, texts, strict=True)), torch.zeros(5, 9))
    assert torch.allclose(both.block(False, 1, 4), expected[1:4])
    assert torch.allclose(both.block(True, 2, 9), expected.T[2:9])


def test_a_score_that_is_no_number_counts_against_the_model() -> None:
    texts = torch.tensor([[0.5], [float("nan")], [0.1]])
    task = Task(np.array([0]), np.array([[0]]), 0, 3)
    assert places(Similarities([torch.ones(1, 1)], [texts]), [task], by_text=False)[0].tolist() == [[1]]


def test_group_lists_the_members_of_each_group() -> None:
    groups, members = group(np.array([4, 1, 4, 4]))
    assert groups.tolist() == [1, 4]
    assert members.tolist() == [[1, -1, -1], [0, 2, 3]]


def _split() -> tuple[torch.Tensor, torch.Tensor, list[Task]]:
    generator = torch.Generator().manual_seed(1)
    images, texts = torch.randn(40, 8, generator=generator), torch.randn(90, 8, generator=generator)
    owner = np.arange(90) % 40
    rows, members = group(owner)
    return images, texts, [Task(rows, members, 0, 90), Task(rows[3:20:2], members[3:20:2], 0, 90, True)]


def _share(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    similarities.HELD, similarities.BLOCK = 0, 500  # as data too large to hold
    images, texts, tasks = _split()
    found = places(Similarities([images], [texts]), tasks, by_text=False, world=World(rank, 2))
    torch.save([torch.from_numpy(one) for one in found], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_share_the_work_and_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawn(_share, (str(tmp_path),), nprocs=2)
    assert not mp.active_children()
    monkeypatch.setattr(similarities, "HELD", 0)
    monkeypatch.setattr(similarities, "BLOCK", 500)
    images, texts, tasks = _split()
    alone = places(Similarities([images], [texts]), tasks, by_text=False)
    for rank in range(2):
        for one, other in zip(alone, torch.load(tmp_path / f"{rank}.pt"), strict=True):
            assert one.tolist() == other.tolist()
