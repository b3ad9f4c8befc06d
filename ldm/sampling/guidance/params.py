"""Kinds of guidance: what leads a sample towards its prompt, and what the guidance scale means."""

from typing import Annotated, Literal

from pydantic import Field

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


GuidanceParams = Annotated[
    ClassifierFreeParams | HoSalimansParams | AutoguidanceParams,
    Field(discriminator="kind"),
]
