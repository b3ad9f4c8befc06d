"""CLIPs of other libraries are named, and none is fetched."""

import json
import socket

import pytest
import torch

from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError
from ldm.text.model import clip, layout
from ldm.text.model.params import ClipParams
from ldm.text.training.params import ClipFileParams, ClipFolderParams
from ldm.text.training.pretrained import from_file, from_folder

VISION = {"image_size_px": 16, "patch_size_px": 8, "width": 16, "layers": 1, "head_width": 8}
TEXT = {"width": 16, "heads": 2, "layers": 1, "context_length": 8, "num_merges": 300}
NETWORK = {"embed_dim": 8, "vision": VISION, "text": {**TEXT, "embedding_std": 0.3, "causal": True}}
CFG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
FOREIGN = {
    "text_cfg.hf_model_name": "somebody/text",
    "text_cfg.hf_model_pretrained": True,
    "text_cfg.hf_proj_type": "mlp",
    "text_cfg.tokenizer_mode": "clips",
    "text_cfg.tokenizer_kwargs": {"bpe_path": "https://example.org/merges.gz"},
    "text_cfg.trust_remote_code": True,
    "vision_cfg.timm_model_name": "hf-hub:somebody/images",
    "vision_cfg.timm_model_pretrained": True,
    "vision_cfg.unknown": 1,
    "multimodal_cfg": {"hf_model_name": "somebody/decoder"},
    "hf_model_name": "somebody/clip",
    "pretrained": "https://example.org/weights.pt",
}


@pytest.fixture
def attempts(monkeypatch):
    """Every attempt to reach another machine, which fails."""
    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    return tried


def with_key(cfg, key, value):
    cfg = json.loads(json.dumps(cfg))
    *parts, last = key.split(".")
    inner = cfg
    for part in parts:
        inner = inner[part]
    inner[last] = value
    return cfg


def folder(path):
    return ClipFolderParams.model_validate({"kind": "folder", "path": str(path), "quick_gelu": False})


def file(path):
    values = {"kind": "file", "path": str(path), "architecture": "tiny-layout", "quick_gelu": False}
    return ClipFileParams.model_validate(values)


@pytest.mark.parametrize("key", FOREIGN)
def test_an_artefact_that_names_foreign_parts_fetches_and_builds_nothing(tmp_path, attempts, key):
    clip.build(ClipParams.model_validate(NETWORK), 0).save(tmp_path, {}, {})
    passport = json.loads((tmp_path / artifact.PASSPORT).read_text())
    passport["config"]["model_cfg"] = with_key(passport["config"]["model_cfg"], key, FOREIGN[key])
    artifact.write_json(tmp_path / artifact.PASSPORT, artifact.sealed(passport))
    with pytest.raises(IntegrityError) as caught:
        clip.load(tmp_path)
    assert key in str(caught.value) and "passport.json" in str(caught.value)
    assert not attempts


@pytest.mark.parametrize("key", FOREIGN)
def test_a_folder_that_names_foreign_parts_fetches_and_builds_nothing(tmp_path, attempts, key):
    import open_clip

    model = open_clip.model.CLIP(**CFG)
    artifact.write_tensors(tmp_path / "open_clip_model.safetensors", model.state_dict())
    config = tmp_path / "open_clip_config.json"
    artifact.write_json(config, {"model_cfg": CFG, "preprocess_cfg": {}})
    assert from_folder(folder(tmp_path)).context_width == 8
    artifact.write_json(config, {"model_cfg": with_key(CFG, key, FOREIGN[key]), "preprocess_cfg": {}})
    with pytest.raises(ConfigError) as caught:
        from_folder(folder(tmp_path))
    assert key in str(caught.value) and str(config) in str(caught.value)
    assert not attempts


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_cfg": 3}', '{"model_cfg": {"embed_dim": 8}}'])
def test_a_folder_whose_config_is_none_is_refused(tmp_path, text):
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"open_clip_config\.json: .*\nfix: "):
        from_folder(folder(tmp_path))


