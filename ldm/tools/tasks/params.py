"""Section `tasks`: settings of what a trained model does besides text to image. No stage reads it.

A field of `TasksParams` is a task: a verb of `ldm` and a method of `Pipeline`. `ldm.tools.tasks.draw` performs it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field

from ldm.core.config import Section, from_values
from ldm.core.errors import ConfigError

NumResamplings = Annotated[int, Field(ge=1, le=1000)]
JumpLength = Annotated[int, Field(ge=1, le=1000)]


class TaskParams(Section):
    """Settings of one task."""

    @classmethod
    def inputs(cls) -> tuple[str, ...]:
        """Names of the pictures that it needs."""
        return ("image",)

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """A copy with other values of some fields. ConfigError: a name is unknown, or a value is illegal."""
        return from_values(type(self), self.model_dump() | settings, settings)

    def check(self, num_steps: int) -> None:
        """ConfigError: it cannot be done in so many steps of a sampler."""


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


class TasksParams(Section):
    """Section `tasks`."""

    img2img: Img2ImgParams
    inpaint: InpaintParams
    outpaint: OutpaintParams
    upscale: UpscaleParams
    alternate_lines: AlternateLinesParams


def names() -> list[str]:
    """All tasks."""
    return list(TasksParams.model_fields)


def class_of(name: str) -> type[TaskParams]:
    """The params class of a task."""
    found = TasksParams.model_fields[name].annotation
    assert found is not None and issubclass(found, TaskParams), name
    return found
