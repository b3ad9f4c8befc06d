"""Stage `model`: what inference needs, in one folder that works by itself.

The parts are artefacts as the stages wrote them, each with its passport; of the text embeddings, what holds no caption,
and of a CLIP its text half, unless another text encoder is in its place.
The passport of the folder holds the settings of drawing and tasks, and the hash of every part.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from ldm.autoencoder.model.networks import KIND as OF_AUTOENCODER
from ldm.core import artifact, workspace
from ldm.core.artifact import Kind, Passport
from ldm.core.errors import IntegrityError
from ldm.denoiser import adapters
from ldm.denoiser.model.networks import KIND as OF_UNET
from ldm.sampling.guidance import classifier
from ldm.sampling.guidance.params import AutoguidanceParams, ClassifierParams
from ldm.text.embedding.embeddings import TextContext
from ldm.text.embedding.tower import copy_text
from ldm.text.model import encoders
from ldm.text.model.clip import identity
from ldm.tools.model.parts import AUTOENCODER, CLIP, TEXT, UNET, Parts, kind
from ldm.tools.tasks.params import TaskParams


def write(directory: Path, parts: Parts, with_words: bool) -> Passport:
    """Copy the parts into an empty folder, and write its passport. with_words: whether the words of captions travel.

    IntegrityError: a part is missing or damaged, or was not made from the others.
    """
    text = TextContext(parts.text)
    text.copy(directory / TEXT, with_words)
    unet = _copied(parts.unet, directory / UNET, OF_UNET)
    autoencoder = _copied(parts.autoencoder, directory / AUTOENCODER, OF_AUTOENCODER)
    encoder = copy_text(parts.clip, directory / CLIP)
    artifact.check_input(parts.unet, unet, "autoencoder", autoencoder.content_sha256)
    artifact.check_input(parts.unet, unet, "embeddings", text.passport.content_sha256)
    artifact.check_input(parts.text, text.passport, encoder.kind, identity(encoder))
    sha256 = {
        "unet": unet.content_sha256,
        "autoencoder": autoencoder.content_sha256,
        encoder.kind: identity(encoder),
        "embeddings": text.passport.content_sha256,
    }
    for name, of_guide in _guides(parts):
        sha256[name] = _copied(parts.root / name, directory / name, of_guide).content_sha256
    config = {
        "drawing": parts.drawing.model_dump(mode="json"),
        "batch_size": parts.batch_size,
        "tasks": parts.tasks.model_dump(mode="json"),
    }
    return artifact.write_passport(directory, kind(), config, sha256, {}, artifact.sha256_json(sha256))


def verify(directory: Path) -> Passport:
    """Hash all that a model folder holds. IntegrityError: something is missing or damaged."""
    passport = artifact.read_passport(directory, kind())
    parts = Parts.of(directory)
    text, encoder = TextContext(parts.text), encoders.verify(directory / CLIP)
    artifact.check_input(directory, passport, "embeddings", text.passport.content_sha256)
    artifact.check_input(directory, passport, encoder.kind, identity(encoder))
    kinds = {UNET: OF_UNET, AUTOENCODER: OF_AUTOENCODER, **dict(_guides(parts))}
    for name, of_part in kinds.items():
        artifact.check_input(directory, passport, name, _verified(directory / name, of_part).content_sha256)
    return passport


def passports(directory: Path) -> dict[str, Passport]:
    """Those of the parts of a model folder: `unet`, `autoencoder`, `clip` (the text encoder) and `embeddings`."""
    kinds = {UNET: OF_UNET, AUTOENCODER: OF_AUTOENCODER}
    found = {name: artifact.read_passport(directory / name, of_part) for name, of_part in kinds.items()}
    return found | {CLIP: encoders.verify(directory / CLIP), "embeddings": TextContext(directory / TEXT).passport}


def num_bytes(directory: Path) -> int:
    """Size of all files of a folder."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _guides(parts: Parts) -> Iterator[tuple[str, Kind]]:
    """Folder and kind of each model that guides unless told otherwise."""
    tasks = [task for _, task in parts.tasks if isinstance(task, TaskParams)]
    for drawing in (parts.drawing, *(task.changes(parts.drawing) for task in tasks)):
        match drawing.guidance:
            case AutoguidanceParams(directory=directory):
                yield directory, OF_UNET
            case ClassifierParams(directory=directory):
                yield directory, classifier.KIND
            case _:
                pass


def _copied(source: Path, target: Path, of_part: Kind) -> Passport:
    """Copy an artefact, and read the copy. The place of a guide is that which settings name, so that images can be
    replayed in both places. An adapter beside the weights is left out: they have it within them."""
    if not source.is_dir():
        fix = workspace.left_behind(source) or "run `dvc repro`, or bring it back by `dvc pull`"
        raise IntegrityError(str(source), "no such folder", f"an artefact of kind {of_part.name!r}", fix)
    if not target.exists():
        ignore = shutil.ignore_patterns(adapters.FOLDER)
        shutil.copytree(source, target, ignore=ignore, copy_function=shutil.copyfile)
    return _verified(target, of_part)


def _verified(directory: Path, of_part: Kind) -> Passport:
    passport = artifact.read_passport(directory, of_part)
    artifact.check_file(directory / artifact.WEIGHTS, passport.content_sha256)
    return passport
