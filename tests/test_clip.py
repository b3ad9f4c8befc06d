import hashlib
import os
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ldm.compute import attention
from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError
from ldm.text.embedding.tower import copy_text
from ldm.text.model import clip, encoders
from ldm.text.model.params import ClipParams
from ldm.text.training import pretrained
from ldm.text.training.contrastive import Batches, ContrastiveObjective, retrieval, twin_accuracy
from ldm.text.training.params import ClipFileParams, ClipFolderParams, OpenClipParams
from ldm.text.training.pretrained import from_file, from_folder, from_tag, source_sha256
from ldm.tools.recipe import Recipe
from tests.import_closure import ROOT

CAPTIONS = ["a small red circle above a blue square", "a star", ""]


def params(causal=True, num_merges=300, context_length=16, layers=2, image_size_px=16):
    vision = {"image_size_px": image_size_px, "patch_size_px": 8, "width": 16, "layers": 1, "head_width": 8}
    text = {"width": 32, "heads": 2, "layers": layers, "context_length": context_length}
    text |= {"num_merges": num_merges, "embedding_std": 0.02, "causal": causal}
    return ClipParams.model_validate({"embed_dim": 8, "vision": vision, "text": text})


def built(seed=0, **changes):
    """A model whose weights are large enough that every part of it shows in its outputs."""
    model = clip.build(params(**changes), seed).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.model.parameters():
            if weight.ndim:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model


def images(count, height=16, width=16):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("causal", [True, False])
def test_tokens_start_with_the_spread_that_is_asked_for_and_positions_small(causal):
    asked = params(causal=causal)
    asked = asked.model_copy(update={"text": asked.text.model_copy(update={"embedding_std": 0.3})})
    model = clip.build(asked, 0).model
    text = model.text if hasattr(model, "text") else model
    assert float(text.token_embedding.weight.std()) == pytest.approx(0.3, rel=0.05)
    assert 0.005 < float(text.positional_embedding.std()) < 0.03


def test_full_vocabulary_is_that_of_clip():
    model = clip.build(params(num_merges=None, context_length=8), 0)
    # The ids that the README of OpenAI's CLIP prints for "a diagram", and the two words every tutorial encodes.
    assert model.tokenise(["a diagram", "Hello  World"]).tolist() == [
        [49406, 320, 22697, 49407, 0, 0, 0, 0],
        [49406, 3306, 1002, 49407, 0, 0, 0, 0],
    ]


def test_cut_vocabulary_keeps_every_text():
    model = clip.build(params(num_merges=300), 0)
    assert model.tokenizer.vocab_size == 512 + 300 + 2
    assert model.model.token_embedding.weight.shape[0] == 814
    ids = model.tokenizer.encode("a red circle, größer")
    assert max(ids) < 812
    assert model.tokenizer.decode(ids) == "a red circle , größer "


def test_captions_are_cut_at_an_end_token_and_padded():
    model = clip.build(params(), 0)
    start, end = 812, 813
    assert model.num_tokens(["", "a"]).tolist() == [2, 3]
    whole = model.tokenise([CAPTIONS[0]])[0].tolist()
    num_tokens = int(model.num_tokens(CAPTIONS[:1])[0])
    assert num_tokens > 16 and whole[0] == start and whole[-1] == end
    cut = model.tokenise([CAPTIONS[0]], num_tokens=8)
    assert cut.tolist() == [[*whole[:7], end, *[0] * 8]]
    assert model.tokenise([""]).tolist() == [[start, end, *[0] * 14]]


def test_weights_come_from_the_seed_alone():
    before = torch.random.get_rng_state()
    first, again, other = (clip.build(params(), seed).model.state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["visual.proj"], other["visual.proj"])


