"""What a job asks of the cluster."""

import re
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Resources(BaseModel):
    """Of one job; what is None is left to the cluster's defaults."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    nodes: int = Field(1, ge=1, description="nodes")
    gpus_per_node: int = Field(8, ge=0, description="GPUs a node; 0 trains on the CPU")
    tasks_per_node: int | None = Field(None, ge=1, description="processes a node; null: one a GPU, or one")
    cpus_per_task: int = Field(8, ge=1, description="cores a process, for itself and its loader workers")
    time: str | None = Field(None, description="limit of one stay in the queue, such as 24:00:00")
    partition: str | None = Field(None, description="partition, or several with commas")
    account: str | None = Field(None, description="account to charge")
    sbatch: list[str] = Field([], description="further options of sbatch, such as constraint=a100")

    @field_validator("time")
    @classmethod
    def _is_a_time(cls, time: str | None) -> str | None:
        if time is not None and not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time):
            raise ValueError(f"{time!r} is no time of Slurm; give HH:MM:SS or D-HH:MM:SS")
        return time

    @model_validator(mode="after")
    def _one_word_each(self) -> Self:
        for option in self.sbatch:
            if not re.fullmatch(r"[a-z][a-z-]*(=[^\s]+)?", option):
                raise ValueError(f"sbatch: {option!r}: give an option without its dashes, such as constraint=a100")
        return self

    def options(self) -> list[str]:
        """Lines of `#SBATCH --`."""
        tasks = self.tasks_per_node or max(1, self.gpus_per_node)
        lines = [f"nodes={self.nodes}", f"ntasks-per-node={tasks}"]
        lines += [f"gpus-per-node={self.gpus_per_node}"] if self.gpus_per_node else []
        lines += [f"cpus-per-task={self.cpus_per_task}"]
        for name in ("time", "partition", "account"):
            value = getattr(self, name)
            lines += [f"{name}={value}"] if value else []
        return lines + self.sbatch
