"""Independent units of work, shared by all processes and kept one by one: what was done before a stop is not done
again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from ldm.compute import process, ranks
from ldm.compute.process import Accelerator
from ldm.compute.state import Run
from ldm.compute.stopping import StopRequest
from ldm.core.errors import Stopped
from ldm.core.progress import each

T = TypeVar("T")


def keep_each(
    run: Run,
    work: Mapping[str, T],
    compute: Callable[[T], tuple[Mapping[str, Tensor], Mapping[str, Any]]],
    name: str,
    unit: str,
    accelerator: Accelerator,
) -> None:
    """Compute every unit of `work` that `run` has not kept, each process its share, and keep its tensors and values
    under its key. When this returns, `run.unit(key)` gives every process every unit.

    name, unit: words for the progress bar, such as "sample" and "shard".

    Raises:
        Stopped: the process was asked to stop; the current unit is finished first. Besides, what `Run.keep` raises.
    """
    for key in _share(list(work), name, unit, accelerator):
        if run.kept(key) is None:
            run.keep(key, *compute(work[key]))
    ranks.wait()


def _share(keys: Sequence[str], name: str, unit: str, accelerator: Accelerator) -> Iterator[str]:
    mine = process.share_of(keys, accelerator)
    with StopRequest() as stop:
        for key in each(mine, name, unit, len(mine), is_shown=accelerator.is_main_process):
            yield key
            if stop.reason is not None:
                fix = "run it again: what is done is kept"
                raise Stopped(name, stop.reason, f"{len(keys)} units of work", fix)
