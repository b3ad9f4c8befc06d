"""Guidance of a trained model: by a negative prompt, by a worse model, rescaled; from Python, from the command line,
and again from a PNG."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.images import decode_png
from ldm.denoiser.model.condition import Condition
from ldm.sampling import generator
from ldm.sampling.generator import Generator
from ldm.sampling.guidance import models
from ldm.sampling.origin import Origin
from ldm.sampling.params import DrawingParams
from ldm.text.model.captions import Captions
from ldm.tools import cli, pipeline
from tests import stage_scripts, trained_data

WORSE = "data/models/guidance/worse"
AUTO: dict[str, Any] = {"guidance": {"kind": "autoguidance", "directory": WORSE}}
PROMPTS = ["a red star", "a blue cross"]


@pytest.fixture(scope="module")
def root(root: Path) -> Path:
    trained_data.write_worse(root / "data", root / WORSE)
    return root


@pytest.fixture
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(root)
    yield root
    shutil.rmtree(root / "out", ignore_errors=True)


def test_both_forms_of_classifier_free_guidance_make_the_same_image(loaded: pipeline.Pipeline):
    form = {"guidance": "ho_salimans"}
    unguided = loaded(PROMPTS, guidance_scale=1)
    assert torch.equal(loaded(PROMPTS, guidance_scale=0, **form), unguided)
    assert torch.equal(loaded(PROMPTS, guidance_scale=2, **form), loaded(PROMPTS, guidance_scale=3))
    assert not torch.equal(loaded(PROMPTS, guidance_scale=3), unguided)


@pytest.mark.parametrize("settings", [{}, {"negative_prompt": "a thing of no corpus"}, {"guidance": "ho_salimans"}])
@pytest.mark.parametrize("is_masked", [False, True])
def test_one_call_with_and_without_prompt_is_two_calls(
    loaded: pipeline.Pipeline, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], is_masked: bool
):
    text_encoder = replace(loaded.encode, is_masked=is_masked)
    null = Condition(**text_encoder([""]))
    asked = replace(loaded.generator, text_encoder=text_encoder, null_condition=null)
    drawing, condition = loaded.drawing.changed({"guidance_scale": 3, **settings}), asked.condition(PROMPTS)
    assert (condition.mask is None) != is_masked
    z, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.9])
    calls: list[int] = []
    hook = asked.unet.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    joint = asked.guided(condition, drawing)(z, t)
    monkeypatch.setattr(generator, "MAX_JOINT_CELLS_CPU", 2 * 8 * 8 - 1)
    apart = asked.guided(condition, drawing)(z, t)
    hook.remove()
    assert calls == [4, 2, 2]
    torch.testing.assert_close(joint, apart, rtol=1e-5, atol=1e-5)
    others = {"guidance_scale": drawing.guidance.neutral}
    assert (joint - asked.guided(condition, drawing.changed(others))(z, t)).abs().max() > 1e-2


def test_weights_that_are_cast_once_draw_equal_pixels(loaded: pipeline.Pipeline, monkeypatch: pytest.MonkeyPatch):
    drawn = loaded(PROMPTS, guidance_scale=3, precision="bf16")
    monkeypatch.setattr(generator, "cast_products", lambda network, precision: network)
    assert torch.equal(
        replace(loaded, generator=replace(loaded.generator))(PROMPTS, guidance_scale=3, precision="bf16"), drawn
    )
    assert not torch.equal(loaded(PROMPTS, guidance_scale=3), drawn)


def test_a_negative_prompt_takes_the_place_of_no_prompt(loaded: pipeline.Pipeline, root: Path):
    stored = Captions(root / "data/captions/train").texts[0][0]
    for negative in (stored, "a thing of no corpus"):
        found = loaded(PROMPTS, guidance_scale=3, negative_prompt=negative)
        assert not torch.equal(found, loaded(PROMPTS, guidance_scale=3))
        assert torch.equal(
            loaded(PROMPTS, guidance_scale=0, negative_prompt=negative)[:1], loaded(negative, guidance_scale=1)
        )
    same = loaded([stored], guidance_scale=5, negative_prompt=stored)
    assert int((same.int() - loaded([stored], guidance_scale=1).int()).abs().max()) <= 1, "away from itself: nowhere"
    long = "a red star and a blue cross " * 20
    with pytest.warns(UserWarning, match="tokens are cut to the 40 of training"):
        loaded("a star", negative_prompt=long)


def test_autoguidance_asks_both_models_with_the_prompt(loaded: pipeline.Pipeline, root: Path):
    own, alone = loaded(PROMPTS, guidance_scale=1), loaded(PROMPTS, guidance_scale=0, **AUTO)
    assert torch.equal(loaded(PROMPTS, guidance_scale=1, **AUTO), own)
    generator = loaded.generator
    worse = Generator.load(root / WORSE, root / "data/autoencoder", generator.text, torch.device("cpu"))
    drawing = loaded.drawing.changed({"guidance_scale": 1})
    assert torch.equal(worse(generator.condition(PROMPTS), range(2), drawing), alone)
    guided = loaded(PROMPTS, guidance_scale=2, **AUTO)
    assert not torch.equal(guided, own) and not torch.equal(guided, loaded(PROMPTS, guidance_scale=2))


def test_a_worse_model_that_takes_one_size_guides_at_no_other(
    loaded: pipeline.Pipeline, monkeypatch: pytest.MonkeyPatch
):
    assert loaded("a star", guidance_scale=2, size_px=(64, 128), **AUTO).shape == (1, 3, 64, 128)
    monkeypatch.setattr(loaded.generator.guides.worse(WORSE).network, "takes_any_size", False)
    with pytest.raises(ConfigError, match=r"^size_px: 64 x 128; expected 64 x 64, the only size of the model that"):
        loaded("a star", guidance_scale=2, size_px=(64, 128), **AUTO)
    assert loaded("a star", guidance_scale=1, size_px=(64, 128), **AUTO).shape == (1, 3, 64, 128), "nothing asks it"


def test_rescaling_and_an_interval_reach_the_image(loaded: pipeline.Pipeline):
    guided, unguided = loaded(PROMPTS, guidance_scale=6), loaded(PROMPTS, guidance_scale=1)
    for settings in ({"guidance_rescale": 1}, {"guidance_interval": (0.7, 1)}):
        found = loaded(PROMPTS, guidance_scale=6, **settings)
        assert not torch.equal(found, guided) and not torch.equal(found, unguided)
        assert torch.equal(loaded(PROMPTS, guidance_scale=1, **settings), unguided)
    assert torch.equal(loaded(PROMPTS, guidance_scale=6, guidance_interval=(0.1, 0.2)), unguided), "no step is there"


class _Pixels(torch.nn.Module):
    """An autoencoder whose latents are pixels."""

    factor = 1

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z[:, :3]


def test_a_threshold_limits_pixels_on_their_own_scale(loaded: pipeline.Pipeline):
    generator = replace(loaded.generator, autoencoder=_Pixels())  # pyright: ignore[reportArgumentType]

    def saturated(threshold: float | None) -> float:
        drawing = loaded.drawing.changed({"guidance_scale": 8, "dynamic_threshold": threshold})
        picture = generator(generator.condition(PROMPTS), range(2), drawing).int()
        return float(((picture == 0) | (picture == 255)).float().mean())

    assert saturated(0.9) < saturated(0.0) <= saturated(None)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (
            ["--guidance", "ho_salimans", "--guidance-rescale", "0.7", "--guidance-interval", "0.2", "0.8"],
            {"guidance": {"kind": "ho_salimans"}, "guidance_rescale": 0.7, "guidance_interval": (0.2, 0.8)},
        ),
        (["--guidance", f"autoguidance,directory={WORSE}"], AUTO),
        (["--negative-prompt", "a blue cross"], {"negative_prompt": "a blue cross"}),
    ],
)
def test_generate_and_replay(here: Path, loaded: pipeline.Pipeline, options: list[str], settings: dict[str, Any]):
    assert (
        cli.main(["generate", *PROMPTS, "--output", "out", "--guidance-scale", "3", "--num-steps", "4", *options]) == 0
    )
    path = here / "out/0001.png"
    expected = loaded(PROMPTS, guidance_scale=3, num_steps=4, **settings)[1]
    assert torch.equal(torch.from_numpy(decode_png(path.read_bytes()).copy()).permute(2, 0, 1), expected)
    origin = Origin.read(path.read_bytes(), "out")
    drawing = DrawingParams.model_validate(origin.settings)
    assert all(getattr(drawing, name) == value for name, value in settings.items() if name != "guidance")
    assert cli.main(["replay", str(path)]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--guidance", "unheard"], 'guidance.kind: found "unheard"; expected one of'),
        (["--guidance", "autoguidance"], "guidance.directory: missing; expected a string"),
        (["--guidance", "autoguidance,directory=../x"], "guidance.directory: found ../x; expected a path below"),
        (["--guidance", "autoguidance,directory=data/nowhere"], "guidance.directory: no folder data/nowhere; expected"),
        (
            ["--guidance", f"autoguidance,directory={WORSE}", "--negative-prompt", "x"],
            "settings: a negative_prompt with",
        ),
        (["--guidance-rescale", "1.5"], "guidance_rescale: found 1.5; expected a number"),
        (["--guidance-interval", "0.8", "0.2"], "settings: guidance_interval [0.8, 0.2] is empty; expected"),
        (
            ["--dynamic-threshold", "0.995"],
            "dynamic_threshold: 0.995, and a latent covers 8 pixels a side; expected null",
        ),
        (
            ["--negative-prompt", "\udcff"],
            'negative_prompt: "\\udcff" has bytes that are not UTF-8; expected text in UTF-8',
        ),
    ],
)
def test_bad_settings_are_refused_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
):
    assert cli.main(["generate", "a star", "--output", "out", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith(message) and lines[1].startswith("fix: "), lines
    assert not Path("out").exists()


def test_an_image_guided_by_another_model_is_not_replayed(here: Path, tmp_path: Path):
    (png,) = pipeline.Pipeline.load(here).pngs("a star", guidance_scale=2, **AUTO)
    shutil.copytree(here, tmp_path / "copy")
    trained_data.write_worse(tmp_path / "copy/data", tmp_path / "copy" / WORSE)
    shutil.copytree(here / "data/unet", tmp_path / "copy" / WORSE, dirs_exist_ok=True)
    with pytest.raises(IntegrityError, match=r"an image of guidance [0-9a-f]{64}; expected guidance [0-9a-f]{64}"):
        pipeline.Pipeline.load(tmp_path / "copy").replay(Origin.read(png, "here"))


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        ({"diffusion": {"schedule": "linear", "prediction": "v"}}, "has schedule linear; expected schedule flow, as "),
        ({"inputs": {"embeddings": "0" * 64}}, "has embeddings 0000"),
        (
            {"inputs": {"autoencoder": "0" * 64}, "facts": {"latent_scale": {"mean": [0, 0], "std": [1, 1]}}},
            "has autoencoder 0000.*, latent_scale of mean 0, 0 and deviation 1, 1; expected autoencoder .*mean 0.1, 0,",
        ),
    ],
)
def test_a_worse_model_of_other_traits_is_refused_with_all_of_them(
    loaded: pipeline.Pipeline, root: Path, tmp_path: Path, traits: dict[str, Any], message: str
):
    trained_data.write_worse(root / "data", tmp_path / "other", **traits)
    generator = loaded.generator
    ours = models.traits_of(generator.schedule, generator.unet.latent_shape, generator.passport)
    with pytest.raises(ConfigError, match=f"^guidance.directory: {tmp_path / 'other'} {message}"):
        models.load_worse(tmp_path / "other", ours, generator.directory, generator.device)


def test_only_what_asks_without_a_prompt_needs_dropped_captions(loaded: pipeline.Pipeline):
    facts = {**loaded.generator.passport.facts, "caption_dropout": 0}
    passport = loaded.generator.passport.model_copy(update={"facts": facts})
    undropped = replace(loaded, generator=replace(loaded.generator, passport=passport))
    for settings in ({"guidance_scale": 2}, {"guidance_scale": 0}, {"guidance": "ho_salimans", "guidance_scale": 1}):
        with pytest.raises(ConfigError, match=r"^guidance_scale: [012], and .* was trained with caption_dropout 0"):
            undropped("a star", **settings)
    for settings in ({"guidance_scale": 1}, {"guidance": "ho_salimans", "guidance_scale": 0}):
        assert undropped("a star", **settings).shape == (1, 3, 64, 64)
    assert undropped("a star", guidance_scale=2, negative_prompt="a cross").shape == (1, 3, 64, 64)
    assert undropped("a star", guidance_scale=2, **AUTO).shape == (1, 3, 64, 64)


def test_the_stage_samples_with_guidance_of_every_kind_and_says_so(here: Path, monkeypatch: pytest.MonkeyPatch):
    before = (here / "params.yaml").read_bytes()
    drawing = pipeline.Pipeline.load(here).drawing.model_dump(mode="json")
    trained_data.change(here, "sample", drawing=drawing | AUTO)
    stage_scripts.run("sample")
    trained_data.change(here, "sample", drawing=drawing | {"negative_prompt": "of no corpus"})
    with pytest.raises(IntegrityError, match="no embedding of 'of no corpus'"):
        stage_scripts.run("sample")
    (here / "params.yaml").write_bytes(before)
    shutil.rmtree(here / "data/samples")
