"""L_moco: InfoNCE against the queue of momentum embeddings."""

import torch

from model.config import MomentumContrastConfig
from model.losses.info_nce import info_nce
from model.step import Step
from model.terms.term import Term


class MomentumContrastTerm(Term):
    """Each image against the queue's texts, each text against its images; the positive is the pair's own key."""

    def __init__(self, config: MomentumContrastConfig) -> None:
        super().__init__()
        self.config = config
        self.weights = {"momentum_contrast": config.weight}
        self.start_steps = {"momentum_contrast": config.start_step or 0}

    def forward(self, step: Step) -> dict[str, torch.Tensor]:
        view, config = step.views[0], self.config
        assert view.memory is not None
        assert step.queue_ready is not None
        queue, keys, ids = view.memory.queue, view.memory.own, view.own.ids
        images, texts = view.own.images, view.own.texts
        if config.query == "local":
            images, texts = step.image.local, step.text.local
        scale = 1 / config.temperature
        to_texts = info_nce(images, ids, keys.texts, [queue.text_keys], scale)
        to_images = info_nce(texts, ids, keys.images, [queue.image_keys], scale)
        loss = step.mean(to_texts + to_images)
        return {"momentum_contrast": loss if config.start_step is not None else loss * step.queue_ready}
