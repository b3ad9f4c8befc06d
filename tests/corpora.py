"""Values that the tests of several corpora share."""

from ldm.params.prepare import CleaningParams

CLEANING = CleaningParams(
    min_side_px=8,
    max_pixels=1_000_000,
    max_bytes=100_000,
    max_aspect_ratio=4,
    background="#ffffff",
    deep_greyscale="scale",
    resampling="area",
    max_caption_characters=200,
)
