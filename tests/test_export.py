"""Exported models, as the libraries that own the formats load and run them."""

import argparse
import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from ldm.autoencoder.training import pretrained
from ldm.autoencoder.training.params import PretrainedAutoencoderParams
from ldm.core import artifact
from ldm.core.errors import ConfigError
from ldm.denoiser.training import pretrained as pretrained_unets
from ldm.exchange import files, names
from ldm.sampling import trajectory
from ldm.text.training.params import TransformersParams
from ldm.text.training.pretrained_tower import from_transformers
from ldm.tools import cli
from ldm.tools.cli import export as command
from ldm.tools.cli.options import Command
from ldm.tools.export import folding, parts, topology, usage, write
from ldm.tools.pipeline import Pipeline
from tests import exported_data, text_towers
from tests.agreement import assert_outputs_agree

PROMPTS = ["a small red circle above a large blue square", "!? a star"]
SCALE = 2.5
MODELS = {
    "eps": ("default", exported_data.SD_1),
    "v": ("default", exported_data.SD_2),
    "flow": ("default", exported_data.FLOW),
    "recipe": (
        "exportable",
        {"machine": {"attention": "math"}, "sample.drawing": {"num_steps": 4, "precision": "fp32"}},
    ),
}


@dataclass(frozen=True)
class Exported:
    """A model here, its folder and its file, and diffusers' pipeline of the folder."""

    pipeline: Pipeline
    folder: Path
    file: Path
    diffusers: Any


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp(request.param)
    pipeline = exported_data.made(root, *MODELS[request.param])
    folder, file = root / "exported", root / "exported.safetensors"
    write.export(pipeline, folder, "diffusers")
    write.export(pipeline, file, "single-file")
    return Exported(pipeline, folder, file, opened(folder))


