"""A task on pictures: what it needs of the trained networks, which function performs it, and what its PNGs say."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from ldm import randomness
from ldm.autoencoder.model.network import to_image, to_signal
from ldm.core.config import from_values
from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.params import Size
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.diffusion import Denoiser, Schedule, add_noise
from ldm.sampling import grids, samplers, trajectory
from ldm.sampling.generator import Generator
from ldm.sampling.origin import Origin
from ldm.sampling.params import DrawingParams
from ldm.sampling.samplers import Rule
from ldm.sampling.trajectory import NoiseAtStep
from ldm.tools.tasks import interpolation, inversion, masks, pictures, repaint, restoration, sdedit, windows
from ldm.tools.tasks.params import (
    AlternateLinesParams,
    DenoiseParams,
    Img2ImgParams,
    InpaintParams,
    InterpolateParams,
    InvertParams,
    OutpaintParams,
    RepaintParams,
    TaskParams,
    UpscaleParams,
    class_of,
    names,
)
from ldm.tools.tasks.pictures import Picture

Pixels = UInt8[Tensor, "b 3 h w"]
"""Images of a batch."""


@dataclass(frozen=True)
class Batch:
    """Conditions, noises and pictures of a batch, a row each, and the settings that they share."""

    generator: Generator
    condition: Condition
    prompt_numbers: Sequence[int]
    drawing: DrawingParams
    rows: Sequence[Mapping[str, Picture]]
    """Name -> picture, of every row."""
    second: Condition
    """Of the second prompt, for a task that has one; else the same as `condition`."""

    @cached_property
    def denoise(self) -> Denoiser:
        """The guided network."""
        return self.generator.guided(self.condition, self.drawing)

    @cached_property
    def unguided(self) -> Denoiser:
        """The network with the prompt and without guidance."""
        # By kind too: the scale that means none is another for some kinds.
        plain = {"guidance": "classifier_free", "guidance_scale": 1}
        return self.generator.guided(self.condition, self.drawing.changed(plain))

    @property
    def schedule(self) -> Schedule:
        """That of the network."""
        return self.generator.schedule

    @property
    def rule(self) -> Rule:
        """The sampler, also for a part of the steps."""
        return samplers.build(self.drawing.sampler, self.drawing.num_steps)

    @property
    def times(self) -> list[float]:
        """The grid of all steps."""
        drawing = self.drawing
        return grids.times(self.schedule.name, drawing.num_steps, drawing.spacing, drawing.time_shift)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        return self.generator.latent_shape(self.drawing)

    @property
    def size_px(self) -> Size:
        """Height and width of the images."""
        return self.generator.image_size_px(self.drawing)

    def noise(self, shape: tuple[int, int, int] | None = None) -> Float[Tensor, "b c h w"]:
        """The standard normal noise of `ldm generate`; `trajectory.start` scales it."""
        noise = trajectory.prompt_noise(self.drawing.seed, self.prompt_numbers, shape or self.latent_shape)
        return noise.to(self.generator.device)

    def noises(self, descent: int = 0, shape: tuple[int, int, int] | None = None) -> NoiseAtStep:
        """Noise of every step; descent 0 is that of `ldm generate`, every other number has its own."""
        seed = randomness.key(self.drawing.seed, "descent", descent) if descent else self.drawing.seed
        return trajectory.prompt_noise_at_step(seed, self.prompt_numbers, shape or self.latent_shape)

    def images(self, size_px: Size | None = None, name: str = "image") -> UInt8[Tensor, "b 3 h w"]:
        """The images of all rows, at the size of the drawing unless another is given, on the CPU."""
        return torch.stack([pictures.fitted(row[name], size_px or self.size_px) for row in self.rows])


@dataclass(frozen=True)
class Work:
    """A task, and the pictures of every image that it makes."""

    name: str
    params: TaskParams
    rows: Sequence[Mapping[str, Picture]]

    def part(self, rows: range) -> "Work":
        """The work of some of its images."""
        return Work(self.name, self.params, self.rows[rows.start : rows.stop])

    def draw(
        self,
        generator: Generator,
        prompts: Sequence[str],
        prompt_numbers: Sequence[int],
        drawing: DrawingParams,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Its images as one batch, on the CPU."""
        condition, other = generator.condition(prompts), self.params.second_prompt
        second = condition if other is None else generator.condition([other] * len(prompts))
        return draw(self.params, Batch(generator, condition, prompt_numbers, drawing, self.rows, second))

    def signed(self, origins: Sequence[Origin]) -> list[Origin]:
        """The origins with task and hashes of pictures."""
        settings = self.params.model_dump(mode="json", exclude={"drawing"})  # the drawing is the origin's
        return [
            origin.model_copy(update={"task": self.name, "task_settings": settings, "pictures": _hashes(row)})
            for origin, row in zip(origins, self.rows, strict=True)
        ]


