"""Conditions of captions in a training: from storage, with or without padding, or from the encoder in the step."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.core import artifact, shards
from ldm.core.errors import IntegrityError
from ldm.denoiser.model.diffusion import DenoisingObjective
from ldm.denoiser.model.unet import UNet
from ldm.denoiser.training.batches import LatentBatches
from ldm.denoiser.training.inputs import Inputs, load_inputs
from ldm.denoiser.training.texts import IDS
from ldm.sampling import samples
from ldm.text.embedding.embeddings import NULL, TextEmbeddings
from ldm.text.model import clip
from ldm.text.model.captions import Captions
from ldm.text.model.params import ClipParams
from ldm.training.plots import read_table
from tests import trained_data
from tests.import_closure import ROOT
from tests.kinds import KINDS
from tests.stage_scripts import run
from tests.training_data import KEPT, UNET, WIDTH, unet_params, write_autoencoder, write_captions, write_latents

CONTEXT = 14
CLIP = {
    "embed_dim": 8,
    "vision": {"image_size_px": 16, "patch_size_px": 8, "width": 8, "layers": 1, "head_width": 8},
    "text": {
        "width": WIDTH,
        "heads": 2,
        "layers": 2,
        "context_length": CONTEXT,
        "num_merges": 200,
        "embedding_std": 0.5,
        "causal": True,
    },
}
NETWORK = {"max_context_tokens": CONTEXT}
EMBED: dict[str, Any] = {"layer": "penultimate", "norm": True, "context_tokens": None, "batch_size": 4}
FORMS = [(padding, kind) for padding in ("attended", "masked") for kind in ("stored", "online")]
FOLDERS = ("latents", "captions", "embeddings", "autoencoder", "clip")


def write_params(padding: str, kind: str, **changes: Any) -> None:
    split = {"kind": kind} | ({"precision": "fp32"} if kind == "online" else {})
    machine = {"threads": 1, "num_workers": 0, "attention": "math", "compile": False} | KEPT
    sections = {
        "machine": machine,
        "embed_text": EMBED | {"padding": padding, "train_split": split},
        "train_unet": UNET | {"network": UNET["network"] | NETWORK},
    }
    Path("params.yaml").write_text(json.dumps(sections | changes))


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """One corpus with a CLIP, embedded in all forms: a folder like a repository for each."""
    root = tmp_path_factory.mktemp("forms")
    write_captions(root / "data/captions")
    for split in ("reworded", "unseen", "held_out"):
        shards.write(root / "data/captions" / split, [], 5)
    write_latents(root / "data/latents", write_autoencoder(root / "data/autoencoder"))
    clip.build(ClipParams.model_validate(CLIP), 0).save(root / "data/clip", {}, {})
    shutil.copy(ROOT / "paths.yaml", root)
    made: dict[tuple[str, str], Path] = {}
    before = Path.cwd()
    for form in FORMS:
        made[form] = root.parent / "_".join(form)
        shutil.copytree(root, made[form])
        os.chdir(made[form])
        write_params(*form)
        run("embed_text")
    os.chdir(before)
    return made


def load(root: Path, *, takes_pooled: bool = False) -> Inputs:
    return load_inputs(*(root / "data" / name for name in FOLDERS), takes_pooled=takes_pooled)


def texts_of(root: Path, split: str) -> set[str]:
    return {text for texts in Captions(root / "data/captions" / split).texts for text in texts}


def test_online_stores_no_caption_of_training(forms: dict[tuple[str, str], Path]):
    for (_, kind), root in forms.items():
        stored = TextEmbeddings(root / "data/embeddings")
        train, val = texts_of(root, "train"), texts_of(root, "val")
        assert all(text in stored for text in val) and len(train & val) == 0
        assert {text in stored for text in train} == {kind == "stored"}
        assert len(stored) == len(val) + (len(train) if kind == "stored" else 0)
        metrics = json.loads((root / "data/embeddings_results/metrics.json").read_text())
        assert (metrics["num_captions"], metrics["num_stored"]) == (len(train) + len(val), len(stored))
        assert set(stored.texts) == {"train", "val", *"abc"}, "words of all captions"


def test_masked_padding_is_not_stored_and_the_rest_is_the_same(forms: dict[tuple[str, str], Path]):
    attended, masked = (TextEmbeddings(forms[padding, "stored"] / "data/embeddings") for padding in EMBED_PADDINGS)
    texts = sorted(texts_of(forms["masked", "stored"], "train"))
    one, two = (stored.parts(stored.rows(texts)) for stored in (attended, masked))
    assert one.keys() == {"tokens", "pooled"} and two.keys() == {"tokens", "pooled", "mask"}
    assert torch.equal(one["pooled"], two["pooled"])
    assert torch.equal(one["tokens"] * two["mask"][..., None], two["tokens"])
    model, _ = clip.load(forms["masked", "stored"] / "data/clip")
    assert two["mask"].sum(1).tolist() == model.num_tokens(texts).tolist()
    assert attended.null["tokens"].shape == masked.null["tokens"].shape
    assert masked.null["mask"].sum() == 2 and "mask" not in attended.null
    paths = sorted((forms["masked", "stored"] / "data/embeddings").glob("0*"))
    num_stored = sum(len(artifact.open_tensors(path)["tokens"]) for path in paths)
    assert num_stored == model.num_tokens([*texts, *texts_of(forms["masked", "stored"], "val")]).sum()


EMBED_PADDINGS = ("attended", "masked")


@pytest.mark.parametrize("padding", EMBED_PADDINGS)
def test_conditions_made_online_are_those_stored(forms: dict[tuple[str, str], Path], padding: str):
    params = unet_params(network=NETWORK, diffusion={"caption_dropout": 0.4})
    stored, online = (load(forms[padding, kind], takes_pooled=True).train for kind in ("stored", "online"))
    assert stored.first_captions(np.arange(3)) == online.first_captions(np.arange(3))
    for step in range(3):
        one, two = (LatentBatches(pairs, params)(step, slice(0, 8)) for pairs in (stored, online))
        assert two.keys() - one.keys() == {IDS} and one["dropped"].any() and not one["dropped"].all()
        made = online.text.encoded(two[IDS])  # pyright: ignore[reportAttributeAccessIssue]
        assert one.keys() == (two.keys() | made.keys()) - {IDS}
        for name, part in (two | made).items():
            if name != IDS:
                assert torch.allclose(part.float(), one[name].float(), rtol=0, atol=1e-3), name
    numbers = np.arange(13)
    texts = online.captions(numbers, 0, np.zeros_like(numbers))
    first, second = stored.text.condition(texts).parts, online.text.condition(texts).parts
    assert all(torch.allclose(first[name].float(), second[name].float(), atol=1e-3) for name in first)


@pytest.mark.parametrize("padding", EMBED_PADDINGS)
def test_a_training_online_is_that_of_stored_captions(
    forms: dict[tuple[str, str], Path], padding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    tables: list[Any] = []
    weights: list[dict[str, torch.Tensor]] = []
    for kind in ("stored", "online"):
        root = tmp_path / kind
        shutil.copytree(forms[padding, kind], root)
        monkeypatch.chdir(root)
        run("train_unet")
        tables.append([read_table(Path("data/unet_results") / name) for name in ("curves.csv", "validation.csv")])
        weights.append(artifact.read(Path("data/unet"), KINDS["unet"])[1])
    for one, two in zip(*tables, strict=True):
        assert one.keys() == two.keys()
        assert all(np.allclose(one[name], two[name], rtol=2e-4, atol=2e-4) for name in one if name != "grad_norm")
    assert weights[0].keys() == weights[1].keys(), "the encoder is no part of the denoiser"
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=2e-3) for name in weights[0])
    stored = artifact.read_passport(tmp_path / "stored/data/unet", KINDS["unet"]).facts
    online = artifact.read_passport(tmp_path / "online/data/unet", KINDS["unet"]).facts
    assert stored == online


def test_masked_padding_changes_no_loss(forms: dict[tuple[str, str], Path]):
    params = unet_params(network=NETWORK)
    torch.manual_seed(0)
    objective = DenoisingObjective(UNet(params.network), params.diffusion)
    for parameter in objective.parameters():  # some layers of a fresh network are zero, which would hide the captions
        torch.nn.init.normal_(parameter, std=0.3)
    batch = LatentBatches(load(forms["masked", "stored"]).train, params)(1, slice(0, 8))
    noise = torch.randn_like(batch["tokens"]) * ~batch["mask"][..., None]
    losses = objective.losses(batch)[0]
    assert torch.allclose(losses, objective.losses({**batch, "tokens": batch["tokens"] + noise})[0])
    seen = torch.randn_like(batch["tokens"]) * batch["mask"][..., None]
    assert not torch.allclose(losses, objective.losses({**batch, "tokens": batch["tokens"] + seen})[0])


def test_shards_are_the_kept_units_themselves(forms: dict[tuple[str, str], Path]):
    root = forms["attended", "stored"]
    kept = [path for path in (root / "runs/embed_text").rglob("tensors.safetensors")]
    shards_ = sorted((root / "data/embeddings").glob("0*"))
    assert len(shards_) == 5 and all(sum(path.samefile(unit) for unit in kept) == 1 for path in shards_)


def test_what_an_online_training_needs_is_compared(forms: dict[tuple[str, str], Path], tmp_path: Path):
    shutil.copytree(forms["attended", "online"], tmp_path / "copy")
    other = tmp_path / "copy/data/clip"
    shutil.rmtree(other)
    clip.build(ClipParams.model_validate(CLIP), 1).save(other, {}, {})
    with pytest.raises(IntegrityError, match=r"embeddings made with clip \w{64}; expected clip"):
        load(tmp_path / "copy")
    shutil.rmtree(other)
    shutil.copytree(forms["attended", "online"] / "data/clip", other)
    captions = tmp_path / "copy/data/captions/train"
    parts = [(f"{i:03d}", {"json": json.dumps({"captions": [f"new {i}"]}).encode()}) for i in range(13)]
    shutil.rmtree(captions)
    shards.write(captions, parts, 5)
    with pytest.raises(IntegrityError, match="embeddings made with captions_train"):
        load(tmp_path / "copy")


def test_captions_that_were_not_embedded_are_named_at_the_start(forms: dict[tuple[str, str], Path], tmp_path: Path):
    """Others than the embeddings were made for may be there, if they are in it."""
    shutil.copytree(forms["attended", "stored"], tmp_path / "copy")
    captions = tmp_path / "copy/data/captions/train"
    for last in ("train 3 a", "unheard of"):
        texts = [[f"train {i} a"] for i in range(12)] + [[last]]
        parts = [(f"{i:03d}", {"json": json.dumps({"captions": own}).encode()}) for i, own in enumerate(texts)]
        shutil.rmtree(captions)
        shards.write(captions, parts, 5)
        if last == "unheard of":
            with pytest.raises(IntegrityError, match="no embedding of 'unheard of'"):
                load(tmp_path / "copy")
        else:
            assert load(tmp_path / "copy").train.first_captions(np.arange(2)) == ["train 0 a", "train 1 a"]


def test_the_null_embedding_is_that_of_no_text(forms: dict[tuple[str, str], Path]):
    for root in forms.values():
        stored = TextEmbeddings(root / "data/embeddings")
        parts = stored.encoder(*clip.load(root / "data/clip"), torch.device("cpu"))([""])
        assert parts.keys() == stored.null.keys()
        assert all(torch.allclose(parts[name].float(), stored.null[name].float(), atol=1e-3) for name in parts)
        assert (
            artifact.sha256_tensors(artifact.open_tensors(root / "data/embeddings" / NULL))
            == (stored.passport.facts["null_sha256"])
        )


def test_prompts_of_training_are_encoded_where_they_are_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    online = {"train_split": {"kind": "online", "precision": "fp32"}}
    monkeypatch.setitem(trained_data.CHANGES, "embed_text", trained_data.CHANGES["embed_text"] | online)
    trained_data.make(tmp_path)
    trained_data.change(tmp_path, "sample", seen_split="train", sweep={"guidance_scales": [], "num_prompts": 2})
    assert run("sample").startswith("sample: held_out 6 of 6, unseen 5 of 5, reworded 4 of 4, seen 8 of 8 prompts")
    stored = TextEmbeddings(Path("data/embeddings"))
    _, sets = samples.read(Path("data/samples"))
    assert not any(prompt.prompt in stored for prompt in sets["seen"].prompts)
    assert all(prompt.prompt in stored for prompt in sets["held_out"].prompts)
