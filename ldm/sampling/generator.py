"""The trained networks, checked against each other and combined into a function from conditions to images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ldm.autoencoder.encoding import latents
from ldm.autoencoder.encoding.latents import LatentScale
from ldm.autoencoder.model import networks as autoencoder_network
from ldm.autoencoder.model.network import Autoencoder, to_image, to_signal
from ldm.compute import attention, compilation
from ldm.compute.precision import autocast, cast_products
from ldm.core import artifact
from ldm.core.errors import ConfigError
from ldm.core.params import AskedPrecision, MachineParams
from ldm.corpora import spelling
from ldm.denoiser.model import networks
from ldm.denoiser.model.condition import Condition, Prepared
from ldm.denoiser.model.diffusion import Denoiser, Prediction, Schedule, denoiser
from ldm.denoiser.model.network import Network
from ldm.sampling import grids, samplers, trajectory
from ldm.sampling.guidance import models, rules
from ldm.sampling.guidance.params import AutoguidanceParams, ClassifierFreeParams, ClassifierParams, HoSalimansParams
from ldm.sampling.origin import Origin
from ldm.sampling.params import DrawingParams
from ldm.sampling.samplers import propagation
from ldm.text.embedding.embeddings import TextContext, TextEmbeddings, TextEncoder

MAX_JOINT_CELLS_CPU, MAX_JOINT_CELLS = 2**11, 2**16
"""Cells of a batch of latents, such as 32 of 8 x 8, up to which guidance asks the network with and without the prompt
in one call. Measured on CPUs: one image 1.7 to 1.9 times faster, 16 images 1.1, 64 images equal or slower. A GPU needs
more to be filled; beyond that, one call only takes twice the memory."""


@dataclass(frozen=True)
class Generator:
    """UNet and autoencoder as a function from conditions to images. `passport` is that of the UNet; `text` says how it
    was told captions. A prompt is looked up in `stored` (None = none is) and else encoded by `text_encoder` (None =
    refused). `guides` are the other models that settings name."""

    unet: Network
    autoencoder: Autoencoder
    schedule: Schedule
    prediction: Prediction
    scale: LatentScale
    text: TextContext
    stored: TextEmbeddings | None
    null_condition: Condition
    passport: artifact.Passport
    directory: Path
    device: torch.device
    text_encoder: TextEncoder | None
    guides: models.Guides
    adapters: dict[str, float] = field(default_factory=dict[str, float])
    """SHA-256 of each adapter that was added to the weights of the UNet -> its scale."""

    @classmethod
    def load(
        cls,
        unet: Path,
        autoencoder: Path,
        text: TextContext,
        device: torch.device,
        root: Path = Path(),
        text_encoder: TextEncoder | None = None,
    ) -> Self:
        """Load both networks from their folders. Folders that settings name are below `root`. Captions are looked up if
        `text` holds them.

        IntegrityError: one is missing or corrupt, or the UNet was trained on latents of another autoencoder or with
        other embeddings.
        """
        decoder, of_decoder = autoencoder_network.load(autoencoder, device)
        network, diffusion, passport = networks.load(unet, device)
        artifact.check_input(unet, passport, "autoencoder", of_decoder.content_sha256)
        artifact.check_input(unet, passport, "embeddings", text.passport.content_sha256)
        schedule = Schedule(diffusion.schedule)
        traits = models.traits_of(schedule, network.latent_shape, passport)
        return cls(
            unet=network,
            autoencoder=decoder,
            schedule=schedule,
            prediction=diffusion.prediction,
            scale=LatentScale.from_facts(passport.facts["latent_scale"]).to(device),
            text=text,
            stored=text if isinstance(text, TextEmbeddings) else None,
            null_condition=Condition(**text.null).to(device),
            passport=passport,
            directory=unet,
            device=device,
            text_encoder=text_encoder,
            guides=models.Guides(root, traits, unet, device),
        )

    def latent_shape(self, drawing: DrawingParams) -> tuple[int, int, int]:
        """Channels, height and width of the latents of a drawing."""
        channels, height, width = self.unet.latent_shape
        if drawing.size_px is None:
            return channels, height, width
        return channels, drawing.size_px[0] // self.autoencoder.factor, drawing.size_px[1] // self.autoencoder.factor

    def image_size_px(self, drawing: DrawingParams) -> tuple[int, int]:
        """Height and width of the images of a drawing."""
        _, height, width = self.latent_shape(drawing)
        return height * self.autoencoder.factor, width * self.autoencoder.factor

    @property
    def inputs(self) -> dict[str, str]:
        """Hashes of everything that all images are made from, by name."""
        trained_on = {name: self.passport.inputs[name] for name in ("autoencoder", "embeddings", "latents_train")}
        return {"unet": self.passport.content_sha256, **trained_on}

    def made_from(self, drawing: DrawingParams) -> dict[str, str]:
        """`inputs`, and the hash of the model that guides images with these settings. Errors: as `check_guidance`."""
        match drawing.guidance:
            case AutoguidanceParams(directory=directory):
                return {**self.inputs, "guidance": self.guides.worse(directory).sha256}
            case ClassifierParams(directory=directory):
                return {**self.inputs, "guidance": self.guides.classifier(directory).sha256}
            case _:
                return self.inputs

    def origins(self, prompts: Sequence[str], prompt_numbers: Sequence[int], drawing: DrawingParams) -> list[Origin]:
        """The origin record of each image in a batch."""
        settings, encoded = drawing.model_dump(mode="json"), self.stored is None
        return Origin.of_batch(prompts, prompt_numbers, settings, self.made_from(drawing), encoded, self.adapters)

    def check_latents(self, folder: Path) -> None:
        """IntegrityError unless the UNet was trained on the latents in this folder."""
        found = artifact.read_passport(folder / "train", latents.KIND)
        artifact.check_input(self.directory, self.passport, "latents_train", found.content_sha256)

    def check_guidance(self, drawing: DrawingParams) -> None:
        """ConfigError: the UNet would be asked without a prompt but was never trained to answer, a threshold is set
        for latents that are no pixels, or the model that guides does not fit. IntegrityError: that model is corrupt, or
        the negative prompt was not embedded."""
        if drawing.needs_null and self.passport.facts["caption_dropout"] == 0:
            found = f"{drawing.guidance_scale:g}, and {self.directory} was trained with caption_dropout 0"
            fix = "set it so, or train with train_unet.diffusion.caption_dropout: 0.1"
            expected = f"{drawing.unguided}: trained without caption dropout, the UNet has no unconditional prediction"
            raise ConfigError("guidance_scale", found, expected, fix)
        if drawing.dynamic_threshold is not None and self.autoencoder.factor > 1:
            found = f"{drawing.dynamic_threshold:g}, and a latent covers {self.autoencoder.factor} pixels a side"
            expected = "null: only values of pixels have limits"
            raise ConfigError("dynamic_threshold", found, expected, "leave it null, or train a model of pixels")
        self.made_from(drawing)
        self._check_size_of_guide(drawing)
        if isinstance(drawing.guidance, AutoguidanceParams):
            _, height, width = self.latent_shape(drawing)
            shapes = self.guides.worse(drawing.guidance.directory).network.attention_shapes(height, width)
            attention.prove(self.device, shapes, drawing.precision, trains=False)
        if drawing.negative_prompt:
            self.condition([drawing.negative_prompt])

    def _check_size_of_guide(self, drawing: DrawingParams) -> None:
        match drawing.guidance:
            case AutoguidanceParams(directory=directory):
                takes_any_size = self.guides.worse(directory).network.takes_any_size
            case ClassifierParams():
                takes_any_size = False
            case _:
                return
        is_asked = drawing.guidance_scale != drawing.guidance.neutral
        size, own = self.image_size_px(drawing), self._own_size_px
        if is_asked and not takes_any_size and size != own:
            found, expected = (f"{height} x {width}" for height, width in (size, own))
            expected += ", the only size of the model that guides"
            raise ConfigError("size_px", found, expected, "leave it null, or take guidance classifier_free")

    @property
    def _own_size_px(self) -> tuple[int, int]:
        """Height and width of the square images: a model that guides was trained on latents of that size too."""
        return self.unet.latent_shape[1] * self.autoencoder.factor, self.unet.latent_shape[2] * self.autoencoder.factor

    def check_drawing(self, drawing: DrawingParams) -> None:
        """ConfigError if the schedule of the UNet rules out how the drawing samples, or the networks its size."""
        found = propagation.refusal(self.schedule.name, drawing)
        if found is not None:
            raise ConfigError(found.field, found.found, found.expected, found.fix)
        if drawing.size_px is not None:
            self._check_size(*drawing.size_px)

    def _check_size(self, height: int, width: int) -> None:
        factor = self.autoencoder.factor
        multiple = factor * self.unet.size_multiple
        found, fix = f"{height} x {width}", "change it, or leave it null for the size of the square images"
        if height % multiple or width % multiple:
            raise ConfigError("size_px", found, f"multiples of {multiple}, as the networks need", fix)
        own = self._own_size_px
        if not self.unet.takes_any_size and (height, width) != own:
            expected = f"{own[0]} x {own[1]}: the position embedding of {self.directory} fits this size alone"
            raise ConfigError("size_px", found, expected, f"{fix}, or train without position_embedding")

    def prove_attention(self, drawing: DrawingParams) -> None:
        """MachineError unless the attention backend in use can run both networks for a drawing: the UNet in its
        precision, the decoder in float32."""
        _, height, width = self.latent_shape(drawing)
        decoder = self.autoencoder.attention_shapes(height, width)
        attention.prove(self.device, self.unet.attention_shapes(height, width), drawing.precision, trains=False)
        attention.prove(self.device, decoder, "fp32", trains=False)

    def condition(self, captions: Sequence[str]) -> Condition:
        """The condition of captions: as `embed_text` has stored them where they are looked up, and the others as
        `text_encoder` makes them, of their text as `ldm.corpora.spelling` cleans it. So a prompt that is typed like a
        caption of a user's corpus gets the tokens of that caption. IntegrityError: one was not stored, and nothing
        encodes it."""
        if self.stored is None:
            assert self.text_encoder is not None, "prompts are looked up or encoded"
            return Condition(**self.text_encoder([spelling.clean(text) for text in captions]))
        captions = [text if text in self.stored else spelling.clean(text) for text in captions]
        stored = [i for i, caption in enumerate(captions) if caption in self.stored]
        if self.text_encoder is None or len(stored) == len(captions):
            return _looked_up(captions, self.stored)
        # All captions of a batch are encoded, so that the bits of one do not depend on which others are stored.
        encoded = Condition(**self.text_encoder(captions))
        if not stored:
            return encoded
        return encoded.with_rows(torch.tensor(stored), _looked_up([captions[i] for i in stored], self.stored))

    @torch.no_grad()
    def __call__(
        self, condition: Condition, prompt_numbers: Sequence[int], drawing: DrawingParams
    ) -> UInt8[Tensor, "b 3 h w"]:
        """One image per row of the condition, on the CPU; row i starts from the noise of (seed, prompt_numbers[i])."""
        z = self.latents(self.guided(condition, drawing), prompt_numbers, drawing)
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
        """The UNet under a condition, with guidance and precision of the drawing. Errors: as `check_guidance` and
        `check_drawing`."""
        self.check_guidance(drawing)
        self.check_drawing(drawing)
        condition = condition.to(self.device)
        scale, rescale = drawing.guidance_scale, drawing.guidance_rescale
        told = self._prepared(condition, drawing)
        untold = self._prepared(self._no_prompt(len(condition.tokens), drawing), drawing)
        own, without = self._denoiser(told, drawing), self._denoiser(untold, drawing)
        match drawing.guidance:
            case ClassifierFreeParams() | HoSalimansParams():
                joint = self._denoiser(cache(lambda: told().followed_by(untold())), drawing)
                max_cells = MAX_JOINT_CELLS_CPU if self.device.type == "cpu" else MAX_JOINT_CELLS
                pair = rules.in_one_batch(joint, own, without, max_cells)
                scale += 1 - drawing.guidance.neutral
                guided = rules.extrapolate(own, without, scale, rescale, pair)
            case AutoguidanceParams(directory=directory):
                guide = self.guides.worse(directory)
                worse = denoiser(guide.network, self.schedule, guide.prediction, condition)
                guided = rules.extrapolate(own, worse, scale, rescale)
            case ClassifierParams(directory=directory):
                assert condition.pooled is not None, "conditions of prompts have pooled features"
                own = without
                reads = self.guides.classifier(directory).network.log_probability(condition.pooled, self.schedule)
                guided = rules.follow_classifier(own, reads, self.schedule, scale, rescale)
        guided = rules.within(drawing.guidance_interval, guided, own)
        if drawing.dynamic_threshold is not None:
            guided = self._thresholded(guided, drawing.dynamic_threshold)

        def denoise(z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            with autocast(self.device, drawing.precision):
                return guided(z, t)

        return denoise

    def _prepared(self, condition: Condition, drawing: DrawingParams) -> Callable[[], Prepared]:
        """What the network makes of a condition, when it is asked for and only once; inside autocast."""
        return cache(lambda: self._network(drawing.precision).prepare(condition))

    def _denoiser(self, prepared: Callable[[], Prepared], drawing: DrawingParams) -> Denoiser:
        def denoise(z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            return denoiser(self._network(drawing.precision), self.schedule, self.prediction, prepared())(z, t)

        return denoise

    def speed_up(self, drawing: DrawingParams, machine: MachineParams) -> None:
        """Compile the networks of a drawing, and order their feature maps, as `machine` says."""
        compilation.prepare(machine, self._network(drawing.precision), *self.autoencoder.halves)

    def _network(self, precision: AskedPrecision) -> Network:
        return self.unet if precision == "fp32" else self._unet_in_bf16

    @cached_property
    def _unet_in_bf16(self) -> Network:
        return cast_products(self.unet, "bf16")

    def _no_prompt(self, count: int, drawing: DrawingParams) -> Condition:
        """This many rows of no prompt, or of the negative one."""
        if not drawing.negative_prompt:
            return self.null_condition.expand(count)
        return self.condition([drawing.negative_prompt]).to(self.device).expand(count)

    def _thresholded(self, denoise: Denoiser, quantile: float) -> Denoiser:
        """Thresholding of signals; latents are scaled ones."""

        def signal(z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            return self.scale.denormalise(denoise(z, t))

        limited = rules.thresholded(signal, quantile)
        return lambda z, t: self.scale.normalise(limited(z, t))

    def latents(
        self, denoise: Denoiser, prompt_numbers: Sequence[int], drawing: DrawingParams
    ) -> Float[Tensor, "b c h w"]:
        """Where the sampler of the drawing follows a denoiser to; row i from the noise of (seed, prompt_numbers[i])."""
        shape = self.latent_shape(drawing)
        noise = trajectory.prompt_noise(drawing.seed, prompt_numbers, shape).to(self.device)
        times = grids.times(self.schedule.name, drawing.num_steps, drawing.spacing, drawing.time_shift)
        fresh = trajectory.prompt_noise_at_step(drawing.seed, prompt_numbers, shape)
        z = trajectory.start(self.schedule, noise, times[0])
        return trajectory.follow(samplers.build(drawing.sampler), denoise, self.schedule, z, times, fresh)


def _looked_up(captions: Sequence[str], stored: TextEmbeddings) -> Condition:
    return Condition(**stored.parts(stored.rows(captions)))
