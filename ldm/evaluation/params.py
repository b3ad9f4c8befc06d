"""Section `evaluate`: when a sample counts as right, and what samples are compared with, in which feature spaces."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ldm.core.config import Section
from ldm.oracles.params import OracleParams


class RetrievalParams(Section):
    """Accuracy by retrieval, for captions that no oracle can check. A sample is right if one of the real images nearest
    to it has its prompt as a caption. Distances are those of image features of the run's own CLIP."""

    kind: Literal["retrieval"]
    """How accuracy is measured."""
    num_prompts: int = Field(ge=1, le=10**6)
    """Seen prompts whose samples are used as queries (fewer if there are fewer)."""
    k: int = Field(ge=1, le=1000)
    """How many of the nearest real images are considered."""
    num_images: int = Field(ge=2, le=10**6)
    """Real images to search, including those of the prompts (fewer if there are fewer)."""


class NoAccuracyParams(Section):
    """No accuracy: distances alone say what samples are worth, as for images without captions."""

    kind: Literal["none"]
    """How accuracy is measured."""


class ShapesSpaceParams(Section):
    """Features of a small fixed network for the corpus `shapes`; distances are comparable between runs."""

    kind: Literal["shapes"]
    """Kind of feature space, named after its corpus."""


class InceptionSpaceParams(Section):
    """Pooled features of the Inception network of 2015 with TensorFlow's weights, in which FID is taken (Heusel et al.
    2017), through the package torch-fidelity. It needs the extra `perceptual`."""

    kind: Literal["inception"]
    """Kind of feature space."""
    weights: str
    """torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`, or the same as safetensors, below the folder
    `inception` of `paths.models`."""


class ClipSpaceParams(Section):
    """Image features of a CLIP that others trained, in which CMMD is taken too (Jayasumana et al. 2024): that of OpenAI
    at 336 pixels, for published numbers."""

    kind: Literal["clip"]
    """Kind of feature space."""
    architecture: str
    """open_clip's name of it, such as `ViT-L-14-336`."""
    weights: str
    """Its weights in open_clip's layout, such as `open_clip_model.safetensors`, below the folder `inception` of
    `paths.models`."""
    quick_gelu: bool
    """Whether it was trained with QuickGELU, as OpenAI's were."""


AccuracyParams = Annotated[OracleParams | RetrievalParams | NoAccuracyParams, Field(discriminator="kind")]
FeatureSpaceParams = Annotated[ShapesSpaceParams | InceptionSpaceParams | ClipSpaceParams, Field(discriminator="kind")]


class EvaluateParams(Section):
    """Section `evaluate` of params.yaml."""

    accuracy: AccuracyParams
    """When a sample counts as right: if an oracle confirms what its prompt claims, or by retrieval."""
    feature_spaces: list[FeatureSpaceParams]
    """Where distances are measured besides the feature space of the run's own CLIP, in the order of tables."""
    num_reference_images: int = Field(ge=2, le=10**6)
    """Training images that samples are compared with; none of them gave a prompt (fewer if there are fewer)."""
    num_kid_subsets: int = Field(ge=1, le=1000)
    """Random subsets that the kernel distance is averaged over."""
    kid_subset_size: int = Field(ge=2, le=10000)
    """Images per subset (fewer if there are fewer)."""
    num_pairs: int = Field(ge=1, le=256)
    """Samples of seen prompts shown beside the real images of these prompts, and as many of held-out prompts."""
    batch_size: int = Field(ge=1, le=2**16)
    """Images per batch of a feature extractor or the autoencoder."""
    num_samples_per_unit: int = Field(ge=1, le=10**6)
    """Images per unit of work; units are shared among processes."""
    seed: int = Field(ge=0, lt=2**63)
    """Seed of the subsets of the kernel distance."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        kinds = [space.kind for space in self.feature_spaces]
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"feature_spaces {kinds} name one twice; expected each kind once: metrics have its name")
        return self
