"""Section `evaluate`: what samples are compared with, and in which space."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ldm.config import Section


class EvaluateParams(Section):
    """Section `evaluate` of params.yaml."""

    feature_space: Literal["clip", "inception"]
    """Features for Frechet distance and kernel distance, part of every metric's name: the pipeline's own CLIP, or
    Inception v3."""
    inception_weights: str | None
    """State dict of torchvision's Inception v3, a safetensors file in `inception` of `paths.models`; null with
    `clip`."""
    num_reference_images: int = Field(ge=2, le=10**6)
    """Training images, none of which gave a prompt, that samples are compared with (fewer if there are fewer)."""
    num_kid_subsets: int = Field(ge=1, le=1000)
    """Random subsets that the kernel distance is averaged over."""
    kid_subset_size: int = Field(ge=2, le=10000)
    """Images in such a subset (fewer if there are fewer)."""
    num_retrieval_prompts: int = Field(ge=1, le=10**6)
    """For a corpus whose captions cannot be checked: seen prompts whose drawing is searched by the sampled image (fewer
    if there are fewer)."""
    retrieval_k: int = Field(ge=1, le=1000)
    """How many of the nearest real images count as found."""
    num_retrieval_images: int = Field(ge=2, le=10**6)
    """Real images to search among, those that belong to the prompts included (fewer if there are fewer)."""
    num_pairs: int = Field(ge=1, le=256)
    """Samples shown beside the real images of their prompts, of seen and as many of held-out ones."""
    batch_size: int = Field(ge=1, le=2**16)
    """Images given to the feature extractor or the autoencoder at a time."""
    num_samples_per_unit: int = Field(ge=1, le=10**6)
    """Images in a unit of work that processes share out."""
    seed: int = Field(ge=0, lt=2**63)
    """Seed of the subsets of the kernel distance."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.feature_space == "inception") != (self.inception_weights is not None):
            raise ValueError(
                f"feature_space {self.feature_space} with inception_weights {self.inception_weights}: "
                "expected a file exactly with inception"
            )
        return self
