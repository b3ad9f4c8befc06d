"""`ldm.tools.pipeline`: from text to images, in Python."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.autoencoder.model.network import to_image
from ldm.compute import precision
from ldm.core import artifact, config
from ldm.core.errors import ConfigError, IntegrityError, MachineError
from ldm.core.images import decode_png
from ldm.denoiser.model.diffusion import Schedule, z0_from_prediction
from ldm.sampling import trajectory
from ldm.sampling.generator import Generator
from ldm.sampling.origin import Origin
from ldm.sampling.params import SampleParams
from ldm.text.embedding.embeddings import TextEmbeddings
from ldm.text.model.captions import Captions
from ldm.tools import pipeline
from tests import trained_data
from tests.kinds import KINDS


@pytest.fixture
def copy(root, tmp_path) -> Path:
    shutil.copytree(root, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_text_becomes_an_image_and_the_same_call_the_same_image(loaded):
    pictures = loaded("a small red circle at the top")
    assert pictures.dtype == torch.uint8 and pictures.shape == (1, 3, 64, 64)
    assert torch.equal(loaded(["a small red circle at the top"]), pictures)
    assert not torch.equal(loaded("a small red circle at the top", seed=1), pictures)
    assert not torch.equal(loaded("a large blue square", guidance_scale=3), loaded("a star", guidance_scale=3))


def test_one_unguided_step_is_one_decoded_prediction(loaded):
    generator, prompts = loaded.generator, ["a red star", "a blue cross"]
    found = loaded(prompts, guidance_scale=1, num_steps=1, seed=3)
    noise = trajectory.prompt_noise(3, [0, 1], (4, 8, 8))
    t = torch.ones(2)
    with torch.no_grad():
        predicted = generator.unet(noise, 1000 * t, loaded.embed(prompts))
        z = z0_from_prediction(generator.schedule, generator.prediction, noise, predicted, t)
        std, mean = torch.tensor([1.0, 2, 1, 1]), torch.tensor([0.1, 0, 0, 0])
        expected = to_image(generator.autoencoder.decode(z * std[:, None, None] + mean[:, None, None]))
    assert torch.equal(found, expected)


def test_an_image_records_what_auto_came_to_and_is_replayed_in_it(loaded, monkeypatch):
    """As on two machines: the second one would choose otherwise."""
    given, settings = "a small red circle at the top", {"guidance_scale": 3, "precision": "auto"}
    choices = iter(["bf16", "fp32", "fp32"])
    monkeypatch.setattr(precision, "choose", lambda network, device: (next(choices), "measured"))
    first, second = (next(loaded.pngs(given, **settings)) for _ in range(2))
    origin = Origin.read(first, "first")
    assert origin.settings["precision"] == "bf16" and Origin.read(second, "second").settings["precision"] == "fp32"
    again = torch.tensor(decode_png(first)).permute(2, 0, 1)
    assert torch.equal(loaded.replay(origin), again)
    assert not torch.equal(loaded(given, **settings)[0], again), "the two precisions make different bits"


def with_schedule(loaded, schedule, prediction):
    """The pipeline, as if its UNet had been trained with another schedule."""
    generator = dataclasses.replace(loaded.generator, schedule=Schedule(schedule), prediction=prediction)
    return dataclasses.replace(loaded, generator=generator)


def test_sampling_with_ve_starts_at_its_noise_level_and_shows_the_network_a_scaled_latent(loaded):
    exploding = with_schedule(loaded, "ve", "edm")
    found = exploding("a red star", guidance_scale=1, num_steps=1, seed=3)
    generator, t = exploding.generator, torch.ones(1)
    noise = trajectory.prompt_noise(3, [0], (4, 8, 8))
    with torch.no_grad():
        predicted = generator.unet(noise, 1000 * t, loaded.embed(["a red star"]))
        z = noise / 6401**0.5 + 80 / 6401**0.5 * predicted
        std, mean = torch.tensor([1.0, 2, 1, 1]), torch.tensor([0.1, 0, 0, 0])
        expected = to_image(generator.autoencoder.decode(z * std[:, None, None] + mean[:, None, None]))
    assert int((found.int() - expected.int()).abs().max()) <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "heun", "num_steps": 12}, r"^sampler: heun; expected another, such as ddim: with schedule cosine"),
        ({"sampler": "pndm", "num_steps": 12}, r"^sampler: pndm; expected another"),
    ],
)
def test_a_sampler_that_the_schedule_rules_out_is_refused_and_nothing_written(loaded, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        with_schedule(loaded, "cosine", "v").write(["a red star"], tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match=r"^spacing: leading; expected trailing"):
        loaded.write(["a red star"], tmp_path / "new", num_steps=4, spacing="leading")
    assert not (tmp_path / "new").exists()


def test_an_image_of_a_batch_is_that_of_its_own_row(root, loaded):
    text = loaded.generator.text
    generator = Generator.load(root / "data/unet", root / "data/autoencoder", text, torch.device("cpu"))
    assert generator.image_size_px(loaded.drawing) == (64, 64) and generator.inputs == loaded.generator.inputs
    prompts = ["a red star", "a blue cross", "a green square"]
    condition, backwards = loaded.embed(prompts), loaded.embed(prompts[::-1])
    params = loaded.drawing.changed({"num_steps": 2, "guidance_scale": 2})
    images, reverse = generator(condition, [4, 5, 6], params), generator(backwards, [6, 5, 4], params)
    assert int((images.int() - reverse.flip(0).int()).abs().max()) <= 1
    assert not torch.equal(images, generator(condition, [5, 4, 6], params)), "the noise is that of the prompt's number"


def test_scale_zero_ignores_the_prompt_and_guidance_extrapolates(loaded):
    assert torch.equal(loaded("a red star", guidance_scale=0), loaded("a blue cross", guidance_scale=0))
    pictures = [loaded("a red star", guidance_scale=scale) for scale in (0, 1, 3)]
    assert not torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[1], pictures[2])


def test_images_do_not_depend_on_the_batch_size(loaded):
    prompts = ["a red star", "a blue cross", "a green square"]
    whole, single = (loaded(prompts, batch_size=size).int() for size in (3, 1))
    assert int((whole - single).abs().max()) <= 1


@pytest.mark.parametrize("settings", [{"sampler": {"kind": "ddim", "eta": eta}} for eta in (0, 0.5)])
def test_other_samplers(loaded, settings):
    assert not torch.equal(loaded("a red star", num_steps=5, **settings), loaded("a red star", num_steps=5))


def test_captions_of_the_corpus_are_looked_up_where_they_are_stored_and_else_encoded_alike(loaded, root):
    stored = TextEmbeddings(root / "data/embeddings")
    captions = [texts[0] for texts in Captions(root / "data/captions/train").texts[:3]]
    looking = dataclasses.replace(loaded.generator, stored=stored)
    found = looking.condition([captions[0], "a thing of no corpus", *captions[1:]])
    for name, expected in stored.parts(stored.rows(captions)).items():
        assert torch.equal(found.parts[name][[0, 2, 3]], expected)
        assert torch.equal(looking.condition(captions).parts[name], expected)
        assert torch.allclose(loaded.embed(captions).parts[name].to(expected.dtype), expected, atol=2e-3)
    typed = f"  {captions[0]}\u200b\n".replace(" ", "\t ")
    for generator in (loaded.generator, looking):
        tokens = [generator.condition([text]).parts["tokens"] for text in (typed, captions[0])]
        assert torch.equal(*tokens), "a prompt is cleaned as captions are"
    null = loaded.embed([""])
    for name, part in loaded.generator.null_condition.parts.items():
        assert torch.equal(part, stored.null[name])
        assert torch.allclose(null.parts[name], part, atol=2e-3)


LONG = "a red star and a blue cross " * 20
PIXELS = torch.arange(3 * 64 * 64).remainder(251).to(torch.uint8).reshape(3, 64, 64)


@pytest.mark.parametrize("call", ["embed", "__call__", "pngs", "write"])
def test_a_prompt_that_is_too_long_is_cut_with_one_short_warning_at_the_callers_line(loaded, tmp_path, call):
    arguments = ([LONG, "a star", LONG + "!", LONG], *([tmp_path] if call == "write" else []))
    with pytest.warns(UserWarning, match=r"\d+ tokens are cut to the \d+ of training: '[^']{60}' and 1 more$") as found:
        result = getattr(loaded, call)(*arguments)
    assert [Path(warning.filename).name for warning in found] == [Path(__file__).name]
    if call == "embed":
        assert result.tokens.shape[1] == loaded.encode.context_tokens


@pytest.mark.parametrize(
    ("call", "arguments", "settings"),
    [
        ("interpolate", ["a star"], {"last_prompt": LONG, "num_frames": 2, "num_steps": 1}),
        ("invert", [PIXELS], {"edit": LONG, "num_steps": 1}),
        ("task_pngs", ["invert", "a star", {"image": PIXELS}], {"edit": LONG}),
        ("score", [PIXELS, LONG], {"num_probes": 0, "num_noises": 1, "times": [0.5]}),
    ],
)
def test_so_is_a_second_prompt_and_that_of_a_score(
    loaded: pipeline.Pipeline, call: str, arguments: list[Any], settings: dict[str, Any]
) -> None:
    with pytest.warns(UserWarning, match=r"\d+ tokens are cut to the \d+ of training: '[^']{60}'$") as found:
        getattr(loaded, call)(*arguments, **settings)
    assert [Path(warning.filename).name for warning in found] == [Path(__file__).name]


def test_prompts_that_are_none_are_named_and_the_empty_one_is_no_caption(loaded, tmp_path):
    for prompts, message in [([], "prompts: none"), ([3], "prompt 1: 3"), (3, "prompts: 3"), (["\ud800"], "prompt 1")]:
        for call in (loaded, loaded.pngs, lambda texts: loaded.write(texts, tmp_path / "new")):
            with pytest.raises(ConfigError, match=f"^{message}"):
                call(prompts)
    assert not (tmp_path / "new").exists()
    assert torch.equal(loaded("", guidance_scale=1), loaded("a star", guidance_scale=0))
    texts = ["nul \0", "line\nbreak"]
    for path, text in zip(loaded.write(texts, str(tmp_path)), texts, strict=True):
        assert Origin.read(path.read_bytes(), "").prompt == text


def test_words_of_no_caption(loaded):
    assert loaded.unknown_words(["A cat at a RED star", "a cat"]) == ["cat"]


def test_an_image_of_a_long_call_can_be_made_alone(loaded, tmp_path):
    prompts = ["a red star", "a blue cross", "a green square", "a star", "a cross"]
    whole = loaded(prompts, seed=3, batch_size=2).int()
    tail = torch.stack(list(map(pixels, loaded.pngs(prompts[2:], 2, seed=3, batch_size=2))))
    assert torch.equal(tail, whole[2:]), "the same places in batches of the same size: every bit"
    for number in range(5):
        (png,) = loaded.pngs(prompts[number], number, seed=3, batch_size=2)
        assert Origin.read(png, "").prompt_number == number
        assert int((pixels(png) - whole[number]).abs().max()) <= 1, "other batches: rounding"
        assert torch.equal(pixels(png), loaded.replay(Origin.read(png, "")).int())
    assert not torch.equal(loaded(prompts[3], seed=3), whole[3:4]), "its own noise"
    for wrong in (-1, 10**10, 1.5, "3"):
        with pytest.raises(ConfigError, match="start_number"):
            loaded.pngs(prompts, wrong)


def pixels(png: bytes) -> torch.Tensor:
    return torch.from_numpy(decode_png(png).copy()).permute(2, 0, 1).int()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps: found 0; expected an integer >= 1"),
        ({"guidance_scales": 3}, "guidance_scales: unknown key; expected one of sampler, .*fix: .*guidance_scale"),
        ({"sampler": "elder"}, "sampler.kind: found .elder.; expected one of annealed_langevin, ddim,"),
        ({"guidance_scale": float("nan")}, "guidance_scale: found NaN; expected"),
        ({"seed": -1}, "seed: found -1; expected an integer >= 0"),
        ({"sampler": {"kind": "dpm_solver_pp_2m", "eta": 0.5}}, "sampler.*eta.*unknown key"),
        ({"seed": -1, "num_steps": 0}, "num_steps: found 0.*seed: found -1"),
    ],
)
def test_wrong_settings_are_named(loaded, tmp_path, settings, message):
    for call in (loaded, lambda text, **settings: loaded.write(text, tmp_path / "new", **settings)):
        with pytest.raises(ConfigError, match=f"(?s)^{message}"):
            call("a red star", **settings)
    assert not (tmp_path / "new").exists()


def test_guidance_is_refused_after_training_without_dropout(copy):
    params = config.Document(copy / "params.yaml").data
    trained_data.write_networks(copy / "data", 0.0, params["train_unet"]["diffusion"])
    unguided = pipeline.Pipeline.load(copy)
    assert unguided("a red star", guidance_scale=1).shape == (1, 3, 64, 64)
    with pytest.raises(ConfigError, match="caption_dropout 0"):
        unguided("a red star", guidance_scale=2)


def rewrite(folder: Path, change) -> None:
    """Change a passport in place."""
    passport = json.loads((folder / "passport.json").read_text())
    change(passport)
    artifact.write_json(folder / "passport.json", artifact.sealed(passport))


@pytest.mark.parametrize("name", ["autoencoder", "embeddings"])
def test_a_unet_of_another_input_is_refused_naming_both(copy, name):
    rewrite(copy / "data/unet", lambda passport: passport["inputs"].update({name: "0" * 64}))
    with pytest.raises(IntegrityError) as error:
        pipeline.Pipeline.load(copy)
    there = artifact.read_passport(copy / "data" / name, KINDS[name]).content_sha256
    assert "0" * 64 in str(error.value) and there in str(error.value)


def test_embeddings_of_another_encoder_are_refused(copy):
    rewrite(copy / "data/embeddings", lambda passport: passport["inputs"].update(clip="0" * 64))
    with pytest.raises(IntegrityError, match="made with clip 0000"):
        pipeline.Pipeline.load(copy)


def test_latents_of_another_training_are_refused(loaded, copy):
    loaded.generator.check_latents(copy / "data/latents")
    rewrite(copy / "data/latents/train", lambda passport: passport.update(content_sha256="0" * 64))
    with pytest.raises(IntegrityError, match="latents_train 0000"):
        loaded.generator.check_latents(copy / "data/latents")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_a_clear_error(root):
    with pytest.raises(MachineError, match="cuda"):
        pipeline.Pipeline.load(root, "cuda")


def test_write_writes_the_images_of_a_call_as_pngs(loaded, tmp_path):
    prompts, settings = ["a red star", "a blue cross", "a green square"], {"seed": 5, "batch_size": 2}
    paths = loaded.write(prompts, tmp_path / "new" / "out", **settings)
    assert [path.name for path in paths] == ["0000.png", "0001.png", "0002.png"]
    for path, picture in zip(paths, loaded(prompts, **settings), strict=True):
        assert np.array_equal(decode_png(path.read_bytes()), picture.permute(1, 2, 0).numpy())
    origins = [Origin.read(path.read_bytes(), str(path)) for path in paths]
    assert [origin.prompt for origin in origins] == prompts
    assert [(origin.prompt_number, origin.batch_size, origin.position) for origin in origins] == [
        (0, 2, 0),
        (1, 2, 1),
        (2, 1, 0),
    ]
    assert {origin.settings["seed"] for origin in origins} == {5}
    with pytest.raises(ConfigError, match="a file"):
        loaded.write(prompts, paths[0])
    before = [path.read_bytes() for path in paths]
    more = loaded.write(prompts[:1], str(tmp_path / "new" / "out"), seed=6)
    assert [path.name for path in more] == ["0003.png"] and [path.read_bytes() for path in paths] == before
    again = loaded.write(prompts[1], tmp_path / "new" / "out", start_number=1, overwrite=True, seed=7)
    assert again == [paths[1]] and paths[1].read_bytes() != before[1] and paths[0].read_bytes() == before[0]


def test_a_shard_of_embeddings_is_hashed_when_an_image_was_made_from_it(copy):
    stored = Captions(copy / "data/captions/train").texts[0][0]
    path = copy / "data/embeddings/00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    damaged = pipeline.Pipeline.load(str(copy))
    origin = Origin.read(next(damaged.pngs(stored)), "here")
    assert origin.encoded and torch.equal(damaged.replay(origin), damaged(stored)[0])
    with pytest.raises(IntegrityError, match=r"00000\.safetensors"):
        damaged.replay(origin.model_copy(update={"encoded": False}))


def test_defaults_are_those_of_the_params_file(loaded, root):
    params = config.read(SampleParams, "sample", root / "params.yaml")
    assert (loaded.drawing, loaded.batch_size) == (params.drawing, params.batch_size)
