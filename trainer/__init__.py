"""The run: recipe, engine, checkpoints, evaluation, report, and the `itm` command."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.inference import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    # `from trainer import load_model` for users; the command's help must not wait for torch
    if name != "load_model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trainer.inference import load_model

    return load_model
