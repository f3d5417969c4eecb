"""The ranking loss, L_base: pairs before everything else, on one kind of embedding or on three."""

from collections.abc import Sequence

import torch
from torch import nn

from model.collectives import average
from model.config import AhrlConfig, BaseLossConfig, ConsensusLossConfig
from model.losses.ahrl import ahrl
from model.losses.consensus import concept_divergence, consensus_loss
from model.losses.hinge import distance_weighted_hinge, hinge_loss
from model.losses.keyed_noise import PairNoise
from model.losses.running_quantile import RunningQuantile
from model.losses.tiles import Keys
from model.step import Step, View
from model.terms.term import Term


class HingeRanker(nn.Module):
    """The hinge in both directions (`model.losses.hinge`)."""

    def __init__(self, config: BaseLossConfig, steps_per_epoch: int) -> None:
        super().__init__()
        self.config = config
        self.hardest = config.negatives == "hardest"
        first = config.all_negatives_steps
        default = steps_per_epoch if self.hardest else 0  # AAHR's code draws from its first step on
        self.all_negatives_steps = default if first is None else first

    def forward(self, view: View, step: Step) -> torch.Tensor:
        """-> (b,), both directions added."""
        own, batch = view.own, view.batch
        forward = self.direction(own.images, own.texts, batch.text_keys, own.ids, step.positions, step, 0)
        return forward + self.direction(own.texts, own.images, batch.image_keys, own.ids, step.positions, step, 1)

    def direction(
        self,
        anchors: torch.Tensor,
        positives: torch.Tensor,
        keys: Keys,
        ids: torch.Tensor,
        positions: torch.Tensor,
        step: Step,
        stream: int,
    ) -> torch.Tensor:
        """(n, D) anchors and positives, their (n,) ids and positions -> (n,); `stream` tells draws apart."""
        config = self.config
        mean = step.number < self.all_negatives_steps
        if mean or self.hardest:
            return hinge_loss(anchors, ids, positives, keys, config.margin, not mean)
        noise = PairNoise(positions, len(keys.ids), step.seed, step.number, stream)
        return distance_weighted_hinge(
            anchors, ids, positives, keys, config.margin, noise, config.cutoff, config.density_dimension
        )

    def restart(self) -> None:
        """Nothing is kept."""


class AhrlRanker(nn.Module):
    """AHRL in the triplet's place (`model.losses.ahrl`), with its running quantile of the agreement."""

    def __init__(self, config: AhrlConfig, warm_up: HingeRanker) -> None:
        """`warm_up` is used in its steps with all negatives: from random weights the hardest ones collapse."""
        super().__init__()
        self.config, self.warm_up = config, warm_up
        self.agreement = RunningQuantile(config.quantile, config.quantile_decay)
        self.counts: torch.Tensor | None = None
        """(BINS,) of this rank's pairs in the last step."""

    def forward(self, view: View, step: Step) -> torch.Tensor:
        """-> (b,), both directions added; what its levels gave goes to the log."""
        if step.number < self.warm_up.all_negatives_steps:
            first: torch.Tensor = self.warm_up(view, step)
            return first
        memory = view.memory if step.number >= self.config.start_step else None
        result = ahrl(
            view.own,
            view.batch,
            step.positions,
            memory,
            self.agreement.value,
            self.config,
            seed=step.seed,
            step=step.number,
        )
        self.counts = result.agreement_counts if memory is not None and self.config.mining else None
        if view is step.views[0]:
            for name in ("hard", "candidate", "pair", "mining", "penalty", "soft_positives"):
                step.logs[f"ahrl_{name}"] = step.mean(getattr(result, name))
        return result.loss

    def restart(self) -> None:
        """Forget the agreement of other data."""
        self.agreement.histogram.zero_()


class RankingTerm(Term):
    """A ranking loss on each kind of embedding; with consensus, 3 : 5 : 1 and the divergence (CVSE)."""

    def __init__(
        self,
        name: str,
        weight: float,
        start_step: int,
        rankers: Sequence[HingeRanker | AhrlRanker],
        config: ConsensusLossConfig,
    ) -> None:
        """One ranker a kind of embedding, one or three."""
        super().__init__()
        self.name, self.weights, self.start_steps = name, {name: weight}, {name: start_step}
        self.rankers = nn.ModuleList(rankers)
        self.config = config

    def forward(self, step: Step) -> dict[str, torch.Tensor]:
        losses = [ranker(view, step) for ranker, view in zip(self.rankers, step.views, strict=True)]
        if step.concepts is None:
            return {self.name: step.mean(losses[0])}
        log_images, log_texts = step.concepts
        divergence = concept_divergence(log_texts, log_images)
        step.logs["concept_divergence"] = step.mean(divergence).detach()
        fused, instance, consensus = losses
        return {self.name: step.mean(consensus_loss(fused, instance, consensus, divergence, self.config))}

    def advance(self, _step: int) -> None:
        """Let the quantiles follow what all ranks saw in the last step, in one exchange."""
        seen = [(ranker, ranker.counts) for ranker in self.rankers if isinstance(ranker, AhrlRanker)]
        counted = [(ranker, counts.double()) for ranker, counts in seen if counts is not None]
        if not counted:
            return
        everyone = average(torch.stack([counts for _, counts in counted]))
        for (ranker, _), counts in zip(counted, everyone, strict=True):
            ranker.agreement.update(counts)
            ranker.counts = None

    def restart(self) -> None:
        for ranker in self.rankers:
            assert isinstance(ranker, HingeRanker | AhrlRanker)
            ranker.restart()
