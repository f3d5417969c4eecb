"""The momentum average and rows set anew inside real DeepSpeed engines, against plain torch in one process."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import normalize

from model.collectives import gather
from model.config import MomentumConfig
from model.group_norm import GroupBatchNorm
from model.memory.bank import PrototypeBank, assigned_sums, cosines
from model.memory.momentum import MomentumCopy, momentum_decay
from tests.trainer.moments import whole_moments
from trainer.config import OptimizerConfig, Recipe
from trainer.deepspeed_setup import deepspeed_config, prepare_deepspeed
from trainer.distributed import free_port
from trainer.parameter_groups import parameter_groups
from trainer.partitions import MOMENTS, whole_weight
from trainer.prototypes import set_prototypes

WORLD, ROWS, STEPS, LR = 2, 8, 6, 0.05
RAMP = MomentumConfig(decay=0.8, ramp="cosine")
ANEW = torch.tensor([True, False, False, True, True])  # prototypes that are set anew after step 3
CASES: dict[str, dict[str, Any]] = {
    **{f"stage {stage}": {"zero_stage": stage} for stage in range(4)},
    **{f"stage {stage}, offloaded": {"zero_stage": stage, "offload_optimizer": "cpu"} for stage in (1, 2)},
    "stage 3, offloaded": {"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"},
}
"""The engine's part of a recipe."""


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # a bias before a batch norm has no gradient but rounding, which Adam would make steps of
        self.linear = nn.Linear(5, 7, bias=False)
        self.norm = GroupBatchNorm(7, 4)
        self.out = nn.Linear(7, 3)
        self.scale = nn.Parameter(torch.ones(1))  # fewer elements than ranks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(self.scale * self.norm(self.linear(x).unsqueeze(1)).squeeze(1))
        return y


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.online = Encoder()
        self.momentum = MomentumCopy(self.online)
        self.bank = PrototypeBank(5, 3)
        self.averaged = PrototypeBank(5, 3, decay=0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = normalize(self.online(x), dim=1)
        with torch.no_grad():
            key = normalize(self.momentum.module(x), dim=1)
        prototypes = self.bank()
        agreement = (query @ prototypes.T) * (key @ prototypes.T).softmax(dim=1)
        scores = cosines(query, self.averaged())
        everyone = gather(query.detach())
        self.assigned = assigned_sums(
            [everyone], cosines(everyone, self.averaged()).unsqueeze(0), torch.ones(ROWS, dtype=torch.bool)
        )
        loss: torch.Tensor = agreement.sum() / len(x) - (query * key).mean() - scores.logsumexp(dim=1).mean()
        return loss

    def advance(self, step: int) -> None:
        self.momentum.update(self.online, momentum_decay(RAMP, step, STEPS))
        self.averaged.follow(*self.assigned)


def model_and_data() -> tuple[Model, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model, data, anew = Model(), torch.randn(STEPS, ROWS, 5), torch.randn(5, 3)
    return model, data, anew


def plain() -> dict[str, torch.Tensor]:
    """All steps over the global batch in one process."""
    model, data, anew = model_and_data()
    model.train()
    optimizer = adamw(model)
    found = {}
    for step, x in enumerate(data):
        optimizer.zero_grad()
        loss = model(x)
        loss.backward()
        optimizer.step()
        model.advance(step)
        found[f"loss {step}"] = loss.detach()
        if step == 3:
            with torch.no_grad():
                for bank in (model.bank, model.averaged):
                    bank.prototypes[ANEW] = anew[ANEW]
                    bank.renew(ANEW, step)
            for moment in MOMENTS:
                optimizer.state[model.bank.prototypes][moment][ANEW] = 0
    state = optimizer.state[model.bank.prototypes]
    return found | dict(model.state_dict()) | {moment: state[moment] for moment in MOMENTS}


def adamw(model: Model) -> torch.optim.AdamW:
    """With two groups, as a run has them."""
    config = OptimizerConfig(lr=LR, weight_decay=0.3)
    return torch.optim.AdamW(parameter_groups(model.named_parameters(), config))


def engine_of(model: Model, settings: dict[str, Any]) -> Any:
    import deepspeed

    recipe = Recipe.model_validate(
        {
            "data": {"global_batch_size": ROWS},
            "model": {"norm_group": 1},
            "optimizer": {"gradient_clipping": 0.0},
            "engine": {"precision": "float32", **settings},
        }
    )
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=adamw(model), config=deepspeed_config(recipe, WORLD, trained)
    )
    return engine


def engineered(settings: dict[str, Any], rank: int) -> dict[str, torch.Tensor]:
    model, data, anew = model_and_data()
    engine = engine_of(model, settings)
    engine.train()
    half = ROWS // WORLD
    found = {}
    for step, x in enumerate(data):
        loss = engine(x[rank * half : (rank + 1) * half])
        engine.backward(loss)
        engine.step()
        model.advance(step)
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        found[f"loss {step}"] = mean / WORLD
        if step == 3:
            set_prototypes(engine, model.bank, anew, ANEW, step)
            set_prototypes(engine, model.averaged, anew, ANEW, step)
            now = whole_weight(engine, model.bank.prototypes)
            assert torch.equal(now[ANEW], anew[ANEW]), "visible before the next step"
    found |= {name: whole_weight(engine, parameter).clone() for name, parameter in model.named_parameters()}
    found |= {moment: whole_moments(engine, moment)["bank.prototypes"] for moment in MOMENTS}
    found["partitioned"] = torch.tensor([hasattr(p, "ds_tensor") for p in model.momentum.parameters()])
    engine.destroy()
    return found | {name: buffer.clone() for name, buffer in model.named_buffers()}


def measure(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    prepare_deepspeed("gloo")
    torch.save({case: engineered(settings, rank) for case, settings in CASES.items()}, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("zero")
    spawn(measure, (free_port(), str(folder)), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return plain()


@pytest.mark.parametrize("case", CASES)
def test_average_losses_and_rows_are_those_of_plain_torch(
    ranks: list[dict[str, dict[str, torch.Tensor]]], expected: dict[str, torch.Tensor], case: str
) -> None:
    assert not torch.equal(expected["momentum.module.linear.weight"], expected["online.linear.weight"])
    for found in ranks:
        assert found[case].pop("partitioned").tolist() == [CASES[case]["zero_stage"] == 3] * 6
        assert found[case].keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(
                found[case][name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
