"""The trained networks, checked against each other and combined into a function from conditions to images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ldm.autoencoder.encoding import latents
from ldm.autoencoder.encoding.latents import LatentScale
from ldm.autoencoder.model import networks as autoencoder_network
from ldm.autoencoder.model.network import Autoencoder, to_image, to_signal
from ldm.compute import attention
from ldm.compute.precision import autocast
from ldm.core import artifact
from ldm.core.errors import ConfigError
from ldm.core.params import Precision
from ldm.denoiser.model import networks
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.diffusion import Denoiser, Prediction, Schedule, denoiser
from ldm.denoiser.model.network import Network
from ldm.sampling import grids, guidance, samplers, trajectory
from ldm.sampling.origin import Origin
from ldm.sampling.params import DrawingParams
from ldm.text.embedding.embeddings import TextEmbeddings


@dataclass(frozen=True)
class Generator:
    """UNet and autoencoder as a function from conditions to images. `passport` is that of the UNet; `embeddings` are
    those that the UNet was trained with."""

    unet: Network
    autoencoder: Autoencoder
    schedule: Schedule
    prediction: Prediction
    scale: LatentScale
    embeddings: TextEmbeddings
    null_condition: Condition
    passport: artifact.Passport
    directory: Path
    device: torch.device

    @classmethod
    def load(cls, unet: Path, autoencoder: Path, embeddings: TextEmbeddings, device: torch.device) -> Self:
        """Load both networks from their folders.

        IntegrityError: one is missing or corrupt, or the UNet was trained on latents of another autoencoder or with
        other embeddings.
        """
        decoder, of_decoder = autoencoder_network.load(autoencoder, device)
        network, diffusion, passport = networks.load(unet, device)
        artifact.check_input(unet, passport, "autoencoder", of_decoder.content_sha256)
        artifact.check_input(unet, passport, "embeddings", embeddings.passport.content_sha256)
        return cls(
            unet=network,
            autoencoder=decoder,
            schedule=Schedule(diffusion.schedule),
            prediction=diffusion.prediction,
            scale=LatentScale.from_facts(passport.facts["latent_scale"]).to(device),
            embeddings=embeddings,
            null_condition=Condition(embeddings.null_tokens[None], pooled=embeddings.null_pooled[None]).to(device),
            passport=passport,
            directory=unet,
            device=device,
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        return self.unet.latent_shape

    @property
    def image_size_px(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.latent_shape[1] * self.autoencoder.factor, self.latent_shape[2] * self.autoencoder.factor

    @property
    def inputs(self) -> dict[str, str]:
        """Hashes of everything that the images are made from, by name."""
        trained_on = {name: self.passport.inputs[name] for name in ("autoencoder", "embeddings", "latents_train")}
        return {"unet": self.passport.content_sha256, **trained_on}

    def origins(self, prompts: Sequence[str], prompt_numbers: Sequence[int], drawing: DrawingParams) -> list[Origin]:
        """The origin record of each image in a batch."""
        return Origin.of_batch(prompts, prompt_numbers, drawing.model_dump(mode="json"), self.inputs)

    def check_latents(self, folder: Path) -> None:
        """IntegrityError unless the UNet was trained on the latents in this folder."""
        found = artifact.read_passport(folder / "train", latents.KIND)
        artifact.check_input(self.directory, self.passport, "latents_train", found.content_sha256)

    def check_guidance(self, guidance_scales: Sequence[float]) -> None:
        """ConfigError if guidance is requested, but the UNet was never trained with the null embedding."""
        asked = [scale for scale in guidance_scales if scale != 1]
        if asked and self.passport.facts["caption_dropout"] == 0:
            found = f"{asked[0]:g}, and {self.directory} was trained with caption_dropout 0"
            fix = "set guidance_scale: 1, or train with train_unet.diffusion.caption_dropout: 0.1"
            expected = "1: trained without caption dropout, the UNet has no unconditional prediction"
            raise ConfigError("guidance_scale", found, expected, fix)

    def prove_attention(self, precision: Precision) -> None:
        """MachineError unless the attention backend in use can run both networks: the UNet in `precision`, the decoder
        in float32."""
        decoder = self.autoencoder.attention_shapes(self.latent_shape[-1])
        attention.prove(self.device, self.unet.attention_shapes, precision, trains=False)
        attention.prove(self.device, decoder, "fp32", trains=False)

    def condition(self, captions: Sequence[str]) -> Condition:
        """The condition of captions that `embed_text` has stored. IntegrityError: one of them was not embedded."""
        rows = self.embeddings.rows(captions)
        return Condition(self.embeddings.tokens(rows), pooled=self.embeddings.pooled(rows))

    @torch.no_grad()
    def __call__(
        self, condition: Condition, prompt_numbers: Sequence[int], drawing: DrawingParams
    ) -> UInt8[Tensor, "b 3 h w"]:
        """One image per row of the condition, on the CPU; row i starts from the noise of (seed, prompt_numbers[i])."""
        self.check_guidance([drawing.guidance_scale])
        z = self._latents(self.guided(condition, drawing), prompt_numbers, drawing)
        return self.decode(z).cpu()

    def encode(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """The most likely latents of images, on the scale of the UNet and on its device."""
        return self.latents_of(to_signal(images.to(self.device)))

    def decode(self, z: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b 3 h2 w2"]:
        """The images of latents on the scale of the UNet, of any size that the autoencoder takes."""
        return to_image(self.signals_of(z))

    def latents_of(self, signals: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """`encode`, of signals in -1..1."""
        return self.scale.normalise(self.autoencoder.encode(signals).mode())

    def signals_of(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """`decode`, to signals in about -1..1."""
        return self.autoencoder.decode(self.scale.denormalise(z))

    def guided(self, condition: Condition, drawing: DrawingParams) -> Denoiser:
        """The UNet under a condition, with the guidance and in the precision of the drawing."""
        condition = condition.to(self.device)
        null_condition = self.null_condition.expand(len(condition.tokens))
        conditional = denoiser(self.unet, self.schedule, self.prediction, condition)
        unconditional = denoiser(self.unet, self.schedule, self.prediction, null_condition)
        guided = guidance.guide(conditional, unconditional, drawing.guidance_scale, drawing.guidance_interval)

        def denoise(z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            with autocast(self.device, drawing.precision):
                return guided(z, t)

        return denoise

    def _latents(
        self, denoise: Denoiser, prompt_numbers: Sequence[int], drawing: DrawingParams
    ) -> Float[Tensor, "b c h w"]:
        noise = trajectory.prompt_noise(drawing.seed, prompt_numbers, self.latent_shape).to(self.device)
        times = grids.times(self.schedule.name, drawing.num_steps, drawing.spacing, drawing.time_shift)
        fresh = trajectory.prompt_noise_at_step(drawing.seed, prompt_numbers, self.latent_shape)
        return trajectory.follow(samplers.build(drawing.sampler), denoise, self.schedule, noise, times, fresh)
