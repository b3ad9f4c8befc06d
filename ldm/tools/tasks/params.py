"""Section `tasks`: settings of what a trained model does besides text to image. Stage `model` stores them with it.

A field of `TasksParams` is a task: a verb of `ldm` and a method of `Pipeline`. `ldm.tools.tasks.draw` performs those
that draw.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue

from ldm.core.config import Section, from_values
from ldm.core.errors import ConfigError
from ldm.sampling.params import DrawingParams, Prompt

NumResamplings = Annotated[int, Field(ge=1, le=1000)]
JumpLength = Annotated[int, Field(ge=1, le=1000)]


class Settings(Section):
    """What a call may change."""

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """A copy with other values of some fields. ConfigError: a name is unknown, or a value is illegal."""
        return from_values(type(self), {**self.model_dump(), **settings}, settings)


class TaskParams(Settings):
    """Settings of one task that draws."""

    drawing: dict[str, JsonValue] | None
    """Values of `sample.drawing` that are others for this task, such as a sampler; null = none."""

    @classmethod
    def inputs(cls) -> tuple[str, ...]:
        """Names of the pictures that it needs."""
        return ("image",)

    @classmethod
    def optional_inputs(cls) -> tuple[str, ...]:
        """Names of the pictures that it can do without."""
        return ()

    @classmethod
    def needs_prompt(cls) -> bool:
        """Whether a prompt must be given; else none stands for no caption."""
        return True

    @property
    def num_per_prompt(self) -> int:
        """Images that belong together; image number n is number n mod `num_per_prompt` of its own."""
        return 1

    @property
    def second_prompt(self) -> str | None:
        """Another prompt that all its images have."""
        return None

    def changes(self, drawing: DrawingParams) -> DrawingParams:
        """The drawing with what is other for this task. ConfigError: a name is unknown, or a value is illegal."""
        return drawing.changed(self.drawing or {})

    def check(self, num_steps: int) -> None:
        """ConfigError: it cannot be done in so many steps of a sampler."""

    def check_inputs(self, names: Collection[str]) -> None:
        """ConfigError: it cannot be done with pictures of these names."""


class Img2ImgParams(TaskParams):
    """Draw an image anew from a noisy form of it (SDEdit, Meng et al. 2022): the prompt decides details, and more the
    stronger the noise."""

    strength: float = Field(ge=0, le=1)
    """Share of the steps that are taken: 0 = the image as the autoencoder gives it back, 1 = all, from pure noise."""


class RepaintParams(TaskParams):
    """RePaint (Lugmayr et al. 2022): known parts are kept on the way down, and the way is taken several times."""

    num_resamplings: NumResamplings
    """How often each stretch of the way down is taken: r of the paper; 1 = once, without going back."""
    jump_length: JumpLength
    """Steps of a stretch: j of the paper. Its calls of the network are T + (r - 1) j len(range(0, T - j, j)) for T
    steps."""

    def check(self, num_steps: int) -> None:
        """The way back up must be shorter than the way down."""
        if self.num_resamplings > 1 and self.jump_length >= num_steps:
            found = f"{self.jump_length} with {num_steps} steps"
            fix = "take more steps or shorter jumps, or set num_resamplings to 1"
            raise ConfigError("jump_length", found, "less than num_steps", fix)


class InpaintParams(RepaintParams):
    """Draw the white part of a mask anew, and keep the rest of the image in every bit."""

    @classmethod
    def inputs(cls) -> tuple[str, ...]:
        """An image, and a mask of its size."""
        return ("image", "mask")


class OutpaintParams(RepaintParams):
    """Draw a border around an image, which stays as it is in every bit: the network sees overlapping windows of the
    size that it knows (MultiDiffusion, Bar-Tal et al. 2023)."""

    margin_px: int = Field(ge=1, le=4096)
    """Pixels that are drawn beyond each side."""
    stride_px: int = Field(ge=1, le=4096)
    """Distance of the windows; the smaller, the more of them overlap."""


class UpscaleParams(RepaintParams):
    """Draw a larger image around the pixels of a small one: they stay in every bit, and have as many new ones between
    them as the factor says."""

    factor: int = Field(ge=2, le=64)
    """Side of the result over that of the small image; an image of another size is resized to the small one first."""


class AlternateLinesParams(RepaintParams):
    """Draw every second row of an image anew, and keep the others in every bit."""


class VariationsParams(Img2ImgParams):
    """Draw variations of an image: it is noised by a fresh noise for each, then denoised, with a prompt or without."""

    @classmethod
    def needs_prompt(cls) -> bool:
        """The image says what to draw."""
        return False


class InterpolateParams(TaskParams):
    """Draw pictures on the way from one prompt, noise or image to another: what has a last one changes evenly, and all
    else stays.

    Token states of two prompts are mixed linearly, and two noises along the arc between them. Two images are brought
    up to noise, mixed there, and denoised (Ho et al. 2020, section 4.3; Song et al. 2021, DDIM, section 5.3).
    """

    last_prompt: Prompt | None
    """Prompt of the last picture; None = all have the same."""
    last_noise: bool
    """Whether the last picture has a noise of its own; else all have the same."""
    num_frames: int = Field(ge=2, le=10_000)
    """Pictures of a path, both ends included."""
    image_noise: Literal["inversion", "shared"]
    """How two images are brought to noise: by DDIM inversion, each to the noise that it is drawn from, or by adding
    one noise to both. Inversion is not guided: the first and the last picture are the images, up to the steps' error,
    only without a prompt or with a guidance_scale of 1."""
    strength: float = Field(gt=0, le=1)
    """How far two images are brought up to noise: the share of the steps that are taken on the way down."""

    @classmethod
    def inputs(cls) -> tuple[str, ...]:
        """None."""
        return ()

    @classmethod
    def optional_inputs(cls) -> tuple[str, ...]:
        """Two images, or none."""
        return ("image", "last_image")

    @classmethod
    def needs_prompt(cls) -> bool:
        """Two images do without."""
        return False

    @property
    def num_per_prompt(self) -> int:
        """The frames of a path."""
        return self.num_frames

    @property
    def second_prompt(self) -> str | None:
        """That of the last picture."""
        return self.last_prompt

    def check_inputs(self, names: Collection[str]) -> None:
        """Something must differ between the ends."""
        if len(names) == 1:
            missing = ({"image", "last_image"} - set(names)).pop()
            raise ConfigError(missing, "one image without the other", "two images, or none", f"give {missing} too")
        if not names and self.last_prompt is None and not self.last_noise:
            fix = "give a last prompt, a last noise, or two images"
            raise ConfigError("interpolate", "equal ends", "something that changes on the way", fix)


class InvertParams(TaskParams):
    """Follow an image back to the noise that it is drawn from, and draw it again from there (DDIM inversion, Song et
    al. 2021, section 5.4): by the same prompt to see how well the model knows it, by another one to change it.

    The way to noise is DDIM's, without guidance. The error of both ways together shrinks as 1 / num_steps.
    """

    edit: Prompt | None
    """The prompt by which it is drawn again; None = the prompt of the image."""

    @classmethod
    def needs_prompt(cls) -> bool:
        """The image says what to draw."""
        return False

    @property
    def second_prompt(self) -> str | None:
        """That of the edit."""
        return self.edit


class DenoiseParams(TaskParams):
    """Remove Gaussian noise from an image: the noise is measured, and the network asked once at the time at which the
    forward process has as much."""

    noise_level: float | None = Field(ge=0, le=1)
    """Standard deviation of the noise at the size of the model, where the range of a pixel is 1; None = measured there.
    A larger image is averaged down to that size, and most of its noise with it."""

    @classmethod
    def needs_prompt(cls) -> bool:
        """The image says what to draw."""
        return False


class ScoreParams(Settings):
    """How unusual an image is to the model: by the error of what the autoencoder makes of it, by that of what the UNet
    makes of its noisy forms, and by its likelihood."""

    times: list[Annotated[float, Field(gt=0, lt=1)]] = Field(min_length=1, max_length=1000)
    """Times to which latents are noised; the error is a mean over them."""
    num_noises: int = Field(ge=1, le=1000)
    """Noises per time."""
    num_probes: int = Field(ge=0, le=1000)
    """Random signs that estimate the divergence of the probability flow; more cost more and say more exactly. 0 = no
    likelihood."""
    tolerance: float = Field(ge=1e-6, le=0.1)
    """Tolerance of the solver of the probability flow. With less than 1e-6 it might never end, because networks round
    more coarsely."""


class TasksParams(Section):
    """Section `tasks`."""

    img2img: Img2ImgParams
    inpaint: InpaintParams
    outpaint: OutpaintParams
    upscale: UpscaleParams
    alternate_lines: AlternateLinesParams
    variations: VariationsParams
    interpolate: InterpolateParams
    invert: InvertParams
    denoise: DenoiseParams
    score: ScoreParams


def names() -> list[str]:
    """All tasks that draw."""
    return [name for name in TasksParams.model_fields if name != "score"]


def class_of(name: str) -> type[TaskParams]:
    """The params class of a task that draws."""
    found = TasksParams.model_fields[name].annotation
    assert isinstance(found, type) and issubclass(found, TaskParams), name
    return found
