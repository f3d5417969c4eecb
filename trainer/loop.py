"""The training loop: from a plan to a trained run."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shards.atomic import replacing
from shards.batch import Batch
from trainer.assemble import assemble_framework, training_loader, validation_set
from trainer.checkpoint import CONCEPTS, Progress
from trainer.checkpoint_load import load_optimizer
from trainer.checkpoint_writer import CheckpointWriter
from trainer.continuity import identity
from trainer.distributed import World, device_of, leave, start
from trainer.engine import initialize, seed_step, set_learning_rate, settle_weights
from trainer.failures import SharedFailure
from trainer.gradient_cache import cached_gradients
from trainer.guard import Guard
from trainer.lease import Lease
from trainer.logs import RunLog
from trainer.meter import Meter
from trainer.optimizer_step import OptimizerStep
from trainer.plan import Plan
from trainer.plan_agreement import agree_on_plan
from trainer.preemption import StopRequest
from trainer.prototypes import tend_prototypes
from trainer.quarantine import Quarantine
from trainer.recipe import dump_recipe
from trainer.resume import settle_resume
from trainer.schedule import learning_rate_scale
from trainer.sentinel import check_ranks
from trainer.trace import Tracer
from trainer.validation import validate
from trainer.watchdog import Watchdog


def train(plan: Plan, world: World, stop: StopRequest) -> bool:
    """Run the plan on this process as its rank of the world; every rank calls it.

    Returns whether it was stopped before its end, after saving.
    """
    device = device_of(world)
    start(world, device)
    stopped = False
    with SharedFailure(world), ExitStack() as stack:
        if agree_on_plan(plan, world, stop):
            stopped = True
        else:
            lease = stack.enter_context(Lease(plan.run_dir)) if world.is_main and not plan.finished else None
            plan, notes = settle_resume(plan, world)
            if not plan.finished:
                stopped = Trainer(plan, world, device, stop, lease, notes).run()
    # after a failure the end of the process closes the group: to leave it in order would wait for the others
    leave()
    return stopped


class Trainer:
    """One rank of a run."""

    def __init__(
        self,
        plan: Plan,
        world: World,
        device: torch.device,
        stop: StopRequest,
        lease: Lease | None,
        notes: list[str],
    ) -> None:
        """`lease` is rank 0's; `notes` are lines for the start of its log."""
        self.plan, self.recipe, self.world, self.device = plan, plan.recipe, world, device
        self.stop, self.lease = stop, lease
        self.step = plan.resume.step if plan.resume else 0
        self.framework, loaded = assemble_framework(plan)
        self.notes = notes + loaded
        self.engine = initialize(self.framework, self.recipe, world, device)
        if plan.resume:
            load_optimizer(self.engine, plan.resume)
        self.optimizer_step = self._optimizer_step()
        self.loader = training_loader(plan, world, device)
        self.val = validation_set(plan)
        self.first_step = self.step

    def _optimizer_step(self) -> OptimizerStep:
        before, scale = self.plan.resume.progress if self.plan.resume else None, self.framework.gradient_scale
        if scale and before and before.gradient_scale:
            scale.load_state_dict(before.gradient_scale)
        skipped = before.skipped_steps if before else 0
        return OptimizerStep(self.engine, scale, self.recipe.engine.max_skipped_steps, skipped)

    def run(self) -> bool:
        """Train to the last step, logging, evaluating and checkpointing on the way.

        Returns whether it was stopped before, after saving.
        """
        plan, run = self.plan, self.recipe.run
        with ExitStack() as stack:
            log = None
            if self.lease:
                log = stack.enter_context(RunLog(self.lease, plan.total_steps, self.step, self.recipe))
                with replacing(plan.run_dir / "recipe.yaml") as stream:
                    stream.write(dump_recipe(self.recipe).encode())
                self._keep_concepts()
                Watchdog.remove_leftovers(plan.run_dir, self.world.size)
                for note in self.notes + [f"changed since the checkpoint: {change}" for change in plan.changed]:
                    log.note(note)
            self.quarantine = Quarantine(plan.run_dir, self.recipe.data.max_undecodable, self.world)
            self.guard = Guard(plan, self.world, self.stop)
            self.watchdog = stack.enter_context(Watchdog(plan.run_dir, self.world.rank, run.watchdog_minutes))
            self.stop.hold_interrupts()
            say = log.note if log else lambda _text: None
            resumed, folder = plan.resume.step if plan.resume else None, plan.run_dir / "checkpoints"
            self.writer = stack.enter_context(
                CheckpointWriter(folder, self.engine, self.recipe, self.lease, say, resumed)
            )
            stopped = self._train(log)
            if stopped:
                self.writer.close()  # what is said to be saved is
            if stopped and log:
                why = self.stop.reason or "another process was asked to"
                log.note(f"stopped after step {self.step:,} ({why}); the same command goes on from there")
        return stopped

    def _keep_concepts(self) -> None:
        """A copy of the vocabulary in the run's folder: its captions must be labelled so to the end."""
        concepts, own = self.recipe.model.consensus.concepts, self.plan.run_dir / CONCEPTS
        if self.recipe.model.has_consensus and Path(str(concepts)) != own:
            with replacing(own) as stream:
                stream.write(Path(str(concepts)).read_bytes())

    def _train(self, log: RunLog | None) -> bool:
        recipe, plan = self.recipe, self.plan
        checkpoint_every = plan.steps_between(recipe.checkpoint.every_epochs)
        meter = Meter(recipe, self.device, self.world.rank, self.step)
        tracer = Tracer(recipe.log.trace_step, plan.run_dir, self.world.rank, self.device, self.guard.arrive)
        self.engine.train()
        if plan.owes_evaluation:
            if self._save(log, evaluates=True):
                return True
            meter.restart(self.step)
        batches = iter(self.loader)
        while self.step < plan.total_steps:
            self.watchdog.heard(f"step {self.step + 1:,}")
            with tracer.around(self.step + 1):
                losses, lr, applied, stopping = self._step(meter.waiting(batches))
            if applied:
                self.step += 1
                if log:
                    log.advance()
            last = self.step == plan.total_steps
            evaluates = applied and plan.is_evaluated(self.step)
            due = applied and (last or evaluates or self.step % checkpoint_every == 0)
            logs = applied and (due or stopping or self.step == 1 or self.step % recipe.log.every_steps == 0)
            if stopping or logs:
                # what is logged and saved is finite, and who is asked to stop by now need not evaluate first
                stopping = self.guard.settle() or stopping
            if due or stopping or (applied and self.step % recipe.run.sentinel_every == 0):
                self._compare_ranks()
            if logs:
                row = self._measure(losses, lr) | meter.read(self.step)
                if log:
                    log.metrics(row | self.writer.stall(), losses)
                self.writer.check()
            if due or stopping:
                stopping = self._save(log, evaluates=evaluates and not stopping) or stopping
                meter.restart(self.step)
            if stopping:
                return not last or self.val is not None
        return False

    def _step(self, batch: Batch) -> tuple[dict[str, torch.Tensor], float, bool, bool]:
        """Train on a batch. Its losses, the learning rate, whether it was applied, and whether to stop now."""
        schedule = self.recipe.schedule
        drops = [self.plan.steps_between(epochs) for epochs in schedule.drop_epochs]
        scale = learning_rate_scale(
            self.step, self.plan.total_steps, schedule.warmup_steps, schedule.final_lr_scale, drops
        )
        lr = self.recipe.optimizer.lr * scale
        set_learning_rate(self.engine, lr, towers_rest=self.step < self.recipe.optimizer.tower_start_step)
        self.quarantine.add(batch.undecodable)
        parts = (batch.images, batch.regions, batch.region_mask, batch.text, batch.image_ids, batch.valid)
        inputs = tuple(None if part is None else part.to(self.device, non_blocking=True) for part in parts)
        seed = partial(seed_step, self.recipe.run.seed, self.step, self.world.rank)
        losses = cached_gradients(self.engine, self.framework, inputs, self.step, self.plan.micro_batch_size, seed)
        done = self.optimizer_step(self.step + 1)
        stopping = self.guard.after(self.step + 1, batch.samples, losses, done.bad_gradients)
        if done.applied:
            self.framework.advance(self.step)
            tend_prototypes(self.engine, self.framework, self.step + 1)
            settle_weights(self.engine)
        return losses, lr, done.applied, stopping

    def _compare_ranks(self) -> None:
        """Raise `RunError` on every rank where one of them has diverged."""
        if self.world.size == 1:
            return
        scale = self.framework.gradient_scale
        state = {
            "the seed": (torch.initial_seed() - self.world.rank) % 2**63,
            "the loader's epoch": self.loader.state.epoch,
            "the loader's position": self.loader.state.position,
            "the skipped steps": self.optimizer_step.skipped,
            "the gradient scale": int(scale.value) if scale else 1,
        }
        check_ranks(self.framework, state, self.device, self.step)

    def _measure(self, losses: dict[str, torch.Tensor], lr: float) -> dict[str, Any]:
        """The losses over the global batch; all ranks call it, on logged steps only."""
        values = torch.stack([value.detach().float() for value in losses.values()])
        dist.all_reduce(values)
        means = dict(zip(losses, (values / self.world.size).tolist(), strict=True))
        state = self.loader.state
        epoch = state.epoch + min(1.0, state.position / self.plan.train.num_visits)
        row: dict[str, Any] = {"step": self.step, **means, "lr": lr, "epoch": round(epoch, 4)}
        if self.lease:
            self.lease.check()
        samples_read = (self.step - self.first_step) * self.recipe.data.global_batch_size
        row["undecodable"] = self.quarantine.settle(samples_read)
        row |= {"grad_norm": float(self.optimizer_step.grad_norm), "skipped_steps": self.optimizer_step.skipped}
        scale = self.framework.gradient_scale
        return row | {"gradient_scale": scale.value} if scale else row

    def _evaluate(self, log: RunLog | None) -> dict[str, Any] | None:
        """Recalls on val; None where the run was asked to stop meanwhile."""
        assert self.val is not None

        def on_batch(images: int) -> bool:
            self.watchdog.heard("the evaluation")
            if log:
                log.embedded(images)
            return self.guard.poll()

        try:
            found = validate(self.framework.encoders, self.val, self.recipe, self.world, self.device, on_batch)
        finally:
            self.engine.train()
        if found and log:
            log.evaluation({"step": self.step, "split": self.val.manifest.split, **found})
        return found

    def _save(self, log: RunLog | None, evaluates: bool) -> bool:
        """Evaluate, where that is due, and save. Returns whether the run was asked to stop in the evaluation."""
        val = self._evaluate(log) if evaluates else None
        self.watchdog.heard("the checkpoint")
        scale = self.framework.gradient_scale
        progress = Progress(
            self.step,
            self.loader.state,
            identity(self.plan.train),
            val,
            self.optimizer_step.skipped,
            scale.state_dict() if scale else None,
        )
        self.writer.save(progress)
        self.watchdog.heard("what follows a checkpoint")
        return evaluates and val is None