@pytest.fixture(scope="module")
def eps(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return exported_data.made(tmp_path_factory.mktemp("eps"), *MODELS["eps"])


def opened(folder: Path) -> Any:
    """diffusers' pipeline of a folder."""
    loaded: Any = StableDiffusionPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def ours(pipeline: Pipeline) -> Tensor:
    """Signals of PROMPTS in 0..1, before they are rounded to pixels."""
    drawing = pipeline.drawing.changed({"guidance_scale": SCALE})
    guided = pipeline.generator.guided(pipeline.generator.condition(PROMPTS), drawing)
    with torch.no_grad():
        signals = pipeline.generator.signals_of(pipeline.generator.latents(guided, [0, 1], drawing))
    return ((signals + 1) / 2).clamp(0, 1)


def theirs(pipeline: Pipeline, loaded: Any) -> Tensor:
    """The same by diffusers, from the same noise and at the same times."""
    steps, shape = pipeline.drawing.num_steps, pipeline.generator.unet.latent_shape
    is_flow = pipeline.generator.schedule.name == "flow"
    times: dict[str, Any] = (
        {"sigmas": [1 - i / steps for i in range(steps)]} if is_flow else {"num_inference_steps": steps}
    )
    noise = trajectory.prompt_noise(0, [0, 1], shape)
    return loaded(PROMPTS, latents=noise, guidance_scale=SCALE, output_type="pt", **times).images


@pytest.mark.filterwarnings("ignore:Accessing config attribute:FutureWarning")
def test_diffusers_draws_our_images(model: Exported) -> None:
    expected, found = ours(model.pipeline), theirs(model.pipeline, model.diffusers)
    assert (found - expected).abs().max() < 1e-3
    # The pictures say something: prompts differ, and few values are cut off.
    assert (expected[0] - expected[1]).abs().max() > 0.05 and (expected % 1 == 0).float().mean() < 0.5


@pytest.mark.filterwarnings("ignore:Accessing config attribute:FutureWarning")
def test_a_single_file_is_the_same_model(model: Exported) -> None:
    whole = model.diffusers
    loaded: Any = StableDiffusionPipeline.from_single_file(
        str(model.file), config=str(model.folder), local_files_only=True
    )
    for part in ("unet", "vae", "text_encoder"):
        equal(getattr(loaded, part).state_dict(), getattr(whole, part).state_dict())
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(theirs(model.pipeline, loaded), theirs(model.pipeline, whole))


def test_weights_come_back_bit_by_bit(model: Exported, tmp_path: Path) -> None:
    """Ours -> diffusers, which saves them again -> ours; of the autoencoder with what folding has changed."""
    model.diffusers.save_pretrained(tmp_path)
    generator, encode = model.pipeline.generator, model.pipeline.encode
    clip: Any = encode.model
    equal(files.read(tmp_path, "unet").tensors, generator.unet.state_dict())
    unfolded = artifact.open_tensors(model.folder / "vae" / write.UNFOLDED)
    latents = {name: unfolded.pop(f"latent_{name}") for name in ("mean", "std")}
    assert all(torch.equal(latents[name], getattr(generator.scale, name)) for name in latents)
    equal(files.read(tmp_path, "vae").tensors | unfolded, generator.autoencoder.state_dict())
    tower = names.text_to_open_clip(files.read(tmp_path, "text_encoder").tensors)
    expected = clip.model.state_dict()
    assert len(tower) == len(expected) - 1 - 12 * (encode.layer == "penultimate")  # no projection, no unused block
    assert all(torch.equal(tower[name], expected[name]) for name in tower)


def test_a_training_here_may_start_from_it(model: Exported) -> None:
    """By the readers of `train_unet.init_from` and `train_autoencoder.source`."""
    params = topology.unet_params(model.pipeline)
    ours = params.model_dump() | {"head_width": params.head_widths}
    for path in (model.file, model.folder):
        found = pretrained_unets.read(path)
        equal(found.tensors, model.pipeline.generator.unet.state_dict())
        assert found.network == {key: ours[key] for key in found.network}
    found = pretrained_unets.read(model.folder)
    diffusion = topology.diffusion_params(model.pipeline)
    assert (found.traits["schedule"], found.traits["prediction"]) == (diffusion.schedule, diffusion.prediction)
    factor, channels = model.pipeline.generator.autoencoder.factor, model.pipeline.generator.unet.latent_shape[0]
    vae = parts.vae(model.pipeline)
    for path in (model.file, model.folder):
        source = {"kind": "pretrained", "path": str(path), "factor": factor, "latent_channels": channels}
        source |= {"reconstruction": None, "training": None}
        autoencoder, stored, _ = pretrained.load(PretrainedAutoencoderParams.model_validate(source))
        equal(autoencoder.state_dict(), vae.tensors)
        assert stored.model_dump()["norm_groups"] == vae.config["norm_num_groups"]


def end_padded(folder: Path) -> None:
    """Let the tokenizer of a folder pad as that of Stable Diffusion 1 does, by the token that ends a prompt."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / "tokenizer" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<|endoftext|>"}))
    vocabulary = folder / "tokenizer/vocab.json"
    tokens = json.loads(vocabulary.read_text())
    vocabulary.write_text(json.dumps({token: number for token, number in tokens.items() if token != "<|pad|>"}))


@pytest.mark.filterwarnings("ignore:Accessing config attribute:FutureWarning")
@pytest.mark.parametrize("name", ["eps", "v"])
def test_a_whole_folder_of_stable_diffusion_draws_its_prompts_here_and_goes_back(name: str, tmp_path: Path) -> None:
    """With its own text encoder and tokenizer: the UNet reads the states of padding, which depend on how it is done."""
    recipe, changes = MODELS[name]
    base, folder = exported_data.made(tmp_path / "base", recipe, changes), tmp_path / "sd"
    write.export(base, folder, "diffusers")
    end_padded(folder)
    own = {"path": str(folder / "text_encoder"), "tokenizer": str(folder / "tokenizer")}
    text = {"train_clip": {"text_encoder": {"kind": "transformers", **own}}, "embed_text": {"layer": "last"}}
    pipeline = exported_data.made(tmp_path / "ours", recipe, changes | text)
    expected, found = theirs(pipeline, opened(folder)), ours(pipeline)
    assert (found - expected).abs().max() < 1e-4
    assert (ours(base) - expected).abs().max() > 1e-3, "open_clip's padding is another"
    write.export(pipeline, tmp_path / "back", "diffusers")
    assert torch.equal(theirs(pipeline, opened(tmp_path / "back")), expected)
    equal(files.read(tmp_path / "back", "text_encoder").tensors, files.read(folder, "text_encoder").tensors)
    write.export(pipeline, tmp_path / "back.safetensors", "single-file")
    config = {"config": str(tmp_path / "back"), "local_files_only": True}
    single: Any = StableDiffusionPipeline.from_single_file(str(tmp_path / "back.safetensors"), **config)
    assert torch.equal(theirs(pipeline, single), expected)
    # Its own padding is what ComfyUI has for this layout; that of open_clip is not.
    notes = [usage.lines(each, tmp_path, "single-file") for each in (pipeline, base)]
    assert [any("pads prompts" in line for line in lines) for lines in notes] == [False, name == "eps"]


def test_the_last_but_one_block_of_a_text_encoder_of_transformers_goes_out(tmp_path: Path) -> None:
    base, folder = exported_data.made(tmp_path / "base", *MODELS["eps"]), tmp_path / "sd"
    write.export(base, folder, "diffusers")
    own = {"path": str(folder / "text_encoder"), "tokenizer": str(folder / "tokenizer")}
    text = {"train_clip": {"text_encoder": {"kind": "transformers", **own}}, "embed_text": {"layer": "penultimate"}}
    pipeline = exported_data.made(tmp_path / "ours", "default", exported_data.SD_1 | text)
    write.export(pipeline, tmp_path / "back", "diffusers")
    loaded = opened(tmp_path / "back")
    assert loaded.text_encoder.config.num_hidden_layers == pipeline.encode.model.num_layers - 1
    assert (theirs(pipeline, loaded) - ours(pipeline)).abs().max() < 1e-4


def test_the_text_encoder_of_a_folder_of_stable_diffusion_2_is_cut_already(tmp_path: Path) -> None:
    """Its states are those of `last`; a single file and ComfyUI's padding are those of Stable Diffusion 2."""
    wide = exported_data.SD_2["train_unet.network"] | {"context_width": 1024, "channels": [8, 8, 8, 8], "head_width": 4}
    text = {"width": 1024, "heads": 16, "layers": 2, "context_length": exported_data.NUM_TOKENS, "num_merges": 200}
    changes = exported_data.SD_2 | {"train_unet.network": wide, "train_clip.source.network.text": text}
    base, folder = exported_data.made(tmp_path / "base", "default", changes), tmp_path / "sd"
    write.export(base, folder, "diffusers")
    own = {"path": str(folder / "text_encoder"), "tokenizer": str(folder / "tokenizer")}
    brought = {"train_clip": {"text_encoder": {"kind": "transformers", **own}}, "embed_text": {"layer": "last"}}
    pipeline = exported_data.made(tmp_path / "ours", "default", changes | brought)
    assert pipeline.encode.model.num_layers == 1
    found, expected = (pipe.encode(PROMPTS)["tokens"] for pipe in (pipeline, base))
    assert (found - expected).abs().max() < 0.01, "both are rounded to float16"
    equal(write.single_file(pipeline), write.single_file(base))
    for pipe in (pipeline, base):
        assert not any("pads prompts" in line for line in usage.lines(pipe, tmp_path, "single-file"))


def test_another_tokenizer_or_text_encoder_of_transformers_is_refused(eps: Pipeline, tmp_path: Path) -> None:
    for family, key in (("clip_text_model", "train_clip.text_encoder.tokenizer"), ("t5", "train_clip")):
        folder = text_towers.make(tmp_path / family, family)
        source = TransformersParams(kind="transformers", path=str(folder), tokenizer=None)
        other = replace(eps, encode=replace(eps.encode, model=from_transformers(source)[0]))
        with pytest.raises(ConfigError, match=rf"^{key}: \w+; expected"):
            topology.check(other, "diffusers")


def test_weights_of_a_single_file_come_back_bit_by_bit(model: Exported) -> None:
    generator, tensors = model.pipeline.generator, files.read(model.file).tensors
    equal(names.unet_from_single(names.below(tensors, names.UNET)), generator.unet.state_dict())
    vae = names.vae_from_single(names.below(tensors, names.VAE))
    equal(vae, parts.vae(model.pipeline).tensors)
    whole = generator.autoencoder.state_dict()
    assert {name for name in vae if not torch.equal(vae[name], whole[name])} == set(folding.CONVOLUTIONS)


def test_the_scale_of_latents_is_folded_exactly(model: Exported) -> None:
    generator = model.pipeline.generator
    vae: Any = AutoencoderKL.from_pretrained(model.folder / "vae")
    post: Any = generator.autoencoder.post_quant_conv
    signals = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    factor = vae.config["scaling_factor"]
    with torch.no_grad():
        latents, posterior = generator.latents_of(signals), vae.encode(signals).latent_dist
        assert_outputs_agree([posterior.mode() * factor], [latents])
        log_variance = generator.autoencoder.encode(signals).log_variance
        scaled = log_variance - 2 * (generator.scale.std[:, None, None] * factor).log()
        assert torch.allclose(posterior.logvar, scaled, rtol=1e-5, atol=1e-5)
        expected = post(generator.scale.denormalise(latents))
        assert_outputs_agree([vae.post_quant_conv(latents / factor)], [expected])


def test_an_autoencoder_of_stable_diffusions_scale_keeps_its_bits() -> None:
    whole = {"quant_conv.weight": torch.randn(4, 4, 1, 1), "quant_conv.bias": torch.randn(4)}
    whole |= {"post_quant_conv.weight": torch.randn(2, 2, 1, 1), "post_quant_conv.bias": torch.randn(2)}
    equal(folding.folded(whole, torch.zeros(2), torch.full((2,), 1 / folding.SCALING_FACTOR)), whole)


def test_an_autoencoder_without_outer_convolutions_gets_them() -> None:
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([2.0, 4.0])
    made = folding.folded({}, mean, std, 0.5)
    moments = torch.tensor([3.0, 2.0, 0.0, 1.0])[None, :, None, None]
    found = torch.nn.functional.conv2d(moments, made["quant_conv.weight"], made["quant_conv.bias"]).flatten()
    # (3 - 1) / (2 x 0.5), (2 + 2) / (4 x 0.5); log variances fall by 2 log 1 and 2 log 2
    assert torch.allclose(found, torch.tensor([2.0, 2.0, 0.0, 1.0 - 2 * 0.6931472]))
    back = torch.nn.functional.conv2d(
        found[None, :2, None, None], made["post_quant_conv.weight"], made["post_quant_conv.bias"]
    )
    assert torch.allclose(back.flatten(), moments.flatten()[:2])


def test_the_tokenizer_gives_our_ids(model: Exported) -> None:
    tokenizer, encode = CLIPTokenizer.from_pretrained(model.folder / "tokenizer"), model.pipeline.encode
    texts = [
        "",
        "Hello!",
        "!",
        "what!? 100% OK",
        "a_b c-d 3.14",
        "don't we'll",
        "naïve café",
        "日本語 😀",
        " a \t b\n",
        "x " * 60,
    ]
    found = tokenizer(
        texts, padding="max_length", max_length=exported_data.NUM_TOKENS, truncation=True, return_tensors="pt"
    )
    assert torch.equal(found["input_ids"], encode.ids(texts)[:, : exported_data.NUM_TOKENS].long())


def test_a_folder_says_what_it_was_made_from(model: Exported) -> None:
    facts = json.loads((model.folder / write.FACTS).read_text())
    assert facts["made_from"] == model.pipeline.generator.inputs and facts["adapters"] == {}
    assert facts["drawing"]["num_steps"] == model.pipeline.drawing.num_steps
    assert facts["prediction"] == model.pipeline.generator.prediction


def test_the_default_is_refused_with_every_reason(tmp_path: Path) -> None:
    pipeline = exported_data.made(tmp_path, "default", {"embed_text": {"norm": False}})
    with pytest.raises(ConfigError) as caught:
        write.export(pipeline, tmp_path / "out", "single-file")
    found = [line.partition(": ")[::2] for line in str(caught.value).splitlines() if not line.startswith("fix")]
    assert [(key, text.split(";")[0]) for key, text in found] == [
        ("train_unet.network.position_embedding", "true"),
        ("train_unet.network.num_context_layers", "1"),
        ("train_autoencoder.source.network.patch_px", "4"),
        ("train_autoencoder.source.network.middle_attention", "false"),
        ("embed_text.norm", "false"),
    ]
    assert "ldm recipe exportable" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("schedule", "prediction", "key", "value"),
    [
        ("vp", "eps", "schedule", "vp"),
        ("ve", "edm", "schedule", "ve"),
        ("flow", "v", "prediction", "v"),
        ("cosine", "edm", "prediction", "edm"),
        ("linear", "flow", "prediction", "flow"),
    ],
)
def test_what_no_scheduler_computes_is_refused(
    eps: Pipeline, schedule: str, prediction: str, key: str, value: str
) -> None:
    passport = eps.generator.passport
    diffusion = passport.config["diffusion"] | {"schedule": schedule, "prediction": prediction}
    other = passport.model_copy(update={"config": passport.config | {"diffusion": diffusion}})
    with pytest.raises(ConfigError, match=rf"^train_unet\.diffusion\.{key}: {value}; expected") as caught:
        topology.check(replace(eps, generator=replace(eps.generator, passport=other)), "diffusers")
    assert str(caught.value).count("expected") == 1