def again(origin: Origin, given: Mapping[str, Picture], where: str) -> Work | None:
    """The work of the batch in which an image was made, from the same pictures; None = text to image.

    ConfigError: a picture is missing, superfluous, or another one. IntegrityError: there is no such task.
    """
    for name in origin.pictures.keys() | given.keys():
        _check_same(name, origin.pictures.get(name), given.get(name), where)
    if origin.task is None:
        return None
    fix = "check out the commit that made it"
    if origin.task not in names():
        raise IntegrityError(where, f"an image of task {origin.task!r}", f"one of {', '.join(names())}", fix)
    try:
        params = from_values(class_of(origin.task), {**origin.task_settings, "drawing": None}, origin.task_settings)
        params.check(origin.settings.get("num_steps", 1))
    except ConfigError as error:
        found = str(error).splitlines()[0].replace("; expected", ", where legal is")
        raise IntegrityError(where, f"a task with {found}", "a legal one", fix) from error
    return Work(origin.task, params, [given] * origin.batch_size)


def _check_same(name: str, sha256: str | None, picture: Picture | None, where: str) -> None:
    found = None if picture is None else picture.sha256
    if found == sha256:
        return
    option = f"--{name.replace('_', '-')}"
    expected, fix = ("none", f"leave {option} out") if sha256 is None else (f"the {name} with SHA-256 {sha256}", "")
    shown = f"no {name}" if picture is None else f"{picture.where} with SHA-256 {found}"
    raise ConfigError(where, shown, expected, fix or f"give by {option} the file that it was made from")


def _hashes(row: Mapping[str, Picture]) -> dict[str, str]:
    return {name: picture.sha256 for name, picture in row.items()}


@torch.no_grad()
def draw(task: TaskParams, batch: Batch) -> UInt8[Tensor, "b 3 h w"]:
    """The images that a task makes, on the CPU."""
    batch.generator.check_guidance(batch.drawing)
    match task:
        case Img2ImgParams():
            return _img2img(task, batch)
        case InpaintParams():
            return _inpaint(task, batch)
        case OutpaintParams():
            return _outpaint(task, batch)
        case UpscaleParams():
            return _upscale(task, batch)
        case AlternateLinesParams():
            known = batch.images()
            return _between_pixels(task, batch, known, masks.named("lines", known.shape[2], known.shape[3]))
        case InterpolateParams():
            return _interpolate(task, batch)
        case InvertParams():
            return _invert(batch)
        case DenoiseParams():
            return _denoise(task, batch)
        case _:
            raise AssertionError(f"no function for {task}")


def _img2img(task: Img2ImgParams, batch: Batch) -> UInt8[Tensor, "b 3 h w"]:
    times, z0 = sdedit.last_times(batch.times, task.strength), batch.generator.encode(batch.images())
    z = sdedit.img2img(batch.rule, batch.denoise, batch.schedule, z0, times, batch.noise(), batch.noises())
    return batch.generator.decode(z).cpu()


def _inpaint(task: InpaintParams, batch: Batch) -> UInt8[Tensor, "b 3 h w"]:
    images = batch.images()
    unknown = torch.stack([pictures.white(row["mask"], batch.size_px) for row in batch.rows])
    for row, marked in zip(batch.rows, unknown, strict=True):
        if not marked.any():
            found, fix = "white only beside the part in the middle that is drawn", "crop image and mask first"
            raise ConfigError(row["mask"].where, found, "white within it", fix)
    return _on_cells(task, batch, batch.denoise, images, unknown)


