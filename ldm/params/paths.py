"""Params section `paths`: where every artefact lies, relative to the repository root."""

from pathlib import PurePosixPath
from typing import Annotated, Self

from pydantic import StringConstraints, model_validator

from ldm.config import Section

RelativePath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$")]


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
        paths = {name: PurePosixPath(value) for name, value in self.model_dump().items()}
        for name, path in paths.items():
            for other, outer in paths.items():
                if name != other and path.is_relative_to(outer):
                    raise ValueError(
                        f"{name} ({path}) lies in {other} ({outer}); expected a folder of its own for each"
                    )
        return self
