"""Artefacts of a former commit open, and compute what they did then; newer formats and what does not fit are refused.

`tests/fixtures/61be5f6` is what the stages of that commit wrote under the params there (without pictures), when all
kinds had format 1. `expected.safetensors` beside it was computed by the code of that commit from the inputs below.
`tests/fixtures/376439d` has the kinds that came later, made likewise: the adapter and the averages as if they were of
the UNet of 61be5f6.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm.autoencoder.encoding.latents import KIND as LATENTS
from ldm.autoencoder.model import networks
from ldm.core import artifact, config
from ldm.core.errors import IntegrityError
from ldm.core.images import decode_png
from ldm.core.params import PathsParams
from ldm.denoiser import adapters
from ldm.denoiser.model import networks as denoisers
from ldm.denoiser.model.condition import Condition
from ldm.precompute.cache import Cache
from ldm.sampling import samples
from ldm.sampling.generator import Generator
from ldm.sampling.origin import Origin
from ldm.text.embedding.embeddings import TextEmbeddings
from ldm.text.model import clip, encoders
from ldm.tools import lineage, pipeline
from ldm.training import averages
from tests.import_closure import ROOT
from tests.kinds import KINDS

FORMER, LATER = ROOT / "tests/fixtures/61be5f6", ROOT / "tests/fixtures/376439d"
CPU = torch.device("cpu")
TEXTS = ["a small red circle", "no caption of the corpus: xyz!"]
SETTINGS: dict[str, Any] = {
    "sampler": {"kind": "ddim", "eta": 0.5},
    "num_steps": 3,
    "spacing": "uniform",
    "time_shift": 1.0,
    "guidance_scale": 2.0,
    "guidance_interval": [0, 1],
    "precision": "fp32",
    "seed": 3,
    "batch_size": 2,
}


def wave(*shape: int) -> Tensor:
    return torch.sin(torch.arange(float(np.prod(shape)))).reshape(shape)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of today with the artefacts of then."""
    shutil.copytree(FORMER / "data", tmp_path / "data")
    shutil.copytree(LATER / "adapter", tmp_path / "data/unet/adapter")
    shutil.copytree(LATER / "averages", tmp_path / "data/unet_results/averages")
    shutil.copytree(LATER / "text_encoder", tmp_path / "data/text_encoder")
    for name in ("params.yaml", "paths.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(FORMER / "expected.safetensors")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> pipeline.Pipeline:
    folder = tmp_path_factory.mktemp("former")
    shutil.copytree(FORMER / "data", folder / "data")
    for name in ("params.yaml", "paths.yaml"):
        shutil.copy(ROOT / name, folder)
    return pipeline.Pipeline.load(folder)


def check_equal(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert float((found.float() - expected.float()).abs().max()) <= tolerance


@torch.no_grad()
def test_an_autoencoder(expected: dict[str, Tensor]) -> None:
    autoencoder, passport = networks.load(FORMER / "data/autoencoder", CPU)
    assert passport.format_version == 1
    posterior = autoencoder.encode(wave(2, 3, 32, 32))
    check_equal(posterior.mean, expected["autoencoder.mean"])
    check_equal(posterior.log_variance, expected["autoencoder.log_variance"])
    check_equal(autoencoder.decode(wave(2, 4, 4, 4)), expected["autoencoder.decoded"])


@torch.no_grad()
def test_a_clip(expected: dict[str, Tensor]) -> None:
    model, _ = clip.load(FORMER / "data/clip")
    ids = model.tokenise(TEXTS, 24)
    assert torch.equal(ids, expected["clip.ids"])
    states, pooled = model.encode_text(ids, "penultimate", True)
    check_equal(states, expected["clip.states"])
    check_equal(pooled, expected["clip.pooled"])
    pixels = (torch.arange(2 * 3 * 40 * 40) % 256).reshape(2, 3, 40, 40).to(torch.uint8)
    check_equal(model.image_features(pixels), expected["clip.image"])


def test_latents_and_embeddings(expected: dict[str, Tensor]) -> None:
    for split, count in {"train": 12, "val": 6}.items():
        cache = Cache(FORMER / "data/latents" / split, LATENTS)
        assert len(cache) == count
        for name in ("mean", "log_variance"):
            rows = cache.gather(name, np.array([0, count - 1]))
            assert torch.equal(rows, expected[f"latents.{split}.{name}"])
    embeddings = TextEmbeddings(FORMER / "data/embeddings")
    assert len(embeddings) == 22 and embeddings.rows(["a big red star on the left"]).tolist() == [1]
    assert not embeddings.is_masked and not embeddings.is_online and "star" in embeddings.texts[1]
    assert torch.equal(embeddings.parts(np.array([0, 21]))["tokens"], expected["embeddings.tokens"])
    assert torch.equal(embeddings.null["tokens"][0], expected["embeddings.null_tokens"])


@torch.no_grad()
def test_a_unet(loaded: pipeline.Pipeline, expected: dict[str, Tensor]) -> None:
    output = loaded.generator.unet(wave(2, 4, 4, 4), torch.tensor([100.0, 900.0]), Condition(wave(2, 24, 8)))
    check_equal(output, expected["unet.output"])


def test_images_of_prompts(loaded: pipeline.Pipeline, expected: dict[str, Tensor]) -> None:
    check_equal(loaded(TEXTS, **SETTINGS), expected["pipeline.images"], tolerance=1)


def test_samples_are_read_and_made_again(loaded: pipeline.Pipeline) -> None:
    _, found = samples.read(FORMER / "data/samples")
    assert {name: len(part) for name, part in found.items()} == {"held_out": 2, "seen": 2, "sweep_1": 2}
    for part in found.values():
        for i, prompt in enumerate(part.prompts):
            origin = Origin.read(part.png(i), "here")
            assert (origin.prompt, origin.prompt_number) == (prompt.prompt, prompt.prompt_number)
            again = loaded.replay(origin).permute(1, 2, 0)
            check_equal(again, torch.from_numpy(decode_png(part.png(i)).copy()), tolerance=1)


def test_the_chain_of_passports_is_followed(root: Path) -> None:
    paths = config.read(PathsParams, "paths", root / "paths.yaml")
    found = [str(error).splitlines()[0] for error in lineage.check(root, paths)]
    missing = ["images", "captions", "model"]  # of a stage that was not there then
    assert len(found) == 3 and all(f"{name}: no passport" in line for name, line in zip(missing, found, strict=True))


@torch.no_grad()
def test_a_text_encoder_of_transformers() -> None:
    model, passport = encoders.load(LATER / "text_encoder")
    later = load_file(LATER / "expected.safetensors")
    ids = model.tokenise(TEXTS)
    assert passport.format_version == 1 and torch.equal(ids, later["text_encoder.ids"])
    states, pooled = model.encode_text(ids, "last", True)
    check_equal(states, later["text_encoder.states"])
    check_equal(pooled, later["text_encoder.pooled"])


def test_an_adapter_and_averages() -> None:
    later = load_file(LATER / "expected.safetensors")
    unet, _, _ = denoisers.load(FORMER / "data/unet", CPU)
    adapter, passport = adapters.load(LATER / "adapter")
    adapter.add_to(unet, 0.5, "here")
    (layer,) = adapter.layers
    assert passport.format_version == 1
    check_equal(unet.get_parameter(f"{layer}.weight"), later["adapter"])
    passport, found = averages.read(LATER / "averages")
    assert passport.format_version == 1
    for name, value in averages.mixed(found, 20, 0.1).items():
        check_equal(value, later[f"averages.{name}"])


@pytest.mark.parametrize("damaged", ["unet/adapter/model", "unet_results/averages/average_0_1-000000020"])
def test_what_a_training_wrote_beside_the_unet_is_in_the_chain(root: Path, damaged: str) -> None:
    path = root / f"data/{damaged}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match=rf"{path.name}: SHA-256"):
        verify(root)
    folder = path.parent
    shutil.rmtree(folder)
    shutil.copytree(LATER / folder.name, folder)
    rewrite(folder, lambda passport: passport["inputs"].update(embeddings="0" * 64))
    with pytest.raises(IntegrityError, match=rf"{folder.name} made with embeddings 0+; expected"):
        verify(root)


def load_unet(root: Path) -> Generator:
    embeddings = TextEmbeddings(root / "data/embeddings")
    return Generator.load(root / "data/unet", root / "data/autoencoder", embeddings, CPU)


def verify(root: Path) -> None:
    """As `ldm verify` does."""
    problems = lineage.check(root, config.read(PathsParams, "paths", root / "paths.yaml"))
    raise next(error for error in problems if "no passport.json" not in str(error))


LOADERS: list[tuple[str, Callable[[Path], object]]] = [
    ("autoencoder", lambda root: networks.load(root / "data/autoencoder", CPU)),
    ("latents/train", lambda root: Cache(root / "data/latents/train", LATENTS)),
    ("clip", lambda root: clip.load(root / "data/clip")),
    ("clip", lambda root: pipeline.load_text(root / "data/clip")),
    ("embeddings", lambda root: TextEmbeddings(root / "data/embeddings")),
    ("unet", load_unet),
    ("samples", lambda root: samples.read(root / "data/samples")),
    ("text_encoder", lambda root: encoders.load(root / "data/text_encoder")),
    ("unet/adapter", lambda root: adapters.load(root / "data/unet/adapter")),
    ("unet_results/averages", lambda root: averages.read(root / "data/unet_results/averages")),
    *((name, verify) for name in ("unet/adapter", "unet_results/averages")),
    *((name, verify) for name in ("autoencoder", "latents/val", "clip", "embeddings", "unet", "samples", "evaluation")),
]


def rewrite(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change a passport as another version of the code might have written it."""
    passport = json.loads((folder / artifact.PASSPORT).read_text())
    edit(passport)
    artifact.write_json(folder / artifact.PASSPORT, artifact.sealed(passport))


def test_every_kind_is_here() -> None:
    assert {kind_of(name) for name, _ in LOADERS} == set(KINDS)


def kind_of(name: str) -> str:
    """The kind of the artefact in this folder of `data`."""
    first, _, last = name.partition("/")
    return last if last in KINDS else first


@pytest.mark.parametrize(("name", "load"), LOADERS)
def test_a_newer_format_is_refused(root: Path, name: str, load: Callable[[Path], object]) -> None:
    kind = KINDS[kind_of(name)]
    rewrite(root / "data" / name, lambda passport: passport.update(format_version=kind.format + 1))
    expected = (
        rf"format {kind.format + 1}; expected kind '{kind.name}', format 1 to {kind.format}\nfix: update this code"
    )
    with pytest.raises(IntegrityError, match=expected):
        load(root)


OF_NETWORKS = [(name, load) for name, load in LOADERS if name in ("autoencoder", "clip", "unet") and load is not verify]
PARTS = {
    "autoencoder": [()],
    "clip": [("model_cfg", "text_cfg"), ("preprocess",)],
    "unet": [("network",), ("diffusion",)],
}
"""Parts of a config that say what is built."""
CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "empty": lambda part: part.clear(),
    "a missing key": lambda part: part.popitem(),
    "an unknown key": lambda part: part.update(new_option=3),
    "values of another type": lambda part: part.update(dict.fromkeys(part, "text")),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("name", "load"), OF_NETWORKS)
def test_a_config_that_does_not_fit_is_refused(
    root: Path, name: str, load: Callable[[Path], object], change: str
) -> None:
    folder = root / "data" / name
    honest = (folder / artifact.PASSPORT).read_bytes()
    for path in PARTS[name]:

        def edit(passport: dict[str, Any], path: tuple[str, ...] = path) -> None:
            part = passport["config"]
            for key in path:
                part = part[key]
            CHANGES[change](part)

        (folder / artifact.PASSPORT).write_bytes(honest)
        rewrite(folder, edit)
        where = rf"data/{name}/(passport\.json|model\.safetensors)|CLIP tokenizer"
        with pytest.raises(IntegrityError, match=rf"({where}): .*\nfix: "):
            load(root)


@pytest.mark.parametrize("is_missing", [True, False])
@pytest.mark.parametrize(("name", "load"), OF_NETWORKS)
def test_weights_that_do_not_fit_are_refused(
    root: Path, name: str, load: Callable[[Path], object], is_missing: bool
) -> None:
    folder = root / "data" / name
    tensors = {key: tensor.clone() for key, tensor in artifact.open_tensors(folder / artifact.WEIGHTS).items()}
    key = next(key for key in tensors if key.endswith(("conv_in.weight", "ln_final.weight")))
    value = tensors.pop(key)
    artifact.write_tensors(folder / artifact.WEIGHTS, tensors if is_missing else {**tensors, key: value[:-1]})
    sha256 = artifact.sha256_file(folder / artifact.WEIGHTS)
    rewrite(folder, lambda passport: passport.update(content_sha256=sha256))
    with pytest.raises(IntegrityError, match=rf"data/{name}/model\.safetensors: .*\nfix: "):
        load(root)


def test_samples_without_their_sets_are_refused(root: Path) -> None:
    for facts in ({}, {"sets": {"seen": {"sha256": "0"}}}, {"sets": {"seen": {"sha256": "0", "scale": 1.0}}}):
        rewrite(root / "data/samples", lambda passport, facts=facts: passport.update(facts=facts))
        with pytest.raises(IntegrityError, match=r"data/samples/passport\.json: "):
            samples.read(root / "data/samples")
