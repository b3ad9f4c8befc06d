"""Params of the model card: what only the owner of a model can say."""

from typing import Annotated

from pydantic import Field

from ldm.core.config import Section

Line = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\n]*$")]


class CardParams(Section):
    """Texts of the model card, `README.md` of the folder `paths.model`. They may use Markdown."""

    title: Line
    """Its heading."""
    licence: Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")] | None
    """Licence of the weights, as the Hugging Face hub names it, such as `apache-2.0`, `cc-by-sa-4.0` or `other`. null =
    that which the images of a corpus of this project ask for; for images that you bring, none is stated."""
    data: Line | None
    """Where images and captions come from, whose they are and under which licence. null = what this project knows of a
    corpus of its own; for images that you bring, the card says that nothing is stated."""
    limits: list[Line]
    """What the model should not be used for or cannot do, besides what the card finds out by itself."""
