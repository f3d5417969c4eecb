"""A framework: the encoders, the loss terms that train them, and what these keep between steps."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from model.collectives import gather_packed, rank
from model.config import LossConfig, ModelConfig
from model.encoders import DualEncoder
from model.encodings import Encodings, Keys, Kind, concatenate, tensors
from model.gradient_scale import GradientScale
from model.losses.pairs import Memory, Pairs
from model.memory.momentum import MomentumCopy, momentum_decay
from model.memory.queue import SHARDED, MomentumQueue
from model.step import Step, View
from model.terms.build import build_terms, needs_memory
from model.terms.prototypes import PrototypeTerm

Part = Literal["step", "encode", "surrogate"]
"""Of a step: all of it, or what `trainer.gradient_cache` splits off."""

_QUEUE = "queue."


class Framework(nn.Module):
    """The encoders with their losses: what the engine trains."""

    def __init__(
        self,
        encoders: DualEncoder,
        model: ModelConfig,
        loss: LossConfig,
        *,
        steps_per_epoch: int,
        total_steps: int,
        seed: int = 0,
        autocast: torch.dtype | None = None,
    ) -> None:
        """`autocast` is the arithmetic of the encoders, None for that of their weights; losses are float32.

        The momentum encoders start equal to the encoders; `restart` makes them so again. Raises `ModelError`.
        """
        super().__init__()
        self.encoders = encoders
        self.loss, self.total_steps, self.seed, self.autocast = loss, total_steps, seed, autocast
        self.gradient_scale: GradientScale | None = None
        if autocast == torch.float16:
            self.gradient_scale = GradientScale()
            self.gradient_scale.watch(encoders)
        self._terms = build_terms(model, loss, encoders.embed_dim, steps_per_epoch)
        self.terms = nn.ModuleDict(self._terms)
        self.momentum: MomentumCopy[DualEncoder] | None = None
        self.queue: MomentumQueue | None = None
        if needs_memory(model, loss):
            self.momentum = MomentumCopy(encoders, encoders.shared_towers(loss.momentum.towers == "shared"))
            kinds = 3 if model.has_consensus else 1
            self.queue = MomentumQueue(loss.queue.size, kinds * encoders.embed_dim, loss.queue.sharded)
        self._entering: tuple[torch.Tensor, ...] | None = None

    @property
    def prototypes(self) -> PrototypeTerm | None:
        """The term with the prototype bank, where there is one."""
        term = self._terms.get("prototypes")
        return term if isinstance(term, PrototypeTerm) else None

    def forward(self, *inputs: Any, part: Part = "step") -> Any:
        """The method of the part's name. Every part begins here, since the engine's hooks do."""
        return getattr(self, part)(*inputs)

    def step(
        self,
        images: torch.Tensor | None,
        regions: torch.Tensor | None,
        region_mask: torch.Tensor | None,
        text: torch.Tensor,
        image_ids: torch.Tensor,
        valid: torch.Tensor,
        step: int,
        others: Sequence[tuple[Encodings, Keys]] = (),
    ) -> dict[str, torch.Tensor]:
        """This rank's pairs -> named scalar losses, `loss` the weighted sum.

        (b, side, side, 3) uint8, (b, R, F), (b, R) bool, (b, T) int64, (b,) int64, (b,) bool; `step` counts applied
        optimiser steps. Pairs that are not valid, which only fill a batch, are neither anchors nor negatives nor
        anything else. The mean of each value over the ranks is its value over the global batch. `others` are
        what `encode` gave of further pairs, after these; ids and validity are then of all.
        """
        encodings, keys = concatenate([self.encode(images, regions, region_mask, text), *others])
        return self.losses(encodings, keys, image_ids, valid, step)

    def encode(
        self,
        images: torch.Tensor | None,
        regions: torch.Tensor | None,
        region_mask: torch.Tensor | None,
        text: torch.Tensor,
    ) -> tuple[Encodings, Keys]:
        """Pairs, as in `step`, -> all that the losses read of their encoders."""
        inputs = (images, regions, region_mask, text)
        encodings = self._encode(self.encoders, *inputs)
        if self.momentum is None:
            return encodings, None
        with torch.no_grad():
            return encodings, self._encode(self.momentum.module, *inputs).kinds

    def surrogate(
        self,
        images: torch.Tensor | None,
        regions: torch.Tensor | None,
        region_mask: torch.Tensor | None,
        text: torch.Tensor,
        gradients: Sequence[torch.Tensor | None],
    ) -> torch.Tensor:
        """() with the loss's gradient by the encoders' weights; given are those by each tensor of the encodings."""
        made = tensors(self._encode(self.encoders, images, regions, region_mask, text))
        products = (made * known for made, known in zip(made, gradients, strict=True) if known is not None)
        return torch.stack([product.sum() for product in products]).sum()

    def losses(
        self,
        encodings: Encodings,
        keys: Keys,
        image_ids: torch.Tensor,
        valid: torch.Tensor,
        step: int,
    ) -> dict[str, torch.Tensor]:
        """As `step`, of what `encode` gave of this rank's pairs."""
        kinds = encodings.kinds
        embeddings, batch_keys, all_ids, all_valid = _gather_all(kinds, keys, image_ids, valid)
        own, batch = (image_ids, valid), (all_ids, all_valid)
        views = [
            View(Pairs(*mine, *own), Pairs(*everyone, *batch), None)
            for mine, everyone in zip(kinds, embeddings, strict=True)
        ]
        if keys is not None and self.queue is not None:
            images, texts = (torch.cat(side, dim=1) for side in zip(*batch_keys, strict=True))
            self._entering = (images, texts, all_ids, torch.arange(len(all_ids), device=all_ids.device), all_valid)
            views = [
                View(view.own, view.batch, Memory(Pairs(*key, *own), Pairs(*every_key, *batch), slots))
                for view, key, every_key, slots in zip(
                    views, keys, batch_keys, self.queue.kinds(len(kinds)), strict=True
                )
            ]
        now = Step(
            number=step,
            seed=self.seed,
            positions=rank() * len(image_ids) + torch.arange(len(image_ids), device=image_ids.device),
            weight=valid * (len(all_valid) / all_valid.sum()),
            image=encodings.image,
            text=encodings.text,
            views=views,
            concepts=encodings.concepts,
            queue_ready=None if self.queue is None else self.queue.ready(),
        )
        return self._sum(now)

    def _encode(
        self,
        encoders: DualEncoder,
        images: torch.Tensor | None,
        regions: torch.Tensor | None,
        region_mask: torch.Tensor | None,
        text: torch.Tensor,
    ) -> Encodings:
        reduced = self.autocast
        if encoders is not self.encoders and self.loss.momentum.precision == "bfloat16":
            reduced = torch.bfloat16
        # here and not around the engine, which switches off an autocast that it did not start
        with torch.autocast(text.device.type, reduced, enabled=reduced is not None):
            image, caption = encoders.represent_image(images, regions, region_mask), encoders.represent_text(text)
            encodings = Encodings(image, caption, [(image.embedding, caption.embedding)], None)
            if encoders.consensus is not None:
                of_images, of_texts = encoders.image_consensus(image), encoders.text_consensus(caption, text)
                kinds = [
                    (of_images.fused, of_texts.fused),
                    (of_images.instance, of_texts.instance),
                    (of_images.consensus, of_texts.consensus),
                ]
                encodings = Encodings(image, caption, kinds, (of_images.log_concepts, of_texts.log_concepts))
        return encodings if self.gradient_scale is None else self.gradient_scale.enter(encodings)

    def _sum(self, step: Step) -> dict[str, torch.Tensor]:
        loss = step.weight.new_zeros(())
        for term in self._terms.values():
            if step.number < min(term.start_steps[name] for name, weight in term.weights.items() if weight):
                continue
            for name, value in term(step).items():
                step.logs[name] = value.detach()
                if term.weights[name] and step.number >= term.start_steps[name]:
                    loss = loss + term.weights[name] * value
        return {"loss": loss, **step.logs}

    def advance(self, step: int) -> None:
        """Bring what is kept up to date, after the optimiser's step number `step`, from 0 on, was applied.

        All ranks call it together.
        """
        for term in self._terms.values():
            term.advance(step)
        if self.momentum is not None:
            self.momentum.update(self.encoders, momentum_decay(self.loss.momentum, step, self.total_steps))
        if self.queue is not None and self._entering is not None:
            images, texts, ids, positions, valid = self._entering
            self.queue.enter(images, texts, ids, positions, valid, step)
            self._entering = None

    def whole_buffers(self) -> dict[str, torch.Tensor]:
        """The buffers as a checkpoint holds them, the queue whole, on rank 0. All ranks call it together."""
        persistent = self.state_dict()
        state = {name: buffer for name, buffer in self.named_buffers() if name in persistent}
        if self.queue is not None:
            state = {name: buffer for name, buffer in state.items() if not name.startswith(_QUEUE)}
            state |= {_QUEUE + name: buffer for name, buffer in self.queue.whole().items()}
        return state

    def own_part(self, whole: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What this rank keeps of a checkpoint's tensors: its slots where the queue is sharded."""
        if self.queue is None:
            return whole
        of_queue = {name.removeprefix(_QUEUE): t for name, t in whole.items() if name.startswith(_QUEUE)}
        return whole | {_QUEUE + name: tensor for name, tensor in self.queue.own_part(of_queue).items()}

    def replicated_buffers(self) -> dict[str, torch.Tensor]:
        """The buffers that have the same bits on every rank: all but the vectors of a sharded queue."""
        own = {_QUEUE + name for name in SHARDED} if self.loss.queue.sharded else set()
        return {name: buffer for name, buffer in self.named_buffers() if name not in own}

    def restart(self) -> None:
        """Begin on other data: the weights stay, what was kept of past batches goes. Before the engine is made."""
        for term in self._terms.values():
            term.restart()
        if self.momentum is not None:
            self.momentum.reset(self.encoders)
        if self.queue is not None:
            self.queue.clear()


def _gather_all(
    kinds: list[Kind], keys: list[Kind] | None, ids: torch.Tensor, valid: torch.Tensor
) -> tuple[list[Kind], list[Kind], torch.Tensor, torch.Tensor]:
    """What all ranks have of what this one has, in one exchange: b rows each become G."""
    embeddings = [side for kind in kinds for side in kind]
    of_keys = [side for kind in keys or [] for side in kind]
    *sides, all_ids, all_valid = gather_packed(*embeddings, *of_keys, ids, valid)
    pairs = list(zip(sides[::2], sides[1::2], strict=True))
    return pairs[: len(kinds)], pairs[len(kinds) :], all_ids, all_valid
