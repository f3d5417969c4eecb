"""The bytes that are alive in the course of a step, gradients of weights apart from all others."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Peak:
    """The most that was alive in some part of a step, in bytes."""

    temporary: int = 0
    """Of what is no gradient of a weight."""
    both: int = 0
    """Of that and the gradients together."""
    gradients: int = 0
    """Of them, at that moment."""

    def note(self, temporary: int, gradients: int) -> None:
        """See one moment."""
        self.temporary = max(self.temporary, temporary)
        if temporary + gradients > self.both:
            self.both, self.gradients = temporary + gradients, gradients


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make inside of this context, until they are freed.

    What a module held before does not count, such as its weights. Works on real tensors and on those without
    storage.
    """

    def __init__(self, module: nn.Module | None = None) -> None:
        """Without a module all gradients are temporary."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.temporary = 0
        """Bytes alive now that are no gradient of a weight: activations and whatever else a step makes."""
        self.gradients = 0
        """Bytes alive now of gradients of the module's weights."""
        self.before, self.after = Peak(), Peak()
        """Until the first gradient of a weight is there, and since then."""
        self._has_gradients = False
        self._known: dict[int, int] = {}
        self._of_weights: set[int] = set()
        self._parameters = [] if module is None else list(module.parameters())
        for tensor in (*self._parameters, *(() if module is None else module.buffers())):
            self._known[tensor.untyped_storage()._cdata] = 0

    def __enter__(self) -> "LiveBytes":
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._accumulated)
            for parameter in self._parameters
            if parameter.requires_grad
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.temporary += storage.nbytes()
        weakref.finalize(storage, self._freed, key).atexit = False
        (self.after if self._has_gradients else self.before).note(self.temporary, self.gradients)

    def _freed(self, key: int) -> None:
        size = self._known.pop(key)
        if key in self._of_weights:
            self._of_weights.discard(key)
            self.gradients -= size
        else:
            self.temporary -= size

    def _accumulated(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        self._has_gradients = True
        key = parameter.grad.untyped_storage()._cdata
        if key in self._known and key not in self._of_weights:
            self._of_weights.add(key)
            self.temporary -= self._known[key]
            self.gradients += self._known[key]
