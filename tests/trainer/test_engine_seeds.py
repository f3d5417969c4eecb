import torch

from model.config import ModelConfig
from trainer.engine import build_encoders, seed_step

CONFIG = ModelConfig.model_validate(
    {"architecture": "itm-tiny", "embed_dim": 16, "aahr": {"fragment_heads": 2, "pooling_heads": 2}}
)


def draw(seed: int, step: int, rank: int) -> float:
    seed_step(seed, step, rank)
    return float(torch.rand(1))


def test_a_draw_is_a_function_of_seed_step_and_rank() -> None:
    places = [(seed, step, rank) for seed in (0, 1, 2) for step in (0, 1, 500) for rank in (0, 1, 7)]
    values = [draw(*place) for place in places]
    assert values == [draw(*place) for place in places]
    assert len(set(values)) == len(values)


def test_seeds_as_large_as_a_time_are_fine() -> None:
    assert draw(1_700_000_000, 10**6, 511) != draw(1_700_000_001, 10**6, 511)


def test_encoders_are_a_function_of_the_seed_and_leave_the_callers_draws_alone() -> None:
    torch.manual_seed(3)
    untouched = torch.rand(1)
    torch.manual_seed(3)
    first = build_encoders(CONFIG, 1).state_dict()
    assert torch.equal(torch.rand(1), untouched)
    again, other = build_encoders(CONFIG, 1).state_dict(), build_encoders(CONFIG, 2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["text_head.local_projection.weight"], other["text_head.local_projection.weight"])
