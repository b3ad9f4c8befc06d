"""The stages train_clip, embed_text and encode_latents on a corpus of a few flat-coloured squares."""

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from ldm.autoencoder.encoding import shards as encoding
from ldm.autoencoder.encoding.latents import KIND as LATENTS
from ldm.autoencoder.encoding.latents import LatentScale
from ldm.autoencoder.model.kl import KLAutoencoder
from ldm.autoencoder.model.network import to_signal
from ldm.autoencoder.model.params import KLAutoencoderParams
from ldm.compute import fingerprint
from ldm.core import artifact, images, shards
from ldm.core.errors import ConfigError, IntegrityError, Stopped
from ldm.precompute.cache import Cache
from ldm.text.embedding.embeddings import TextEmbeddings, TextEncoder
from ldm.text.model import clip
from ldm.text.model.params import ClipParams
from ldm.tools import runs
from ldm.training.plots import read_table
from tests.import_closure import ROOT
from tests.kinds import KINDS
from tests.stage_scripts import run
from tests.training_data import KEPT

COUNTS = {"train": 10, "val": 6, "reworded": 0, "unseen": 0, "held_out": 0}
NUM_ENCODED = 12
"""The first shard of val equals that of train, so it is encoded once."""
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (30, 60, 220), "white": (250, 250, 250)}
AUTOENCODER = {
    "kind": "kl",
    "patch_px": 2,
    "channels": [8, 8],
    "num_res_blocks": 1,
    "latent_channels": 2,
    "middle_attention": False,
    "quant_conv": True,
    "norm_groups": 4,
}
TRAINING = {
    "num_steps": 3,
    "batch_size": 4,
    "num_accumulation_steps": 1,
    "learning_rate": 0.002,
    "betas": [0.9, 0.98],
    "weight_decay": 0.0,
    "muon": None,
    "num_warmup_steps": 0,
    "final_learning_rate_fraction": 1.0,
    "max_grad_norm": 1.0,
    "ema_decay": 0.0,
    "precision": "fp32",
    "seed": 0,
    "log_every_steps": 25,
    "validate_every_steps": 3,
    "save_every_steps": 3,
    "num_kept_states": 1,
    "max_nonfinite_steps": 1,
    "loss_band": None,
}
CLIP = {
    "embed_dim": 8,
    "vision": {"image_size_px": 16, "patch_size_px": 8, "width": 16, "layers": 1, "head_width": 8},
    "text": {
        "width": 16,
        "heads": 2,
        "layers": 2,
        "context_length": 12,
        "num_merges": 500,
        "embedding_std": 0.3,
        "causal": False,
    },
}
PARAMS: dict[str, Any] = {
    "machine": {"threads": 1, "num_workers": 0, "attention": "math", "compile": False} | KEPT,
    "train_clip": {
        "source": {"kind": "train", "network": CLIP, "training": TRAINING, "twins_together": True},
        "text_encoder": {"kind": "clip"},
        "num_validation_pairs": 4,
    },
    "embed_text": {
        "layer": "last",
        "norm": True,
        "context_tokens": None,
        "padding": "attended",
        "train_split": {"kind": "stored"},
        "batch_size": 3,
    },
    "encode_latents": {
        "batch_size": 3,
        "precision": "fp32",
        "mirrored": False,
        "scale": {"kind": "measured"},
        "statistics_tolerance": 1.0,
    },
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and a prepared corpus: two captions a sample, twins with exchanged colours."""
    monkeypatch.chdir(tmp_path)
    write_params(PARAMS)
    shutil.copy(ROOT / "paths.yaml", tmp_path)
    for split, count in COUNTS.items():
        keys = [f"{number:03d}" for number in range(count)]
        pixels = [picture(number).tobytes() and images.encode_png(picture(number)) for number in range(count)]
        texts = [json.dumps({"captions": texts_of(number), "claims": [None, None]}).encode() for number in range(count)]
        shards.write(Path("data/images") / split, [(k, {"png": p}) for k, p in zip(keys, pixels, strict=True)], 4)
        shards.write(Path("data/captions") / split, [(k, {"json": t}) for k, t in zip(keys, texts, strict=True)], 4)
    return tmp_path


def change_training(twins_together: bool = True, **values: Any) -> None:
    """Train the CLIP with other values."""
    source = PARAMS["train_clip"]["source"] | {"training": {**TRAINING, **values}, "twins_together": twins_together}
    change("train_clip", source=source)


def write_params(values: dict[str, Any]) -> None:
    with open("params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(values, file)


def change(section: str, **values: Any) -> None:
    params = YAML(typ="safe").load(Path("params.yaml").read_text(encoding="utf-8"))
    params[section].update(values)
    write_params(params)


def colours_of(number: int) -> list[str]:
    pair = [list(COLOURS)[number // 2 % 4], list(COLOURS)[(number // 2 + 1 + number // 8) % 4]]
    return pair[::-1] if number % 2 else pair


def texts_of(number: int) -> list[str]:
    left, right = colours_of(number)
    return [f"{left} left of {right}", f"{right} right of {left}"]


def picture(number: int) -> np.ndarray:
    left, right = (np.array(COLOURS[name], dtype=np.uint8) for name in colours_of(number))
    return np.concatenate([np.broadcast_to(colour, (16, 8, 3)) for colour in (left, right)], axis=1)


def contents(folder: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def write_autoencoder(scale: float = 1.0, **changes: Any) -> KLAutoencoder:
    torch.manual_seed(0)
    config = AUTOENCODER | changes
    model = KLAutoencoder(KLAutoencoderParams.model_validate(config)).eval()
    with torch.no_grad():
        model.quant_conv.weight *= scale
    artifact.write(Path("data/autoencoder"), KINDS["autoencoder"], config, model.state_dict(), {}, {})
    return model


def write_clip(quick_gelu: bool = False) -> None:
    model = clip.build(ClipParams.model_validate(CLIP), 0)
    model.model_cfg["quick_gelu"] = quick_gelu
    model.save(Path("data/clip"), {}, {})


def one_of_two(rank: int, port: int, names: list[str]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    for name in names:
        run(name)
    torch.distributed.destroy_process_group()


def run_on_two(*names: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(one_of_two, (port, list(names)), nprocs=2, start_method="fork")


def test_train_clip_writes_a_model_that_learned(here: Path):
    change_training(num_steps=400, validate_every_steps=400)
    summary = run("train_clip")
    metrics = json.loads(Path("data/clip_results/metrics.json").read_text())
    assert set(metrics) == {
        *("retrieval_images", "retrieval_captions", "cosine_matched", "cosine_margin"),
        *("num_pairs", "twin_accuracy"),
    }
    assert metrics["num_pairs"] == 4 and metrics["retrieval_captions"] == 1.0 and metrics["twin_accuracy"] == 1.0
    assert metrics["retrieval_images"] >= 0.75, "one of four may fail, by the rounding of some kinds of CPU"
    assert f"twin_accuracy {metrics['twin_accuracy']:.3f}" in summary
    model, passport = clip.load(Path("data/clip"))
    assert passport.inputs == {
        "images": shards.Shards(Path("data/images/train")).sha256,
        "captions": shards.Shards(Path("data/captions/train")).sha256,
    }
    assert model.context_width == 16
    assert {"curves.csv", "validation.csv", "curves.png"} < set(contents("data/clip_results"))
    assert not any(Path("runs/train_clip").iterdir())


def test_a_finished_clip_is_trained_on_and_its_passport_says_so(here: Path):
    change("machine", keep_finished_states=True)
    run("train_clip")
    assert "resumed_from" not in artifact.read_passport(Path("data/clip"), clip.KIND).facts
    longer = TRAINING["num_steps"] + 2
    change_training(num_steps=longer)
    runs.ask(Path("runs"), "train_clip")
    run("train_clip")
    (found,) = artifact.read_passport(Path("data/clip"), clip.KIND).facts["resumed_from"]
    assert found["step"] == TRAINING["num_steps"]
    assert found["differs"] == {"params.source.training.num_steps": [TRAINING["num_steps"], longer]}


def test_train_clip_copies_a_pretrained_artefact(here: Path):
    write_clip()
    before = contents("data/clip")
    Path("data/clip").rename("mine")
    source = {"kind": "folder", "path": "mine", "quick_gelu": False}
    change("train_clip", source=source)
    run("train_clip")
    after = contents("data/clip")
    assert before.keys() == after.keys()
    assert all(before[name] == after[name] for name in ("model.safetensors", clip.MERGES))
    assert json.loads(after["passport.json"])["inputs"] == {}
    sha256 = {"model.safetensors": artifact.sha256_file(Path("mine/model.safetensors"))}
    assert json.loads(after["passport.json"])["facts"] == {"source": source, "source_sha256": sha256}
    results = contents("data/clip_results")
    assert results.keys() == {"metrics.json", "curves.csv", "validation.csv"}
    assert results["curves.csv"].strip() == results["validation.csv"].strip() == b"", "DVC's plots look for them"


def test_a_batch_of_more_images_than_there_are_is_refused(here: Path):
    change_training(batch_size=12)
    with pytest.raises(ConfigError, match=r"batch_size: 12; expected at most 10, the samples to train on"):
        run("train_clip")
    assert not Path("data/clip").exists()


def test_a_corpus_captioned_by_class_trains_and_tells_the_classes_apart(here: Path):
    """Two captions, batches of 8: more pairs than there are captions."""
    for split, count in {"train": 40, "val": 12}.items():
        keys = [f"{number:03d}" for number in range(count)]
        pixels = {key: images.encode_png(picture(int(key) % 2)) for key in keys}
        texts = {key: json.dumps({"captions": [f"class {int(key) % 2}"], "claims": [None]}).encode() for key in keys}
        shards.write(Path("data/images") / split, [(key, {"png": pixels[key]}) for key in keys], 20)
        shards.write(Path("data/captions") / split, [(key, {"json": texts[key]}) for key in keys], 20)
    change_training(False, batch_size=8, num_steps=60, log_every_steps=10, validate_every_steps=60)
    change("train_clip", num_validation_pairs=10)
    summary = run("train_clip")
    metrics = json.loads(Path("data/clip_results/metrics.json").read_text())
    assert metrics["num_pairs"] == 2 and metrics["caption_accuracy"] == 1.0 and "caption_accuracy 1.000" in summary
    losses = [loss for _, loss in read_table(Path("data/clip_results/curves.csv"))["loss"]]
    assert losses[-1] < losses[0] - 0.4 and losses[-1] == pytest.approx(np.log(4), abs=0.1)


def test_embeddings_are_those_of_the_encoder(here: Path):
    write_clip()
    summary = run("embed_text")
    texts = {text for split, count in COUNTS.items() for number in range(count) for text in texts_of(number)}
    model, passport = clip.load(Path("data/clip"))
    embeddings = TextEmbeddings(Path("data/embeddings"))
    assert len(embeddings) == len(texts) and set(embeddings.texts) == {word for text in texts for word in text.split()}
    longest = int(model.num_tokens(sorted(texts)).max())
    context_tokens = min(12, -(-longest // 8) * 8)
    assert embeddings.num_tokens == context_tokens and not embeddings.is_online
    for caption in sorted(texts)[::5]:
        tokens, pooled = model.encode_text(model.tokenise([caption]), "last", True)
        found = embeddings.parts(embeddings.rows([caption]))
        assert torch.allclose(found["tokens"], tokens[:, :context_tokens], atol=3e-3)
        assert torch.allclose(found["pooled"], pooled, atol=1e-3)
    null, _ = model.encode_text(model.tokenise([""]), "last", True)
    assert torch.allclose(embeddings.null["tokens"], null[:, :context_tokens], atol=3e-3)
    facts = embeddings.passport.facts
    assert facts["encoder_sha256"] == embeddings.passport.inputs["clip"] == passport.content_sha256
    assert (facts["context_tokens"], facts["context_width"], facts["num_truncated"]) == (context_tokens, 16, 0)
    assert f"{len(texts)} captions" in summary


def test_cut_captions_end_in_the_end_token_and_are_counted(here: Path):
    write_clip()
    change("embed_text", context_tokens=4)
    run("embed_text")
    metrics = json.loads(Path("data/embeddings_results/metrics.json").read_text())
    assert metrics["num_truncated"] == metrics["num_captions"] > 0 and metrics["context_tokens"] == 4
    lines = Path("data/embeddings_results/caption_tokens.csv").read_text().splitlines()
    counted = {int(tokens): int(captions) for tokens, captions in (line.split(",") for line in lines[1:])}
    assert lines[0] == "tokens,captions" and sum(counted.values()) == metrics["num_captions"]
    assert max(counted) == metrics["longest_tokens"] and min(counted) > 4
    model, _ = clip.load(Path("data/clip"))
    caption = texts_of(0)[0]
    ids = model.tokenise([caption])
    ids[0, 3], ids[0, 4:] = ids.max(), 0
    embeddings = TextEmbeddings(Path("data/embeddings"))
    expected = model.encode_text(ids, "last", True)[0][:, :4]
    assert torch.allclose(embeddings.parts(embeddings.rows([caption]))["tokens"], expected, atol=3e-3)


def test_embed_text_refuses_what_the_encoder_has_not(here: Path):
    write_clip()
    change("embed_text", context_tokens=77)
    with pytest.raises(ConfigError, match="context_tokens: 77; expected at most 12"):
        run("embed_text")
    with pytest.raises(IntegrityError, match=r"kind 'clip'.*expected kind 'autoencoder'"):
        Path("data/clip").rename("data/autoencoder")
        run("encode_latents")


def test_latents_are_the_posteriors_of_the_images(here: Path):
    model = write_autoencoder()
    run("encode_latents")
    sha256 = artifact.sha256_file("data/autoencoder/model.safetensors")
    for split in ("train", "val"):
        cache = Cache(Path("data/latents") / split, LATENTS)
        assert len(cache) == COUNTS[split]
        artifact.check_input(cache.directory, cache.passport, "autoencoder", sha256)
        with pytest.raises(IntegrityError, match=f"autoencoder {sha256}; expected autoencoder another"):
            artifact.check_input(cache.directory, cache.passport, "autoencoder", "another")
        rows = np.arange(COUNTS[split])[::-1].copy()
        pixels = torch.from_numpy(np.stack([picture(number) for number in rows])).permute(0, 3, 1, 2)
        with torch.no_grad():
            posterior = model.encode(to_signal(pixels))
        assert torch.allclose(cache.gather("mean", rows).float(), posterior.mean, rtol=2e-3, atol=1e-4)
        assert torch.allclose(cache.gather("log_variance", rows).float(), posterior.log_variance, rtol=2e-3, atol=1e-4)
    facts = cache.passport.facts
    assert (facts["factor"], facts["image_size_px"], facts["autoencoder_sha256"]) == (4, 16, sha256)
    train = Cache(Path("data/latents/train"), LATENTS)
    z = LatentScale.from_facts(facts["latent_scale"]).normalise(train.gather("mean", np.arange(10)).float())
    variance = train.gather("log_variance", np.arange(10)).float().exp()
    within = (variance / torch.tensor(facts["latent_scale"]["std"])[:, None, None].square()).mean((0, 2, 3))
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(2), atol=1e-3)
    assert torch.allclose(z.var((0, 2, 3), correction=0) + within, torch.ones(2), atol=1e-3)


def test_validation_latents_unlike_those_of_training_are_refused(here: Path, monkeypatch: pytest.MonkeyPatch):
    write_autoencoder()
    monkeypatch.setattr("ldm.autoencoder.encoding.latents.NUM_STANDARD_ERRORS", 0)
    change("encode_latents", statistics_tolerance=1e-6)
    with pytest.raises(IntegrityError, match=r"images/val: validation latents, .*: channel 0 mean .* 1e-06"):
        run("encode_latents")
    assert not Path("data/latents").exists()


def test_outputs_do_not_depend_on_the_number_of_processes(here: Path):
    write_autoencoder()
    write_clip()
    folders = ("data/embeddings", "data/embeddings_results", "data/latents", "data/latents_results")
    run("embed_text")
    run("encode_latents")
    one = [contents(folder) for folder in folders]
    shutil.rmtree("runs")
    run_on_two("embed_text", "encode_latents")
    assert [contents(folder) for folder in folders] == one
    assert len(one[0]) > 5 and len(one[2]) > 8


@contextmanager
def counted(name: str, stop_after: int | None = None) -> Iterator[list[int]]:
    """Sizes of the pieces that a stage encodes meanwhile; it is asked to stop at one of them."""
    owner, attribute = (encoding, "encode") if name == "encode_latents" else (TextEncoder, "in_batches")
    real: Callable[..., Any] = getattr(owner, attribute)
    sizes: list[int] = []

    def encode(*arguments: Any) -> Any:
        done = real(*arguments)
        sizes.append(len(next(iter(done.values()))))
        if len(sizes) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, attribute, encode)
        yield sizes


@pytest.mark.parametrize(("name", "out"), [("encode_latents", "data/latents"), ("embed_text", "data/embeddings")])
def test_a_stopped_precompute_goes_on_with_what_is_missing(here: Path, name: str, out: str):
    write_autoencoder()
    write_clip()
    run(name)
    whole = contents(out)
    shutil.rmtree("runs")
    shutil.rmtree(out)
    with counted(name, stop_after=2) as first, pytest.raises(Stopped) as caught:
        run(name)
    assert caught.value.exit_code == 75 and len(first) == 2 and not Path(out).exists()
    with counted(name) as second:
        run(name)
    assert contents(out) == whole
    with counted(name) as third:
        run(name)
    assert contents(out) == whole
    assert third == []
    total = {"encode_latents": NUM_ENCODED, "embed_text": len(all_captions())}[name]
    assert sum(first) + sum(second) == total


def all_captions() -> list[str]:
    return sorted({text for split, count in COUNTS.items() for number in range(count) for text in texts_of(number)})


def test_a_damaged_unit_is_computed_again(here: Path, capfd: pytest.CaptureFixture[str]):
    write_autoencoder()
    run("encode_latents")
    whole = contents("data/latents")
    unit = sorted(Path("runs").rglob("tensors.safetensors"))[1]
    data = bytearray(unit.read_bytes())
    data[-5] ^= 1
    unit.write_bytes(data)
    with counted("encode_latents") as sizes:
        run("encode_latents")
    assert len(sizes) == 1 and contents("data/latents") == whole
    assert "it is computed again" in capfd.readouterr().err


def test_an_added_shard_is_encoded_alone_to_the_bytes_of_a_fresh_run(here: Path):
    write_autoencoder()
    write_clip()
    for name in ("encode_latents", "embed_text"):
        run(name)
    number = COUNTS["train"]
    with shards.Writer(Path("more/images"), 4) as pictures, shards.Writer(Path("more/captions"), 4) as texts:
        for i in range(number + 3):
            group = "new" if i >= number else "old"
            told = texts_of(i) if i < number else [f"a new thing {i}", "black left of red"]
            pictures.write(f"{i:03d}", {"png": images.encode_png(picture(i))}, group)
            texts.write(f"{i:03d}", {"json": json.dumps({"captions": told, "claims": [None, None]}).encode()}, group)
    old = shards.Shards(Path("data/images/train")).shard_sha256
    for kind in ("images", "captions"):
        shutil.rmtree(Path("data") / kind / "train")
        Path("more", kind).rename(Path("data") / kind / "train")
    assert shards.Shards(Path("data/images/train")).shard_sha256[: len(old)] == old
    sizes: dict[str, list[int]] = {}
    for name in ("encode_latents", "embed_text"):
        with counted(name) as sizes[name]:
            run(name)
    assert sizes == {"encode_latents": [3], "embed_text": [4]}
    incremental = contents("data/latents") | contents("data/embeddings")
    shutil.rmtree("runs")
    for name in ("encode_latents", "embed_text"):
        run(name)
    assert contents("data/latents") | contents("data/embeddings") == incremental


def test_units_of_another_encoder_are_neither_used_nor_left(here: Path):
    write_autoencoder()
    run("encode_latents")
    write_autoencoder(scale=1.1)
    with counted("encode_latents") as sizes:
        run("encode_latents")
    assert sum(sizes) == NUM_ENCODED
    assert len(list(Path("runs/encode_latents").iterdir())) == 1


@pytest.mark.parametrize("name", ["encode_latents", "embed_text"])
def test_equal_weights_of_another_network_are_another_encoder(here: Path, name: str):
    write_autoencoder()
    write_clip()
    run(name)
    write_autoencoder(norm_groups=8)
    write_clip(quick_gelu=True)
    with counted(name) as sizes:
        run(name)
    assert sum(sizes) == {"encode_latents": NUM_ENCODED, "embed_text": len(all_captions())}[name]


def test_a_tar_that_moves_to_the_training_is_mirrored(here: Path):
    write_autoencoder()
    change("encode_latents", mirrored=True)
    for split, other in (("train", "val"), ("val", "train")):
        shutil.copytree(Path("data/images") / split, Path("before") / other)
    run("encode_latents")
    shutil.rmtree("data/images")
    shutil.move("before", "data/images")
    run("encode_latents")
    latents = Cache(Path("data/latents/train"), LATENTS)
    mirrored = latents.gather("mean_mirrored", np.arange(COUNTS["val"]))
    assert not torch.equal(mirrored, latents.gather("mean", np.arange(COUNTS["val"])))


UNRELATED = ("sampling/samplers/unipc", "denoiser/model/params", "training/loop", "core/errors", "core/stage")
RELATED = ("core/shards", "compute/attention", "precompute/work")


@pytest.mark.parametrize("name", ["encode_latents", "embed_text"])
def test_what_was_encoded_outlives_edits_of_unrelated_code(here: Path, name: str):
    write_autoencoder()
    write_clip()
    run(name)
    honest = fingerprint.sha256_code
    for file in (*UNRELATED, *RELATED):
        edited = ROOT / "ldm" / f"{file}.py"
        assert edited.is_file()
        with pytest.MonkeyPatch.context() as patch, counted(name) as sizes:
            patch.setattr(fingerprint, "sha256_code", lambda path, e=edited: "1" * 64 if path == e else honest(path))
            run(name)
        assert (sizes == []) == (file in UNRELATED), file


def test_two_processes_train_to_the_losses_of_one(here: Path):
    change_training(num_steps=5, log_every_steps=1)
    run("train_clip")
    one = read_table(Path("data/clip_results/curves.csv"))
    run_on_two("train_clip")
    two = read_table(Path("data/clip_results/curves.csv"))
    assert len(one["loss"]) == 5 and one["loss"][0][1] != one["loss"][4][1]
    assert np.allclose(one["loss"], two["loss"], rtol=0, atol=1e-5)
    assert np.allclose(one["grad_norm"], two["grad_norm"], rtol=1e-3)