def _outpaint(task: OutpaintParams, batch: Batch) -> UInt8[Tensor, "b 3 h w"]:
    factor, margin = batch.generator.autoencoder.factor, [task.margin_px] * 4
    for name, value in (("margin_px", task.margin_px), ("stride_px", task.stride_px)):
        if value % factor:
            fix = f"set it to {max(1, round(value / factor)) * factor}"
            raise ConfigError(name, str(value), f"a multiple of {factor}, the pixels of a latent", fix)
    if any(windows.leave_gaps(side + 2 * task.margin_px, side, task.stride_px) for side in batch.size_px):
        expected = f"at most {min(batch.size_px)}, the side of a window"
        raise ConfigError("stride_px", str(task.stride_px), expected, "lower it: windows must leave no gap")
    images = functional.pad(batch.images().float(), margin, mode="replicate").to(torch.uint8)
    unknown = functional.pad(torch.zeros(batch.images()[:, :1].shape), margin, value=1) > 0
    _, height, width = batch.latent_shape
    denoise = windows.windowed(batch.denoise, (height, width), task.stride_px // factor)
    return _on_cells(task, batch, denoise, images, unknown)


def _on_cells(
    task: RepaintParams, batch: Batch, denoise: Denoiser, images: Pixels, unknown: Bool[Tensor, "b 1 h w"]
) -> Pixels:
    """RePaint on whole latent cells; then known pixels are put back."""
    generator = batch.generator
    cells = repaint.cells(unknown, generator.autoencoder.factor).to(generator.device)
    z0 = generator.encode(images)
    z = _repaint(task, batch, denoise, repaint.known_cells(z0, cells), (z0.shape[1], z0.shape[2], z0.shape[3]))
    return torch.where(unknown, generator.decode(z).cpu(), images)


def _upscale(task: UpscaleParams, batch: Batch) -> Pixels:
    height, width = batch.size_px
    common = math.gcd(height, width)
    if common % task.factor:
        fitting = ", ".join(str(factor) for factor in range(2, common + 1) if common % factor == 0)
        fix = f"set it to one of {fitting}, or draw at another size_px"
        raise ConfigError("factor", str(task.factor), f"one that divides {height} and {width}", fix)
    small = batch.images((height // task.factor, width // task.factor))
    known = small.repeat_interleave(task.factor, 2).repeat_interleave(task.factor, 3)
    return _between_pixels(task, batch, known, masks.grid(height, width, task.factor))


def _between_pixels(task: RepaintParams, batch: Batch, images: Pixels, unknown: Bool[np.ndarray, "h w"]) -> Pixels:
    """RePaint where every cell has known pixels: they are put into the decoded z0_hat, which is encoded again."""
    generator, mask = batch.generator, torch.from_numpy(unknown.copy())
    signals = to_signal(images.to(generator.device))
    knowledge = repaint.known_pixels(signals, mask.to(generator.device), generator.signals_of, generator.latents_of)
    z = _repaint(task, batch, batch.denoise, knowledge, batch.latent_shape)
    return torch.where(mask, generator.decode(z).cpu(), images)


def _repaint(
    task: RepaintParams,
    batch: Batch,
    denoise: Denoiser,
    knowledge: repaint.Knowledge,
    shape: tuple[int, int, int],
) -> Float[Tensor, "b c h w"]:
    times = batch.times
    stretches = repaint.descents(len(times) - 1, task.num_resamplings, task.jump_length)
    known, noises = repaint.knowing(denoise, knowledge), partial(batch.noises, shape=shape)
    z = trajectory.start(batch.schedule, batch.noise(shape), times[0])
    return repaint.repaint(batch.rule, known, batch.schedule, z, times, stretches, noises)


def _interpolate(task: InterpolateParams, batch: Batch) -> Pixels:
    """Image number n is frame n mod `num_frames` of a path that has the noise of number n // `num_frames`."""
    paths, frames = zip(*(divmod(number, task.num_frames) for number in batch.prompt_numbers), strict=True)
    fractions = torch.tensor(frames) / (task.num_frames - 1)
    condition = batch.condition
    if task.second_prompt is not None:
        if condition.mask is not None:
            fix = "interpolate between noises or images, or train with embed_text.padding: attended"
            raise ConfigError("last_prompt", "captions whose padding is masked", "padding that has states to mix", fix)
        condition = interpolation.between(condition, batch.second, fractions)
    path = replace(batch, condition=condition, prompt_numbers=paths)
    times = sdedit.last_times(path.times, task.strength if path.rows[0] else 1.0)
    z = _start(task, path, times, fractions.to(path.generator.device))
    return path.generator.decode(
        trajectory.follow(path.rule, path.denoise, path.schedule, z, times, path.noises())
    ).cpu()


def _start(
    task: InterpolateParams, path: Batch, times: Sequence[float], fractions: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """The latents at times[0]: between two images, if they are given, else between two noises."""
    noise = path.noise()
    if task.last_noise:
        other = randomness.key(path.drawing.seed, "last noise")
        last = trajectory.prompt_noise(other, path.prompt_numbers, path.latent_shape).to(noise)
        noise = interpolation.slerp(noise, last, fractions)
    if not path.rows[0]:
        return trajectory.start(path.schedule, noise, times[0])
    first, last = (path.generator.encode(path.images(name=name)) for name in ("image", "last_image"))
    if task.image_noise == "shared":
        z0 = interpolation.lerp(first, last, fractions)
        return add_noise(path.schedule, z0, noise, z0.new_full((len(z0),), times[0]))
    first, last = (inversion.invert(path.unguided, path.schedule, z0, times) for z0 in (first, last))
    return interpolation.slerp(first, last, fractions)


def _invert(batch: Batch) -> Pixels:
    noise = inversion.invert(batch.unguided, batch.schedule, batch.generator.encode(batch.images()), batch.times)
    denoise = batch.generator.guided(batch.second, batch.drawing)
    z0 = trajectory.follow(batch.rule, denoise, batch.schedule, noise, batch.times, batch.noises())
    return batch.generator.decode(z0).cpu()


def _denoise(task: DenoiseParams, batch: Batch) -> Pixels:
    generator, x = batch.generator, to_signal(batch.images().to(batch.generator.device))
    # A pixel value of 1 is a signal of 2.
    level = None if task.noise_level is None else x.new_full((len(x),), 2 * task.noise_level)
    noise = trajectory.prompt_noise(batch.drawing.seed, batch.prompt_numbers, (x.shape[1], x.shape[2], x.shape[3])).to(
        x
    )

    def encode(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        return generator.latents_of(x.clamp(-1, 1))  # as the bytes of an image cut noise off

    signals, found, _ = restoration.restore(
        batch.unguided, batch.schedule, encode, generator.signals_of, x, noise, level
    )
    if level is None:
        levels = ", ".join(dict.fromkeys(f"{value / 2:.3f}" for value in found.tolist()))
        print(f"noise measured, where the range of a pixel is 1: {levels} (noise_level names another)", file=sys.stderr)
    return to_image(signals).cpu()
