"""What a generated image was made from, carried in the PNG itself: enough to make it again."""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ldm import images
from ldm.errors import IntegrityError

_CHUNK = "ldm"


class Origin(BaseModel):
    """Prompt, noise, settings and models of one image, and its place in the batch it was computed in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    prompt_number: int
    """Its noise is that of (settings["seed"], prompt_number)."""
    settings: dict[str, Any]
    """The section `sample` that it was made with."""
    batch_size: int = Field(ge=1, le=100_000)
    position: int = Field(ge=0, lt=100_000)
    models: dict[str, str]
    """Name -> SHA-256 of all that it was made from. No word of the machine: `evaluate` depends on these bytes."""

    @classmethod
    def of_batch(
        cls,
        prompts: Sequence[str],
        prompt_numbers: Sequence[int],
        settings: dict[str, Any],
        models: dict[str, str],
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
            )
            for position, (prompt, number) in enumerate(zip(prompts, prompt_numbers, strict=True))
        ]

    @classmethod
    def read(cls, png: bytes, where: str) -> Self:
        """The origin that a PNG carries. IntegrityError: it carries none."""
        text = images.read_text(png, _CHUNK)
        fix = "name a PNG that `ldm generate` or stage `sample` wrote"
        if text is None:
            raise IntegrityError(where, "no PNG that says what it was made from", f"a text chunk {_CHUNK!r}", fix)
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise IntegrityError(where, f"{error.error_count()} wrong fields", "an origin", fix) from error

    def png(self, image: Any) -> bytes:
        """uint8 [h, w, 3] as a PNG that carries this origin."""
        return images.encode_png(image, {_CHUNK: self.model_dump_json()})
