"""CLIPs of open_clip with a tokenizer of transformers, as SigLIP and CLIPA have: against open_clip itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError
from ldm.text.embedding.tower import load_text
from ldm.text.model import clip, encoders
from ldm.text.model.tokenizer import is_text
from ldm.text.training import pretrained
from ldm.text.training.params import ClipFileParams, ClipFolderParams
from tests.text_towers import CAPTIONS, byte_pair_files, sentencepiece_files

TEXT = {"context_length": 12, "vocab_size": 120, "hf_tokenizer_name": "nobody/nothing", "width": 16, "heads": 2}
TEXT |= {"layers": 2, "pool_type": "last", "no_causal_mask": True}
CFG: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
}
KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "SigLIP": (
        {
            **CFG,
            "custom_text": True,
            "text_cfg": {**TEXT, "proj_bias": True, "tokenizer_kwargs": {"clean": "canonicalize"}},
        },
        sentencepiece_files,
    ),
    "CLIPA": (
        {**CFG, "custom_text": True, "text_cfg": {**TEXT, "tokenizer_kwargs": {"strip_sep_token": True}}},
        lambda folder: byte_pair_files(folder, ends=True, sep_token="</s>"),
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights in open_clip's layout, with the files of its tokenizer."""
    cfg, make_tokenizer = KINDS[request.param]
    made = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = open_clip.CustomTextCLIP(**{name: value for name, value in cfg.items() if name != "custom_text"})
        for weight in model.parameters():
            weight.data.add_(torch.randn(weight.shape) * 0.1)
    artifact.write_tensors(made / "open_clip_model.safetensors", model.state_dict())
    text = json.dumps({"model_cfg": cfg, "preprocess_cfg": {}})
    (made / "open_clip_config.json").write_text(text, encoding="utf-8")
    make_tokenizer(made)
    return made


def opened(folder: Path) -> clip.Clip:
    return pretrained.from_folder(ClipFolderParams(kind="folder", path=str(folder), quick_gelu=False))


@torch.no_grad()
def test_features_and_states_equal_open_clips(folder: Path, tmp_path: Path) -> None:
    """Also when it comes back from its artefact."""
    model: Any = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")
    opened(folder).save(tmp_path, {}, {})
    ours, _ = load_text(tmp_path)
    assert isinstance(ours, clip.Clip)
    ids, theirs = ours.tokenise(CAPTIONS), tokenizer(CAPTIONS)
    mask = ours.mask(ids)
    assert torch.equal(ours._for_model(ids), theirs) and torch.equal(mask, is_text(ids))
    assert mask.sum(1).tolist() == ours.num_tokens(CAPTIONS).clip(max=12).tolist()
    assert torch.allclose(ours.text_features(ids), model.encode_text(theirs, normalize=True), atol=1e-5)
    out = model.forward_intermediates(text=theirs, text_indices=2, normalize_intermediates=True)
    for layer, number in (("last", -1), ("penultimate", -2)):
        states, pooled = ours.encode_text(ids, layer, True)
        assert torch.allclose(states, out["text_intermediates"][number], atol=1e-5)
        assert torch.allclose(pooled, out["text_features"], atol=1e-5)
    assert not torch.allclose(*ours.text_features(ids)[:2], atol=1e-3)


def test_without_the_files_of_its_tokenizer_it_is_refused(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        shutil.copy(folder / name, bare)
    with pytest.raises(IntegrityError, match="no file with a vocabulary"):
        opened(bare)
    opened(folder).save(tmp_path / "kept", {}, {})
    damaged = max((tmp_path / "kept/tokenizer").iterdir(), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for read in (clip.load, encoders.verify):
        with pytest.raises(IntegrityError, match=damaged.name):
            read(tmp_path / "kept")


def test_a_file_of_such_a_model_is_refused_and_a_folder_asked_for(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    source = {
        "kind": "file",
        "path": str(tmp_path / "weights.pt"),
        "architecture": "ViT-B-16-SigLIP",
        "quick_gelu": False,
    }
    with pytest.raises(ConfigError, match="ViT-B-16-SigLIP has a tokenizer of its own"):
        pretrained.from_file(ClipFileParams.model_validate(source))


def test_the_tokenizer_of_a_tag_is_fetched_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As open_clip would, whose tokenizers come from a hub; here from a folder."""
    sentencepiece_files(tmp_path)
    cfg = KINDS["SigLIP"][0]
    own = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=12, clean="canonicalize")
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: own)
    fetched = pretrained._fetched_tokenizer("any", cfg)
    shutil.rmtree(tmp_path)
    ids = fetched.padded(CAPTIONS, 12, 12)
    assert torch.equal(fetched.for_model(ids), own(CAPTIONS))
    files = fetched.save(tmp_path)
    assert "tokenizer/tokenizer.json" in files
