"""Obtain a CLIP from any kind of source."""

from ldm.compute.process import Accelerator
from ldm.compute.state import Run
from ldm.text.model import clip
from ldm.text.model.clip import Clip
from ldm.text.training import pretrained
from ldm.text.training.pairs import ImagesAndCaptions, measure, train_new
from ldm.text.training.params import (
    ClipFileParams,
    ClipFolderParams,
    OpenClipParams,
    TrainClipParams,
    TrainedClipParams,
    UntrainedClipParams,
)
from ldm.training.history import History


def obtain(
    params: TrainClipParams, pairs: ImagesAndCaptions, val: ImagesAndCaptions, accelerator: Accelerator, run: Run
) -> tuple[Clip, History | None]:
    """The model that `params.source` describes, on this process's device, and the history of its training on `pairs`;
    None for one that is not trained here.

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
    return model.to(accelerator.device), None
