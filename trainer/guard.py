"""What every rank looks at after a step, so that all stop at the same one."""

import torch

from trainer.agreement import Agreement
from trainer.distributed import World
from trainer.finite import FiniteCheck, any_not_finite
from trainer.plan import Plan
from trainer.preemption import StopRequest


class Guard:
    """Requests to stop, and values that are not finite, of any rank: all learn of them at the same call."""

    def __init__(self, plan: Plan, world: World, stop: StopRequest) -> None:
        """All ranks call it together."""
        self.stop = stop
        self._agreement = Agreement(world, 2)
        self._finite = FiniteCheck(plan.run_dir, plan.train, world)

    def after(
        self, step: int, samples: torch.Tensor, losses: dict[str, torch.Tensor], bad_gradients: torch.Tensor
    ) -> bool:
        """Whether to stop now. All ranks call it together after every step on (b,) samples.

        `bad_gradients` is () bool. Raises `RunError` on every rank, one or two steps after a value was not finite.
        """
        self._finite.add(step, samples, any_not_finite(losses), bad_gradients)
        return self.poll()

    def poll(self) -> bool:
        """As `after`, between steps: in an evaluation, after every batch."""
        return self._judge(self._agreement.exchange([self._asked, self._finite.found(wait=False)]))

    def settle(self) -> bool:
        """Whether any rank was asked to stop by now. All ranks call it together, and wait for each other.

        Raises `RunError` on every rank when a value was not finite in any step so far.
        """
        return self._judge(self._agreement.settle([self._asked, self._finite.found(wait=True)]))

    def arrive(self) -> None:
        """Wait until nothing of this is under way between the hosts."""
        self._agreement.arrive()

    @property
    def _asked(self) -> bool:
        return self.stop.reason is not None

    def _judge(self, flags: list[bool]) -> bool:
        stop, bad = flags
        if bad:
            self._finite.stop("lower optimizer.lr, or resume")
        return stop
