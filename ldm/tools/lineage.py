"""The chain from data to metrics: every artefact is read, and compared with those that it was made from."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ldm.autoencoder.encoding.latents import KIND as LATENTS
from ldm.autoencoder.model.networks import KIND as AUTOENCODER
from ldm.core import artifact
from ldm.core.artifact import Passport
from ldm.core.errors import IntegrityError
from ldm.core.params import PathsParams
from ldm.core.shards import SPLITS, Shards
from ldm.denoiser import adapters
from ldm.denoiser.model.networks import KIND as UNET
from ldm.evaluation import metrics
from ldm.precompute.cache import Cache
from ldm.sampling import samples
from ldm.text.embedding.embeddings import TextEmbeddings
from ldm.text.model import clip, encoders, transformers_tower
from ldm.tools import averaging
from ldm.tools.model import folder
from ldm.training import averages

_SHARDS = ("images", "captions")


@dataclass(frozen=True)
class _Link:
    """An artefact of the chain."""

    stage: str
    """The stage that writes it."""
    name: str
    """Its name among the inputs of others."""
    path: str
    """Its folder, relative to the repository."""
    read: Callable[[Path], Passport]
    """Verifies the bytes of the folder and returns its passport."""
    split: str = "train"
    """The split of images or captions that it is made from."""


def check(root: Path, paths: PathsParams, frozen: Collection[str] = ()) -> list[IntegrityError]:
    """What is wrong with the artefacts of a repository: damaged bytes, and inputs that are not those present.

    frozen: names of the stages that keep their results whatever their inputs are (`frozen: true` in dvc.yaml).
    """
    hashes: dict[str, str] = {}
    problems: list[IntegrityError] = []
    for link in _chain(root, paths):
        place = root / link.path
        try:
            passport = link.read(place)
            if link.stage not in frozen:
                _check_inputs(link, place, passport, hashes)
        except IntegrityError as error:
            problems.append(error)
        else:
            hashes |= _hashes(link.name, passport)
    return problems


def _chain(root: Path, paths: PathsParams) -> tuple[_Link, ...]:
    """All artefacts, in the order of the pipeline."""
    return (
        _Link("prepare", "images", paths.images, partial(_shards, kind="images")),
        _Link("prepare", "captions", paths.captions, partial(_shards, kind="captions")),
        _Link("train_autoencoder", "autoencoder", paths.autoencoder, partial(_weights, kind=AUTOENCODER)),
        _Link("encode_latents", "latents_train", f"{paths.latents}/train", _latents),
        _Link("encode_latents", "latents_val", f"{paths.latents}/val", _latents, split="val"),
        *_text_encoders(root, paths.clip),
        _Link("embed_text", "embeddings", paths.embeddings, _embeddings),
        _Link("train_unet", "unet", paths.unet, partial(_weights, kind=UNET)),
        *_beside_unet(root, paths),
        _Link("sample", "samples", paths.samples, _samples),
        _Link("evaluate", "evaluation", paths.evaluation, _evaluation),
        _Link("model", "model", paths.model, folder.verify),
    )


def _text_encoders(root: Path, path: str) -> list[_Link]:
    """The CLIP, the other text encoder, or both."""
    links: list[_Link] = []
    if encoders.has_clip(root / path):
        links.append(_Link("train_clip", "clip", path, lambda folder: clip.load(folder)[1]))
    if encoders.folder_of(root / path) != root / path:
        links.append(_Link("train_clip", "text_encoder", f"{path}/{encoders.FOLDER}", transformers_tower.verify))
    return links


def _beside_unet(root: Path, paths: PathsParams) -> Iterator[_Link]:
    """What a training may write besides the UNet: its adapter, and the averages that it kept."""
    adapter, kept = f"{paths.unet}/{adapters.FOLDER}", f"{paths.unet_results}/{averaging.FOLDER}"
    if (root / adapter).exists():
        yield _Link("train_unet", adapters.KIND.name, adapter, lambda folder: adapters.load(folder)[1])
    if (root / kept).exists():
        yield _Link("train_unet", averages.KIND.name, kept, lambda folder: averages.read(folder)[0])


def _hashes(name: str, passport: Passport) -> dict[str, str]:
    """Name -> SHA-256 as passports name their inputs: one for an artefact, or one for each split of shards."""
    if name in _SHARDS:
        return {f"{name}_{split}": sha256 for split, sha256 in passport.facts["splits"].items()}
    return {name: passport.content_sha256}


def _check_inputs(link: _Link, folder: Path, passport: Passport, hashes: Mapping[str, str]) -> None:
    """IntegrityError: the artefact was made from an input other than the one present."""
    for source in passport.inputs:
        sha256 = hashes.get(f"{source}_{link.split}" if source in _SHARDS else source)
        if sha256 is not None:  # one that is missing or damaged was reported already
            artifact.check_input(folder, passport, source, sha256)


def _shards(folder: Path, kind: str) -> Passport:
    passport = artifact.read_passport(folder, artifact.Kind(kind))
    shards = {split: Shards(folder / split) for split in SPLITS}
    for split in shards.values():
        split.verify()
    splits = {name: split.sha256 for name, split in shards.items()}
    if passport.facts["splits"] != splits:
        fix = "run `dvc checkout` to get a good copy, or `dvc repro` to write it again"
        raise IntegrityError(str(folder), f"splits {splits}", f"splits {passport.facts['splits']}", fix)
    return passport


def _weights(folder: Path, kind: artifact.Kind) -> Passport:
    return artifact.read(folder, kind)[0]


def _latents(folder: Path) -> Passport:
    cache = Cache(folder, LATENTS)
    cache.verify()
    return cache.passport


def _embeddings(folder: Path) -> Passport:
    embeddings = TextEmbeddings(folder)
    for path, sha256 in embeddings.files:
        artifact.check_file(path, sha256)
    return embeddings.passport


def _samples(folder: Path) -> Passport:
    passport, sets = samples.read(folder)
    for name in sets:
        Shards(folder / name).verify()
    return passport


def _evaluation(folder: Path) -> Passport:
    passport = artifact.read_passport(folder, metrics.KIND)
    artifact.check_file(folder / "metrics.json", passport.content_sha256)
    return passport
