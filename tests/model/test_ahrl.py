"""AHRL against a version written with loops, in float64, draws and soft positives included."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import AhrlConfig
from model.losses.ahrl import AhrlResult, ahrl
from model.losses.hinge import hinge_loss
from model.losses.mining import mine
from model.losses.pairs import Memory, Pairs
from model.losses.running_quantile import RunningQuantile
from shards.keyed_random import key_of, mix_int

B, G, M, D = 5, 10, 40, 4
SEED, STEP = 11, 7
IDS = [0, 1, 2, 2, 4, 5, 6, 0, 8, 9]
VALID = [True] * 9 + [False]
THRESHOLD = torch.tensor(0.55)
CONFIG = AhrlConfig(candidates=6, mining_weight=0.5, temperature=0.3)
ONLY_HARD = AhrlConfig(candidate=False, pair=False, adaptive=False, mining=False)


def unit_rows(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, D, dtype=torch.float64, generator=generator), dim=1)


def near(rows: torch.Tensor, seed: int, spread: float) -> torch.Tensor:
    return normalize(rows + spread * unit_rows(len(rows), seed), dim=1)


class Case:
    """Ten pairs, this rank's from 3 to 7, their momentum keys, and a queue that holds some of their images."""

    def __init__(self, filled: int = M, first: int = 3, own: int = B) -> None:
        images, ids, valid = unit_rows(G, 0), torch.tensor(IDS), torch.tensor(VALID)
        texts = near(images, 1, 0.9)
        queue = unit_rows(M, 2)
        rows = slice(first, first + own)
        # leaves of their own, so that each way of the gradient is seen
        self.leaves = [t.clone().requires_grad_() for t in (images[rows], texts[rows], images, texts)]
        self.own = Pairs(self.leaves[0], self.leaves[1], ids[rows], valid[rows])
        self.batch = Pairs(self.leaves[2], self.leaves[3], ids, valid)
        key_images, key_texts = near(images, 3, 0.3), near(texts, 4, 0.3)
        self.memory = Memory(
            Pairs(key_images[rows], key_texts[rows], ids[rows], valid[rows]),
            Pairs(key_images, key_texts, ids, valid),
            Pairs(queue, near(queue, 5, 0.6), torch.arange(M) % 23 + 2, torch.arange(M) < filled),
        )
        self.positions = torch.arange(first, first + own)

    def ours(
        self,
        config: AhrlConfig = CONFIG,
        threshold: torch.Tensor = THRESHOLD,
        tile_entries: int = 35,
        step: int = STEP,
    ) -> AhrlResult:
        return ahrl(
            self.own,
            self.batch,
            self.positions,
            self.memory,
            threshold,
            config,
            seed=SEED,
            step=step,
            tile_entries=tile_entries,
        )


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def drawn(similar: list[tuple[float, int]], config: AhrlConfig, position: int, side: int) -> int | None:
    key = int(key_of(SEED, STEP, side, position))
    slots = [slot for _, slot in sorted(similar, reverse=True)[: config.candidates]]
    return max(slots, key=lambda slot: signed(mix_int(key ^ mix_int(slot))), default=None)


