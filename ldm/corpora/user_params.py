"""Params of the corpora that users bring: folders, tars, parquet files and Hugging Face datasets."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ldm.core.config import Section
from ldm.core.params import Size
from ldm.corpora.base_params import CorpusBase
from ldm.corpora.pixels_params import PixelParams

Folder = Annotated[str, Field(pattern=r"^(\.|[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*)$")]
CaptionSource = Annotated[str, Field(pattern=r"^(\.[a-z0-9_-]+(\.[a-z0-9_-]+)*|[^.\s].*)$", max_length=200)]


Column = Annotated[str, Field(min_length=1)]


class CaptionParams(Section):
    """Where the captions of a user's images are, and which are fit to train on."""

    sources: Annotated[list[CaptionSource], Field(min_length=1)]
    """Where captions are looked for. With a dot, a text file beside the image by its suffix: `.txt` or `.caption`, in
    any case. Without, a field: of the json beside the image, of the row of `metadata.jsonl`, `.csv` or `.parquet`, of
    the parquet file or dataset; `a.b` is the field b in a. A field is a text, or a list of texts, each a caption."""
    weights: list[Annotated[int, Field(ge=1, le=100)]] | None
    """Null = the captions of the first source that has any. A list = those of every source, each listed so many times
    among the captions of its image, of which every training step draws one: sources [alt, recaption] with weights
    [1, 3] show the second three times as often."""
    text_files: Literal["one_caption", "one_per_line", "paragraphs"]
    """What a text file holds: one caption of any number of lines; a caption on every line; or captions separated by
    blank lines."""
    max_characters: PositiveInt
    """Length of the longest caption; CLIP reads at most about 77 tokens."""
    too_long: Literal["cut", "reject"]
    """A longer caption is cut after a whole word, or its image is rejected."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.sources)) < len(self.sources):
            raise ValueError("sources names one twice; expected each once")
        if self.weights is not None and len(self.weights) != len(self.sources):
            raise ValueError(f"{len(self.weights)} weights of {len(self.sources)} sources; expected one for each")
        return self


class UserCorpus(CorpusBase):
    """What the params of all these corpora share."""

    pixels: PixelParams
    """Which images are accepted, and how they become pixels."""
    captions: CaptionParams
    """Where captions are, and which are accepted."""
    val_fraction: float = Field(gt=0, lt=1)
    """Share of samples kept for validation, chosen by a hash of (seed, key)."""
    seed: int = Field(ge=0)
    """Chooses the validation split."""

    def sizes_px(self, size_px: int) -> list[Size]:
        """Those of `pixels.framing`."""
        return self.pixels.framing.sizes_px(size_px)


class FilesCorpus(UserCorpus):
    """A corpus of files."""

    directory: Folder
    """The folder, relative to `paths.source` ("." = that folder itself); sub-folders are read too."""
    ignore: list[Annotated[str, Field(min_length=1, pattern=r"^[^/]+$")]]
    """Names of files and folders that hold no samples, in any case, with * and ? for any characters, such as `_masks`
    or `*-masklabel.png`; in tars too. Hidden files, and those that are neither an image nor its text, are never
    samples."""


class FolderParams(FilesCorpus):
    """A folder of images, each beside text files of the same name, or listed in a `metadata.jsonl`, `.csv` or
    `.parquet` as Hugging Face's imagefolder has it."""

    kind: Literal["folder"]
    """Which corpus this is."""


class WebdatasetParams(FilesCorpus):
    """Tars in the layout of img2dataset: members KEY.jpg (jpeg, png, webp), KEY.txt or a "caption" in KEY.json."""

    kind: Literal["webdataset"]
    """Which corpus this is."""
    damaged_tars: Literal["refuse", "salvage", "skip"]
    """If a tar is damaged: nothing is done until it is repaired or removed; what is whole in it is taken; or all of its
    samples are rejected. Every tar is looked over before work starts, and all damaged ones are named."""
    key_ends_at: Literal["first_dot", "last_dot"]
    """Where the key of a sample ends in the name of a member. webdataset's rule is the first dot: `1.seg.png` is part
    `seg.png` of sample 1. With the last dot `22.05.jpg` is part `jpg` of sample 22.05."""
    image_part: Annotated[str, Field(pattern=r"^[a-z0-9_-]+(\.[a-z0-9_-]+)*$")] | None
    """Part that holds the picture, such as `jpg` where masks are beside as `png`, or `input.jpg` of members
    KEY.input.jpg; null = the one part with the suffix of a picture."""

    @model_validator(mode="after")
    def _check_dots(self) -> Self:
        if self.key_ends_at == "last_dot" and "." in (self.image_part or ""):
            raise ValueError(f"image_part {self.image_part} has a dot, which no part has with key_ends_at: last_dot")
        return self


class ParquetParams(FilesCorpus):
    """Parquet files, with an image in every row, or the path of one."""

    kind: Literal["parquet"]
    """Which corpus this is."""
    image: Column
    """The column of images: bytes of an image file; `bytes` and `path`, as Hugging Face writes them; or the path of a
    file, relative to the folder of the parquet file."""


class DatasetsParams(UserCorpus):
    """A dataset that the package `datasets` of Hugging Face opens. It needs the extra `datasets`."""

    kind: Literal["datasets"]
    """Which corpus this is."""
    dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$")]
    """A folder below `paths.source`, or else a name on the hub, such as `owner/name`."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    """The commit to take of a dataset on the hub; null for a folder."""
    config: str | None
    """Which configuration, where it has several; null = the only one."""
    split: Annotated[str, Field(min_length=1)]
    """Which split of it, such as `train`, or `train+test`."""
    image: Column
    """The column of images."""
