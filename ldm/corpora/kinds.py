"""Where captioned images come from: one module per corpus, each with a function `pairs`, or `units` for a corpus that
users bring, which may be large."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from ldm.corpora import pixels
from ldm.corpora.files import Files
from ldm.corpora.pairs import Item, Pair, Unit
from ldm.corpora.params import (
    DigitsParams,
    MixtureParams,
    OpenMojiParams,
    PrepareParams,
    ShapesParams,
    TorchvisionParams,
)
from ldm.corpora.user_params import DatasetsParams, FolderParams, ParquetParams, UserCorpus, WebdatasetParams


def units(params: PrepareParams, source: Path) -> list[Unit]:
    """The units of work of the configured corpus, in a fixed order; `source` is the folder that holds what users bring.

    Raises:
        ConfigError: the folder of a user's corpus is missing or holds nothing to read.
        IntegrityError: a user's tar is damaged.
        MachineError: a package that holds a corpus has another version than the params ask for, or a download failed.
    """
    is_captioned = params.captions == "corpus"
    found = _units(params, source, is_captioned)
    return found if is_captioned else [replace(unit, items=partial(_without_captions, unit.items)) for unit in found]


def pairs(params: PrepareParams, source: Path) -> Iterator[Item]:
    """Every sample of the configured corpus, in a fixed order. Raises as `units` does."""
    return chain.from_iterable(unit.items() for unit in units(params, source))


def _without_captions(items: Callable[[], Iterable[Item]]) -> Iterator[Item]:
    for item in items():
        yield replace(item, captions=[""], claims=[None]) if isinstance(item, Pair) else item


def _units(params: PrepareParams, source: Path, is_captioned: bool) -> list[Unit]:
    corpus, size_px = params.corpus, params.image_size_px
    if isinstance(corpus, UserCorpus):
        pixels.require(corpus.pixels)
    match corpus:
        case ShapesParams():
            from ldm.corpora import shapes

            return [_whole(params, partial(shapes.pairs, corpus, size_px))]
        case OpenMojiParams():
            from ldm.corpora import openmoji

            return [_whole(params, partial(openmoji.pairs, corpus, size_px))]
        case DigitsParams():
            from ldm.corpora import digits

            return [_whole(params, partial(digits.pairs, corpus, size_px))]
        case TorchvisionParams():
            from ldm.corpora import torchvision

            items = partial(torchvision.pairs, corpus, size_px, source)
            items()  # downloads what is not there yet
            return [_whole(params, items, Files(source / corpus.dataset))]
        case FolderParams():
            from ldm.corpora import folder

            return folder.units(corpus, size_px, Files.below(source, corpus.directory), is_captioned)
        case ParquetParams():
            from ldm.corpora import parquet

            return parquet.units(corpus, size_px, Files.below(source, corpus.directory), is_captioned)
        case DatasetsParams():
            from ldm.corpora import datasets

            return datasets.units(corpus, size_px, source, is_captioned)
        case WebdatasetParams():
            from ldm.corpora import webdataset

            return webdataset.units(corpus, size_px, Files.below(source, corpus.directory), is_captioned)
        case MixtureParams():
            from ldm.corpora import mixture

            return [
                mixture.unit(name, part, each)
                for name, part in corpus.parts.items()
                for each in _units(
                    params.model_copy(update={"corpus": part.corpus}), source, is_captioned and part.caption is None
                )
            ]


def _whole(params: PrepareParams, items: Callable[[], Iterable[Item]], files: Files | None = None) -> Unit:
    """A corpus in one piece, made from its params and, if it has some, its files."""
    facts = [params.corpus.model_dump(mode="json"), files and files.sha256_of(file.name for file in files.list())]
    return Unit(params.corpus.kind, hashlib.sha256(json.dumps(facts).encode()).hexdigest(), items)
