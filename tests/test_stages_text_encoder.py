"""A whole run whose UNet reads a T5 instead of the CLIP's text tower: stages, prompts, evaluation and verification."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from ldm.core import artifact, config
from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.params import PathsParams
from ldm.text.embedding.embeddings import TextEmbeddings
from ldm.text.model import encoders
from ldm.text.model.captions import Captions
from ldm.tools import lineage
from ldm.tools.check import check
from ldm.tools.model import folder
from ldm.tools.model.parts import Parts
from ldm.tools.pipeline import Pipeline
from tests import text_towers, trained_data
from tests.import_closure import ROOT
from tests.stage_scripts import run
from tests.trained_data import change

WIDTH = 32
SOURCE = {"kind": "untrained", "network": trained_data.CLIP, "seed": 0}
TOWER = {"kind": "transformers", "path": "data/models/clip/t5", "tokenizer": None}


def write_networks(root: Path) -> None:
    """A UNet as wide as the T5, and the autoencoder that decodes for it."""
    params = YAML(typ="safe").load((root / "params.yaml").read_text(encoding="utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained_data, "UNET", trained_data.UNET | {"context_width": WIDTH})
        trained_data.write_networks(root / "data", 0.1, params["train_unet"]["diffusion"])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The made of a run with a CLIP for the evaluation and a T5 for the UNet, which is the current made."""
    made = tmp_path_factory.mktemp("with_t5")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        trained_data.make(made)
        text_towers.make(made / TOWER["path"], "t5")
        change(made, "train_clip", source=SOURCE, text_encoder=TOWER)
        change(made, "embed_text", padding="masked", context_tokens=24)
        for stage in ("train_clip", "embed_text"):
            run(stage)
        write_networks(made)
        run("sample")
        yield made


def test_the_tower_stands_beside_the_clip_and_names_its_source(root: Path) -> None:
    model, passport = encoders.load(root / "data/clip")
    assert passport.kind == "text_encoder" and model.context_width == WIDTH
    weights = root / TOWER["path"] / artifact.WEIGHTS
    assert passport.facts["source_sha256"] == {artifact.WEIGHTS: artifact.sha256_file(weights)}
    assert (root / "data/clip" / artifact.PASSPORT).is_file()


def captions(root: Path) -> list[str]:
    return [texts[0] for texts in Captions(root / "data/captions/train").texts[:5]]


def test_embeddings_are_those_of_the_t5_without_padding(root: Path) -> None:
    embeddings = TextEmbeddings(root / "data/embeddings")
    model, tokenizer = text_towers.theirs(root / TOWER["path"], "t5")
    assert embeddings.is_masked and embeddings.null["tokens"].shape == (1, 24, WIDTH)
    for caption in captions(root):
        parts = embeddings.parts(embeddings.rows([caption]))
        ids = tokenizer(caption, return_tensors="pt", truncation=True, max_length=24)
        expected = model(**ids).last_hidden_state[0]
        assert parts["mask"][0].sum() == len(expected)
        assert torch.allclose(parts["tokens"][0, : len(expected)], expected, atol=2e-3)


def test_prompts_are_read_by_the_t5(root: Path) -> None:
    """A stored caption and a new prompt give the same when the caption is computed anew."""
    pipeline, embeddings, caption = Pipeline.load(root), TextEmbeddings(root / "data/embeddings"), captions(root)[0]
    stored, computed = embeddings.parts(embeddings.rows([caption])), pipeline.encode([caption])
    assert torch.equal(stored["mask"], computed["mask"])
    assert torch.allclose(stored["tokens"], computed["tokens"], atol=2e-3)
    pictures = pipeline(["a wholly new prompt", caption], seed=0)
    assert pictures.shape == (2, 3, 64, 64) and not torch.equal(*pictures)


def test_a_model_folder_takes_the_t5_along(root: Path, tmp_path: Path) -> None:
    """It draws what the repository draws, in every bit, and hashes the files of the tokenizer too."""
    folder.write(tmp_path / "model", Parts.of(root), with_words=True)
    pipelines = [Pipeline.load(place) for place in (root, tmp_path / "model")]
    drawn = [pipeline(["a wholly new prompt"] * 2, seed=0) for pipeline in pipelines]
    assert torch.equal(*drawn)
    folder.verify(tmp_path / "model")
    vocabulary = tmp_path / "model/clip/tokenizer/spiece.model"
    vocabulary.write_bytes(vocabulary.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"spiece\.model"):
        folder.verify(tmp_path / "model")


def test_the_encoder_of_another_run_is_refused(root: Path) -> None:
    embeddings = TextEmbeddings(root / "data/embeddings")
    model, passport = encoders.load(root / "data/clip")
    other = passport.model_copy(update={"content_sha256": "0" * 64})
    with pytest.raises(IntegrityError, match=f"text_encoder {passport.content_sha256}"):
        embeddings.encoder(model, other, torch.device("cpu"))


def wrong(root: Path) -> list[str]:
    """What `ldm verify` finds wrong with what these stages wrote; the folder has no passports of images and latents."""
    problems = map(str, lineage.check(root, config.read(PathsParams, "paths")))
    return [text for text in problems if "passport.json" not in text]


def evaluated(root: Path, **source: Any) -> tuple[dict[str, Any], str]:
    change(root, "train_clip", source=source)
    run("train_clip")
    summary = run("evaluate")
    return json.loads((root / "data/evaluation/metrics.json").read_text()), summary


def test_evaluation_has_a_clip_where_one_is_configured_and_says_so_where_not(root: Path) -> None:
    with_clip, summary = evaluated(root, **SOURCE)
    assert "own_clip_score_seen" in with_clip and "no CLIP" not in summary
    assert not wrong(root)
    without, summary = evaluated(root, kind="none")
    assert "the run has no CLIP" in summary and not [name for name in without if "own_clip" in name]
    shared = [name for name in without if not name.startswith("num_")]
    assert shared and all(without[name] == with_clip[name] for name in shared)
    assert without["num_reference_images"] == with_clip["num_reference_images"]
    assert "own clip" not in (root / "data/evaluation/table.md").read_text()
    assert not wrong(root)
    weights = root / "data/clip/text_encoder" / artifact.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "data/clip/text_encoder" in wrong(root)[0]


def test_check_knows_the_width_of_the_tower_and_what_needs_a_clip(root: Path) -> None:
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["train_clip"] |= {"source": {"kind": "none"}, "text_encoder": TOWER}
    params["evaluate"] |= {
        "feature_spaces": [],
        "accuracy": {"kind": "retrieval", "num_prompts": 1, "k": 1, "num_images": 2},
    }
    trained_data.write_params(root, params)
    with pytest.raises(ConfigError) as caught:
        check.params_file(root / "params.yaml")
    text = str(caught.value)
    assert f"context_width: found 128; expected {WIDTH}" in text
    assert "evaluate.accuracy.kind: found retrieval" in text and "evaluate.feature_spaces: found none" in text
    params["train_clip"]["text_encoder"] = {"kind": "clip"}
    trained_data.write_params(root, params)
    with pytest.raises(ConfigError, match="leaves no text encoder"):
        check.params_file(root / "params.yaml")
