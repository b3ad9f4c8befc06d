"""Params section `machine`: settings of this machine. They change a result by rounding at most, so no stage depends on
them."""

from typing import Literal

from pydantic import Field, NonNegativeInt

from ldm.core.config import Section


class MachineParams(Section):
    """How this machine computes."""

    threads: int | None = Field(ge=1)
    """CPU threads per process; null = OMP_NUM_THREADS if it is set, else the physical cores that this process may use
    (at most SLURM_CPUS_PER_TASK) / processes on this machine, but no more than cores are free when a stage starts."""
    num_workers: NonNegativeInt
    """Processes beside the first one that draw and clean images in `prepare`; 0 = none."""
    attention: Literal["auto", "xformers", "sdpa", "math"]
    """Attention backend; auto = the fastest that runs here."""
    compile: bool
    """Whether torch.compile compiles autoencoder and UNet for their trainings."""
    keep_finished_states: bool
    """Whether the last state of a finished training, optimizer included, stays in `runs/`, so that `ldm resume` can go
    on from it; false = a finished run is removed."""
    num_kept_runs: NonNegativeInt | None
    """Former runs of each stage (under other params, inputs or code) whose states stay in `runs/`, newest first, those
    that a process works in among them; older ones are removed when the stage runs again. null = all."""
    max_run_age_days: float | None = Field(gt=0)
    """Days after which a former run that was not touched is removed likewise; null = never."""
