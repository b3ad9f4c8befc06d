"""Text in, images out: the trained artefacts, checked against each other and composed.

from ldm.pipeline import Pipeline
pipeline = Pipeline.load()
images = pipeline(["a red circle above a blue square"], guidance_scale=4, seed=0)
paths = pipeline.write(["a red circle above a blue square"], "out", guidance_scale=4, seed=0)
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ldm import artifact, attention, clip, config, png_folder, sampling
from ldm.autoencoder import Autoencoder, LatentScale, to_image
from ldm.cache import LATENTS, TextEmbeddings
from ldm.clip.text import load_text
from ldm.diffusion import Denoiser, Prediction, Schedule, denoiser
from ldm.errors import ConfigError, IntegrityError, MachineError
from ldm.params.machine import MachineParams
from ldm.params.networks import AutoencoderParams, UNetParams
from ldm.params.paths import PathsParams
from ldm.params.sample import SampleParams
from ldm.params.train_unet import DiffusionParams
from ldm.prompts import shortened, texts_of, unknown_words
from ldm.provenance import Origin
from ldm.unet import UNet

MAX_START_NUMBER = 10**9
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_autoencoder(directory: Path, device: torch.device) -> tuple[Autoencoder, artifact.Passport]:
    """The trained autoencoder, frozen. IntegrityError: missing, corrupt or of another kind."""
    passport, tensors = artifact.read(directory, "autoencoder")
    network = Autoencoder(AutoencoderParams.model_validate(passport.config))
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False).to(device), passport


@dataclass(frozen=True)
class Generator:
    """UNet and autoencoder: token states in, images out. `passport` is the UNet's."""

    unet: UNet
    latent_shape: tuple[int, int, int]
    autoencoder: Autoencoder
    schedule: Schedule
    prediction: Prediction
    scale: LatentScale
    null_context: Float[Tensor, "n d"]
    passport: artifact.Passport
    directory: Path
    device: torch.device

    @classmethod
    def load(cls, unet: Path, autoencoder: Path, embeddings: TextEmbeddings, device: torch.device) -> Self:
        """Read the folders of both networks.

        IntegrityError: one is missing or corrupt, or the UNet was trained on latents of another autoencoder or on
        other embeddings.
        """
        decoder, of_decoder = load_autoencoder(autoencoder, device)
        passport, tensors = artifact.read(unet, "unet")
        artifact.check_input(unet, passport, "autoencoder", of_decoder.content_sha256)
        artifact.check_input(unet, passport, "embeddings", embeddings.passport.content_sha256)
        diffusion = DiffusionParams.model_validate(passport.config["diffusion"])
        params = UNetParams.model_validate(passport.config["network"])
        network = UNet(params)
        network.load_state_dict(tensors)
        return cls(
            unet=network.eval().requires_grad_(False).to(device),
            latent_shape=(params.latent_channels, params.latent_size, params.latent_size),
            autoencoder=decoder,
            schedule=Schedule(diffusion.schedule),
            prediction=diffusion.prediction,
            scale=LatentScale.from_facts(passport.facts["latent_scale"]).to(device),
            null_context=embeddings.null_tokens.to(device),
            passport=passport,
            directory=unet,
            device=device,
        )

    @property
    def image_size_px(self) -> tuple[int, int]:
        """Height and width of its images."""
        return self.latent_shape[1] * self.autoencoder.factor, self.latent_shape[2] * self.autoencoder.factor

    @property
    def inputs(self) -> dict[str, str]:
        """Hashes of all that its images are made from."""
        trained_on = {name: self.passport.inputs[name] for name in ("autoencoder", "embeddings", "latents_train")}
        return {"unet": self.passport.content_sha256, **trained_on}

    def origins(self, prompts: Sequence[str], prompt_numbers: Sequence[int], params: SampleParams) -> list[Origin]:
        """What the images of a batch will have been made from."""
        return Origin.of_batch(prompts, prompt_numbers, params.model_dump(mode="json"), self.inputs)

    def check_latents(self, latents: Path) -> None:
        """IntegrityError unless the UNet was trained on the latents in this folder."""
        found = artifact.read_passport(latents / "train", LATENTS)
        artifact.check_input(self.directory, self.passport, "latents_train", found.content_sha256)

    def check_guidance(self, guidance_scales: Sequence[float]) -> None:
        """ConfigError if guidance is asked of a UNet that has never seen the null embedding."""
        asked = [scale for scale in guidance_scales if scale != 1]
        if asked and self.passport.facts["caption_dropout"] == 0:
            found = f"{asked[0]:g}, and {self.directory} was trained with caption_dropout 0"
            fix = "set guidance_scale: 1, or train with train_unet.diffusion.caption_dropout: 0.1"
            raise ConfigError("guidance_scale", found, "1: without dropout the UNet knows no 'no caption'", fix)

    def prove_attention(self, precision: attention.Precision) -> None:
        """MachineError unless the attention backend in use can compute both networks: the UNet in `precision`, the
        decoder in float32."""
        decoder = self.autoencoder.attention_shapes(self.latent_shape[-1])
        attention.prove(self.device, self.unet.attention_shapes, precision, trains=False)
        attention.prove(self.device, decoder, "fp32", trains=False)

    @torch.no_grad()
    def __call__(
        self, context: Float[Tensor, "b n d"], prompt_numbers: Sequence[int], params: SampleParams
    ) -> UInt8[Tensor, "b 3 h w"]:
        """One image per row of token states, on the CPU; row i starts from the noise of (seed, prompt_numbers[i])."""
        self.check_guidance([params.guidance_scale])
        z = self._latents(self._guided(context.to(self.device), params), prompt_numbers, params)
        return to_image(self.autoencoder.decode(self.scale.denormalise(z))).cpu()

    def _guided(self, context: Float[Tensor, "b n d"], params: SampleParams) -> Denoiser:
        null_context = self.null_context.expand(len(context), -1, -1)
        conditional = denoiser(self.unet, self.schedule, self.prediction, context)
        unconditional = denoiser(self.unet, self.schedule, self.prediction, null_context)
        guided = sampling.guide(conditional, unconditional, params.guidance_scale, params.guidance_interval)

        def denoise(z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            with torch.autocast(self.device.type, _DTYPES[params.precision], enabled=params.precision != "fp32"):
                return guided(z, t)

        return denoise

    def _latents(
        self, denoise: Denoiser, prompt_numbers: Sequence[int], params: SampleParams
    ) -> Float[Tensor, "b c h w"]:
        noise = sampling.prompt_noise(params.seed, prompt_numbers, self.latent_shape).to(self.device)
        times = sampling.time_grid(self.schedule, params.num_steps, params.spacing, params.time_shift)
        if params.sampler == "dpm_solver_pp_2m":
            return sampling.dpm_solver_pp_2m(denoise, self.schedule, noise, times)
        fresh = sampling.prompt_noise_at_step(params.seed, prompt_numbers, self.latent_shape)
        return sampling.ddim(denoise, self.schedule, noise, times, fresh if params.eta else None, params.eta)


@dataclass(frozen=True)
class Pipeline:
    """A generator with the text encoder it was trained with; settings that a call does not name are `params`."""

    generator: Generator
    embeddings: TextEmbeddings
    text_encoder: clip.Clip
    layer: clip.Layer
    norm: bool
    context_tokens: int
    params: SampleParams

    @classmethod
    def load(cls, root: str | Path = ".", device: str | torch.device | None = None) -> Self:
        """The artefacts of the repository at `root`, found through its params.yaml, on a GPU if there is one.

        Raises:
            ConfigError: params.yaml is missing or wrong.
            IntegrityError: an artefact is missing, corrupt, or made from others than those that are there. A shard of
                the embeddings is hashed when a prompt is in it.
            MachineError: there is no GPU and `device` is one, or the attention backend cannot compute the networks.
        """
        root = Path(root)
        document = config.Document(root / config.PARAMS)
        paths, params = document.read(PathsParams, "paths"), document.read(SampleParams, "sample")
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if where.type == "cuda" and not torch.cuda.is_available():
            raise MachineError(
                "device", "cuda", "a GPU that this torch can use", "take cpu, or install torch for the GPU"
            )
        attention.use(document.read(MachineParams, "machine").attention, where)
        embeddings = TextEmbeddings(root / paths.embeddings, is_hashed_on_use=True)
        encoder, of_encoder = load_text(root / paths.clip)
        artifact.check_input(root / paths.embeddings, embeddings.passport, "clip", of_encoder.content_sha256)
        facts = embeddings.passport.facts
        generator = Generator.load(root / paths.unet, root / paths.autoencoder, embeddings, where)
        generator.prove_attention(params.precision)
        return cls(
            generator=generator,
            embeddings=embeddings,
            text_encoder=encoder.to(where),
            layer=facts["layer"],
            norm=facts["norm"],
            context_tokens=facts["context_tokens"],
            params=params,
        )

    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "b n d"]:
        """Token states of prompts as `embed_text` stores them, and those it has stored where it has; a prompt that is
        too long is cut, with a warning."""
        self._warn_of_cuts(prompts, 3)
        return self._embed(prompts)

    @torch.no_grad()
    def _embed(self, texts: Sequence[str]) -> Float[Tensor, "b n d"]:
        ids = self.text_encoder.tokenise(texts, self.context_tokens).to(self.generator.device)
        states, _ = self.text_encoder.encode_text(ids, self.layer, self.norm)
        encoded = states[:, : self.context_tokens].half().float()
        for i, text in enumerate(texts):
            if text in self.embeddings:
                encoded[i] = self.embeddings.tokens(self.embeddings.rows([text]))[0]
        return encoded

    def _warn_of_cuts(self, texts: Sequence[str], stacklevel: int) -> None:
        distinct = list(dict.fromkeys(texts))
        counts = self.text_encoder.num_tokens(distinct).tolist()
        long = [(text, count) for text, count in zip(distinct, counts, strict=True) if count > self.context_tokens]
        if long:
            (text, count), others = long[0], f" and {len(long) - 1} more" if len(long) > 1 else ""
            found = f"{count} tokens are cut to the {self.context_tokens} of training"
            warnings.warn(f"{found}: {shortened(text)!r}{others}", stacklevel=stacklevel)

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """Words that no caption of the corpus has, of which the models can know nothing."""
        return unknown_words(texts, self.embeddings.captions)

    def __call__(self, prompts: str | Iterable[str], **settings: Any) -> UInt8[Tensor, "b 3 h w"]:
        """One image per prompt, in order; image i starts from the noise of (seed, i), so that an equal call gives equal
        images.

        settings: fields of `SampleParams`, such as guidance_scale, num_steps, sampler and seed. ConfigError: one of
        them is unknown or out of range, or there is no prompt, or one is not a text.
        """
        texts, params = texts_of(prompts), self.params.changed(settings)
        self._warn_of_cuts(texts, 3)
        return torch.cat([pictures for pictures, _ in self._batches(texts, params, 0)])

    def pngs(self, prompts: str | Iterable[str], start_number: int = 0, **settings: Any) -> Iterator[bytes]:
        """The images of a call with these arguments as PNGs, each with what it was made from, batch by batch.

        start_number: image i starts from the noise of (seed, start_number + i). It is image `start_number` + i of a
        call from 0 on up to rounding, and in every bit if it has the same place in a batch of the same size.
        """
        texts, params = texts_of(prompts), self.params.changed(settings)
        _check_start(start_number)
        self._warn_of_cuts(texts, 3)
        return self._pngs(texts, params, start_number)

    def write(
        self,
        prompts: str | Iterable[str],
        directory: str | Path,
        start_number: int = 0,
        overwrite: bool = False,
        **settings: Any,
    ) -> list[Path]:
        """The images of `pngs` in a folder, which is made if it is not there, and their paths.

        They get the numbers from `start_number` on, 0000.png, or those after the highest that is there; with
        `overwrite` they replace what has their numbers. Raises, before any work:
            ConfigError: as `pngs`, or the folder is a file.
            MachineError: the folder takes no file.
        """
        texts, params = texts_of(prompts), self.params.changed(settings)
        _check_start(start_number)
        self._warn_of_cuts(texts, 3)
        with png_folder.opened(Path(directory), start_number, overwrite) as folder:
            return [folder.add(png) for png in self._pngs(texts, params, start_number)]

    def replay(self, origin: Origin) -> UInt8[Tensor, "3 h w"]:
        """The image of this origin once more, equal to the bit on the same kind of device with as many threads.

        An image does not depend on the others of its batch, but its last bits do on the size of the batch and on its
        place in it, so a batch of that size is computed. IntegrityError: it was made by other models than these.
        """
        for name, sha256 in self.generator.inputs.items():
            if origin.models.get(name) != sha256:
                fix = "check out the commit that made it, and `dvc checkout`"
                raise IntegrityError("replay", f"an image of {name} {origin.models.get(name)}", f"{name} {sha256}", fix)
        params = origin.params(self.params, "replay")
        context = self._embed([origin.prompt] * origin.batch_size)
        numbers = [origin.prompt_number] * origin.batch_size
        return self.generator(context, numbers, params)[origin.position]

    def _pngs(self, texts: Sequence[str], params: SampleParams, start_number: int) -> Iterator[bytes]:
        for pictures, origins in self._batches(texts, params, start_number):
            for picture, origin in zip(pictures.permute(0, 2, 3, 1).contiguous().numpy(), origins, strict=True):
                yield origin.png(picture)

    def _batches(
        self, texts: Sequence[str], params: SampleParams, start_number: int
    ) -> Iterator[tuple[UInt8[Tensor, "b 3 h w"], list[Origin]]]:
        for start in range(0, len(texts), params.batch_size):
            batch = texts[start : start + params.batch_size]
            numbers = range(start_number + start, start_number + start + len(batch))
            origins = self.generator.origins(batch, numbers, params)
            yield self.generator(self._embed(batch), numbers, params), origins


def _check_start(number: int) -> None:
    if not isinstance(number, int) or not 0 <= number <= MAX_START_NUMBER:  # pyright: ignore[reportUnnecessaryIsInstance]
        expected = f"a whole number from 0 to {MAX_START_NUMBER}"
        raise ConfigError("start_number", repr(number), expected, "give the number of the first image, 0 by default")
