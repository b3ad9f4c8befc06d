"""Obtain a CLIP, and another text encoder, from any kind of source."""

from ldm.compute.process import Accelerator
from ldm.compute.state import Run
from ldm.text.model import clip
from ldm.text.model.clip import Clip
from ldm.text.model.transformers_tower import TransformersTower
from ldm.text.training import pretrained, pretrained_tower
from ldm.text.training.pairs import ImagesAndCaptions, measure, train_new
from ldm.text.training.params import (
    ClipFileParams,
    ClipFolderParams,
    ClipTextParams,
    NoClipParams,
    OpenClipParams,
    TrainClipParams,
    TrainedClipParams,
    TransformersParams,
    UntrainedClipParams,
)
from ldm.training.history import History


def obtain(
    params: TrainClipParams, pairs: ImagesAndCaptions, val: ImagesAndCaptions, accelerator: Accelerator, run: Run
) -> tuple[Clip | None, History | None]:
    """The CLIP that `params.source` describes, on this process's device, and the history of its training on `pairs`;
    None for one that is not trained here, or if there is none.

    ConfigError: there is no such model, or it is not what `source` states. IntegrityError: an artefact is corrupt.
    """
    match params.source:
        case TrainedClipParams() as source:
            return train_new(
                source, pairs, lambda model: measure(model, val, params, accelerator.device), accelerator, run
            )
        case UntrainedClipParams() as source:
            model = clip.build(source.network, source.seed)
        case OpenClipParams() as source:
            model = pretrained.from_tag(source)
        case ClipFileParams() as source:
            model = pretrained.from_file(source)
        case ClipFolderParams() as source:
            model = pretrained.from_folder(source)
        case NoClipParams():
            return None, None
    return model.to(accelerator.device), None


def source_sha256(params: TrainClipParams) -> dict[str, str]:
    """Name -> SHA-256 of the file that the CLIP was read from; empty for one that is made here, or none."""
    match params.source:
        case OpenClipParams() | ClipFileParams() | ClipFolderParams() as source:
            return pretrained.source_sha256(source)
        case _:
            return {}


def obtain_encoder(params: TrainClipParams) -> tuple[TransformersTower, dict[str, str]] | None:
    """The text encoder that is not the CLIP's, with the SHA-256 of the files that it was read from; None = the CLIP's.
    Errors: as `pretrained_tower.from_transformers`."""
    match params.text_encoder:
        case ClipTextParams():
            return None
        case TransformersParams() as source:
            return pretrained_tower.from_transformers(source)
