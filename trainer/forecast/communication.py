"""What a step sends: the method's exchanges, counted, and ZeRO's, as docs/scaling.md found them in real steps."""

from dataclasses import dataclass

from trainer.forecast.empty_model import Counts
from trainer.forecast.memory import FLOAT, MOST_GATHERED
from trainer.forecast.step import StepCost


@dataclass(frozen=True)
class Exchange:
    """One kind of exchange in a step."""

    what: str
    kind: str
    calls: int | None
    """None where buckets decide how many there are."""
    bytes: float
    """Of the whole that it makes or takes; `scaling.md` says what of it each process sends."""


def communication(counts: Counts, step: StepCost, stage: int, processes: int) -> list[Exchange]:
    """Of one step; nothing with one process."""
    if processes == 1:
        return []
    method = [Exchange("method", kind, calls, float(size)) for kind, (calls, size) in step.exchanges.items()]
    ours = zero_exchanges(counts, stage, step.micro_batches)
    return method + [Exchange("ZeRO", kind, None, size) for kind, size in ours.items()]


def zero_exchanges(counts: Counts, stage: int, micro_batches: int = 1) -> dict[str, float]:
    """Bytes of the whole by kind, of DeepSpeed's own exchanges.

    Of several micro-batches (`trainer.gradient_cache`) each has a backward pass, after which stages 2 and 3 share
    out its gradients at once. Stage 3 then gathers weights in every pass anew, and all micro-batches but one are
    encoded twice; in one piece, weights of up to `MOST_GATHERED` numbers stay for the backward pass.
    """
    trained, more = float(FLOAT * counts.trained), micro_batches - 1
    if stage < 2:
        return {"all-reduce": trained} | ({"all-gather": trained} if stage else {})
    if stage == 2:
        return {"all-reduce": trained * micro_batches, "all-gather": trained}
    online, momentum = counts.trained + counts.frozen, counts.momentum
    times = 1 if more == 0 and online <= MOST_GATHERED else 2
    weights = FLOAT * float(times * online + momentum + more * (3 * online + momentum))
    return {"reduce-scatter": trained * micro_batches, "all-gather": weights}


def sent(exchanges: list[Exchange], processes: int) -> float:
    """Bytes that each process sends in a step over a ring: (W - 1) / W of the whole, twice of an all-reduce."""
    share = (processes - 1) / processes
    return sum(one.bytes * share * (2 if one.kind == "all-reduce" else 1) for one in exchanges)
