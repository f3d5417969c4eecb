"""AdamW's moments of a run's parameters, put together from all ranks' spans."""

from typing import Any

import torch
import torch.distributed as dist

from trainer.partitions import own_moments, whole_shapes


def whole_moments(engine: Any, moment: str) -> dict[str, torch.Tensor]:
    """By parameter name, whole. All ranks call it together. The spans must neither overlap nor leave a gap."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, {key: span.clone() for key, span in own_moments(engine).items()})
    found: dict[str, torch.Tensor] = {}
    shapes = whole_shapes(engine)
    for key, span in (item for own in everyone for item in own.items()):
        path, _, start = key.rpartition("@")
        name, _, kind = path.rpartition("/")
        if kind == moment:
            whole = found.setdefault(name, torch.full(shapes[name], torch.nan)).view(-1)
            part = slice(int(start), int(start) + len(span))
            assert whole[part].isnan().all()
            whole[part] = span
    assert not any(whole.isnan().any() for whole in found.values())
    return found
