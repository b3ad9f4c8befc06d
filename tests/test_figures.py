"""`ldm.tools.figures`: the numbers behind the pictures, and the files."""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.analytic.mixture import Mixture
from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.images import encode_png
from ldm.core.params import Size
from ldm.core.shards import Shards, Writer
from ldm.denoiser.model import schedules
from ldm.denoiser.model.diffusion import Schedule, z0_from_prediction
from ldm.sampling import grids, trajectory
from ldm.sampling.samplers.edm import heun
from ldm.tools import cli
from ldm.tools.cli import figures
from ldm.tools.cli.options import Command
from ldm.tools.figures import book, mixtures, models, processes, recording, style
from ldm.tools.pipeline import Pipeline


@pytest.fixture(scope="module")
def trained(root) -> models.Trained:
    return models.Trained.of(Pipeline.load(root), root)


def refused() -> models.Trained:
    raise IntegrityError("data/unet", "no such folder", "an artefact", "run `dvc repro`")


def test_every_schedule_is_drawn_as_it_is():
    curves = processes.schedules()
    assert list(curves) == list(processes.SCHEDULES)
    for name, curve in curves.items():
        found = list(zip(curve.times, curve.alpha, curve.sigma, strict=True))
        assert all(schedules.alpha_sigma(name, t) == (a, s) for t, a, s in found)
        assert curve.times[0] == 0 and curve.times[-1] == 1
        torch.testing.assert_close(
            torch.tensor(curve.log_snr), Schedule(name).log_snr(torch.tensor(curve.times)), rtol=1e-6, atol=1e-6
        )


def test_amplifications_are_those_of_an_error():
    """A prediction that is off by 1 changes the clean latent by that much."""
    name, curves, errors = processes.predictions()
    z = torch.zeros(len(curves.times), 1, 1, 1, dtype=torch.float64)
    for prediction, error in errors.items():
        moved = z0_from_prediction(Schedule(name), prediction, z, z + 1, torch.tensor(curves.times)).abs().flatten()
        torch.testing.assert_close(moved, torch.tensor(error), rtol=1e-6, atol=1e-6)


def test_grids_are_those_of_the_samplers():
    found = processes.spacings("cosine", 7)
    assert list(found)[:-1] == list(processes.SPACINGS)
    assert found["karras"].times == grids.times("cosine", 7, "karras", 1.0)
    assert found["uniform, shift 3"].times == grids.times("cosine", 7, "uniform", 3.0)
    assert found["uniform"].log_snr[0] == 2 * grids.State("cosine", 1.0).half_log_snr
    assert found["uniform"].log_snr[-1] == math.inf


def test_a_field_is_density_and_score():
    mixture = mixtures.islands()
    found = mixtures.field(mixture, 2.0)
    size = len(found.density)
    row, column = 20, 70
    axis = torch.linspace(-2, 2, size, dtype=torch.float64)
    points = torch.stack([axis, axis[row].expand(size)], 1)
    densities = mixture.log_density(points).exp().numpy()
    np.testing.assert_allclose(found.density[row] / found.density[row, column], densities / densities[column])
    assert found.density.max() == 1
    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    place = torch.from_numpy(found.places[30:31])
    slopes = [(mixture.log_density(place + d) - mixture.log_density(place - d)) / 2e-5 for d in step]
    np.testing.assert_allclose(found.scores[30], torch.cat(slopes).numpy(), rtol=1e-4)


def test_a_spiral_becomes_noise_and_noise_a_spiral():
    data, found = mixtures.spiral(), mixtures.there_and_back(100)
    assert math.isclose(float(data.weights.sum()), 1)
    np.testing.assert_allclose(found.forward[-1].std(0), 1, atol=0.15)
    assert np.abs(found.back[-1]).mean() > 0.6, "starts from noise"
    for points in (found.forward[0], found.back[0]):
        nearest = torch.cdist(torch.from_numpy(points), data.means).min(1).values
        assert float(nearest.quantile(0.99)) < 4 * 0.07, "on the spiral"
    for time, field in zip(found.times, found.fields, strict=True):
        same = mixtures.field(data.noisy(1 - time, time), field.limit)
        np.testing.assert_array_equal(field.density, same.density)
    assert found.back_place.min() >= 0 and found.back_place.max() <= 1


def test_langevin_needs_noise_that_falls():
    weights, (alone, annealed) = mixtures.langevin(300)
    assert np.abs(annealed.shares - weights).max() < 0.06
    assert np.abs(alone.shares - weights).max() > 0.3
    ends = np.array([annealed.paths[-1, i] for i in annealed.shown])
    assert np.linalg.norm(ends - mixtures.islands().means.numpy(), axis=1).max() < 1, "one path to each island"


