"""Params sections that belong to no single stage.

`paths` gives the place of every artefact, relative to the repository root. `machine` holds settings of this machine,
which change results by rounding at most, so no stage depends on them.
"""

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, model_validator

from ldm.core.config import Section

_FOLDERS = "benchmarks configs docs ldm optional recipes stages studies tests"
_FILES = (
    "CONTRIBUTING.md Dockerfile LICENSE Makefile README.md dvc.lock dvc.yaml mkdocs.yml params.yaml "
    "paths.yaml pyproject.toml requirements.lock"
)
OF_THE_REPOSITORY = (*_FOLDERS.split(), *_FILES.split())
"""Files and folders of the repository itself, which no artefact may replace."""
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"


def _check_relative(path: str) -> str:
    if not re.fullmatch(rf"{_PART}(/{_PART})*", path):
        expected = "a path below the repository root in its shortest form, such as data/images: names of letters, "
        raise ValueError(f"found {path}; expected {expected}digits, '_', '-' and '.', none of which starts with '.'")
    first = path.split("/")[0]
    if first.lower() in (name.lower() for name in OF_THE_REPOSITORY):
        raise ValueError(f"found {path}; expected a path outside {first}, which is the repository's own")
    return path


RelativePath = Annotated[str, AfterValidator(_check_relative)]
Precision = Literal["fp32", "bf16"]
"""Number type of matrix products and convolutions."""
AskedPrecision = Literal["auto", "fp32", "bf16"]
"""The same as params name it, for stages that let the user choose; auto = the faster one on the machine that begins the
work, by a short measurement. What it came to is recorded in the result, and work that was stopped goes on with it."""

Size = tuple[int, int]
"""Height and width of an image in pixels."""


class PathsParams(Section):
    """One folder per artefact. The `_results` folders are for people to read; no other stage of dvc.yaml reads them."""

    source: RelativePath
    """Corpora that users bring; no stage writes here."""
    models: RelativePath
    """Weights that users bring, in folders `autoencoder`, `lpips`, `clip`, `unet`, `guidance` and `inception`; no stage
    writes here."""
    images: RelativePath
    """Image shards, one sub-folder per split."""
    captions: RelativePath
    """Caption shards, with the same keys as the image shards."""
    prepare_results: RelativePath
    """Report, rejected samples and example pictures of `prepare`."""
    autoencoder: RelativePath
    """Trained autoencoder."""
    autoencoder_results: RelativePath
    """Metrics, curves and reconstructions of the autoencoder."""
    latents: RelativePath
    """Cached latents, one sub-folder per split."""
    latents_results: RelativePath
    """Latent statistics."""
    clip: RelativePath
    """The CLIP: trained, loaded or copied."""
    clip_results: RelativePath
    """Metrics and curves of the CLIP."""
    embeddings: RelativePath
    """Cached text embeddings and the null embedding."""
    embeddings_results: RelativePath
    """Counts of captions and truncations."""
    unet: RelativePath
    """Trained UNet."""
    unet_results: RelativePath
    """Metrics, curves and pictures of the UNet."""
    unet_averaged: RelativePath
    """The UNet as the average that validates best, if `optional/dvc.yaml` is run; no other stage reads it."""
    samples: RelativePath
    """Sampled images in shards, and a grid of some of them."""
    evaluation: RelativePath
    """Metrics of the samples, samples beside real images, and the guidance sweep."""
    model: RelativePath
    """The model as a folder of its own: all that it takes to draw images."""
    model_results: RelativePath
    """How near samples come to training images, as numbers and as a picture."""
    runs: RelativePath
    """Saved states of runs, for resuming; not tracked, and not read by any later stage. The environment variable
    LDM_RUNS overrides it. DVC's temporary copies of the repository use the folder of the original."""

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        # Some file systems do not distinguish upper and lower case.
        values: dict[str, str] = self.model_dump()
        paths = {name: PurePosixPath(value.lower()) for name, value in values.items()}
        for name, path in paths.items():
            for other, outer in paths.items():
                if name != other and path.is_relative_to(outer):
                    found = f"{name} ({values[name]}) lies in {other} ({values[other]})"
                    raise ValueError(f"{found}; expected a folder of its own for each")
        return self


class MachineParams(Section):
    """How this machine computes."""

    threads: int | None = Field(ge=1)
    """CPU threads per process. null = OMP_NUM_THREADS if it is set, else the physical cores that this process may use
    (at most SLURM_CPUS_PER_TASK), divided by the processes on this machine, but no more than the cores that are free
    when a stage starts."""
    num_workers: NonNegativeInt
    """Worker processes that draw and clean images in `prepare`, besides the main process, and threads that decode them
    in `encode_latents`; 0 = none."""
    attention: Literal["auto", "xformers", "sdpa", "cudnn", "math"]
    """Attention backend; auto = the fastest one that runs on this machine, measured on a GPU at the shapes of the run.
    cudnn = PyTorch's kernels like sdpa, those of cuDNN first."""
    compile: Literal[False, True, "blocks", "graphs"] | None
    """How the autoencoder and the UNet are computed, in trainings and in stages that encode and sample. graphs = a GPU
    records the kernels of each network and replays them as a CUDA graph, and so never waits for Python; true =
    torch.compile makes kernels for each network as a whole, which takes minutes; blocks = for the blocks that it
    repeats, one by one, in a fraction of the time; false = call by call. null = graphs where one process computes on a
    GPU, else false."""
    channels_last: bool
    """Whether convolutions work on feature maps that hold all channels of a position beside each other, as tensor cores
    do. On a GPU it pays with `compile` alone, since PyTorch's own group norms turn the order back."""
    num_batches_ahead: NonNegativeInt | None
    """Batches that a thread of a training builds before their step asks for them; 0 = none. null = 2 on a GPU, which it
    reads from pinned memory, and 0 on a CPU, where the thread would take a core from the training."""
    background_saves: bool | None
    """Whether a thread writes the saved states of a training while it goes on, from a copy in memory: the bytes of
    weights, averages and moments once more (16 per weight), pinned on a GPU. null = only on a GPU."""
    deterministic: bool
    """Whether a GPU computes convolutions only in ways that add in one order; false = in the fastest way that it finds
    by trying. CPUs always add in one order."""
    keep_finished_states: bool
    """Whether the last state of a finished training, including the optimizer, is kept in `runs/`, so that `ldm resume`
    can continue from it; false = a finished run is removed."""
    num_kept_runs: NonNegativeInt | None
    """Earlier runs of each stage (with other params, inputs or code) whose states are kept in `runs/`: the newest ones,
    including those that a process is working in. Older ones are removed when the stage runs again. null = keep all."""
    max_run_age_days: float | None = Field(gt=0)
    """Days without a change after which an earlier run is also removed; null = never."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "dvclive"]]
    """Programs that are told every row of a training's log and its pictures, and keep them in `runs/trackers/`; [] =
    none. They change no weight, and a training goes on without one that fails."""
