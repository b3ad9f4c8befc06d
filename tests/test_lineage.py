"""The chain of passports of a real run: whole as it is, and every broken link told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ldm.core import artifact, config
from ldm.core.params import PathsParams
from ldm.tools import lineage
from tests.repository import Repository

LINKS = {
    "autoencoder": "images_val",
    "latents/train": "images",
    "latents/val": "autoencoder",
    "clip": "captions",
    "embeddings": "captions_held_out",
    "unet": "embeddings",
    "samples": "unet",
    "evaluation": "samples",
    "model": "unet",
}
"""Artefact -> one of the inputs that its passport names."""


@pytest.fixture
def root(repository: Repository, tmp_path: Path) -> Path:
    shutil.copytree(repository.root / "data", tmp_path / "data")
    shutil.copy(repository.root / "paths.yaml", tmp_path)
    return tmp_path


def problems(root: Path) -> list[str]:
    return [str(error) for error in lineage.check(root, config.read(PathsParams, "paths", root / config.PATHS))]


def rewrite(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "passport.json"
    passport = json.loads(path.read_text())
    for key, values in change.items():
        passport[key] |= values
    path.chmod(0o644)
    artifact.write_json(path, artifact.sealed(passport))


def test_a_run_is_one_chain(root: Path) -> None:
    assert problems(root) == []


@pytest.mark.parametrize(("name", "source"), LINKS.items())
def test_an_artefact_of_another_input(root: Path, name: str, source: str) -> None:
    rewrite(root / "data" / name, {"inputs": {source: "0" * 64}})
    (told,) = problems(root)
    assert f"{root / 'data' / name}: " in told and f"made with {source} {'0' * 64}; expected {source} " in told


def test_shards_and_metrics_that_are_not_those_of_the_passport(root: Path) -> None:
    rewrite(root / "data/captions", {"facts": {"splits": {"train": "0" * 64}}})
    metrics = root / "data/evaluation/metrics.json"
    metrics.chmod(0o644)
    metrics.write_text(metrics.read_text() + " ")
    captions, evaluation = problems(root)
    assert f"{root / 'data/captions'}: splits" in captions and "0" * 64 in captions
    assert f"{metrics}: SHA-256" in evaluation


def test_a_missing_artefact_is_named_and_the_rest_still_checked(root: Path) -> None:
    shutil.rmtree(root / "data/clip")
    rewrite(root / "data/samples", {"inputs": {"unet": "0" * 64}})
    clip, samples = problems(root)
    assert "data/clip: no passport.json" in clip and "made with unet" in samples