def test_paths_of_samplers_end_where_the_samplers_do():
    _, found = mixtures.samplers(5)
    assert found["DDPM"].distance is None
    distances = [found[name].distance for name in ("DDIM", "Heun", "DPM-Solver++ (2M)")]
    assert all(distance is not None and 0 < distance < 0.2 for distance in distances)
    path = found["Heun"]
    assert path.times == grids.times("flow", 5, "uniform", 1.0), "each time once"
    data = Mixture.of([0.35, 0.65], [[-1.4], [1.0]], [[[0.04]], [[0.04]]])
    start = torch.from_numpy(path.latents[0]).reshape(-1, 1, 1, 1)
    for i in range(1, 5):
        z = trajectory.follow(heun, data.denoiser(Schedule("flow")), Schedule("flow"), start, path.times[: i + 1])
        np.testing.assert_allclose(path.latents[i], z.flatten().numpy())


def test_guidance_narrows_a_class():
    _, _, found = mixtures.guided(200)
    assert found[0].certainty < 0.5 < found[1].certainty < found[2].certainty <= found[4].certainty
    spreads = [found[scale].samples.std(0).mean() for scale in (0, 1, 2)]
    assert spreads[0] > spreads[1] > spreads[2]
    np.testing.assert_allclose(found[1].samples.std(0), 0.5, rtol=0.1)  # the class as it is


def test_recording_changes_nothing():
    def denoise(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return z * t

    noted, calls = recording.recorded(denoise)
    z = torch.ones(2, 1, 1, 1)
    assert torch.equal(noted(z, torch.full((2, 1, 1, 1), 0.25)), z / 4)
    assert [time for time, _, _ in calls] == [0.25]


def test_noise_levels_go_from_the_image_to_noise(trained):
    found = models.noise_levels(trained, 1, (0.0, 0.5, 1.0))
    picture = trained.pictures(2)[1:]
    np.testing.assert_array_equal(found.pixels[:1], picture.permute(0, 2, 3, 1).numpy())
    reconstruction = trained.decode(trained.pipeline.generator.encode(picture))
    np.testing.assert_array_equal(found.latents[:1], reconstruction)
    np.testing.assert_array_equal(found.told[:1], reconstruction)
    np.testing.assert_array_equal(found.untold[:1], reconstruction)
    assert not np.array_equal(found.told[1:], found.untold[1:])
    assert found.alpha_sigma == [(1, 0), (0.5, 0.5), (0, 1)]
    assert found.caption == trained.captions[1]
    other = models.noise_levels(trained, 0, (0.0, 1.0))
    np.testing.assert_array_equal(found.pixels[-1], other.pixels[-1], "nothing of the image is left")
    assert not np.array_equal(found.pixels[1], found.pixels[0])


def test_the_last_guess_is_the_sample(trained):
    found = models.steps(trained)
    assert found.prompt == max(trained.captions[:16], key=len)
    drawing = trained.pipeline.drawing
    expected = trained.pipeline(found.prompt).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(found.sample, expected)
    np.testing.assert_array_equal(found.guesses[-1:], expected)
    assert found.times == grids.times("flow", drawing.num_steps, drawing.spacing, drawing.time_shift)[:-1]
    noise = trajectory.prompt_noise(drawing.seed, [0], trained.pipeline.generator.latent_shape(drawing))
    np.testing.assert_array_equal(found.latents[:1], trained.decode(noise))


def test_step_counts_are_calls_of_the_pipeline(trained):
    found = models.step_counts(trained, (1, 3), 2)
    assert list(found.samples) == ["dpm_solver_pp_2m", "ddpm"] and found.prompts == trained.captions[:2]
    changes = {"num_steps": 3, "sampler": {"kind": "dpm_solver_pp_2m"}}
    expected = trained.pipeline(found.prompts, **changes).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(found.samples["dpm_solver_pp_2m"][3], expected)
    assert not np.array_equal(found.samples["ddpm"][3], expected)


def with_images(trained: models.Trained, folder: Path, sizes_px: list[Size]) -> models.Trained:
    """As if these were the validation images, each of one grey."""
    with Writer(folder, 3) as writer:
        for i, (height, width) in enumerate(sizes_px):
            png = encode_png(np.full((height, width, 3), i, np.uint8))
            writer.write(f"{i:04}", {"png": png}, size_px=(height, width))
    return replace(trained, images=Shards(folder))


def test_pictures_are_the_first_of_the_commonest_size(trained: models.Trained, tmp_path: Path) -> None:
    tall, square, wide = (80, 48), (64, 64), (48, 80)
    mixed = with_images(trained, tmp_path / "mixed", [tall, square, wide, square, *[square, tall] * 3, square])
    every = mixed.pictures(400)
    greys = every[:, 0, 0, 0].tolist()
    assert every.shape == (6, 3, 64, 64) and sorted(greys) == [1, 3, 4, 6, 8, 10]
    assert torch.equal(mixed.pictures(2), every[:2])
    assert models.latent_map(mixed).places.shape == (6, 4)


def test_a_map_of_too_few_latents_is_refused(trained: models.Trained, tmp_path: Path) -> None:
    assert len(with_images(trained, tmp_path / "five", [(64, 64)] * 5).pictures(400)) == 5
    few = with_images(trained, tmp_path / "four", [(64, 64)] * 4 + [(48, 80)] * 3)
    with pytest.raises(ConfigError, match="latent_map: 4 validation images of one size; expected 5 or more"):
        list(book.write(tmp_path / "new", ["latent_map"], False, lambda: few))
    assert not (tmp_path / "new").exists()


def test_principal_axes_are_those_of_the_covariance():
    x = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7)
    places, shares = models.principal(x)
    values = np.linalg.eigvalsh(np.cov(x.numpy().T))[::-1]
    np.testing.assert_allclose(shares, (values / values.sum())[:4])
    np.testing.assert_allclose(np.cov(places.T), np.diag(values[:4]), atol=1e-9)


