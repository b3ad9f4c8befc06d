"""The chain from data to metrics: every artefact is read again, and its passport compared with what is there."""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

from ldm.autoencoder.encoding.latents import KIND as LATENTS
from ldm.autoencoder.model import network
from ldm.core import artifact
from ldm.core.artifact import Passport
from ldm.core.errors import IntegrityError
from ldm.core.params import PathsParams
from ldm.core.shards import SPLITS, Shards
from ldm.denoiser.model import unet
from ldm.evaluation import report
from ldm.precompute.cache import Cache
from ldm.sampling import samples
from ldm.text.embedding.embeddings import TextEmbeddings
from ldm.text.model import clip

Contents = dict[str, str]
"""Name -> SHA-256 of every artefact that is there, as passports name their inputs."""


def check(root: Path, paths: PathsParams, frozen: Collection[str] = ()) -> list[IntegrityError]:
    """What is wrong with the artefacts of a repository: each is hashed, and was made from those that are there.

    frozen: names of the stages that keep their results whatever their inputs are (`frozen: true` in dvc.yaml).
    """
    found = Contents()
    problems: list[IntegrityError] = []
    for stage, step in _steps(root, paths):
        try:
            found |= step(Contents() if stage in frozen else found)
        except IntegrityError as error:
            problems.append(error)
    return problems


def _steps(root: Path, paths: PathsParams) -> Iterator[tuple[str, Callable[[Contents], Contents]]]:
    """In the order of the pipeline: a stage, and what reads its artefact, compares inputs and returns its hashes."""
    readers: list[tuple[str, str, str, Callable[[Path], Passport]]] = [
        ("train_autoencoder", paths.autoencoder, "autoencoder", _weights(network.KIND)),
        ("encode_latents", f"{paths.latents}/train", "latents_train", lambda folder: Cache(folder, LATENTS).passport),
        ("encode_latents", f"{paths.latents}/val", "latents_val", lambda folder: Cache(folder, LATENTS).passport),
        ("train_clip", paths.clip, "clip", lambda folder: clip.load(folder)[1]),
        ("embed_text", paths.embeddings, "embeddings", lambda folder: TextEmbeddings(folder).passport),
        ("train_unet", paths.unet, "unet", _weights(unet.KIND)),
        ("sample", paths.samples, "samples", lambda folder: samples.read(folder)[0]),
        ("evaluate", paths.evaluation, "evaluation", _evaluation),
    ]
    yield "prepare", lambda _: _shards(root / paths.images, "images")
    yield "prepare", lambda _: _shards(root / paths.captions, "captions")
    for stage, path, name, read in readers:
        yield stage, partial(_linked, folder=root / path, name=name, read=read)


def _weights(kind: artifact.Kind) -> Callable[[Path], Passport]:
    return lambda folder: artifact.read(folder, kind)[0]


def _evaluation(folder: Path) -> Passport:
    passport = artifact.read_passport(folder, report.KIND)
    artifact.check_file(folder / "metrics.json", passport.content_sha256)
    return passport


def _shards(folder: Path, kind: str) -> Contents:
    passport = artifact.read_passport(folder, artifact.Kind(kind))
    found = {split: Shards(folder / split).sha256 for split in SPLITS}
    if passport.facts["splits"] != found:
        fix = "run `dvc checkout` to get a good copy, or `dvc repro` to write it again"
        raise IntegrityError(str(folder), f"splits {found}", f"splits {passport.facts['splits']}", fix)
    return {f"{kind}_{split}": sha256 for split, sha256 in found.items()}


def _linked(found: Contents, folder: Path, name: str, read: Callable[[Path], Passport]) -> Contents:
    """IntegrityError: it is corrupt, or was made from something else than what is there."""
    passport = read(folder)
    split = name.rpartition("_")[2] if name.startswith("latents_") else "train"
    for source in passport.inputs:
        there = found.get(f"{source}_{split}" if source in ("images", "captions") else source)
        if there is not None:
            artifact.check_input(folder, passport, source, there)
    return {name: passport.content_sha256}