def test_text_that_other_tools_encode_otherwise_is_refused(eps: Pipeline) -> None:
    masked = replace(eps, encode=replace(eps.encode, is_masked=True))
    with pytest.raises(ConfigError, match=r"^embed_text\.padding: masked; expected attended"):
        topology.check(masked, "diffusers")
    clip: Any = eps.encode.model
    tower = clip.model
    tower.is_causal = False
    with pytest.raises(ConfigError, match=r"^train_clip\.source\.network\.text\.causal: false; expected true"):
        topology.check(eps, "diffusers")
    tower.is_causal = True
    topology.check(eps, "diffusers")


def test_an_autoencoder_without_attention_fits_a_folder_but_no_single_file(tmp_path: Path) -> None:
    network = exported_data.SD_1["train_autoencoder.source.network"] | {"middle_attention": False}
    pipeline = exported_data.made(
        tmp_path, "default", exported_data.SD_1 | {"train_autoencoder.source.network": network}
    )
    with pytest.raises(ConfigError, match=r"^train_autoencoder.source.network.middle_attention: false; expected true"):
        topology.check(pipeline, "single-file")
    write.export(pipeline, tmp_path / "out", "diffusers")
    vae: Any = AutoencoderKL.from_pretrained(tmp_path / "out/vae")
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        decoded = vae.decode(z / folding.SCALING_FACTOR).sample
        assert torch.allclose(decoded, pipeline.generator.signals_of(z), atol=1e-5)


