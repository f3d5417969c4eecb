"""Lets torchvision import beside a PyTorch that its compiled library was not built for.

A CPU build of PyTorch with the registry's torchvision has no compiled torchvision operators, and the import
fails on registering fake kernels for two of them, taking open_clip and timm with it. None of those operators
is used here; declaring their schemas is enough. Where torchvision has its operators nothing is done.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[Any] = []  # a torch.library.Library undoes its definitions when it is collected


class _DeclareOperators(MetaPathFinder):
    """Acts once, just before torchvision registers its fake kernels; finds no module itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision._meta_registrations" and not _libraries:
            extension = importlib.import_module("torchvision.extension")
            if not extension._has_ops():
                from torch.library import Library

                library: Any = Library("torchvision", "FRAGMENT")
                for schema in _SCHEMAS:
                    library.define(schema)
                _libraries.append(library)
        return None


def install() -> None:
    """Install the import hook, once; imports neither torch nor torchvision."""
    if not any(isinstance(finder, _DeclareOperators) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DeclareOperators())
