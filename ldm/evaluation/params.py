"""Section `evaluate`: when a sample counts as right, what samples are compared with, and in which spaces."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ldm.core.config import Section
from ldm.oracles.params import OracleParams


class RetrievalParams(Section):
    """For captions that nothing can check: a sample is right if it finds its caption. Real images are searched for
    those nearest to the sample, in the image features of the run's own CLIP; one of them must have the prompt as a
    caption."""

    kind: Literal["retrieval"]
    """Its name."""
    num_prompts: int = Field(ge=1, le=10**6)
    """Seen prompts whose samples search (fewer if there are fewer)."""
    k: int = Field(ge=1, le=1000)
    """How many of the nearest real images are looked at."""
    num_images: int = Field(ge=2, le=10**6)
    """Real images to search among, those that belong to the prompts included (fewer if there are fewer)."""


class ShapesSpaceParams(Section):
    """Features of a small network that belongs to the corpus `shapes`: distances can be compared between runs."""

    kind: Literal["shapes"]
    """Its name, which is that of its corpus."""


class InceptionSpaceParams(Section):
    """Pooled features of torchvision's Inception v3."""

    kind: Literal["inception"]
    """Its name."""
    weights: str
    """State dict of torchvision's network, a safetensors file in `inception` of `paths.models`."""


FeatureSpaceParams = Annotated[ShapesSpaceParams | InceptionSpaceParams, Field(discriminator="kind")]


class EvaluateParams(Section):
    """Section `evaluate` of params.yaml."""

    accuracy: Annotated[OracleParams | RetrievalParams, Field(discriminator="kind")]
    """When a sample counts as right: the corpus's oracle confirms what its prompt claims, or retrieval finds it."""
    feature_spaces: list[FeatureSpaceParams]
    """Where distances are measured, besides the space of the run's own CLIP; in the order of tables."""
    num_reference_images: int = Field(ge=2, le=10**6)
    """Training images, none of which gave a prompt, that samples are compared with (fewer if there are fewer)."""
    num_kid_subsets: int = Field(ge=1, le=1000)
    """Random subsets that the kernel distance is averaged over."""
    kid_subset_size: int = Field(ge=2, le=10000)
    """Images in such a subset (fewer if there are fewer)."""
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
        kinds = [space.kind for space in self.feature_spaces]
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"feature_spaces {kinds} name one twice; expected each kind once: metrics have its name")
        return self