def test_nothing_is_replaced_and_nothing_is_left_half_written(
    eps: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        write.export(eps, tmp_path / "there", "diffusers")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts, "tokenizer", fail)
    with pytest.raises(Exception, match="No space left on device") as caught:
        write.export(eps, tmp_path / "new", "diffusers")
    assert getattr(caught.value, "exit_code", None) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_command_writes_a_folder_and_says_how_to_use_it(
    eps: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(eps.generator.directory.parent.parent)
    write.export(eps, tmp_path / "expected", "diffusers")
    assert cli.main(["export", str(tmp_path / "out"), "--format", "diffusers", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert f'StableDiffusionPipeline.from_pretrained("{tmp_path / "out"}")' in printed
    assert "note" not in printed
    for path in sorted(path for path in (tmp_path / "expected").rglob("*") if path.is_file()):
        assert (tmp_path / "out" / path.relative_to(tmp_path / "expected")).read_bytes() == path.read_bytes()
    assert cli.main(["export", str(tmp_path / "out"), "--format", "diffusers"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_command_knows_every_format() -> None:
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers(parser_class=Command))
    for name in get_args(topology.Format):
        assert parser.parse_args(["export", "out", "--format", name]).format == name


def test_what_differs_elsewhere_is_said(eps: Pipeline) -> None:
    changed = {"sampler": "dpm_solver_pp_2m", "guidance_scale": 2.5, "guidance_interval": (0.1, 0.9)}
    drawn = replace(eps, drawing=eps.drawing.changed(changed))
    lines = usage.lines(drawn, Path("out.safetensors"), "single-file")
    assert "num_inference_steps=5, guidance_scale=2.5" in lines[3]
    assert "sampler dpm_solver_pp_2m, guidance_interval" in lines[4]
    assert all("ComfyUI" in line for line in lines[5:]) and len(lines) == 7


COMFY_NODES = {
    "flow": "the node ModelSamplingSD3 with shift",
    "scaled_linear": None,
    "zero_terminal_snr": "the node ModelSamplingDiscrete with sampling v_prediction and zsnr",
}
"""Schedule -> what ComfyUI has to be told; `python -m tests.comfyui` tries it there."""


def test_the_node_that_comfyui_needs_is_said(model: Exported) -> None:
    lines = usage.lines(model.pipeline, model.file, "single-file")
    wanted = COMFY_NODES[model.pipeline.generator.schedule.name]
    assert sum("the node " in line for line in lines) == (wanted is not None)
    assert wanted is None or any(wanted in line for line in lines)


@pytest.mark.parametrize(
    ("schedule", "prediction", "said"),
    [("scaled_linear", "x0", "sampling x0"), ("zero_terminal_snr", "eps", "eps and zsnr"), ("cosine", "v", "no node")],
)
def test_what_comfyui_needs_or_lacks_for_other_trainings_is_said(
    eps: Pipeline, monkeypatch: pytest.MonkeyPatch, schedule: str, prediction: str, said: str
) -> None:
    changed = topology.diffusion_params(eps).model_copy(update={"schedule": schedule, "prediction": prediction})
    monkeypatch.setattr(usage, "diffusion_params", lambda _: changed)
    assert any(said in line for line in usage.lines(eps, Path("out"), "single-file"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sampler": {"kind": "ddim", "eta": 0.5}}, "eta 0.5"),
        ({"precision": "bf16"}, "precision bf16"),
        ({"time_shift": 2.0}, "time_shift 2"),
        ({"size_px": (128, 64)}, "size_px"),
        ({"dynamic_threshold": 0.9}, "dynamic_threshold"),
        ({"guidance_scale": 0}, "guidance_scale 0 (diffusers guides above 1 alone)"),
    ],
)
def test_each_setting_that_the_call_does_not_have_is_said(eps: Pipeline, changed: dict[str, Any], said: str) -> None:
    lines = usage.lines(replace(eps, drawing=eps.drawing.changed(changed)), Path("out"), "diffusers")
    assert lines[-1].startswith(f"note: images here have {said};")


def test_guidance_in_the_form_of_the_paper_is_a_call_that_differs_in_nothing(eps: Pipeline) -> None:
    """Also with none of it, a scale that diffusers would not have in its own form."""
    for scale in (0, 1.5):
        of_paper, same = (
            replace(eps, drawing=eps.drawing.changed(changes | {"sampler": {"kind": "ddim", "eta": 0}}))
            for changes in ({"guidance": "ho_salimans", "guidance_scale": scale}, {"guidance_scale": 1 + scale})
        )
        lines = usage.lines(of_paper, Path("out"), "diffusers")
        assert lines == usage.lines(same, Path("out"), "diffusers") and len(lines) == 4
        assert torch.equal(of_paper("a star"), same("a star"))


@pytest.mark.parametrize(
    ("num_steps", "spacing", "is_flow", "is_said"),
    [
        (12, "uniform", False, True),
        (12, "trailing", False, True),
        (25, "uniform", False, False),
        (12, "uniform", True, False),
        (12, "trailing", True, True),
        (8, "trailing", True, False),
    ],
)
def test_a_number_of_steps_whose_times_are_rounded_is_said(
    eps: Pipeline, monkeypatch: pytest.MonkeyPatch, num_steps: int, spacing: str, is_flow: bool, is_said: bool
) -> None:
    schedule = "flow" if is_flow else "scaled_linear"
    trained = topology.diffusion_params(eps).model_copy(update={"schedule": schedule})
    monkeypatch.setattr(usage, "diffusion_params", lambda _: trained)
    drawing = eps.drawing.changed({"num_steps": num_steps, "spacing": spacing})
    lines = usage.lines(replace(eps, drawing=drawing), Path("out"), "diffusers")
    said = f"images here have num_steps {num_steps} (diffusers rounds times; one that divides 1000 agrees);"
    assert any(said in line for line in lines) == is_said and len(lines) == 4 + is_said


SD_SHAPES = {
    "1": {"head_width": [40, 80, 160, 160], "context_width": 768, "linear_projection": False},
    "2": {"head_width": 64, "context_width": 1024, "linear_projection": True},
}


@pytest.mark.parametrize("version", SD_SHAPES)
def test_comfyui_takes_widths_heads_and_groups_of_stable_diffusion_for_granted(
    eps: Pipeline, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    own = {"channels": [320, 640, 1280, 1280], "norm_groups": 32} | SD_SHAPES[version]
    unet, narrow = topology.unet_params(eps).model_copy(update=own), parts.vae(eps).config
    vae = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32}

    def notes(change: dict[str, Any], vae: dict[str, Any]) -> list[str]:
        monkeypatch.setattr(usage, "unet_params", lambda _: unet.model_copy(update=change))
        monkeypatch.setattr(parts, "vae", lambda _: parts.Network(vae, {}))
        return [line for line in usage.lines(eps, Path("out"), "single-file") if "own shape" in line]

    assert notes({}, vae) == []
    for change in (
        {"head_width": 32},
        {"norm_groups": 16},
        {"num_res_blocks": 1},
        {"linear_projection": version == "1"},
        {"context_width": 512},
    ):
        assert "32 groups, and context_width 768 with heads of 40, 80, 160, 160 channels" in "".join(notes(change, vae))
    assert notes({}, vae | {"norm_num_groups": 16}) and notes({}, narrow)


@pytest.mark.parametrize("name", ['my "best"', "a\\b", "it's ré"])
@pytest.mark.parametrize("kind", get_args(topology.Format))
def test_a_path_is_written_as_python_reads_it(eps: Pipeline, kind: topology.Format, name: str) -> None:
    call = ast.parse(usage.lines(eps, Path(name), kind)[3])
    assert name in [node.value for node in ast.walk(call) if isinstance(node, ast.Constant)]


@pytest.mark.filterwarnings("ignore:Accessing config attribute:FutureWarning")
def test_the_printed_call_draws_our_image(model: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = usage.lines(model.pipeline, model.folder, "diffusers")
    exec("\n".join(line for line in lines if not line.startswith("note")), {})
    expected = model.pipeline(["a prompt"])[0].permute(1, 2, 0).int()
    found = torch.from_numpy(np.array(Image.open("0000.png"))).int()
    assert (found - expected).abs().max() <= 1


def test_a_folder_names_the_adapters_in_its_unet(eps: Pipeline) -> None:
    adapted = replace(eps, generator=replace(eps.generator, adapters={"abc": 0.5}))
    assert write.facts(adapted)["adapters"] == {"abc": 0.5}
