"""Section `model`: what a model takes along when it leaves the repository, its card, and when samples are copies."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from ldm.core.config import BESIDE, Section

Line = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\n]*$")]


class CardParams(Section):
    """Texts of the model card, `README.md` of the folder `paths.model`. They may use Markdown."""

    title: Line
    """Its heading."""
    licence: Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")] | None
    """Licence of the weights, as the Hugging Face hub names it, such as `apache-2.0`, `cc-by-sa-4.0` or `other`. null =
    that which the images of a corpus of this project ask for; for images or weights that you bring, none is stated."""
    data: Line | None
    """Where images and captions come from, whose they are and under which licence. null = what this project knows of a
    corpus of its own; for images that you bring, the card says that nothing is stated."""
    prompt: Line | None
    """A prompt for examples, no caption of anybody; null = the word PROMPT."""
    pictures: bool
    """Whether the card has pictures: samples with their prompts, which are captions, and samples beside the training
    images nearest to them. false for images or captions that nobody else may see."""
    limits: list[Line]
    """What the model should not be used for or cannot do, besides what the card finds out by itself."""


class MemorisationParams(Section):
    """How samples are compared with training images, so that a model that copies them is noticed."""

    size_px: int = Field(ge=1, le=256)
    """Side of the squares to which images are shrunk before their pixels are compared. A small one forgives what an
    autoencoder or a shift by a pixel changes, and needs less memory."""
    num_images: int = Field(ge=2, le=10**6)
    """Samples of each set that are compared, and three times as many real images that no training saw: those of the
    prompts, then others of validation (fewer if there are fewer). What is close is known only from more than 1 /
    `quantile` real ones."""
    num_training_images: int = Field(ge=2, le=10**9)
    """Training images among which the nearest ones are searched, spread over the split (fewer if there are fewer).
    Equal ones count once."""
    num_neighbours: int = Field(ge=2, le=1000)
    """Nearest training images, over whose mean distance that of the nearest one is divided."""
    quantile: float = Field(gt=0, lt=1)
    """Share of the real images that are called close: the closest ones. As many samples are close by chance."""
    max_share: float = Field(ge=0, le=1)
    """Share of the samples that may be that close: the stage fails where the whole interval of 95 % is above it. 1 =
    any may."""
    num_pictures: int = Field(ge=1, le=256, json_schema_extra=BESIDE)
    """Samples, and as many real images, shown beside their nearest training images: those that are closest."""


class ModelParams(Section):
    """The folder `paths.model`, with which others draw images."""

    with_words: bool
    """Whether the words of all captions travel, sorted, so that `ldm generate` can name words of a prompt that no
    caption has. Whole captions travel as prompts in the pictures of the card alone. false = nothing of captions
    travels, for those whose words are private; `card.pictures` must then be false."""
    card: CardParams
    memorisation: MemorisationParams

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.card.pictures and not self.with_words:
            raise ValueError(
                "card.pictures shows prompts, which are captions, and with_words false keeps captions back; "
                "set card.pictures: false, or with_words: true"
            )
        return self
