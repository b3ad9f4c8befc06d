"""Where captioned images come from: one module per corpus, each with a function `pairs` for `prepare` to write."""

from collections.abc import Iterator
from pathlib import Path

from ldm.corpora.pairs import Pair, Rejection
from ldm.corpora.params import FolderParams, OpenMojiParams, PrepareParams, ShapesParams, WebdatasetParams


def pairs(params: PrepareParams, source: Path) -> Iterator[Pair | Rejection]:
    """Every sample of the configured corpus, in a fixed order; `source` is the folder that holds what users bring.

    Raises:
        ConfigError: the folder of a user's corpus is missing or holds nothing to read.
        IntegrityError: a user's tar is damaged.
        MachineError: a package that holds a corpus has another version than the params ask for.
    """
    corpus, size_px = params.corpus, params.image_size_px
    match corpus:
        case ShapesParams():
            from ldm.corpora import shapes

            return shapes.pairs(corpus, size_px)
        case OpenMojiParams():
            from ldm.corpora import openmoji

            return openmoji.pairs(corpus, size_px)
        case FolderParams():
            from ldm.corpora import folder

            return folder.pairs(corpus, size_px, source)
        case WebdatasetParams():
            from ldm.corpora import webdataset

            return webdataset.pairs(corpus, size_px, source)
