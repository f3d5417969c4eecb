"""Whether the launcher has started what the user seems to expect, judged by the environment alone."""

from collections.abc import Mapping

from trainer.errors import RunError

_MEND = "start with torchrun, deepspeed, accelerate launch or srun (docs/launching.md), or with --processes"


def check_launcher(environment: Mapping[str, str]) -> None:
    """Raises `RunError` where the variables of launchers contradict each other, or one has started too little."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        if not environment.get(name, "0").isdecimal():
            raise RunError(f"{name}={environment[name]}: not a number; {_MEND}")
    if "RANK" in environment and int(environment["RANK"]) >= int(environment.get("WORLD_SIZE", 10**9)):
        raise RunError(
            f"RANK={environment['RANK']}: is not below WORLD_SIZE={environment['WORLD_SIZE']}; count ranks from 0"
        )
    tasks, size = _tasks(environment), environment.get("WORLD_SIZE")
    # torchrun's, and deepspeed's: launchers that srun may have started, one a node
    within_task = "TORCHELASTIC_RUN_ID" in environment or "LOCAL_SIZE" in environment
    if tasks > 1 and not within_task and size not in (None, str(tasks)):
        raise RunError(
            f"WORLD_SIZE={size}, but srun has started {tasks} tasks; unset RANK and WORLD_SIZE, which follow from "
            "Slurm's own variables, or give srun the right --ntasks"
        )
    if tasks > 1 or "RANK" in environment:
        return
    if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
        raise RunError(
            "accelerate launch was asked for several processes and has started one, as it does with --cpu; "
            "give it --multi_gpu instead, which starts them without GPUs, too"
        )
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if int(environment.get(name, 1)) > 1:
            raise RunError(f"{name}={environment[name]}: mpirun does not say where the processes meet; {_MEND}")


def check_processes(environment: Mapping[str, str], processes: int | None) -> None:
    """Raises `RunError` where --processes contradicts the launcher, or a job of several tasks lacks its srun."""
    size = str(_tasks(environment)) if _tasks(environment) > 1 else environment.get("WORLD_SIZE")
    if size is not None and processes not in (None, int(size)):
        raise RunError(f"--processes {processes}: the launcher has started {size}; leave the option out")
    # a batch script is no step of srun's, but has a task's number
    in_script = "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" not in environment
    if size is None and processes is None and in_script and int(environment.get("SLURM_NTASKS", 1)) > 1:
        raise RunError(
            f"SLURM_NTASKS={environment['SLURM_NTASKS']}, but the batch script has started one process; start it "
            "with srun, or give --processes"
        )


def _tasks(environment: Mapping[str, str]) -> int:
    """Of the step of srun's that this process is a task of, 1 outside one."""
    return int(environment.get("SLURM_STEP_NUM_TASKS", 1)) if "SLURM_PROCID" in environment else 1
