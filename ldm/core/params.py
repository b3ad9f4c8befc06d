"""Params sections that no stage owns: `paths`, where every artefact lies, relative to the repository root; `machine`,
settings of this machine, which change a result by rounding at most, so that no stage depends on them."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, model_validator

from ldm.core.config import Section

_FOLDERS = "benchmarks configs docs ldm recipes stages studies tests"
_FILES = (
    "CONTRIBUTING.md LICENSE Makefile README.md dvc.lock dvc.yaml params.yaml paths.yaml pyproject.toml "
    "requirements.lock"
)
OF_THE_REPOSITORY = (*_FOLDERS.split(), *_FILES.split())
"""What the repository itself holds, which no artefact may replace."""
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
"""Type of number in matrix products and convolutions, wherever a stage lets its params choose."""


class PathsParams(Section):
    """One folder per artefact; a `_results` folder holds what people read, and no later stage depends on it."""

    source: RelativePath
    """Corpora that users bring; no stage writes there."""
    models: RelativePath
    """Weights that users bring, in folders `clip`, `unet` and `inception`; no stage writes there."""
    images: RelativePath
    """Image shards, one sub-folder per split."""
    captions: RelativePath
    """Caption shards with the keys of the image shards."""
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
    """CLIP: trained, loaded or copied."""
    clip_results: RelativePath
    """Metrics and curves of CLIP."""
    embeddings: RelativePath
    """Cached text embeddings and the null embedding."""
    embeddings_results: RelativePath
    """Counts of captions and truncations."""
    unet: RelativePath
    """Trained UNet."""
    unet_results: RelativePath
    """Metrics, curves and pictures of the UNet."""
    samples: RelativePath
    """Sampled images as shards, and the grid of them."""
    evaluation: RelativePath
    """Metrics of the samples, samples beside real images, guidance sweep."""
    runs: RelativePath
    """Resumable state; not tracked, nothing downstream reads it. LDM_RUNS overrules it; DVC's temporary copies use that
    of the repository they were made from."""

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        # Some file systems take names that differ in upper and lower case for one.
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
