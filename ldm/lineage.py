"""The chain from data to metrics: every artefact read anew, and its passport compared with what is really there."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ldm import artifact, clip, samples
from ldm.artifact import Passport
from ldm.cache import EMBEDDINGS, LATENTS, Cache, TextEmbeddings
from ldm.corpora import SPLITS
from ldm.errors import IntegrityError
from ldm.params.paths import PathsParams
from ldm.shards import Shards

Contents = dict[str, str]
"""Name -> SHA-256 of every artefact that is there, as passports name their inputs."""


def check(root: Path, paths: PathsParams) -> list[IntegrityError]:
    """What is wrong with the artefacts of a repository: each is hashed, and was made from those that are there."""
    found = Contents()
    problems: list[IntegrityError] = []
    for step in _steps(root, paths):
        try:
            found |= step(found)
        except IntegrityError as error:
            problems.append(error)
    return problems


def _steps(root: Path, paths: PathsParams) -> Iterator[Callable[[Contents], Contents]]:
    """In the order of the pipeline: reads one artefact, compares its inputs, returns its own hashes."""
    yield lambda _: _shards(root / paths.images, "images")
    yield lambda _: _shards(root / paths.captions, "captions")
    yield lambda found: _linked(found, root / paths.autoencoder, "autoencoder", _weights("autoencoder"))
    for split in ("train", "val"):
        yield lambda found, split=split: _linked(
            found, root / paths.latents / split, f"latents_{split}", lambda folder: Cache(folder, LATENTS).passport
        )
    yield lambda found: _linked(found, root / paths.clip, "clip", lambda folder: clip.load(folder)[1])
    yield lambda found: _linked(
        found, root / paths.embeddings, EMBEDDINGS, lambda folder: TextEmbeddings(folder).passport
    )
    yield lambda found: _linked(found, root / paths.unet, "unet", _weights("unet"))
    yield lambda found: _linked(found, root / paths.samples, samples.KIND, lambda folder: samples.read(folder)[0])
    yield lambda found: _linked(found, root / paths.evaluation, "evaluation", _evaluation)


def _weights(kind: str) -> Callable[[Path], Passport]:
    return lambda folder: artifact.read(folder, kind)[0]


def _evaluation(folder: Path) -> Passport:
    passport = artifact.read_passport(folder, "evaluation")
    artifact.check_file(folder / "metrics.json", passport.content_sha256)
    return passport


def _shards(folder: Path, kind: str) -> Contents:
    passport = artifact.read_passport(folder, kind)
    found = {split: Shards(folder / split).sha256 for split in SPLITS}
    if passport.facts["splits"] != found:
        fix = "run `dvc checkout` to get a good copy, or `dvc repro` to write it anew"
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
