"""The momentum copy against an average kept by hand."""

import math

import pytest
import torch
from torch import nn

from model.config import MomentumConfig
from model.encoders import DualEncoder
from model.group_norm import GroupBatchNorm
from model.memory.momentum import MomentumCopy, momentum_decay
from model.tokenizer import build_tokenizer
from tests.model.test_frameworks import CONFIG


class Encoder(nn.Module):
    """Weights, running statistics, a mask with infinities, a count."""

    mask: torch.Tensor
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = GroupBatchNorm(3, 2)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("mask", torch.zeros(3, 3).masked_fill(torch.eye(3) > 0, -torch.inf), persistent=False)
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.dropout(self.norm(self.linear(x)))
        return y


def drift(module: nn.Module, seed: int) -> None:
    """As a training step does: in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def test_it_is_the_average_of_what_the_encoder_was() -> None:
    torch.manual_seed(0)
    online = Encoder()
    momentum = MomentumCopy(online)
    by_hand = {name: tensor.detach().double() for name, tensor in tensors_of(online).items()}
    held = {name: tensor.data_ptr() for name, tensor in tensors_of(momentum.module).items()}
    for step, decay in enumerate((0.9, 0.5, 0.999)):
        drift(online, step)
        momentum.update(online, decay)
        for name, tensor in tensors_of(online).items():
            averaged = decay * by_hand[name] + (1 - decay) * tensor.detach().double()
            by_hand[name] = averaged if tensor.is_floating_point() else tensor.double()
    for name, tensor in tensors_of(momentum.module).items():
        torch.testing.assert_close(tensor.double(), by_hand[name], rtol=1e-6, atol=1e-6)
        assert tensor.data_ptr() == held[name], "updated in place"
    assert momentum.module.count == 3
    assert (momentum.module.mask == online.mask).sum() == 3, "only the infinities stayed as they were"


def test_the_copy_is_apart_and_takes_no_gradient() -> None:
    online = Encoder()
    momentum = MomentumCopy(online)
    assert not any(parameter.requires_grad for parameter in momentum.parameters())
    assert all(parameter.requires_grad for parameter in online.parameters())
    before = {name: tensor.clone() for name, tensor in tensors_of(momentum.module).items()}
    drift(online, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(momentum.module).items())


def test_it_stays_in_evaluation_mode_with_the_averaged_statistics() -> None:
    online = nn.ModuleDict({"encoder": Encoder()})
    online["momentum"] = MomentumCopy(online["encoder"])
    online.train()
    momentum = online["momentum"]
    assert isinstance(momentum, MomentumCopy)
    assert online["encoder"].training
    assert not any(module.training for module in momentum.modules())
    x = torch.randn(4, 2, 4)
    statistics = momentum.module.norm.running_mean.clone()
    assert torch.equal(momentum.module(x), momentum.module(x)), "no dropout"
    assert torch.equal(momentum.module.norm.running_mean, statistics), "no statistics of the batch"


def test_reset_makes_it_equal() -> None:
    online = Encoder()
    momentum = MomentumCopy(online)
    drift(online, 0)
    momentum.reset(online)
    for name, tensor in tensors_of(online).items():
        assert torch.equal(tensors_of(momentum.module)[name], tensor), name


def test_a_bfloat16_encoder_is_averaged_in_float32() -> None:
    online = nn.Linear(4, 4)
    momentum = MomentumCopy(online)
    start = momentum.module.weight.clone()
    with torch.no_grad():
        online.weight.add_(1)
    momentum.update(online.bfloat16(), 0.999)
    torch.testing.assert_close(momentum.module.weight - start, torch.full((4, 4), 0.001), rtol=0.02, atol=0)


def test_the_encoders_of_a_framework_are_followed_and_saved() -> None:
    """The text tower has a mask of infinities, which an average would make NaN."""
    torch.manual_seed(0)
    online = DualEncoder(CONFIG)
    momentum = MomentumCopy(online)
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(0.01)
    for _ in range(3):
        momentum.update(online, 0.9)
    assert not any(tensor.isnan().any() for tensor in tensors_of(momentum.module).values())
    text = build_tokenizer("itm-tiny")(["a red circle"])
    assert torch.isfinite(momentum.module.encode_text(text)).all()
    assert {f"module.{name}" for name in online.state_dict()} == set(momentum.state_dict())


def test_the_decay_stays_or_rises_to_one() -> None:
    constant, cosine = MomentumConfig(decay=0.99), MomentumConfig(decay=0.99, ramp="cosine")
    assert {momentum_decay(constant, step, 100) for step in (0, 50, 100, 200)} == {0.99}
    for step in (0, 1, 25, 50, 99, 100):
        expected = 1 - 0.01 * (math.cos(math.pi * step / 100) + 1) / 2
        assert momentum_decay(cosine, step, 100) == pytest.approx(expected, abs=1e-15)
    assert momentum_decay(cosine, 0, 100) == 0.99
    assert momentum_decay(cosine, 100, 100) == 1
    assert momentum_decay(cosine, 150, 100) == 1