def test_every_architecture_of_open_clip_is_told_apart():
    """Ours are those with open_clip's own text tower; image towers of timm only as it describes them."""
    import open_clip

    for name in open_clip.list_models():
        cfg = open_clip.get_model_config(name)
        text, own = cfg["text_cfg"], layout.foreign_key(cfg) is None
        assert own == ("hf_model_name" not in text and "multimodal_cfg" not in cfg)
        timm = cfg["vision_cfg"].get("timm_model_name")
        if own and timm is not None:
            assert ":" not in timm
            assert layout.foreign_key(with_key(cfg, "vision_cfg.timm_model_name", "hf-hub:x/y")) is not None


def test_an_artefact_with_other_weights_than_its_config_is_named(tmp_path):
    model = clip.build(ClipParams.model_validate(NETWORK), 0)
    weights = model.model.state_dict()
    del weights["text_projection"]
    weights["visual.proj"] = torch.zeros(9, 8)
    model.save(tmp_path, {}, {})
    passport = json.loads((tmp_path / artifact.PASSPORT).read_text())
    artifact.write(tmp_path, clip.KIND, passport["config"], weights, {}, {})
    with pytest.raises(IntegrityError) as caught:
        clip.load(tmp_path)
    expected = (
        "model.safetensors: missing keys: text_projection; shapes: visual.proj [9, 8] instead of [16, 8]; expected "
    )
    assert expected in str(caught.value)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """An architecture that open_clip knows as `tiny-layout`, and a state dict of it."""
    import open_clip

    path = tmp_path_factory.mktemp("architectures") / "tiny-layout.json"
    artifact.write_json(path, CFG)
    open_clip.add_model_config(path)
    return open_clip.model.CLIP(**CFG).state_dict()


def refusal(path):
    with pytest.raises(ConfigError) as caught:
        from_file(file(path))
    line, fix = str(caught.value).splitlines()
    assert line.startswith("params.yaml: train_clip.source.path: ") and str(path) in line
    assert "expected weights of tiny-layout as open_clip saves them" in line and fix.startswith("fix: ")
    return line, fix


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_checkpoint_of_transformers_is_named_as_such(tmp_path, tiny, suffix):
    from transformers import CLIPConfig, CLIPModel

    sides = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**sides, "image_size": 16, "patch_size": 8}
    theirs = CLIPModel(CLIPConfig(projection_dim=8, text_config={**sides, "vocab_size": 99}, vision_config=vision))
    path = tmp_path / f"model{suffix}"
    if suffix == ".bin":
        torch.save(theirs.state_dict(), path)
    else:
        artifact.write_tensors(path, theirs.state_dict())
    line, fix = refusal(path)
    assert f"{path} is in the layout of transformers (missing keys: " in line
    assert "unexpected keys: " in line and "text_model." in line
    assert "open_clip_model.safetensors" in fix


def test_a_folder_of_transformers_is_named_as_such(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="in the layout of transformers: no open_clip_config"):
        from_folder(folder(tmp_path))


def test_other_weights_are_named_by_their_first_reasons(tmp_path, tiny):
    artifact.write_tensors(tmp_path / "of_others.safetensors", {"conv.weight": torch.zeros(2)})
    line, _ = refusal(tmp_path / "of_others.safetensors")
    assert "missing keys: positional_embedding, text_projection, logit_scale and 35 more; unexpected keys: conv" in line
    artifact.write_tensors(tmp_path / "wider.safetensors", {**tiny, "text_projection": torch.zeros(9, 8)})
    line, _ = refusal(tmp_path / "wider.safetensors")
    assert "(shapes: text_projection [9, 8] instead of [8, 8])" in line


def test_files_that_are_no_weights_end_in_one_line(tmp_path, tiny):
    for name, value in {"list": [1, 2], "tensor": torch.zeros(3), "empty": {}, "number": 3, "keys": {1: 2}}.items():
        torch.save(value, tmp_path / f"{name}.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "object.pt")
    torch.save({"state_dict": tiny}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:5000])
    (tmp_path / "short.safetensors").write_bytes(b"")
    for name in ("page.pt", "page.bin", "page.safetensors", "page.npz"):
        (tmp_path / name).write_text("<html>not found</html>")
    artifact.write_tensors(tmp_path / "flat.safetensors", {**tiny, "positional_embedding": torch.zeros(77)})
    assert from_file(file(tmp_path / "whole.pt")).context_width == 8
    bad = [path for path in sorted(tmp_path.iterdir()) if path.name != "whole.pt"]
    assert len(bad) == 13
    for path in bad:
        line, _ = refusal(path)
        assert line.isprintable() and len(line) < 500
