"""What a process takes of the global batch of a step, in each of its accumulation passes."""

from collections.abc import Callable, Generator

from torch import Tensor

from ldm.compute import process
from ldm.compute.process import Accelerator
from ldm.core.errors import MachineError
from ldm.core.params import MachineParams
from ldm.training.params import TrainingParams

Batch = dict[str, Tensor]
BatchAtStep = Callable[[int, slice], Batch]

_NUM_AHEAD_ON_GPU = 2
"""One that waits for its step, and one that is being built."""


def rows_of_pass(number: int, rank: int, num_processes: int, num_rows: int) -> slice:
    """Rows of the global batch that a process takes in one of its accumulation passes, each of `num_rows`."""
    first = (number * num_processes + rank) * num_rows
    return slice(first, first + num_rows)


def rows_per_pass(params: TrainingParams, accelerator: Accelerator) -> int:
    """Rows of a global batch that a process takes at once. MachineError: the processes cannot divide it."""
    num_parts = params.num_accumulation_steps * accelerator.num_processes
    if params.batch_size % num_parts:
        found = f"{accelerator.num_processes} processes with num_accumulation_steps {params.num_accumulation_steps}"
        fix = "start another number of processes, or change num_accumulation_steps or batch_size"
        raise MachineError("training", found, f"a product that divides batch_size {params.batch_size}", fix)
    return params.batch_size // num_parts


def coming(
    batch_at_step: BatchAtStep,
    steps: range,
    params: TrainingParams,
    accelerator: Accelerator,
    machine: MachineParams | None,
) -> Generator[Batch]:
    """The batches of all passes of these steps for this process, in order, built ahead as `machine` says; on a GPU they
    are in pinned memory.

    batch_at_step: as of `train`. machine: None = as its defaults.
    """
    num_rows, is_gpu = rows_per_pass(params, accelerator), accelerator.device.type == "cuda"
    passes = (
        (step, rows_of_pass(number, accelerator.process_index, accelerator.num_processes, num_rows))
        for step in steps
        for number in range(params.num_accumulation_steps)
    )

    def build(at: tuple[int, slice]) -> Batch:
        batch = batch_at_step(*at)
        # Copies from other memory wait for all that the GPU has still to do.
        return {name: value.pin_memory() for name, value in batch.items()} if is_gpu else batch

    asked = machine.num_batches_ahead if machine else None
    usual = _NUM_AHEAD_ON_GPU if is_gpu else 0
    return process.ahead(build, passes, num_results=usual if asked is None else asked)
