"""What a step exchanges is what docs/scaling.md says, and a queue in parts trains as a whole one does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from model.collectives import average, gather_packed
from model.config import LossConfig, ModelConfig
from model.encoders import DualEncoder
from model.frameworks import Framework
from model.losses.running_quantile import BINS
from model.tokenizer import build_tokenizer
from trainer.forecast.exchanges import Exchanges

GROUP, BATCH, QUEUE, STEPS = 4, 16, 37, 4
WORDS = ("dog", "cat", "red", "run")
Case = tuple[str, int, bool]
FOUR: tuple[Case, ...] = (("aahr", 16, False), ("aahr+amsps", 32, True))
CASES: dict[int, tuple[Case, ...]] = {
    4: FOUR,
    2: (
        *FOUR,
        ("clip", 32, False),
        ("aahr", 32, True),
        ("amsps", 16, False),
        ("amsps", 32, True),
        ("aahr+amsps", 16, True),
    ),
}
"""By the number of ranks: frameworks, the last of them with concepts; widths; whether the queue is in parts."""
CONSENSUS = "aahr+amsps"
Counts = dict[str, tuple[int, int]]


def framework_of(name: str, width: int, sharded: bool, concepts: str) -> Framework:
    model = ModelConfig.model_validate(
        {
            "framework": name,
            "architecture": "itm-tiny",
            "embed_dim": width,
            "norm_group": GROUP,
            "aahr": {"fragment_heads": 2, "pooling_heads": 2, "dropout": 0.0},
            "consensus": {"concepts": concepts if name == CONSENSUS else None},
        }
    )
    loss = LossConfig.model_validate(
        {
            "base": {"all_negatives_steps": 1},
            "prototypes": {"count": 3, "start_step": 1, "update": "average" if name == "aahr" else "gradient"},
            "relations": {"start_step": 2, "heads": 2, "dropout": 0.0, "gcn_dropout": 0.0},
            "regulariser": {"start_step": 2},
            "queue": {"size": QUEUE, "sharded": sharded},
            "ahrl": {"candidates": 4, "quantile": 0.9},
        }
    )
    torch.manual_seed(0)
    return Framework(DualEncoder(model), model, loss, steps_per_epoch=4, total_steps=20, seed=5).train()


def batch(step: int, own: slice, labels: int) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(256, (BATCH, 32, 32, 3), dtype=torch.uint8, generator=generator)
    text = build_tokenizer("itm-tiny")([f"{WORDS[place % 4]} {step} {place}" for place in range(BATCH)])
    named = (torch.arange(BATCH).unsqueeze(1) % 4 == torch.arange(4))[:, :labels]
    text = torch.cat([text, named.long()], dim=1)
    ids, valid = torch.arange(BATCH) // 2 + 10 * step, torch.arange(BATCH) < BATCH - 1
    return images[own], None, None, text[own], ids[own], valid[own]


def train(framework: Framework, own: slice) -> tuple[torch.Tensor, Exchanges]:
    """The loss of some steps of gradient descent, and what the last one exchanged."""
    found = []
    for step in range(STEPS):
        inputs = batch(step, own, framework.encoders.num_concepts)
        with Exchanges() as exchanged:
            losses = framework(*inputs, step)
            losses["loss"].backward()
            framework.advance(step)
        found.append(average(losses["loss"]))
        with torch.no_grad():
            for parameter in framework.parameters():
                if parameter.grad is not None:  # as an engine does
                    parameter.sub_(average(parameter.grad), alpha=1e-2)
                    parameter.grad = None
    return torch.stack(found), exchanged


def measure(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    found: dict[Any, Any] = {"bits": bits_after_a_journey(rank)}
    for name, width, sharded in CASES[world if world > 1 else 2]:
        framework = framework_of(name, width, sharded and world > 1, f"{folder}/concepts.json")
        losses, exchanged = train(framework, own)
        found[name, width, sharded] = {
            "losses": losses,
            "counts": {kind: (exchanged.calls[kind], exchanged.bytes[kind]) for kind in exchanged.calls},
            "replicated": framework.replicated_buffers(),
            "own": set(dict(framework.named_buffers())) - set(framework.replicated_buffers()),
        }
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    torch.save(found, Path(folder) / f"{rank}.pt")


NANS = torch.tensor([0x7FC00000, 0x7F800001, -1, 0x7FFFFFFF, -(2**31), 0], dtype=torch.int32)
"""Bits that mean, as float32: quiet and signalling NaN, negative NaN, the largest NaN, minus zero, zero."""


def bits_after_a_journey(rank: int) -> list[torch.Tensor]:
    ids = torch.tensor([0x7FC00000_7F800001, -1, 2**63 - 1, -(2**63), 7, 0]) + rank
    rows = torch.stack([NANS, NANS + rank]).T.contiguous().view(torch.float32)
    return [
        part.view(torch.int32) if part.dtype == torch.float32 else part
        for part in gather_packed(ids, rows, ids > 0)
    ]


@pytest.fixture(scope="module")
def concepts(tmp_path_factory: pytest.TempPathFactory) -> str:
    together = [[0, 1, 2, 1], [1, 0, 1, 1], [2, 1, 0, 0], [1, 1, 0, 0]]
    listed = [{"word": word, "count": 4} for word in WORDS]
    return json.dumps({"format_version": 1, "graph": {}, "concepts": listed, "co_occurrence": together})


def run(world: int, concepts: str, folder: Path) -> list[dict[Any, Any]]:
    (folder / "concepts.json").write_text(concepts)
    if world == 1:
        measure(0, 1, str(folder))
    else:
        spawn(measure, (world, str(folder)), nprocs=world)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.fixture(scope="module")
def alone(concepts: str, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    return run(1, concepts, tmp_path_factory.mktemp("alone"))[0]


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, concepts: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return run(request.param, concepts, tmp_path_factory.mktemp("ranks"))


def formula(name: str, width: int, sharded: bool, world: int) -> Counts:
    """The table of docs/scaling.md: how many a step, and the bytes of the whole."""
    kinds, aahr, mines = (3 if name == CONSENSUS else 1), "aahr" in name, "amsps" in name
    keys = kinds if name != "clip" else 0
    gathers = [4 * BATCH * (2 * width * (kinds + keys) + 3)]
    scatters = [4 * BATCH * 2 * width * kinds]
    reductions = [2 * (width // 2) * 4] * aahr + [kinds * BINS * 8] * mines
    broadcasts: list[int] = []
    if sharded and keys:
        sides = [width] * 2 * aahr + [2 * width] * kinds * mines
        broadcasts = [4 * QUEUE * side for side in sides]
        gathers += [8 * BATCH * 2] * kinds * mines
        scatters += [4 * BATCH * 2 * width] * kinds * mines
    return {
        kind: (len(sizes) * calls, sum(sizes))
        for kind, sizes, calls in (
            ("all-gather", gathers, 1),
            ("reduce-scatter", scatters, 1),
            ("all-reduce", reductions, 1),
            ("broadcast", broadcasts, world),
        )
        if sizes
    }


def test_a_step_exchanges_what_the_formula_says(ranks: list[dict]) -> None:
    for found in ranks:
        for case in CASES[len(ranks)]:
            assert found[case]["counts"] == formula(*case, len(ranks)), case


def test_a_queue_whole_or_in_parts_trains_as_in_one_process(ranks: list[dict], alone: dict) -> None:
    for case in CASES[len(ranks)]:
        assert not alone[case]["counts"], "one process exchanges nothing"
        expected = alone[case]["losses"]
        assert expected.diff().abs().min() > 1e-4
        for found in ranks:
            torch.testing.assert_close(found[case]["losses"], expected, rtol=2e-4, atol=1e-5)


def test_what_is_called_replicated_has_the_same_bits_on_every_rank(ranks: list[dict]) -> None:
    for case in CASES[len(ranks)]:
        for found in ranks:
            assert found[case]["own"] == ({"queue.images", "queue.texts"} if case[2] else set())
            for name, buffer in ranks[0][case]["replicated"].items():
                assert torch.equal(found[case]["replicated"][name].nan_to_num(), buffer.nan_to_num()), name


def test_every_bit_arrives_whatever_it_would_mean_as_a_number(ranks: list[dict]) -> None:
    ids = torch.tensor([0x7FC00000_7F800001, -1, 2**63 - 1, -(2**63), 7, 0])
    for found in ranks:
        sent_ids, sent_rows, positive = found["bits"]
        expected = torch.cat([ids + rank for rank in range(len(ranks))])
        assert torch.equal(sent_ids, expected)
        assert torch.equal(positive, expected > 0)
        assert torch.equal(sent_rows, torch.cat([torch.stack([NANS, NANS + n]).T for n in range(len(ranks))]))
