"""Kinds of guidance: what leads a sample towards its prompt, and what the guidance scale means."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from ldm.core.config import Section
from ldm.core.params import RelativePath


class ClassifierFreeParams(Section):
    """Classifier-free guidance (Ho and Salimans 2022) in the form of GLIDE, Imagen and Stable Diffusion:
    unconditional + s (conditional - unconditional), where s is the guidance scale. 1 = none, 0 = no prompt."""

    kind: Literal["classifier_free"]
    """Its name."""

    @property
    def neutral(self) -> float:
        """The scale without guidance."""
        return 1.0


class HoSalimansParams(Section):
    """Classifier-free guidance in the form of the paper that introduced it (Ho and Salimans 2022, equation 6):
    (1 + w) conditional - w unconditional, where w is the guidance scale. 0 = none. It is `classifier_free` with
    s = 1 + w."""

    kind: Literal["ho_salimans"]
    """Its name."""

    @property
    def neutral(self) -> float:
        """The scale without guidance."""
        return 0.0


class AutoguidanceParams(Section):
    """Autoguidance (Karras et al. 2024, equation 3): worse + s (own - worse), where both models see the prompt and s is
    the guidance scale. 1 = none. No model is asked without a prompt."""

    kind: Literal["autoguidance"]
    """Its name."""
    directory: RelativePath
    """Folder of a worse denoiser, an earlier or a smaller one, trained on the same latents and embeddings with the same
    schedule. In params.yaml: below the folder `guidance` of `paths.models`."""

    @property
    def neutral(self) -> float:
        """The scale without guidance."""
        return 1.0


class ClassifierParams(Section):
    """Classifier guidance (Dhariwal and Nichol 2021, algorithm 2): the prediction without a prompt, plus the guidance
    scale times a step towards latents in which a classifier reads the prompt. 0 = no prompt, 1 = the prompt as such."""

    kind: Literal["classifier"]
    """Its name."""
    directory: RelativePath
    """Folder of a noise-aware classifier, as `python -m studies.classifier` trains it, for the same latents and
    embeddings and the same schedule. In params.yaml: below the folder `guidance` of `paths.models`."""

    @property
    def neutral(self) -> float:
        """The scale without guidance."""
        return 0.0


GuidanceParams = Annotated[
    ClassifierFreeParams | HoSalimansParams | AutoguidanceParams | ClassifierParams,
    Field(discriminator="kind"),
]


class NoisyClassifierParams(Section):
    """The network of a noise-aware classifier."""

    latent_channels: PositiveInt
    """Channels of the latents."""
    latent_size: PositiveInt
    """Height and width of the latents."""
    channels: list[PositiveInt] = Field(min_length=1, max_length=8)
    """Width of each residual block; the size is halved after each but the last."""
    norm_groups: PositiveInt
    """Groups of the normalisations."""
    num_features: PositiveInt
    """Length of pooled text features."""
    num_references: PositiveInt
    """Captions that stand for all captions."""
