"""Interpolation, inversion, variations, denoising and scores from end to end on a tiny pipeline."""

import csv
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from docs import tasks
from ldm.autoencoder.model.network import to_signal
from ldm.core.errors import ConfigError
from ldm.core.images import decode_png
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.diffusion import Prediction, Schedule
from ldm.denoiser.model.schedules import ScheduleName
from ldm.sampling.generator import Generator
from ldm.sampling.origin import Origin
from ldm.sampling.params import MAX_CHARACTERS
from ldm.tools import cli, pipeline
from ldm.tools.tasks import draw, restoration, scores
from ldm.tools.tasks.params import names

FIRST, LAST = "a red star", "a blue cross"
STEPS: dict[str, Any] = {"num_steps": 3, "sampler": {"kind": "ddim", "eta": 0}}
SMALL = ["--num-steps", "3", "--seed", "3"]
LONGEST = "x" * MAX_CHARACTERS
TOO_LONG = f'{{}}: found "{"x" * 56}...; expected a string with length <= {MAX_CHARACTERS} or null'


@pytest.fixture(scope="module")
def root(root: Path) -> Path:
    for name, seed in (("first.png", 0), ("last.png", 1)):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(root / name)
    return root


@pytest.fixture
def here(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(root)
    return tmp_path / "out"


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return int((found.int() - expected.int()).abs().max()) <= 1


def test_a_path_of_prompts_or_noises_begins_and_ends_as_their_own_images(loaded: pipeline.Pipeline) -> None:
    prompts = loaded.interpolate([FIRST, FIRST], last_prompt=LAST, num_frames=3, guidance_scale=3, **STEPS)
    assert len(prompts) == 6
    firsts, lasts = (loaded([text] * 2, guidance_scale=3, **STEPS) for text in (FIRST, LAST))
    assert close(prompts[::3], firsts) and close(prompts[2::3], lasts) and not close(prompts[1:2], firsts[:1])
    noises = loaded.interpolate(FIRST, last_noise=True, num_frames=3, **STEPS)
    assert close(noises[:1], loaded(FIRST, **STEPS)) and not close(noises[2:], noises[:1])


def batch_of(generator: Generator, loaded: pipeline.Pipeline, settings: dict[str, object]) -> draw.Batch:
    condition = loaded.embed([FIRST])
    return draw.Batch(generator, condition, [0], loaded.drawing.changed({**STEPS, **settings}), [{}], condition)


@pytest.mark.parametrize(("schedule", "prediction"), [("flow", "flow"), ("ve", "edm")])
def test_what_starts_from_noise_alone_starts_as_generate_does(
    loaded: pipeline.Pipeline, schedule: ScheduleName, prediction: Prediction
) -> None:
    generator = replace(loaded.generator, schedule=Schedule(schedule), prediction=prediction)
    other = replace(loaded, generator=generator)
    frames = other.interpolate(FIRST, last_noise=True, num_frames=2, **STEPS)
    assert close(frames[:1], other(FIRST, **STEPS)) and not close(frames[1:], frames[:1])
    batch, task = batch_of(generator, loaded, {}), loaded.tasks.inpaint.changed({"num_resamplings": 1})
    with torch.no_grad():
        drawn = draw._repaint(task, batch, batch.denoise, lambda z0_hat: z0_hat, batch.latent_shape)
        assert torch.equal(drawn, generator.latents(batch.denoise, [0], batch.drawing)), "nothing is known"


def test_repaint_asks_at_the_noise_levels_of_the_drawing(loaded: pipeline.Pipeline) -> None:
    churn = {"kind": "edm", "churn": 0.5, "low": 0, "high": 50, "noise": 1}
    batch = batch_of(loaded.generator, loaded, {"sampler": churn, "num_steps": 6})
    task = loaded.tasks.inpaint.changed({"num_resamplings": 2, "jump_length": 2})
    asked: list[float] = []

    def denoise(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append(float(t[0]))
        return z

    draw._repaint(task, batch, denoise, lambda z0_hat: z0_hat, batch.latent_shape)
    again = set(asked)
    asked.clear()
    loaded.generator.latents(denoise, [0], batch.drawing)
    assert again == set(asked)


def test_captions_whose_padding_is_masked_are_not_mixed(
    loaded: pipeline.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, generator = Generator.condition, loaded.generator

    def masked(condition: Condition) -> Condition:
        return replace(condition, mask=torch.ones(condition.tokens.shape[:2], dtype=torch.bool))

    monkeypatch.setattr(Generator, "condition", lambda self, prompts: masked(real(self, prompts)))
    other = replace(loaded, generator=replace(generator, null_condition=masked(generator.null_condition)))
    with pytest.raises(ConfigError, match="last_prompt: captions whose padding is masked"):
        other.interpolate(FIRST, last_prompt=LAST, num_frames=2, **STEPS)
    assert len(other.interpolate(FIRST, last_noise=True, num_frames=2, **STEPS)) == 2


@pytest.mark.parametrize("settings", [{"image_noise": "inversion"}, {"image_noise": "shared", "strength": 0.4}])
def test_a_path_of_images_begins_and_ends_at_what_each_gives_alone(
    loaded: pipeline.Pipeline, root: Path, settings: dict[str, Any]
) -> None:
    first, last, same = root / "first.png", root / "last.png", {"guidance_scale": 1, **settings, **STEPS}
    frames = loaded.interpolate(images=first, last_images=last, num_frames=3, **same)
    alone = [loaded.interpolate(images=path, last_images=path, num_frames=2, **same) for path in (first, last)]
    assert close(frames[0], alone[0][0]) and close(frames[2], alone[1][0])
    assert not close(frames[1], frames[0]) and not close(frames[1], frames[2])


def test_inversion_by_more_steps_comes_nearer_to_the_round_trip(loaded: pipeline.Pipeline, root: Path) -> None:
    image = torch.from_numpy(decode_png((root / "first.png").read_bytes()).copy()).permute(2, 0, 1)
    with torch.no_grad():
        round_trip = loaded.generator.decode(loaded.generator.encode(image[None]))
    few, many = (loaded.invert(image, num_steps=n) for n in (4, 40))
    far, near = (float((found.float() - round_trip.float()).square().mean()) for found in (few, many))
    assert near < far / 4
    assert torch.equal(loaded.invert(image, num_steps=4, edit=""), few)
    assert not torch.equal(loaded.invert(image, num_steps=4, edit=LAST), few)


def test_variations_have_noises_of_their_own_and_none_at_strength_0(loaded: pipeline.Pipeline, root: Path) -> None:
    path = root / "first.png"
    first, second = loaded.variations(path, ["", ""], strength=0.7, **STEPS)
    assert not torch.equal(first, second)
    assert torch.equal(loaded.variations(path, strength=0, **STEPS), loaded.img2img(path, "", strength=0, **STEPS))


def test_denoising_asks_once_and_the_noise_may_be_told(
    loaded: pipeline.Pipeline, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, generator = root / "first.png", loaded.generator
    image = torch.from_numpy(decode_png(path.read_bytes()).copy()).permute(2, 0, 1)
    with torch.no_grad():
        round_trip = generator.decode(generator.encode(image[None]))
    assert close(loaded.denoise(path, noise_level=0), round_trip)
    assert capsys.readouterr().err == ""
    assert not close(loaded.denoise(path), round_trip)
    level = float(restoration.noise_level(to_signal(image[None]))) / 2
    assert f"the range of a pixel is 1: {level:.3f} (" in capsys.readouterr().err
    assert torch.equal(loaded.denoise(path, num_steps=7), loaded.denoise(path)), "steps are no matter"


def test_scores_are_those_of_each_image_alone_and_the_likelihood_can_be_left_out(
    loaded: pipeline.Pipeline, root: Path
) -> None:
    paths = [root / "first.png", root / "last.png"]
    found = loaded.score(paths, num_probes=1, times=[0.5], num_noises=1, tolerance=0.05)
    assert found.keys() == {"autoencoder_error", "reconstruction_error", "bits_per_dimension"}
    generator = loaded.generator
    image = torch.from_numpy(decode_png(paths[1].read_bytes()).copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        difference = generator.signals_of(generator.encode(image)) - to_signal(image)
    torch.testing.assert_close(found["autoencoder_error"][1:], difference.square().mean()[None], rtol=1e-3, atol=1e-5)
    again = loaded.score(paths[0], num_probes=0, times=[0.5], num_noises=1)["reconstruction_error"]
    torch.testing.assert_close(again, found["reconstruction_error"][:1], rtol=1e-2, atol=1e-3)
    settings = loaded.tasks.score.changed({"num_probes": 0, "times": [0.5], "num_noises": 1})
    condition, row = loaded.embed([""]), draw.pictures.row({"image": paths[0]})
    batch = draw.Batch(loaded.generator, condition, [0], loaded.drawing, [row], condition)
    assert torch.equal(scores.scores(settings, batch)["reconstruction_error"], again)
    with pytest.raises(ConfigError, match="tolerance: found 2"):
        loaded.score(paths, tolerance=2)


def test_frames_are_numbered_pictures_that_replay(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--image", "first.png", "--last-image", "last.png"]
    made = ["interpolate", *given, "--num-frames", "3", "--num-images", "2", "--output", str(here), *SMALL]
    assert cli.main(made) == 0, capsys.readouterr().err
    assert len(list(here.iterdir())) == 6
    path = here / "0004.png"
    origin = Origin.read(path.read_bytes(), "")
    assert (origin.task, origin.prompt_number, origin.prompt) == ("interpolate", 4, "")
    assert origin.pictures["last_image"] == hashlib.sha256(Path("last.png").read_bytes()).hexdigest()
    assert cli.main(["replay", str(path), *given]) == 0
    assert cli.main(["replay", str(path), *given[:2]]) == 2
    assert "give by --last-image the file" in capsys.readouterr().err


@pytest.mark.parametrize("start", range(1, 6))
def test_frames_from_any_number_on_are_those_of_the_whole_call(
    loaded: pipeline.Pipeline, root: Path, start: int
) -> None:
    """For prompts and images of their own, of which the paths that are left are given."""
    prompts, images = [FIRST, LAST], [root / "first.png", root / "last.png"]
    settings: dict[str, Any] = {
        "last_prompt": "a star",
        "num_frames": 3,
        "image_noise": "shared",
        "strength": 0.6,
        **STEPS,
    }

    def drawn(path: int, start: int) -> list[bytes]:
        given = {"image": images[path:], "last_image": images[::-1][path:]}
        return list(loaded.task_pngs("interpolate", prompts[path:], given, start, **settings))

    whole, rest = drawn(0, 0), drawn(start // 3, start)
    assert len(whole) == 6 and len(rest) == 6 - start
    for number, (found, expected) in enumerate(zip(rest, whole[start:], strict=True), start):
        origins = [Origin.read(png, "") for png in (found, expected)]
        assert [origin.prompt_number for origin in origins] == [number] * 2
        assert origins[0].prompt == origins[1].prompt and origins[0].pictures == origins[1].pictures
        assert close(*(torch.from_numpy(decode_png(png).copy()) for png in (found, expected))), number


def test_the_command_goes_on_within_a_path(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["interpolate", FIRST, LAST, "--last-noise", "--num-frames", "3", "--num-steps", "1", "--output", str(here)]
    assert cli.main([*call, "--start-number", "2", "--seed", "3-4"]) == 0, capsys.readouterr().err
    texts = [f"{text}  (seed {seed})" for seed in (3, 4) for text in (FIRST, LAST, LAST, LAST)]
    assert capsys.readouterr().out.splitlines() == [f"{here}/{n:04}.png  {text}" for n, text in enumerate(texts, 2)]
    origins = [Origin.read((here / f"{n:04}.png").read_bytes(), "") for n in range(2, 10)]
    assert [origin.prompt_number for origin in origins] == [2, 3, 4, 5] * 2
    assert [f"{origin.prompt}  (seed {origin.settings['seed']})" for origin in origins] == texts


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_an_image_whose_name_is_no_text_is_scored_under_its_escapes(here: Path, suffix: str) -> None:
    path, table = here.parent / os.fsdecode(b"a\xff.png"), here.with_suffix(f".{suffix}")
    path.write_bytes(Path("first.png").read_bytes())
    quick = ["--num-noises", "1", "--times", "0.3", "--num-probes", "0", "--output", str(table)]
    assert cli.main(["score", str(path), "last.png", *quick]) == 0
    text = table.read_text("utf-8")
    rows = json.loads(text) if suffix == "json" else list(csv.DictReader(text.splitlines()))
    names = [str(path) if suffix == "json" else f"{here.parent}/a\\udcff.png", "last.png"]
    assert [row["image"] for row in rows] == names


def test_scores_become_a_table_that_replaces_no_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--num-noises", "1", "--times", "0.3", "0.6", "--num-probes", "0"]
    assert cli.main(["score", "first.png", "last.png", *quick]) == 0
    printed = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    table = here.with_suffix(".json")
    assert cli.main(["score", "first.png", "last.png", *quick, "--output", str(table)]) == 0
    rows = json.loads(table.read_text())
    assert [row["image"] for row in rows] == [row["image"] for row in printed] == ["first.png", "last.png"]
    assert [str(row["reconstruction_error"]) for row in rows] == [row["reconstruction_error"] for row in printed]
    assert cli.main(["score", "first.png", *quick, "--output", str(table)]) == 2
    assert json.loads(table.read_text()) == rows
    assert cli.main(["score", "first.png", *quick, "--output", str(table), "--overwrite"]) == 0
    assert len(json.loads(table.read_text())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["interpolate", FIRST], "interpolate: equal ends; expected something that changes"),
        (["interpolate", "--image", "first.png"], "last_image: one image without the other; expected two images"),
        (["interpolate", FIRST, "--last-prompt", LAST, "--num-frames", "1"], "num_frames: found 1; expected"),
        (["interpolate", FIRST, "--last-prompt", LONGEST + "x"], TOO_LONG.format("last_prompt")),
        (
            ["interpolate", FIRST, "--last-prompt", "a \udcff"],
            'last_prompt: "a \\udcff" has bytes that are not UTF-8; expected text in UTF-8',
        ),
        (["invert", "--image", "first.png", "--edit", LONGEST + "x"], TOO_LONG.format("edit")),
        (
            ["invert", "--image", "first.png", "--edit", "a \udcff"],
            'edit: "a \\udcff" has bytes that are not UTF-8; expected text in UTF-8',
        ),
        (["variations", "--image", "first.png", "--strength", "2"], "strength: found 2.0; expected a number >= 0"),
        (["denoise", "--image", "none.png"], "none.png: no such file; expected"),
        (["denoise", "--image", "first.png", "--noise-level", "-1"], "noise_level: found -1.0; expected"),
        (["invert", "--image", "first.png", "--num-steps", "0"], "num_steps: found 0; expected"),
        (["score", "params.yaml"], "params.yaml: no image that can be read (NOT_IMAGE"),
        (["score", "first.png", "--times", "2"], "times.0: found 2.0; expected"),
        (["score", "first.png", "--tolerance", "0"], "tolerance: found 0.0; expected"),
        (["score", "first.png", "--tolerance", "1e-8"], "tolerance: found 1e-08; expected a number >= 1e-06"),
        (["score", "first.png", "--output", "scores.txt"], "--output: scores.txt; expected a name that ends in .csv"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(pipeline, "Pipeline", None)
    output = [] if arguments[0] == "score" else ["--output", str(here)]
    assert cli.main([*arguments, *output]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith(message) and lines[1].startswith("fix: "), lines
    assert not here.exists()


@pytest.mark.parametrize("guidance", [{"guidance": "ho_salimans", "guidance_scale": 3}, {"guidance_scale": 0}])
def test_tasks_that_take_the_network_as_it_is_ignore_guidance_of_every_kind(loaded: pipeline.Pipeline, guidance):
    image = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (3, 64, 64), dtype=np.uint8))
    plain = loaded.denoise(image, FIRST, guidance_scale=1)
    assert torch.equal(loaded.denoise(image, FIRST, **guidance), plain)
    assert not torch.equal(loaded.denoise(image, LAST, guidance_scale=1), plain)


def test_the_picture_of_all_tasks_names_each_and_shows_what_it_was_given(
    loaded: pipeline.Pipeline, tmp_path: Path
) -> None:
    given, last = torch.zeros(3, 64, 64, dtype=torch.uint8), torch.full((3, 64, 64), 200, dtype=torch.uint8)
    cells = tasks.examples(loaded, given, FIRST, last)
    words = " ".join(text for _, text in cells)
    assert all(name.replace("_", "-") in words for name in names())
    tasks.draw(cells, tmp_path / "tasks.png")
    assert Image.open(tmp_path / "tasks.png").width > 8 * 64