def ahrl_with_loops(case: Case, config: AhrlConfig, threshold: float) -> tuple[list[torch.Tensor], list[int]]:
    """The loss of each own pair, and how many soft positives it has."""
    own, batch, memory, queue = case.own, case.batch, case.memory, case.memory.queue
    filled = any(queue.valid)
    values, mined = [], []
    for i in range(len(own)):
        match = torch.dot(own.images[i], own.texts[i])
        if not own.valid[i]:
            values.append(match * 0)
            mined.append(0)
            continue

        def agreement(keys: Pairs, j: int, i: int = i) -> float:
            of_images = torch.dot(memory.own.images[i], keys.images[j])
            return float(torch.minimum(of_images, torch.dot(memory.own.texts[i], keys.texts[j])))

        def others(pairs: Pairs, i: int = i) -> list[int]:
            return [j for j in range(len(pairs)) if pairs.valid[j] and pairs.ids[j] != own.ids[i]]

        soft = {
            (where, j): agreement(keys, j)
            for where, keys in (("batch", memory.batch), ("queue", queue))
            for j in others(keys)
            if config.mining and filled and agreement(keys, j) >= max(threshold, config.min_agreement, 1e-300)
        }
        mined.append(len(soft))
        sides = (
            (own.images[i], batch.texts, memory.own.texts[i], memory.batch.texts, queue.texts),
            (own.texts[i], batch.images, memory.own.images[i], memory.batch.images, queue.images),
        )
        candidates = []
        for side, (anchor, _, _, _, slots) in enumerate(sides):
            similar = [
                (float(torch.dot(anchor, slots[j]).detach()), j) for j in others(queue) if ("queue", j) not in soft
            ]
            candidates.append(drawn(similar, config, int(case.positions[i]), side))
        total = match * 0
        for (anchor, items, own_key, batch_keys, slots), c in zip(sides, candidates, strict=True):
            negatives = [torch.dot(anchor, items[j]) for j in others(batch) if ("batch", j) not in soft]
            penalty = 1.0
            if negatives:
                hardest = max(negatives)
                if config.adaptive and c is not None:
                    gap = float((torch.dot(anchor, slots[c]) - hardest).detach())
                    penalty = min(max(config.beta - gap / config.alpha, 0.0), config.max_penalty)
                if config.hard and config.margin + hardest - match > 0:
                    total = total + penalty * (config.margin + hardest - match)
            if config.candidate and c is not None:
                violation = config.candidate_margin + torch.dot(anchor, slots[c]) - match
                total = total + (violation if violation > 0 else 0)
            t, v = candidates
            if config.pair and t is not None and v is not None and queue.ids[t] != queue.ids[v]:
                violation = config.candidate_margin + torch.dot(queue.images[v], queue.texts[t]) - match
                total = total + (violation if violation > 0 else 0)
            if config.mining and filled:
                vectors, weights = [own_key], [1.0]
                for where, keys, pairs in (("batch", batch_keys, batch), ("queue", slots, queue)):
                    for j in others(pairs):
                        vectors.append(keys[j])
                        weights.append(soft.get((where, j), 0.0))
                log_softmax = torch.log_softmax(torch.stack(vectors) @ anchor / config.temperature, dim=0)
                cross = -sum(w * term for w, term in zip(weights, log_softmax, strict=True)) / sum(weights)
                total = total + config.mining_weight * cross
        values.append(total)
    return values, mined


LEVELS = {
    "all": {},
    "hard alone": {"candidate": False, "pair": False, "adaptive": False, "mining": False},
    "no hard": {"hard": False},
    "no candidate": {"candidate": False},
    "no pair": {"pair": False},
    "no adaptive": {"adaptive": False},
    "no mining": {"mining": False},
    "mining alone": {"hard": False, "candidate": False, "pair": False, "adaptive": False},
    "all with margins": {"candidate_margin": 0.3, "margin": 0.6},
    "a heavy penalty": {"alpha": 0.01, "max_penalty": 9.0},
    "all entries are candidates": {"candidates": 1000},
    "one candidate": {"candidates": 1},
    "a floor for the agreement": {"min_agreement": 0.8},
}


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("filled", [M, 3, 0], ids=["full queue", "three entries", "empty queue"])
def test_values_and_gradients_are_those_of_the_loops(levels: dict[str, object], filled: int) -> None:
    config, case = CONFIG.model_copy(update=levels), Case(filled)
    result = case.ours(config)
    values, mined = ahrl_with_loops(case, config, float(THRESHOLD))
    expected = torch.stack(values)
    assert result.soft_positives.tolist() == mined
    torch.testing.assert_close(result.loss, expected, rtol=0, atol=1e-12)
    factors = torch.arange(1.0, B + 1)
    ours = torch.autograd.grad((result.loss * factors).sum(), case.leaves, materialize_grads=True)
    theirs = torch.autograd.grad((expected * factors).sum(), case.leaves, materialize_grads=True)
    for mine_, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine_, other, rtol=0, atol=1e-12)


