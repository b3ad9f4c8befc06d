"""Section `evaluate`: what samples are compared with, and in which space."""

from pydantic import Field

from ldm.core.config import Section


class EvaluateParams(Section):
    """Section `evaluate` of params.yaml."""

    inception_weights: str | None
    """State dict of torchvision's Inception v3, a safetensors file in `inception` of `paths.models`: distances are
    measured in its space too; null = only in those of the run's own CLIP and of the corpus, if it has one."""
    num_reference_images: int = Field(ge=2, le=10**6)
    """Training images, none of which gave a prompt, that samples are compared with (fewer if there are fewer)."""
    num_kid_subsets: int = Field(ge=1, le=1000)
    """Random subsets that the kernel distance is averaged over."""
    kid_subset_size: int = Field(ge=2, le=10000)
    """Images in such a subset (fewer if there are fewer)."""
    num_retrieval_prompts: int = Field(ge=1, le=10**6)
    """For a corpus whose captions cannot be checked: seen prompts whose images are searched by the sampled image (fewer
    if there are fewer); any image with that caption counts as found."""
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