def test_all_figures_are_written_and_equal_artefacts_give_equal_bytes(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(models.step_counts, "__defaults__", ((1, 2), 6))
    paths = list(book.write(tmp_path / "new" / "folder", book.NAMES, False, lambda: trained))
    assert [path.stem for path in paths] == [*book.TOYS, *book.TRAINED]
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width == 1245 and picture.height > 150, path
            assert len(set(picture.convert("L").resize((50, 50)).tobytes())) > 4, f"{path} shows nothing"
    for name in ("schedules", "steps"):
        assert book.drawn(name, trained) == (tmp_path / f"new/folder/{name}.png").read_bytes()


def test_a_file_is_replaced_only_if_that_is_asked_for(tmp_path):
    (tmp_path / "schedules.png").write_text("mine")
    with pytest.raises(ConfigError, match=r"schedules.png: a file that exists already"):
        list(book.write(tmp_path, ["spacings", "schedules"], False, refused))
    assert [path.name for path in tmp_path.iterdir()] == ["schedules.png"], "nothing was written before"
    list(book.write(tmp_path, ["schedules"], True, refused))
    assert (tmp_path / "schedules.png").read_bytes().startswith(b"\x89PNG")


def test_without_artefacts_nothing_is_written_and_toys_are_named(tmp_path):
    with pytest.raises(IntegrityError, match=r"run `dvc repro`; or add --toys: noise_levels, .* need") as caught:
        list(book.write(tmp_path / "new", book.NAMES, False, refused))
    assert "data/unet" in str(caught.value) and not (tmp_path / "new").exists()


def test_figures_are_chosen_by_name():
    assert book.selected([], toys=False) == list(book.NAMES)
    assert book.selected([], toys=True) == list(book.TOYS)
    assert book.selected(["steps", "schedules", "steps"], toys=False) == ["schedules", "steps"]
    with pytest.raises(ConfigError, match=r"'stairs'; expected one of schedules, "):
        book.selected(["stairs"], toys=False)
    with pytest.raises(ConfigError, match="'steps', which needs the trained artefacts"):
        book.selected(["steps"], toys=True)


def test_no_curve_is_left_out():
    with style.applied():
        curves = processes.draw_schedules(processes.schedules())
        errors = processes.draw_predictions(processes.predictions())
        rows = processes.draw_spacings(processes.spacings())
    assert {len(panel.lines) for panel in curves.axes} == {len(processes.SCHEDULES)}
    assert len(errors.axes[0].lines) == len(processes.PREDICTIONS)
    assert {len(panel.lines) for panel in rows.axes} == {len(processes.SPACINGS) + 1}


def test_a_strip_names_rows_and_columns():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    with style.applied():
        figure = style.strips({"a": images, "b": images}, ["first", "second"], "title")
        narrow = style.strips({"a": images}, ["first", "second"], "")
    assert [axes.get_title() for axes in figure.axes] == ["first", "second", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["a", "", "b", ""]
    assert style.png(figure) != style.png(narrow)


def test_a_caption_with_dollars_is_no_formula():
    images = np.zeros((1, 8, 8, 3), np.uint8)
    caption = 'caption: "$1 #2 $3"'
    with style.applied():
        figure = style.strips({"$z_t$": images}, [""], caption)
        assert figure.get_suptitle() == caption and style.png(figure)


def test_groups_of_a_strip_are_named_once():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    with style.applied():
        figure = style.strips({"a": images}, ["left", "right"], "", num_groups=2)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["left", "", "", "right", ""]
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 0, 1, 1]


def test_the_command_draws_what_it_is_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["figures", "new", "--only", "schedules", "--toys"]) == 0
    assert capsys.readouterr().out == "new/schedules.png\n"
    assert cli.main(["figures", "new", "--only", "schedules"]) == 2
    assert "a file that exists already" in capsys.readouterr().err
    assert cli.main(["figures", "new", "--only", "schedules", "--overwrite"]) == 0
    assert cli.main(["figures", "other", "--only", "stairs"]) == 2
    assert cli.main(["figures", "other", "--only", "steps", "--toys"]) == 2
    assert not Path("other").exists()


def test_all_figures_are_drawn_unless_some_are_named():
    parser = argparse.ArgumentParser()
    figures.add(parser.add_subparsers(parser_class=Command))
    options = parser.parse_args(["figures", "new"])
    assert (options.directory, options.only, options.toys, options.overwrite) == (Path("new"), [], False, False)


def test_the_command_lists_the_figures(capsys):
    with pytest.raises(SystemExit):
        cli.main(["figures", "--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in book.NAMES)
