"""Frozen, partly frozen and checkpointed towers inside real DeepSpeed engines, against plain torch."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from model.collectives import gather, world_size
from model.tokenizer import build_tokenizer
from trainer.config import Recipe
from trainer.deepspeed_setup import prepare_deepspeed
from trainer.distributed import World, free_port
from trainer.engine import build_encoders, initialize, set_learning_rate
from trainer.parameter_groups import parameter_groups
from trainer.partitions import whole_weight

pytestmark = pytest.mark.slow

WORLD, ROWS, STEPS, T, F = 2, 8, 4, 6, 5
STAGES = (0, 1, 2, 3)
FROZEN = (
    *(f"image_tower.clip.visual.{name}" for name in ("conv1", "class_embedding", "positional_embedding", "ln_pre")),
    "text_tower.clip.",
    "text_tower.transformer.model.embeddings.",
    "text_tower.transformer.model.encoder.layer.0.",
)


class Model(nn.Module):
    """AAHR's towers with a loss over the global batch."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.encoders = build_encoders(recipe.model, seed=0)

    def forward(
        self, images: torch.Tensor, regions: torch.Tensor, mask: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        image, caption = self.encoders.encode_image(images, regions, mask), self.encoders.encode_text(text)
        scores = 5 * image @ gather(caption).T
        matching = 5 * (image * caption).sum(dim=1)
        return (scores.logsumexp(dim=1) - matching).mean()


def recipe_of(bert: str, stage: int) -> Recipe:
    transformer = {"name": bert, "max_length": T, "freeze": 1, "gradient_checkpointing": True}
    return Recipe.model_validate(
        {
            "data": {"global_batch_size": ROWS},
            "model": {
                "architecture": "itm-tiny",
                "embed_dim": 16,
                "norm_group": 2,
                "aahr": {"fragment_heads": 2, "pooling_heads": 2, "dropout": 0.0},
                "image": {
                    "inputs": "pixels+regions",
                    "region_width": F,
                    "freeze": 0,
                    "gradient_checkpointing": True,
                },
                "text": {"towers": "clip+transformer", "freeze": "all", "transformer": transformer},
            },
            # a bias before a batch norm has no gradient but rounding, which a small eps would make steps of
            "optimizer": {"lr": 0.01, "tower_lr_scale": 0.5, "gradient_clipping": 0.0, "eps": 1e-3},
            "engine": {"zero_stage": stage},
        }
    )


def save_bert(folder: Path) -> str:
    """Without dropout, which ranks would draw differently."""
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **shape)
    BertModel(config).save_pretrained(folder)
    return str(folder)


def batches() -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(2)
    clip = build_tokenizer("itm-tiny")(["a dog", "two dogs"] * (ROWS // 2))
    made = []
    for _ in range(STEPS):
        images = torch.randint(256, (ROWS, 32, 32, 3), dtype=torch.uint8, generator=generator)
        regions = torch.randn(ROWS, 3, F, generator=generator)
        mask = torch.rand(ROWS, 3, generator=generator) < 0.7
        words = torch.randint(1, 30, (ROWS, T), generator=generator)
        made.append((images, regions, mask, torch.cat([clip, words], dim=1)))
    return made


def plain(recipe: Recipe) -> dict[str, torch.Tensor]:
    model = Model(recipe).train()
    optimizer = torch.optim.AdamW(
        parameter_groups(model.named_parameters(), recipe.optimizer),
        betas=(recipe.optimizer.betas[0], recipe.optimizer.betas[1]),
        eps=recipe.optimizer.eps,
    )
    for group in optimizer.param_groups:
        group["lr"] = recipe.optimizer.lr * group["lr_scale"]
    found = {f"before {name}": parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step, batch in enumerate(batches()):
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        optimizer.step()
        found[f"loss {step}"] = loss.detach()
    return found | {name: parameter.detach() for name, parameter in model.named_parameters()}


def engineered(recipe: Recipe, rank: int) -> dict[str, torch.Tensor]:
    engine = initialize(Model(recipe), recipe, World(rank, WORLD, rank), torch.device("cpu"))  # type: ignore[arg-type]
    engine.train()
    set_learning_rate(engine, recipe.optimizer.lr)
    own, found = slice(rank * ROWS // WORLD, (rank + 1) * ROWS // WORLD), {}
    for step, batch in enumerate(batches()):
        loss = engine(*(part[own] for part in batch))
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        found[f"loss {step}"] = mean / world_size()
    weights = {name: whole_weight(engine, one).clone() for name, one in engine.module.named_parameters()}
    engine.destroy()
    return found | weights


def measure(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    prepare_deepspeed("gloo")
    found = {stage: engineered(recipe_of(f"{folder}/bert", stage), rank) for stage in STAGES}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    save_bert(folder / "bert")
    spawn(measure, (free_port(), str(folder)), nprocs=WORLD)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_weights_are_those_of_plain_torch_and_frozen_ones_stay(folder: Path, stage: int) -> None:
    expected = plain(recipe_of(str(folder / "bert"), stage))
    before = {
        name.removeprefix("before "): expected.pop(name) for name in list(expected) if name.startswith("before ")
    }
    for rank in range(WORLD):
        found = torch.load(folder / f"{rank}.pt")[stage]
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
        same = {name for name in before if torch.equal(found[name], before[name])}
        frozen = tuple(f"encoders.{name}" for name in FROZEN)
        assert same == {name for name in before if name.startswith(frozen)}
        assert same
