"""What a generated image was made from, carried in the PNG itself: enough to make it again."""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ldm.core import images
from ldm.core.errors import ConfigError, IntegrityError
from ldm.sampling.params import DrawingParams
from ldm.sampling.prompts import texts_of

MAX_REPLAY_BATCH = 4096
"""The largest batch that a replay computes: a PNG of unknown source must not exhaust the machine."""
NUMERICS = 2
"""How images are computed now: 2 = guidance may ask the network with and without the prompt in one call; 1 = in two.
It grows when equal settings and models begin to give other last bits."""
_CHUNK = "ldm"
_FIX = "name a PNG that `ldm generate` or stage `sample` wrote"


class Origin(BaseModel):
    """Prompt, noise, settings and models of one image, and its place in the batch it was computed in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    prompt_number: int = Field(ge=0, lt=2**63)
    """Its noise is that of (settings["seed"], prompt_number)."""
    settings: dict[str, Any]
    """The fields of `DrawingParams` that it was made with."""
    encoded: bool = False
    """Whether its prompt was encoded as it was drawn, also where `embed_text` has stored it, since the last bits of
    both may differ; False = what was stored was taken."""
    batch_size: int = Field(ge=1, le=100_000)
    position: int = Field(ge=0, lt=100_000)
    models: dict[str, str]
    """Name -> SHA-256 of all that it was made from. Nothing about the machine: `evaluate` depends on these bytes."""
    task: str | None = None
    """The task of section `tasks` that made it; None = text to image."""
    task_settings: dict[str, Any] = {}
    """The settings of the task."""
    pictures: dict[str, str] = {}
    """Name -> SHA-256 of each picture that the task was given."""
    adapters: dict[str, float] = {}
    """SHA-256 of each adapter that was added to the UNet -> its scale."""
    numerics: int = Field(default=1, ge=1)
    """The `NUMERICS` that it was computed by; if they are others now, a replay may differ by rounding."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.position >= self.batch_size:
            raise ValueError(f"position {self.position} in a batch of {self.batch_size}")
        return self

    @classmethod
    def of_batch(
        cls,
        prompts: Sequence[str],
        prompt_numbers: Sequence[int],
        settings: dict[str, Any],
        models: dict[str, str],
        encoded: bool = False,
        adapters: dict[str, float] | None = None,
    ) -> list[Self]:
        """One per image of a batch."""
        return [
            cls(
                prompt=prompt,
                prompt_number=number,
                settings=settings,
                batch_size=len(prompts),
                position=position,
                models=models,
                encoded=encoded,
                adapters=adapters or {},
                numerics=NUMERICS,
            )
            for position, (prompt, number) in enumerate(zip(prompts, prompt_numbers, strict=True))
        ]

    @classmethod
    def read(cls, png: bytes, where: str) -> Self:
        """The origin that a PNG carries. IntegrityError: it carries none."""
        text = images.read_text(png, _CHUNK)
        if text is None:
            raise IntegrityError(where, "no PNG that says what it was made from", f"a text chunk {_CHUNK!r}", _FIX)
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise IntegrityError(where, f"{error.error_count()} wrong fields", "an origin", _FIX) from error

    def drawing(self, others: DrawingParams, where: str) -> DrawingParams:
        """The settings, completed by the values of `others`. IntegrityError: no params file may have such settings, or
        the batch is larger than a replay may compute."""
        try:
            drawing = others.changed(_of_this_format(self.settings))
            texts_of(self.prompt)
        except ConfigError as error:
            found = str(error).splitlines()[0].replace("; expected", ", where legal is")
            raise IntegrityError(where, f"an origin with {found}", "a legal one", _FIX) from error
        if self.batch_size > MAX_REPLAY_BATCH:
            expected = f"at most {MAX_REPLAY_BATCH}, all of which a replay computes"
            raise IntegrityError(where, f"one of a batch of {self.batch_size} images", expected, _FIX)
        return drawing

    def png(self, image: Any) -> bytes:
        """uint8 [h, w, 3] as a PNG that carries this origin."""
        return images.encode_png(image, {_CHUNK: self.model_dump_json(exclude_defaults=True)})


_FORMER = {
    "size_px": None,
    "guidance": {"kind": "classifier_free"},
    "guidance_rescale": 0.0,
    "negative_prompt": "",
    "dynamic_threshold": None,
}
"""What settings meant before they said it."""


def _of_this_format(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a PNG in today's form. They once were the whole section `sample`, with `eta` beside `sampler`, and
    knew one kind of guidance."""
    settings = _FORMER | settings
    if not isinstance(settings.get("sampler"), str):
        return settings
    eta = {"eta": settings.get("eta")} if settings["sampler"] == "ddim" else {}
    drawing = {name: value for name, value in settings.items() if name in DrawingParams.model_fields}
    return {**drawing, "sampler": {"kind": settings["sampler"], **eta}}
