"""A model that is watched while it draws, and a rehearsal that tells beforehand how long it will take.

Both are generators whose denoiser is another one. So all samplers and tasks can be followed and stopped, and none of
them knows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.diffusion import Denoiser
from ldm.sampling.generator import Generator
from ldm.sampling.params import DrawingParams

if TYPE_CHECKING:
    from ldm.tools.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class _Watched(Generator):
    """Calls `before` whenever the guided network is asked."""

    before: Callable[[], None]

    def guided(self, condition: Condition, drawing: DrawingParams) -> Denoiser:
        denoise = super().guided(condition, drawing)

        def watched(z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            self.before()
            return denoise(z, t)

        return watched


@dataclass(frozen=True, kw_only=True)
class _Rehearsed(Generator):
    """Networks that answer at once, with nothing."""

    before: Callable[[Tensor], None]

    def guided(self, condition: Condition, drawing: DrawingParams) -> Denoiser:
        super().guided(condition, drawing)  # which refuses what does not fit

        def answer(z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            self.before(z)
            return z

        return answer

    def condition(self, captions: Sequence[str]) -> Condition:
        return self.null_condition.expand(len(captions))

    def encode(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.latents_of(images)

    def decode(self, z: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b 3 h2 w2"]:
        return self.signals_of(z).to(torch.uint8)

    def latents_of(self, signals: Tensor) -> Float[Tensor, "b c h w"]:
        count, _, height, width = signals.shape
        factor = self.autoencoder.factor
        return torch.zeros(count, self.unet.latent_shape[0], height // factor, width // factor, device=self.device)

    def signals_of(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        count, _, height, width = z.shape
        factor = self.autoencoder.factor
        return torch.zeros(count, 3, height * factor, width * factor, device=self.device)


def watched(pipeline: "Pipeline", before: Callable[[], None]) -> "Pipeline":
    """The pipeline with a function that is called before each call of the guided network; what it raises ends the
    sampling."""
    return replace(pipeline, generator=_Watched(**_parts(pipeline.generator), before=before))


def rehearsed(pipeline: "Pipeline", before: Callable[[Tensor], None]) -> "Pipeline":
    """The pipeline with the same calls, refusals included, at next to no cost. Its images are black. before: is given
    the latents [b c h w] of each call."""
    return replace(pipeline, generator=_Rehearsed(**_parts(pipeline.generator), before=before))


def _parts(generator: Generator) -> dict[str, Any]:
    return {field.name: getattr(generator, field.name) for field in fields(generator)}
