"""Where captioned images come from: one module per corpus, each with a function `pairs` for `prepare` to write."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ldm.corpora.pairs import Pair, Rejection
from ldm.corpora.params import (
    DigitsParams,
    FolderParams,
    OpenMojiParams,
    PrepareParams,
    ShapesParams,
    TorchvisionParams,
    WebdatasetParams,
)


def pairs(params: PrepareParams, source: Path) -> Iterator[Pair | Rejection]:
    """Every sample of the configured corpus, in a fixed order; `source` is the folder that holds what users bring.

    Raises:
        ConfigError: the folder of a user's corpus is missing or holds nothing to read.
        IntegrityError: a user's tar is damaged.
        MachineError: a package that holds a corpus has another version than the params ask for, or a download failed.
    """
    is_captioned = params.captions == "corpus"
    found = _pairs(params, source, is_captioned)
    return found if is_captioned else map(_without_caption, found)


def _without_caption(item: Pair | Rejection) -> Pair | Rejection:
    return item if isinstance(item, Rejection) else replace(item, captions=[""], claims=[None])


def _pairs(params: PrepareParams, source: Path, is_captioned: bool) -> Iterator[Pair | Rejection]:
    corpus, size_px = params.corpus, params.image_size_px
    match corpus:
        case ShapesParams():
            from ldm.corpora import shapes

            return shapes.pairs(corpus, size_px)
        case OpenMojiParams():
            from ldm.corpora import openmoji

            return openmoji.pairs(corpus, size_px)
        case DigitsParams():
            from ldm.corpora import digits

            return digits.pairs(corpus, size_px)
        case TorchvisionParams():
            from ldm.corpora import torchvision

            return torchvision.pairs(corpus, size_px, source)
        case FolderParams():
            from ldm.corpora import folder

            return folder.pairs(corpus, size_px, source, is_captioned)
        case WebdatasetParams():
            from ldm.corpora import webdataset

            return webdataset.pairs(corpus, size_px, source, is_captioned)
