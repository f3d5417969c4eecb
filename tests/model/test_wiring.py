"""What a framework puts where: sides and kinds of embedding, the averages, the settings of its parts."""

from pathlib import Path

import torch

from model.terms.ranking import AhrlRanker, RankingTerm
from model.terms.relations import RelationsTerm
from tests.model.test_methods import BATCH, batch, concepts, method, run

__all__ = ["concepts"]  # a fixture


def test_kinds_of_embedding_are_the_fused_the_instance_s_and_the_consensus_s(concepts: Path) -> None:
    framework = method("aahr+amsps", concepts).eval()
    images, _, _, text, *_ = batch(0, labels=4)
    encodings, keys = framework.encode(images, None, None, text)
    encoders = framework.encoders
    of_images = encoders.image_consensus(encoders.represent_image(images, None, None))
    of_texts = encoders.text_consensus(encoders.represent_text(text), text)
    for kind, name in zip(encodings.kinds, ("fused", "instance", "consensus"), strict=True):
        torch.testing.assert_close(kind, (getattr(of_images, name), getattr(of_texts, name)))
    torch.testing.assert_close(encodings.kinds[0], (encoders.encode_image(images), encoders.encode_text(text)))
    torch.testing.assert_close(encodings.concepts, (of_images.log_concepts, of_texts.log_concepts))
    torch.testing.assert_close(keys, encodings.kinds)  # the averages begin as the weights


def test_the_queue_keeps_the_momentum_encoders_images_and_texts() -> None:
    framework = method("aahr")
    assert framework.momentum is not None
    assert framework.queue is not None
    run(framework, 1)
    momentum, inputs = framework.momentum.module, batch(1)
    images, texts = momentum.encode_image(inputs[0]).detach(), momentum.encode_text(inputs[3]).detach()
    run(framework, 1, first=1)
    slots = slice(BATCH, 2 * BATCH)
    torch.testing.assert_close(framework.queue.images[slots], images)
    torch.testing.assert_close(framework.queue.texts[slots], texts)
    assert torch.equal(framework.queue.ids[slots], inputs[4])


def test_the_share_of_the_average_follows_the_ramp() -> None:
    framework = method("aahr", momentum={"decay": 0.6, "ramp": "cosine"})
    assert framework.momentum is not None
    name, weight = next((n, w) for n, w in framework.encoders.named_parameters() if w.requires_grad)
    average = dict(framework.momentum.module.named_parameters())[name]
    for step, share in ((0, 0.6), (10, 0.8), (20, 1.0)):  # of 20 steps
        before = average.detach().clone()
        with torch.no_grad():
            weight.add_(1)
        framework.advance(step)
        torch.testing.assert_close(average.detach(), share * before + (1 - share) * weight.detach())


def test_terms_have_the_settings_of_their_section(concepts: Path) -> None:
    relations = {"heads": 4, "mask_weight": 1.5}
    base = {"negatives": "distance-weighted", "margin": 0.5, "start_step": 2}
    framework = method("aahr+amsps", concepts, relations=relations, base=base, ahrl={"margin": 0.3})
    ranked, related = framework.terms["ranking"], framework.terms["relations"]
    assert isinstance(ranked, RankingTerm)
    assert isinstance(related, RelationsTerm)
    rankers = [one for one in ranked.rankers if isinstance(one, AhrlRanker)]
    assert len({id(one) for one in rankers}) == 3
    for hinge in (related.ranker, *(one.warm_up for one in rankers)):
        # AHRL's first level is the hinge with the hardest negative, at its own margin
        assert (hinge.config.negatives, hinge.config.margin, hinge.all_negatives_steps) == ("hardest", 0.3, 1)
    heads = {module.self_attn.num_heads for module in related.modules() if hasattr(module, "self_attn")}
    heads |= {module.num_heads for module in related.modules() if hasattr(module, "num_heads")}
    assert heads == {4}
    assert [("ahrl" in row) for row in run(framework, 4, labels=4)] == [False, False, True, True]