def transformers_twin(model):
    """The same text tower in transformers, an independent implementation."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    text = model.model_cfg["text_cfg"]
    config = CLIPTextConfig(
        vocab_size=text["vocab_size"],
        hidden_size=text["width"],
        intermediate_size=4 * text["width"],
        projection_dim=model.feature_width,
        num_hidden_layers=text["layers"],
        num_attention_heads=text["heads"],
        max_position_embeddings=text["context_length"],
        hidden_act="gelu",
        eos_token_id=text["vocab_size"] - 1,
    )
    twin = CLIPTextModelWithProjection(config).eval()
    source = model.model
    weights = {
        "text_model.embeddings.token_embedding.weight": source.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": source.positional_embedding,
        "text_model.final_layer_norm.weight": source.ln_final.weight,
        "text_model.final_layer_norm.bias": source.ln_final.bias,
        "text_projection.weight": source.text_projection.T,
    }
    for number, block in enumerate(source.transformer.resblocks):
        name = f"text_model.encoder.layers.{number}"
        for part, weight, bias in zip(
            "qkv", block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3), strict=True
        ):
            weights[f"{name}.self_attn.{part}_proj.weight"] = weight
            weights[f"{name}.self_attn.{part}_proj.bias"] = bias
        for theirs, ours in {
            "self_attn.out_proj": block.attn.out_proj,
            "layer_norm1": block.ln_1,
            "layer_norm2": block.ln_2,
            "mlp.fc1": block.mlp.c_fc,
            "mlp.fc2": block.mlp.c_proj,
        }.items():
            weights[f"{name}.{theirs}.weight"], weights[f"{name}.{theirs}.bias"] = ours.weight, ours.bias
    found = twin.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys and all("position_ids" in key for key in found.missing_keys)
    return twin


def test_text_tower_agrees_with_transformers():
    model = built(layers=3)
    ids = model.tokenise(CAPTIONS)
    with torch.no_grad():
        theirs = transformers_twin(model)(ids, output_hidden_states=True)
        tower = model.model
        expected = {
            ("last", True): theirs.last_hidden_state,
            ("last", False): theirs.hidden_states[-1],
            ("penultimate", True): tower.ln_final(theirs.hidden_states[-2]),
            ("penultimate", False): theirs.hidden_states[-2],
        }
        for (layer, norm), states in expected.items():
            tokens, pooled = model.encode_text(ids, layer, norm)
            assert (tokens - states).abs().max() < 1e-5 * states.abs().max()
            assert torch.allclose(pooled, F.normalize(theirs.text_embeds, dim=-1), atol=1e-5)
        assert torch.allclose(model.text_features(ids), pooled, atol=1e-6)
        assert (model.context_length, model.context_width, model.feature_width) == (16, 32, 8)


@pytest.mark.parametrize("causal", [True, False])
def test_padding_does_not_influence_a_caption(causal):
    model = built(causal=causal)
    ids = model.tokenise(["a star"])
    end = int(ids.argmax())
    with torch.no_grad():
        tokens, pooled = model.encode_text(ids, "last", True)
        embedding = model.get_submodule("model.token_embedding" if causal else "model.text.token_embedding")
        embedding.weight[0] *= -1
        other_tokens, other_pooled = model.encode_text(ids, "last", True)
    assert torch.allclose(tokens[:, : end + 1], other_tokens[:, : end + 1], atol=1e-5)
    assert torch.allclose(pooled, other_pooled, atol=1e-6)
    assert not torch.allclose(tokens[:, end + 1 :], other_tokens[:, end + 1 :], atol=1e-2)


@pytest.mark.parametrize("causal", [True, False])
def test_an_earlier_token_sees_a_later_one_unless_causal(causal):
    model = built(causal=causal)
    ids = model.tokenise(["a star", "a circle"])
    ids[1, :3] = ids[0, :3]
    with torch.no_grad():
        first, second = model.encode_text(ids, "last", True)[0][:, :3]
    assert torch.allclose(first, second, atol=1e-6) == causal


def test_image_of_the_right_size_is_only_normalised():
    model = clip.build(params(), 0)
    pixels = images(1)
    expected = (pixels.numpy() / 255 - np.reshape(model.preprocess.mean, (3, 1, 1))) / np.reshape(
        model.preprocess.std, (3, 1, 1)
    )
    assert np.allclose(model.preprocess(pixels).numpy(), expected, atol=1e-6)
    assert model.preprocess.mean == (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (40, 64), (9, 7), (16, 27)])
def test_resizing_agrees_with_open_clip(height, width):
    from open_clip.transform import image_transform

    model = clip.build(params(), 0)
    smooth = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)).numpy()
    picture = Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC)
    theirs = image_transform(16, is_train=False, mean=model.preprocess.mean, std=model.preprocess.std)(picture)
    ours = model.preprocess(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None])
    assert ours.shape == (1, 3, 16, 16)
    # Theirs is rounded and clamped to 8 bits between its two passes; a pixel value is 0.015 here.
    error = (ours[0] - theirs).abs()
    assert error.mean() < 0.01 and error.max() < 0.1


def test_squashing_keeps_the_whole_image():
    squash = clip.Preprocess(4, (0.0,) * 3, (1.0,) * 3, "bilinear", "squash")
    ramp = torch.arange(0, 256, 32, dtype=torch.uint8).expand(1, 3, 16, 8)
    assert squash(ramp).shape == (1, 3, 4, 4)
    assert squash(ramp)[0, 0, 0, 0] < 40 / 255 and squash(ramp)[0, 0, 0, -1] > 184 / 255


@pytest.mark.parametrize(("causal", "num_merges"), [(True, 300), (False, 300), (True, None)])
def test_artefact_rebuilds_the_model(tmp_path, causal, num_merges):
    model = built(causal=causal, num_merges=num_merges)
    written = model.save(tmp_path, {"images": "aa"}, {"trained": True})
    loaded, passport = clip.load(tmp_path)
    assert passport == written and passport.inputs == {"images": "aa"}
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())
    ids = model.tokenise(CAPTIONS)
    assert torch.equal(loaded.tokenise(CAPTIONS), ids)
    with torch.no_grad():
        assert torch.equal(loaded.image_features(images(2, 20, 30)), model.image_features(images(2, 20, 30)))
        for ours, theirs in zip(
            loaded.encode_text(ids, "last", False), model.encode_text(ids, "last", False), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    saved = loaded.model.state_dict()
    assert all(torch.equal(weight, saved[name]) for name, weight in model.model.state_dict().items())


def test_changed_merges_are_refused(tmp_path):
    clip.build(params(), 0).save(tmp_path / "a", {}, {})
    clip.build(params(num_merges=200), 0).save(tmp_path / "b", {}, {})
    (tmp_path / "a" / clip.MERGES).write_bytes((tmp_path / "b" / clip.MERGES).read_bytes())
    for read in (clip.load, encoders.verify):
        with pytest.raises(IntegrityError, match=clip.MERGES):
            read(tmp_path / "a")
    encoders.verify(tmp_path / "b")


def tag(name, architecture, quick_gelu=None):
    values = {"kind": "open_clip", "architecture": architecture, "tag": name, "quick_gelu": quick_gelu}
    return OpenClipParams.model_validate(values)


def file(path, architecture, quick_gelu):
    values = {"kind": "file", "path": str(path), "architecture": architecture, "quick_gelu": quick_gelu}
    return ClipFileParams.model_validate(values)


def folder(path, quick_gelu):
    return ClipFolderParams.model_validate({"kind": "folder", "path": str(path), "quick_gelu": quick_gelu})


def test_a_path_must_state_quick_gelu(tmp_path):
    for make in (lambda: file(tmp_path / "weights.pt", "ViT-B-32", None), lambda: folder(tmp_path, None)):
        with pytest.raises(ValueError, match=r"quick_gelu\n.*valid boolean"):
            make()


def test_an_artefact_of_ours_is_copied(tmp_path):
    model = built()
    model.save(tmp_path, {}, {})
    copied = from_folder(folder(tmp_path, False))
    assert torch.equal(copied.model.text_projection, model.model.text_projection)
    with pytest.raises(ConfigError, match=r"source.quick_gelu: true; expected false"):
        from_folder(folder(tmp_path, True))


def test_the_text_half_of_a_model_folder_is_refused_by_name(tmp_path):
    whole = built().save(tmp_path / "whole", {}, {})
    copy_text(tmp_path / "whole", tmp_path / "half")
    found = f"half is the text half of a CLIP; expected the whole CLIP, of SHA-256 {whole.content_sha256}"
    with pytest.raises(ConfigError, match=rf"source\.path: .*{found}\nfix: name the folder `data/clip`"):
        from_folder(folder(tmp_path / "half", False))


def tiny_cfg(quick_gelu):
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    return {"embed_dim": 8, "quick_gelu": quick_gelu, "vision_cfg": vision, "text_cfg": text}


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_foreign_weights_are_loaded_with_their_activation(tmp_path, quick_gelu):
    import open_clip

    cfg = tiny_cfg(quick_gelu)
    model = open_clip.model.CLIP(**cfg)
    path, name = tmp_path / "folder", f"tiny-{quick_gelu}"
    path.mkdir()
    artifact.write_tensors(path / "open_clip_model.safetensors", model.state_dict())
    artifact.write_json(path / "open_clip_config.json", {"model_cfg": cfg, "preprocess_cfg": {"mean": [0.5] * 3}})
    artifact.write_json(tmp_path / f"{name}.json", {**cfg, "quick_gelu": False})
    open_clip.add_model_config(tmp_path / f"{name}.json")
    ids = open_clip.tokenize(CAPTIONS)
    expected = model.eval().encode_text(ids, normalize=True)
    loaded = from_file(file(path / "open_clip_model.safetensors", name, quick_gelu))
    described = from_folder(folder(path, quick_gelu))
    described.save(tmp_path / "artefact", {}, {})
    again, _ = clip.load(tmp_path / "artefact")
    for found in (loaded, described, again):
        assert torch.equal(found.tokenise(CAPTIONS), ids)
        torch.testing.assert_close(found.text_features(ids), expected, rtol=1e-5, atol=1e-5)
    assert again.preprocess.mean == [0.5] * 3
    sha256 = {"open_clip_model.safetensors": artifact.sha256_file(path / "open_clip_model.safetensors")}
    for source in (file(path / "open_clip_model.safetensors", name, quick_gelu), folder(path, quick_gelu)):
        assert source_sha256(source) == sha256
    with pytest.raises(ConfigError, match=f"expected {str(quick_gelu).lower()}"):
        from_folder(folder(path, not quick_gelu))


def test_the_file_of_a_tag_is_named_by_its_hash(tmp_path, monkeypatch):
    from open_clip import pretrained

    (tmp_path / "weights.bin").write_bytes(b"weights")
    monkeypatch.setattr(pretrained, "download_pretrained", lambda cfg: str(tmp_path / "weights.bin"))
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert source_sha256(tag("laion2b_s32b_b82k", "ViT-L-14")) == {"weights.bin": sha256}


def test_an_activation_that_is_not_stated_is_that_of_the_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    asked = list[tuple[str, bool]]()

    def create_model(name: str, pretrained: str, force_quick_gelu: bool) -> None:
        asked.append((pretrained, force_quick_gelu))
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    for name in ("openai", "laion2b_s32b_b82k"):
        with pytest.raises(ConfigError, match=f"source.tag: open_clip cannot load {name}"):
            from_tag(tag(name, "ViT-L-14"))
    assert asked == [("openai", True), ("laion2b_s32b_b82k", False)]
    recipes = [Recipe(path.stem, ROOT).data for path in (ROOT / "recipes").glob("*.yaml")]
    sources = [params["train_clip"]["source"] for params in recipes]
    for source in (source for source in sources if source["kind"] == "open_clip"):
        with pytest.raises(ConfigError, match="open_clip cannot load"):
            from_tag(OpenClipParams.model_validate(source))
    assert ("openai", True) in asked[2:]


def test_a_file_whose_images_may_need_another_preparation_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file says nothing of it; which tags of open_clip it may be, its architecture and activation tell."""
    monkeypatch.setattr(pretrained, "_create", lambda *_, **__: built())
    (tmp_path / "weights.pt").touch()
    said = r"deviation 0\.269, 0\.261, 0\.276 are taken, and laion2b_s32b_b82k of ViT-L-14 need others; .* kind: folder"
    with pytest.warns(UserWarning, match=rf"train_clip\.source\.path: .*weights\.pt does not say .*{said}"):
        from_file(file(tmp_path / "weights.pt", "ViT-L-14", False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_file(file(tmp_path / "weights.pt", "ViT-L-14", True))  # as OpenAI's, and all of open_clip's alike
        from_file(file(tmp_path / "weights.pt", "ViT-B-32", False))


def test_wrong_names_are_refused_before_any_download(tmp_path):
    with pytest.raises(ConfigError, match="quick_gelu: false; expected true"):
        from_tag(tag("openai", "ViT-L-14", quick_gelu=False))
    with pytest.raises(ConfigError, match="quick_gelu: true; expected false"):
        from_tag(tag("laion2b_s32b_b82k", "ViT-L-14", quick_gelu=True))
    with pytest.raises(ConfigError, match="a tag of ViT-L-14: openai"):
        from_tag(tag("opennai", "ViT-L-14"))
    with pytest.raises(ConfigError, match="ViT-L-14"):
        from_tag(tag("openai", "ViT-L14"))
    with pytest.raises(ConfigError, match="open_clip's own text tower"):
        from_tag(tag("laion5b_s13b_b90k", "xlm-roberta-base-ViT-B-32"))
    with pytest.raises(ConfigError, match=r"no open_clip_config\.json"):
        from_folder(folder(tmp_path, False))


def test_a_path_must_be_what_its_kind_says(tmp_path):
    weights = tmp_path / "weights.pt"
    with pytest.raises(ConfigError, match=r"source.path: no file .*none; expected an existing file"):
        from_file(file(tmp_path / "none", "ViT-B-32", False))
    with pytest.raises(ConfigError, match=r"source.path: no folder .*none; expected an existing folder"):
        from_folder(folder(tmp_path / "none", False))
    with pytest.raises(ConfigError, match=r"is a folder; expected a file\nfix: name a file, or set kind: folder"):
        from_file(file(tmp_path, "ViT-B-32", False))
    weights.touch()
    with pytest.raises(ConfigError, match=r"is a file; expected a folder\nfix: name a folder, or set kind: file"):
        from_folder(folder(weights, False))


def batch_of(model, count):
    texts = [f"a star {number}" for number in range(count)]
    return {"image": images(count), "ids": model.tokenise(texts)}


def test_loss_is_the_symmetric_cross_entropy():
    model = built()
    batch = batch_of(model, 4)
    out = ContrastiveObjective(model)(batch)
    image, text = model.image_features(batch["image"]), model.text_features(batch["ids"])
    logits = (image @ text.T / 0.07).double()
    expected = -(logits.log_softmax(0).diagonal() + logits.log_softmax(1).diagonal()).mean() / 2
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert out["logit_scale"].item() == pytest.approx(1 / 0.07)


def test_scale_is_kept_within_bounds():
    model = built()
    for start, expected in ((9.0, 100.0), (-3.0, 1.0)):
        torch.nn.init.constant_(model.model.logit_scale, start)
        assert ContrastiveObjective(model)(batch_of(model, 2))["logit_scale"].item() == pytest.approx(expected)


def gradients(objective, batch):
    objective.zero_grad()
    loss = objective(batch)["loss"]
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in objective.named_parameters()}


def one_of_two(rank, port, path):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = built(causal=False)
    whole = batch_of(model, 6)
    rows = {name: tensor[3 * rank : 3 * rank + 3] for name, tensor in whole.items()}
    loss, found = gradients(ContrastiveObjective(model), rows)
    for tensor in (loss, *found.values()):
        torch.distributed.all_reduce(tensor)
        tensor /= 2
    if rank == 0:
        torch.save({"loss": loss, **found}, path)
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_loss_and_gradient_of_one(tmp_path):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(one_of_two, (port, tmp_path / "two.pt"), nprocs=2, start_method="fork")
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    model = built(causal=False)
    loss, one = gradients(ContrastiveObjective(model), batch_of(model, 6))
    assert two["loss"].item() == pytest.approx(loss.item(), abs=1e-6)
    largest = max(gradient.abs().max() for gradient in one.values())
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-5 * largest


def trained_bits() -> str:
    """Hash of a CLIP after three updates in bf16, and of text features, which are float32."""
    attention.select("auto", torch.device("cpu"))
    torch.set_num_threads(1)
    network = params(causal=False)
    model = clip.build(network.model_copy(update={"embed_dim": 128}), 0)
    objective, generator = ContrastiveObjective(model).train(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(objective.parameters(), 1e-3, fused=True)
    batch = {"image": images(64), "ids": torch.randint(0, 800, (64, 16), generator=generator)}
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    bits = hashlib.sha256(model.eval().text_features(batch["ids"]).detach().numpy().tobytes())
    for weight in objective.parameters():
        bits.update(weight.detach().numpy().tobytes())
    return bits.hexdigest()


def test_bits_of_a_training_do_not_hang_on_which_code_mkl_chooses_for_the_cpu():
    """COMPATIBLE is the one path that MKL has on every x86; on any other the first three updates differ from it."""
    script = "from tests.test_clip import trained_bits; print(trained_bits())"
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    found = [
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parents[1],
            env=environment | setting,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for setting in ({}, {"MKL_CBWR": "COMPATIBLE"})
    ]
    assert len(found[0].strip()) == 64 and found[0] == found[1]


def test_a_batch_holds_sample_and_caption_once():
    captions = [[f"caption {number % 40}", f"caption {number % 30}"] for number in range(100)]
    for step in range(12):
        samples, texts = Batches(captions, 16, 0, False).at_step(step)
        assert len(set(texts)) == len(set(samples)) == 16
        assert all(text in captions[sample] for sample, text in zip(samples, texts, strict=True))
        again = Batches(captions, 16, 0, False).at_step(step)
        assert samples == again[0] and texts == again[1]
    assert samples != Batches(captions, 16, 1, False).at_step(11)[0]


def test_distinct_captions_are_all_seen_once_per_epoch():
    captions = [[f"{number} a", f"{number} b"] for number in range(64)]
    pairs = [Batches(captions, 16, 0, False).at_step(step) for step in range(4)]
    assert Counter(sample for samples, _ in pairs for sample in samples) == dict.fromkeys(range(64), 1)
    endings = Counter(text[-1] for _, texts in pairs for text in texts)
    assert 16 < endings["a"] < 48


def test_a_duplicate_is_replaced_by_the_next_sample():
    captions = [["x"], ["x"], ["y"], ["z"]]
    plain = [["0"], ["1"], ["2"], ["3"]]
    for step in range(8):
        wanted = Batches(plain, 2, 0, False).at_step(step)[0]
        found = Batches(captions, 2, 0, False).at_step(step)[0]
        assert found == ([wanted[0], 2] if set(wanted) == {0, 1} else wanted)


def test_twins_share_a_batch_and_the_rank_of_their_captions():
    captions = [[f"{number} a", f"{number} b", f"{number} c"] for number in range(41)]
    for step in range(5):
        samples, texts = Batches(captions, 8, 0, True).at_step(step)
        assert [sample ^ 1 for sample in samples[::2]] == samples[1::2] and 40 not in samples
        assert [text[-1] for text in texts[::2]] == [text[-1] for text in texts[1::2]]


def test_retrieval_of_known_features():
    features = torch.eye(4)
    perfect = retrieval(features, features)
    assert perfect == {"retrieval_images": 1, "retrieval_captions": 1, "cosine_matched": 1, "cosine_margin": 1}
    shifted = retrieval(features, features.roll(1, 0))
    assert (shifted["retrieval_images"], shifted["retrieval_captions"], shifted["cosine_matched"]) == (0, 0, 0)
    # All captions point at image 0: only its own caption finds it, and every image prefers the first of equal captions.
    assert retrieval(features, features[[0, 0, 0, 0]])["retrieval_images"] == 0.25


def test_twin_accuracy_of_known_features():
    image = torch.eye(4)
    assert twin_accuracy(image, image) == 1
    assert twin_accuracy(image, image[[1, 0, 2, 3]]) == 0.5
    assert twin_accuracy(image, image[[0, 0, 2, 2]]) == 0
