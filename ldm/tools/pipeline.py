"""Text in, images out: the trained artefacts, checked against each other and put together.

from ldm import Pipeline

pipeline = Pipeline.load()  # or Pipeline.load("data/model"), a folder that needs no repository
images = pipeline(["a red circle above a blue square"], guidance_scale=4, seed=0)
paths = pipeline.write(["a red circle above a blue square"], "out", guidance_scale=4, seed=0)
images = pipeline.inpaint("photo.png", "mask.png", "a red circle above a blue square", num_resamplings=5)
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ldm.compute import attention, precision
from ldm.core import config
from ldm.core.errors import ConfigError, IntegrityError, MachineError
from ldm.corpora import spelling
from ldm.denoiser.model.condition import Condition
from ldm.sampling.generator import Generator
from ldm.sampling.origin import Origin
from ldm.sampling.params import DrawingParams
from ldm.sampling.prompts import shortened, texts_of
from ldm.text.embedding.embeddings import TextContext, TextEmbeddings, TextEncoder
from ldm.text.embedding.tower import load_text
from ldm.text.embedding.words import unknown_words
from ldm.tools import png_folder
from ldm.tools.model.parts import Parts
from ldm.tools.tasks import pictures
from ldm.tools.tasks.draw import Batch, Work, again
from ldm.tools.tasks.params import TaskParams, TasksParams
from ldm.tools.tasks.pictures import Images, Picture
from ldm.tools.tasks.scores import scores

MAX_START_NUMBER = 10**9


@dataclass(frozen=True)
class Pipeline:
    """A generator and the text encoder that it was trained with. `drawing` holds the settings that a call does not
    name. `captions` is where `embed_text` has stored captions, for images that were made from these; None = nowhere."""

    generator: Generator
    encode: TextEncoder
    drawing: DrawingParams
    batch_size: int
    tasks: TasksParams
    captions: Path | None

    @classmethod
    def load(cls, directory: str | Path = ".", device: str | torch.device | None = None) -> Self:
        """The model in a model folder, which stage `model` writes, or in the repository at `directory`, found through
        its paths.yaml; on a GPU if there is one. Captions of training are not read.

        Raises:
            ConfigError: it is neither, or paths.yaml or params.yaml is wrong.
            IntegrityError: an artefact is missing or corrupt, or was not made from the others present.
            MachineError: there is no GPU and `device` is one, or the attention backend cannot compute the networks.
        """
        parts = Parts.of(Path(directory))
        parts.require()
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if where.type == "cuda" and not torch.cuda.is_available():
            raise MachineError(
                "device", "cuda", "a GPU that this torch can use", "take cpu, or install torch for the GPU"
            )
        attention.select(parts.machine.attention, where)
        text = TextContext(parts.text)
        encode = text.encoder(*load_text(parts.clip), where)
        generator = Generator.load(parts.unet, parts.autoencoder, text, where, parts.root, encode)
        parts.check(generator.passport)
        drawing = _settled(parts.drawing, generator)
        generator.prove_attention(drawing)
        return cls(
            generator=generator,
            encode=encode,
            drawing=drawing,
            batch_size=parts.batch_size,
            tasks=parts.tasks,
            captions=parts.text if parts.has_captions else None,
        )

    def embed(self, prompts: Sequence[str]) -> Condition:
        """Tokens and pooled features of prompts, which equal those that `embed_text` stores up to their last bits; a
        prompt that is too long is cut, with a warning."""
        self._warn_of_cuts(prompts, 3)
        return self.generator.condition(prompts)

    def _warn_of_cuts(self, texts: Sequence[str], stacklevel: int) -> None:
        distinct = list(dict.fromkeys(map(spelling.clean, texts)))
        counts = self.encode.model.num_tokens(distinct).tolist()
        long = [
            (text, count) for text, count in zip(distinct, counts, strict=True) if count > self.encode.context_tokens
        ]
        if long:
            (text, count), others = long[0], f" and {len(long) - 1} more" if len(long) > 1 else ""
            cut = f"{count} tokens are cut to the {self.encode.context_tokens} of training"
            warnings.warn(f"{cut}: {shortened(text)!r}{others}", stacklevel=stacklevel)

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """Words that no caption of the corpus has, and that the models therefore cannot know; none if the words of the
        corpus did not travel with the model."""
        known = self.generator.text.texts
        return [] if known is None else unknown_words(map(spelling.clean, texts), known)

    def __call__(
        self, prompts: str | Iterable[str], batch_size: int | None = None, **settings: Any
    ) -> UInt8[Tensor, "b 3 h w"]:
        """One image per prompt, in order. Image i starts from the noise of (seed, i), so equal calls give equal images.

        batch_size: images computed at a time; None = as in the params. settings: fields of `DrawingParams`,
        such as guidance_scale, negative_prompt, num_steps, sampler (a name or {"kind": ...}) and seed. ConfigError: one
        of them is unknown or out of range, there is no prompt, or one is not a string.
        """
        texts, drawing = texts_of(prompts), self._changed(self.drawing, settings)
        self._warn_of_cuts([*texts, drawing.negative_prompt], 3)
        return torch.cat([images for images, _ in self._batches(texts, drawing, 0, batch_size)])

    def pngs(
        self, prompts: str | Iterable[str], start_number: int = 0, batch_size: int | None = None, **settings: Any
    ) -> Iterator[bytes]:
        """The images of a call with these arguments as PNGs that carry their origins, computed batch by batch.

        start_number: image i starts from the noise of (seed, start_number + i). Up to
        rounding it equals image `start_number` + i of a call from 0 on; if it has the same place in a batch of the same
        size, it does in every bit.
        """
        texts, drawing = texts_of(prompts), self._changed(self.drawing, settings)
        _check_start(start_number)
        self._warn_of_cuts([*texts, drawing.negative_prompt], 3)
        return self._pngs(texts, drawing, start_number, batch_size)

    def write(
        self,
        prompts: str | Iterable[str],
        directory: str | Path,
        start_number: int = 0,
        overwrite: bool = False,
        batch_size: int | None = None,
        **settings: Any,
    ) -> list[Path]:
        """Write the images of `pngs` into a folder, which is created if it is missing; return their paths.

        They are numbered from `start_number` on (0000.png), or after the highest number in the folder; with `overwrite`
        they replace files of the same numbers. Raises, before any work:
            ConfigError: as `pngs`, or the folder is a file.
            MachineError: the folder is not writable.
        """
        texts, drawing = texts_of(prompts), self._changed(self.drawing, settings)
        _check_start(start_number)
        self._warn_of_cuts([*texts, drawing.negative_prompt], 3)
        with png_folder.opened(Path(directory), start_number, overwrite) as folder:
            return [folder.add(png) for png in self._pngs(texts, drawing, start_number, batch_size)]

    def img2img(
        self, images: Images, prompts: str | Iterable[str], batch_size: int | None = None, **settings: Any
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Each image drawn anew from a noisy form of it (SDEdit). images: one for all prompts, or one per prompt, as
        files or pixels. settings: strength, and fields of `DrawingParams`. ConfigError: as a call."""
        return self._performed("img2img", {"image": images}, prompts, batch_size, settings)

    def inpaint(
        self,
        images: Images,
        masks: Images,
        prompts: str | Iterable[str],
        batch_size: int | None = None,
        **settings: Any,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Each image with the white part of its mask drawn anew (RePaint). settings: num_resamplings, jump_length, and
        fields of `DrawingParams`. ConfigError: as `img2img`, or a mask has not the size of its image."""
        return self._performed("inpaint", {"image": images, "mask": masks}, prompts, batch_size, settings)

    def outpaint(
        self, images: Images, prompts: str | Iterable[str], batch_size: int | None = None, **settings: Any
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Each image with a border drawn around it. settings: margin_px, stride_px, num_resamplings, jump_length, and
        fields of `DrawingParams`. ConfigError: as `img2img`."""
        return self._performed("outpaint", {"image": images}, prompts, batch_size, settings)

    def upscale(
        self, images: Images, prompts: str | Iterable[str], batch_size: int | None = None, **settings: Any
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Each small image with new pixels between its own. settings: factor, num_resamplings, jump_length, and fields
        of `DrawingParams`. ConfigError: as `img2img`."""
        return self._performed("upscale", {"image": images}, prompts, batch_size, settings)

    def alternate_lines(
        self, images: Images, prompts: str | Iterable[str], batch_size: int | None = None, **settings: Any
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Each image with every second row drawn anew. settings: num_resamplings, jump_length, and fields of
        `DrawingParams`. ConfigError: as `img2img`."""
        return self._performed("alternate_lines", {"image": images}, prompts, batch_size, settings)

    def variations(
        self, images: Images, prompts: str | Iterable[str] | None = None, batch_size: int | None = None, **settings: Any
    ) -> UInt8[Tensor, "b 3 h w"]:
        """A variation of each image, with the noise of its number: of one image there are as many as prompts, such as
        [""] * 8. No prompts: "" for every image, here and below. settings: strength, and fields of `DrawingParams`.
        ConfigError: as `img2img`."""
        return self._performed("variations", {"image": images}, prompts, batch_size, settings)

    def interpolate(
        self,
        prompts: str | Iterable[str] | None = None,
        images: Images | None = None,
        last_images: Images | None = None,
        batch_size: int | None = None,
        **settings: Any,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """For each prompt `num_frames` pictures: from it to `last_prompt`, from one noise to another (`last_noise`), or
        from an image to a last one. settings: these, image_noise, strength, and fields of `DrawingParams`. ConfigError:
        as `img2img`, or the ends are equal."""
        given = {"image": images, "last_image": last_images}
        given = {name: value for name, value in given.items() if value is not None}
        return self._performed("interpolate", given, prompts, batch_size, settings)

    def invert(
        self, images: Images, prompts: str | Iterable[str] | None = None, batch_size: int | None = None, **settings: Any
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Each image followed to its noise and drawn again from there. settings: edit, and fields of
        `DrawingParams`. ConfigError: as `img2img`."""
        return self._performed("invert", {"image": images}, prompts, batch_size, settings)

    def denoise(
        self, images: Images, prompts: str | Iterable[str] | None = None, batch_size: int | None = None, **settings: Any
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Each image without its noise. settings: noise_level, and fields of `DrawingParams`. ConfigError: as
        `img2img`."""
        return self._performed("denoise", {"image": images}, prompts, batch_size, settings)

    def score(
        self, images: Images, prompts: str | Iterable[str] | None = None, batch_size: int | None = None, **settings: Any
    ) -> dict[str, Float[Tensor, " b"]]:
        """How unusual each image is, by name of the score; higher = more. settings: times, num_noises, num_probes,
        tolerance, and seed and precision of `DrawingParams`. ConfigError: as `img2img`."""
        texts = [""] * pictures.num_rows({"image": images}) if prompts is None else texts_of(prompts)
        own, others = _split(self.tasks.score, settings)
        params, drawing = self.tasks.score.changed(own), self._changed(self.drawing, others)
        rows, size = pictures.rows({"image": images}, len(texts)), batch_size or self.batch_size
        self._warn_of_cuts(texts, 3)
        found: list[dict[str, Tensor]] = []
        for start in range(0, len(texts), size):
            condition, part = self.generator.condition(texts[start : start + size]), rows[start : start + size]
            numbers = range(start, start + len(part))
            found.append(scores(params, Batch(self.generator, condition, numbers, drawing, part, condition)))
        return {name: torch.cat([batch[name] for batch in found]) for name in found[0]}

    def task_pngs(
        self,
        task: str,
        prompts: str | Iterable[str],
        images: Mapping[str, Images],
        start_number: int = 0,
        batch_size: int | None = None,
        **settings: Any,
    ) -> Iterator[bytes]:
        """The images of a task as PNGs that carry their origins. task: a field of `TasksParams`. images: name ->
        pictures. All else as in `pngs`: a start number within the images of one prompt leaves its first ones out."""
        _check_start(start_number)
        texts, work, drawing = self._work(task, images, texts_of(prompts), settings)
        self._warn_of_cuts([*texts, drawing.negative_prompt, work.params.second_prompt or ""], 3)
        asked = range(start_number % work.params.num_per_prompt, len(texts))
        return self._pngs(texts[asked.start :], drawing, start_number, batch_size, work.part(asked))

    def _performed(
        self,
        task: str,
        images: Mapping[str, Images],
        prompts: str | Iterable[str] | None,
        batch_size: int | None,
        settings: Mapping[str, Any],
    ) -> UInt8[Tensor, "b 3 h w"]:
        given = [""] * pictures.num_rows(images) if prompts is None else texts_of(prompts)
        texts, work, drawing = self._work(task, images, given, settings)
        self._warn_of_cuts([*texts, drawing.negative_prompt, work.params.second_prompt or ""], 4)
        return torch.cat([made for made, _ in self._batches(texts, drawing, 0, batch_size, work)])

    def _work(
        self, task: str, images: Mapping[str, Images], texts: Sequence[str], settings: Mapping[str, Any]
    ) -> tuple[list[str], Work, DrawingParams]:
        """Prompts of all images, the task, and the settings of a drawing."""
        params: TaskParams = getattr(self.tasks, task)
        own, others = _split(params, settings)
        params = params.changed(own)
        drawing = self._changed(params.changes(self.drawing), others)
        params.check(drawing.num_steps)
        params.check_inputs(images.keys())
        rows, repeats = pictures.rows(images, len(texts)), range(params.num_per_prompt)
        work = Work(task, params, [row for row in rows for _ in repeats])
        return [text for text in texts for _ in repeats], work, drawing

    def replay(self, origin: Origin, given: Mapping[str, Picture] = {}) -> UInt8[Tensor, "3 h w"]:
        """Make the image of this origin again: equal in every bit on the same kind of device with as many threads.
        given: the pictures that a task was given.

        An image does not depend on the others of its batch, but its last bits do on the size of the batch and on its
        place in it, so a batch of that size is computed.

        Raises:
            ConfigError: the pictures are not those that it was made from.
            IntegrityError: it was made by other models than these, or from stored captions, which are not here.
        """
        drawing = _settled(origin.drawing(self.drawing, "replay"), self.generator)
        for name, sha256 in self.generator.made_from(drawing).items():
            if origin.models.get(name) != sha256:
                fix = "check out the commit that made it, and `dvc checkout`"
                raise IntegrityError("replay", f"an image of {name} {origin.models.get(name)}", f"{name} {sha256}", fix)
        if origin.adapters != self.generator.adapters:
            found, expected = (_told(adapters) for adapters in (origin.adapters, self.generator.adapters))
            raise IntegrityError("replay", f"an image of {found}", expected, "name its adapters by --adapter")
        texts, numbers = [origin.prompt] * origin.batch_size, [origin.prompt_number] * origin.batch_size
        work, pipeline = again(origin, given, "replay"), self if origin.encoded else self._with_captions()
        return pipeline._drawn(texts, numbers, drawing, work)[origin.position]

    def _changed(self, drawing: DrawingParams, settings: Mapping[str, Any]) -> DrawingParams:
        """A drawing with other values of some fields, settled. ConfigError: as `DrawingParams.changed`."""
        return _settled(drawing.changed(settings), self.generator)

    def _with_captions(self) -> Self:
        """The pipeline that looks up stored captions."""
        if self.captions is None:
            found = "an image that may be made from a stored caption, as those of stage `sample` are"
            fix = "replay it in the repository of the model"
            raise IntegrityError("replay", found, "one whose prompt was encoded: a model folder has no captions", fix)
        return replace(self, generator=replace(self.generator, stored=TextEmbeddings(self.captions)))

    def _pngs(
        self,
        texts: Sequence[str],
        drawing: DrawingParams,
        start_number: int,
        batch_size: int | None,
        work: Work | None = None,
    ) -> Iterator[bytes]:
        for batch, origins in self._batches(texts, drawing, start_number, batch_size, work):
            for picture, origin in zip(batch.permute(0, 2, 3, 1).contiguous().numpy(), origins, strict=True):
                yield origin.png(picture)

    def _batches(
        self,
        texts: Sequence[str],
        drawing: DrawingParams,
        start_number: int,
        batch_size: int | None,
        work: Work | None = None,
    ) -> Iterator[tuple[UInt8[Tensor, "b 3 h w"], list[Origin]]]:
        size = batch_size or self.batch_size
        for start in range(0, len(texts), size):
            batch = texts[start : start + size]
            numbers = range(start_number + start, start_number + start + len(batch))
            origins = self.generator.origins(batch, numbers, drawing)
            part = work and work.part(range(start, start + len(batch)))
            yield self._drawn(batch, numbers, drawing, part), part.signed(origins) if part else origins

    def _drawn(
        self, texts: Sequence[str], numbers: Sequence[int], drawing: DrawingParams, work: Work | None
    ) -> UInt8[Tensor, "b 3 h w"]:
        if work is None:
            return self.generator(self.generator.condition(texts), numbers, drawing)
        return work.draw(self.generator, texts, numbers, drawing)


def _settled(drawing: DrawingParams, generator: Generator) -> DrawingParams:
    """The drawing in the precision that `auto` comes to here, so that its images record what they were computed in."""
    if drawing.precision != "auto":
        return drawing
    chosen, _ = precision.choose(generator.unet, generator.device)
    return drawing.model_copy(update={"precision": chosen})


def _split(params: config.Section, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that are fields of the params, and the others."""
    own = {name: value for name, value in settings.items() if name in type(params).model_fields}
    return own, {name: value for name, value in settings.items() if name not in own}


def _told(adapters: Mapping[str, float]) -> str:
    return ", ".join(f"adapter {sha256} times {scale:g}" for sha256, scale in adapters.items()) or "no adapter"


def _check_start(number: int) -> None:
    if not isinstance(number, int) or not 0 <= number <= MAX_START_NUMBER:  # pyright: ignore[reportUnnecessaryIsInstance]
        expected = f"a whole number from 0 to {MAX_START_NUMBER}"
        raise ConfigError("start_number", repr(number), expected, "give the number of the first image, 0 by default")
