"""Values that the tests of several corpora share."""

from ldm.corpora.params import ShapesParams
from ldm.corpora.pixels_params import PixelParams, SquareParams
from ldm.corpora.user_params import CaptionParams, FolderParams, WebdatasetParams

PIXELS = PixelParams(
    formats=["jpeg", "png", "webp", "avif", "gif", "tiff", "bmp", "heic", "jxl"],
    min_side_px=8,
    max_pixels=1_000_000,
    max_bytes=100_000,
    max_aspect_ratio=4,
    background="#ffffff",
    deep_greyscale="scale",
    resampling="area",
    framing=SquareParams(kind="square", crop="centre"),
)
CAPTIONS = CaptionParams(
    sources=[".txt", ".caption", "caption", "text"],
    weights=None,
    text_files="one_per_line",
    max_characters=200,
    too_long="reject",
)
FOLDER = FolderParams(
    kind="folder",
    directory="mine",
    ignore=[],
    pixels=PIXELS,
    captions=CAPTIONS,
    val_fraction=0.3,
    seed=0,
)
WEBDATASET = WebdatasetParams(
    kind="webdataset",
    directory=".",
    ignore=["README*", "*-masklabel.*", "_masks"],
    damaged_tars="refuse",
    key_ends_at="first_dot",
    image_part=None,
    pixels=PIXELS,
    captions=CAPTIONS,
    val_fraction=0.3,
    seed=0,
)


def shapes_params(num_train: int, num_val: int, num_held_out: int) -> ShapesParams:
    """The default corpus in another size, with one caption per image."""
    return ShapesParams(
        kind="shapes",
        num_train=num_train,
        num_val=num_val,
        num_reworded=num_val,
        num_unseen=num_val,
        num_held_out=num_held_out,
        object_count_weights=[0.35, 0.65],
        relation_caption_fraction=0.6,
        sentence_forms="varied",
        num_captions_per_image=1,
        seed=0,
    )