def test_the_case_has_all_that_the_levels_look_for() -> None:
    result = Case().ours(CONFIG.model_copy(update={"candidate_margin": 0.3}))
    for part in (result.hard, result.candidate, result.pair, result.mining):
        assert (part > 0).any()
    assert 0 < result.soft_positives.sum() < B * M / 2
    assert len(set(result.penalty.tolist())) > 3
    total = result.hard + result.candidate + result.pair + CONFIG.mining_weight * result.mining
    torch.testing.assert_close(total, result.loss.detach(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("with_memory", [True, False])
def test_with_the_other_levels_off_it_is_the_vse_hinge(with_memory: bool) -> None:
    case = Case(own=6)
    memory = case.memory if with_memory else None
    config = ONLY_HARD if with_memory else CONFIG
    result = ahrl(case.own, case.batch, case.positions, memory, THRESHOLD, config, seed=SEED, step=STEP)
    own, batch = case.own, case.batch
    both = hinge_loss(own.images, own.ids, own.texts, batch.text_keys, 0.2, hardest=True)
    both = both + hinge_loss(own.texts, own.ids, own.images, batch.image_keys, 0.2, hardest=True)
    hinge = (both * own.valid).mean()
    torch.testing.assert_close(result.loss.mean(), hinge, rtol=0, atol=1e-15)
    for ours, theirs in zip(
        torch.autograd.grad(result.loss.mean(), case.leaves), torch.autograd.grad(hinge, case.leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)


def test_an_empty_queue_leaves_the_hinge_and_a_neutral_penalty() -> None:
    case = Case(filled=0)
    result = case.ours(threshold=torch.tensor(-1.0))
    for part in (result.candidate, result.pair, result.mining, result.soft_positives):
        assert not part.any()
    assert torch.equal(result.penalty, torch.ones_like(result.penalty))
    torch.testing.assert_close(result.loss, case.ours(ONLY_HARD).loss, rtol=0, atol=1e-15)


def test_a_queue_of_no_rows_is_an_empty_queue() -> None:
    case = Case(filled=0)
    expected = case.ours()
    empty = Pairs(*(getattr(case.memory.queue, name)[:0] for name in ("images", "texts", "ids", "valid")))
    case.memory = replace(case.memory, queue=empty)
    assert torch.equal(case.ours().loss, expected.loss)


@pytest.mark.parametrize("tile_entries", [1, B, 3 * B, 2**20])
def test_tiles_change_nothing(tile_entries: int) -> None:
    whole, tiled = Case(), Case()
    expected, result = whole.ours(tile_entries=B * M), tiled.ours(tile_entries=tile_entries)
    torch.testing.assert_close(result.loss, expected.loss, rtol=0, atol=1e-13)
    assert torch.equal(result.agreement_counts, expected.agreement_counts)
    for ours, theirs in zip(
        torch.autograd.grad(result.loss.sum(), tiled.leaves),
        torch.autograd.grad(expected.loss.sum(), whole.leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_what_is_not_valid_changes_nothing_and_gets_no_gradient() -> None:
    case, other = Case(filled=30, own=7), Case(filled=30, own=7)  # the last own pair is not valid
    far = unit_rows(50, 8)
    with torch.no_grad():
        for leaf, row in zip(other.leaves, (6, 6, 9, 9), strict=True):
            leaf[row] = far[row]
    queue, keys = other.memory.queue, other.memory.batch
    queue.images[30:], queue.texts[30:] = far[:10], far[10:20]
    queue.ids[30:] = 77
    keys.images[9], keys.texts[9] = far[20], far[21]
    other.memory.own.images[6], other.memory.own.texts[6] = far[20], far[21]
    expected, result = case.ours(), other.ours()
    assert torch.equal(result.loss, expected.loss)
    assert torch.equal(result.agreement_counts, expected.agreement_counts)
    assert result.loss[6] == 0
    grads = torch.autograd.grad(result.loss.sum(), other.leaves)
    for grad, row in zip(grads, (6, 6, 9, 9), strict=True):
        assert not grad[row].any()


def test_entries_with_the_anchors_id_are_neither_negatives_nor_mined() -> None:
    case, other = Case(own=1), Case(own=1)
    same = other.memory.queue.ids == int(other.own.ids)
    assert same.any()
    # as like the anchor as can be, on both sides
    other.memory.queue.images[same] = other.memory.own.images[0]
    other.memory.queue.texts[same] = other.memory.own.texts[0]
    with torch.no_grad():
        other.batch.images[2] = other.own.images[0]  # row 2 has the id of row 3, the anchor's
        other.batch.texts[2] = other.own.texts[0]
    expected, result = case.ours(), other.ours()
    assert torch.equal(result.loss, expected.loss)
    assert torch.equal(result.soft_positives, expected.soft_positives)
    assert torch.equal(result.agreement_counts, expected.agreement_counts)


def test_soft_positives_are_no_negatives_of_the_other_levels() -> None:
    levels = {"mining_weight": 0.0, "candidates": 1}
    case = Case(own=1)
    config = CONFIG.model_copy(update=levels)
    anchor = case.own.images[0].detach()
    case.memory.own.images[0] = case.memory.own.texts[0] = anchor
    for pairs in (case.memory.queue, case.memory.batch, case.batch):
        with torch.no_grad():
            pairs.images[8] = pairs.texts[8] = anchor
    strict, lenient = torch.tensor(0.9999), torch.tensor(torch.inf)
    assert case.ours(config, strict).soft_positives.tolist() == [2]
    assert case.ours(config, lenient).soft_positives.tolist() == [0]
    assert case.ours(config, strict).loss < case.ours(config, lenient).loss
    found = mine(case.own, case.batch, case.memory, case.positions, config, lenient, SEED, STEP)
    assert (int(found.by_images.hardest), int(found.by_images.candidate)) == (8, 8)
    found = mine(case.own, case.batch, case.memory, case.positions, config, strict, SEED, STEP)
    assert 8 not in (int(found.by_images.hardest), int(found.by_images.candidate))
    assert 8 not in (int(found.by_texts.hardest), int(found.by_texts.candidate))


def test_both_modalities_must_agree() -> None:
    case = Case(own=1)
    queue = case.memory.queue
    before = case.ours(threshold=torch.tensor(0.999)).soft_positives
    queue.images[20] = case.memory.own.images[0]
    queue.texts[20] = -case.memory.own.texts[0]
    assert torch.equal(case.ours(threshold=torch.tensor(0.999)).soft_positives, before)
    queue.texts[20] = case.memory.own.texts[0]
    assert case.ours(threshold=torch.tensor(0.999)).soft_positives == before + 1


def test_mining_pulls_the_anchor_to_what_was_mined() -> None:
    case = Case(own=1)
    queue = case.memory.queue
    queue.images[20], queue.texts[20] = case.memory.own.images[0], near(case.memory.own.texts, 9, 0.2)[0]
    config = CONFIG.model_copy(update={"hard": False, "candidate": False, "pair": False})
    pulls = []
    for threshold in (torch.tensor(0.9), torch.tensor(torch.inf)):
        (grad,) = torch.autograd.grad(case.ours(config, threshold).loss.sum(), case.leaves[:1])
        pulls.append(float(grad[0] @ queue.texts[20]))
    assert pulls[0] < pulls[1]


def test_the_draw_changes_with_the_step_the_seed_and_the_position() -> None:
    case = Case()
    wide = CONFIG.model_copy(update={"candidates": M, "mining": False})

    def candidates(seed: int, step: int, positions: torch.Tensor) -> list[int]:
        found = mine(case.own, case.batch, case.memory, positions, wide, THRESHOLD, seed, step)
        assert found.by_images.candidate is not None
        return found.by_images.candidate.tolist()

    first = candidates(1, 1, case.positions)
    assert candidates(1, 1, case.positions) == first
    assert candidates(1, 1, case.positions.flip(0)) != first
    assert candidates(1, 2, case.positions) != first
    assert candidates(2, 1, case.positions) != first


def test_no_global_generator_is_touched() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    Case().ours()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_counts_are_of_all_pairs_that_may_be_mined() -> None:
    case = Case(filled=30)
    expected = sum(
        int(pairs.valid[j] and pairs.ids[j] != case.own.ids[i])
        for i in range(B)
        for pairs in (case.memory.batch, case.memory.queue)
        for j in range(len(pairs))
    )
    assert case.ours().agreement_counts.sum() == expected


@pytest.mark.parametrize("temperature", [1e-3, 1.0])
def test_lower_precision_and_extreme_temperatures_stay_finite(temperature: float) -> None:
    case = Case()
    own = Pairs(*(t.detach().bfloat16().requires_grad_() for t in case.leaves[:2]), case.own.ids, case.own.valid)
    batch = Pairs(*(t.detach().bfloat16() for t in case.leaves[2:]), case.batch.ids, case.batch.valid)
    half = [replace(p, images=p.images.bfloat16(), texts=p.texts.bfloat16()) for p in vars(case.memory).values()]
    config = CONFIG.model_copy(update={"temperature": temperature})
    result = ahrl(own, batch, case.positions, Memory(*half), THRESHOLD, config, seed=SEED, step=STEP)
    assert result.loss.dtype == torch.float32
    result.loss.sum().backward()
    assert result.loss.isfinite().all()
    assert own.images.grad is not None
    assert own.images.grad.isfinite().all()
    torch.testing.assert_close(result.hard.double(), case.ours(config).hard, rtol=0.2, atol=0.1)


def test_gradient_is_that_of_finite_differences() -> None:
    case = Case()

    def total(*leaves: torch.Tensor) -> torch.Tensor:
        own = replace(case.own, images=leaves[0], texts=leaves[1])
        batch = replace(case.batch, images=leaves[2], texts=leaves[3])
        config = CONFIG.model_copy(update={"adaptive": False})  # whose weight has no gradient, but changes
        return ahrl(
            own, batch, case.positions, case.memory, THRESHOLD, config, seed=SEED, step=STEP, tile_entries=50
        ).loss

    torch.autograd.gradcheck(total, case.leaves)


class _NoWaiting(TorchDispatchMode):
    """Fails on what would wait for a device: reading a value, or a shape that depends on values."""

    waits = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__.strip("_") not in [name.strip("_") for name in self.waits]
        indices = args[1] if func.overloadpacket.__name__ == "index" else ()
        assert not any(index is not None and index.dtype == torch.bool for index in indices)
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device() -> None:
    case, running = Case(), RunningQuantile(0.9, 0.9)
    with _NoWaiting():
        result = case.ours(threshold=running.value)
        result.loss.sum().backward()
        running.update(result.agreement_counts)
        case.ours(threshold=running.value)
    with pytest.raises(AssertionError), _NoWaiting():
        bool(result.loss.sum() > 0)


def test_it_compiles_into_one_graph() -> None:
    compiled = torch.compile(ahrl, backend="eager", fullgraph=True)
    case = Case()
    for step in (1, 2):
        result = compiled(
            case.own,
            case.batch,
            case.positions,
            case.memory,
            THRESHOLD,
            CONFIG,
            seed=SEED,
            step=step,
            tile_entries=35,
        )
        torch.testing.assert_close(result.loss, case.ours(step=step).loss)
