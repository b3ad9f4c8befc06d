"""Each study from end to end on a tiny model that was never trained, and what it is made of, on known images."""

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.core import artifact, config
from ldm.corpora import shapes
from ldm.corpora.params import PrepareParams, ShapesParams
from ldm.denoiser.training.params import TrainUNetParams
from studies import anomaly, checkpoints, denoising, guidance, img2img, inpainting, inversion
from studies.lab import Cases
from tests import trained_data
from tests.import_closure import ROOT
from tests.stage_scripts import forget_accelerator

DDPM = {"kind": "ddpm", "variance": 0}
TINY = {
    "quality": {
        "num_prompts": 5,
        "reference": {"sampler": DDPM, "num_steps": 3},
        "samplers": [{"kind": "heun"}],
        "evaluations": [2, 4],
    },
    "guidance": {"num_prompts": 5, "settings": [{"guidance_scale": 0}, {"guidance_interval": [0.2, 0.8]}]},
    "inpainting": {"split": "val", "num_cases": 5, "margin_px": 3, "num_resamplings": [1, 2]},
    "img2img": {"num_images": 5, "strengths": [0, 1], "num_steps": 2},
    "denoising": {
        "num_images": 3,
        "num_tuning_images": 2,
        "levels": [20],
        "tv_weights": [0.0001, 0.1],
        "bilateral_colours": [0.1],
        "bilateral_places": [1],
    },
    "inversion": {"num_images": 3, "num_steps": [2, 8]},
}
ROWS = {"quality": 3, "guidance": 2, "inpainting": 4, "img2img": 2, "denoising": 5, "inversion": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("studied")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("ACCELERATE_USE_CPU", "true")
        trained_data.make(root)
    artifact.write_json(root / "tiny.yaml", TINY)
    return root


@pytest.mark.parametrize("name", TINY)
def test_a_study_writes_rows_with_intervals(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(sys, "argv", [name, "--params", "tiny.yaml", "--output", "out"])
    forget_accelerator()
    assert importlib.import_module(f"studies.{name}").main() == f"{name}: {ROWS[name]} rows -> out/{name}.json"
    rows = json.loads((folder / "out" / f"{name}.json").read_text())["rows"]
    assert len(rows) == ROWS[name]
    for row in rows:
        estimates = [value for value in row.values() if isinstance(value, list)]
        assert estimates and all(low <= value <= high for value, low, high in estimates), row
    if name == "inpainting":
        assert rows[0]["scene"][0] == 1 and rows[1]["scene"][0] == 0, "the controls"
    if name == "denoising":
        assert rows[-1]["parameters"] == "0.1", "the weight that is not nearly 0"
        assert rows[0]["model_better_by"] == [0, 0, 0]
    if name == "inversion":
        assert rows[1]["error"][0] < rows[0]["error"][0]
    assert not list((folder / "runs" / f"study_{name}").iterdir()), "what was kept is removed with the last row"


def cases(count: int) -> Cases:
    params = ShapesParams.model_validate(trained_data.CORPUS)
    pairs = [shapes.pair_at(i, "val", params, 64) for i in range(count)]
    images = torch.from_numpy(np.stack([pair.image() for pair in pairs]).transpose(0, 3, 1, 2).copy())
    claims = [pair.claims[0] for pair in pairs]
    return Cases([pair.captions[0] for pair in pairs], claims, [pair.scene for pair in pairs], images, "")


def test_a_mask_covers_one_object_and_touches_no_other() -> None:
    found = cases(12)
    holes = inpainting.masks(found.scenes, 64, 3)
    empty = inpainting.emptied(found, holes)
    for image, hole, filled, scene in zip(found.images, holes, empty, found.scenes, strict=True):
        background = torch.tensor(scene["background_rgb"])[:, None, None]
        before, after = ((pixels != background).any(0) for pixels in (image, filled))
        assert int(before.sum()) > int(after.sum()), "an object is gone"
        assert bool((after | ~before | hole[0]).all()), "nothing else changed"
        lost = before.sum() - after.sum()
        assert len(scene["objects"]) == 1 or 0.1 < float(lost / before.sum()) < 0.95, "the other one is there"
        assert len(scene["objects"]) > 1 or int(after.sum()) == 0


def test_the_seam_is_the_mean_step_over_the_border_of_the_hole() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    holes = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    holes[:, :, 2:4, 5:8] = True
    images[0, :, 2:4, 5:8] = 9
    images[1, 0, 2:4, 5:8] = 9  # one channel of three
    images[1, :, 6, 6] = 255  # elsewhere
    assert inpainting.seam(images, holes).tolist() == pytest.approx([9, 3])


def test_noise_has_its_level_and_psnr_is_that_of_the_error() -> None:
    grey = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8)
    noisy = denoising.noised(grey, 20, seed=1)
    assert float((noisy.float() - 128).std()) == pytest.approx(20, rel=0.05)
    assert torch.equal(noisy[:2], denoising.noised(grey[:2], 20, seed=1)), "of (seed, number) alone"
    assert denoising.psnr(noisy, grey).mean() == pytest.approx(20 * math.log10(255 / 20), abs=0.3)
    assert denoising.psnr(grey + 1, grey).tolist() == pytest.approx([20 * math.log10(255)] * 4)
    filters = denoising.filters(denoising.DenoisingParams.model_validate(TINY["denoising"]))
    assert [list(forms) for forms in filters.values()] == [["0.1, 1 px"], ["0.0001", "0.1"]]


def test_usual_and_unusual_scenes_have_as_many_objects() -> None:
    def scene(*names: str) -> dict[str, object]:
        return {"objects": [{"shape": name} for name in names]}

    scenes = [scene("star"), scene("cross"), scene("cross", "star"), scene("cross", "cross"), scene("circle"),
              scene("star", "star")]  # fmt: skip
    assert anomaly.matched(scenes, "star", 10) == ([1, 3], [0, 2])
    assert anomaly.matched(scenes, "star", 1) == ([1], [0])
    late = [scene("cross"), scene("circle"), scene("star", "cross"), scene("star"), scene("cross", "cross"),
            scene("star")]  # fmt: skip
    assert anomaly.matched(late, "star", 2) == ([0, 4], [2, 3]), "cut in pairs of as many objects"


def test_the_corpus_of_the_anomaly_study_lacks_the_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    section = config.read(anomaly.AnomalyParams, "anomaly", ROOT / "studies/params.yaml")
    few = section.model_copy(update={"num_train": 40, "autoencoder_steps": 3, "unet_steps": 3})
    base = config.Document(ROOT / "params.yaml").data
    values = anomaly.params_without(few, base)
    assert base["prepare"]["corpus"]["num_train"] == 30000, "that of the default stays"
    values["prepare"]["corpus"]["num_val"] = 20
    values["prepare"]["num_examples"] = 1
    artifact.write_json(tmp_path / "params.yaml", values)
    (tmp_path / "paths.yaml").write_text((ROOT / "paths.yaml").read_text())
    for name, params in (("prepare", PrepareParams), ("train_unet", TrainUNetParams)):
        config.read(params, name, tmp_path / "params.yaml")
    paths = config.read(anomaly.PathsParams, "paths", tmp_path / "paths.yaml")
    anomaly._prepare(tmp_path, paths, "star")
    scenes = [json.loads(sample["json"])["scene"] for sample in anomaly_shards(tmp_path / paths.images / "train")]
    assert 5 < len(scenes) < 40 and not any(anomaly.shows(scene, "star") for scene in scenes)


def anomaly_shards(path: Path) -> list[dict[str, bytes]]:
    from ldm.core.shards import Shards

    shards = Shards(path)
    return [shards[i] for i in range(len(shards))]


def test_checkpoints_are_at_even_distances_and_end_with_the_training() -> None:
    section = config.read(checkpoints.CheckpointsParams, "checkpoints", ROOT / "studies/params.yaml")
    assert len(section.steps) == 4 and section.steps[-1] == section.num_steps
    assert checkpoints.file_of(Path("a"), 600).name == "step-000000600.safetensors"


def test_names_of_settings_and_distances_are_plain() -> None:
    assert guidance.named({"guidance_scale": 4, "guidance_interval": [0.2, 0.9]}) == "scale 4, interval 0.2 to 0.9"
    assert guidance.named({"guidance": {"kind": "ho_salimans"}}) == "guidance ho_salimans"
    black = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    assert img2img.distance(black + 3, black).tolist() == [3]
    assert inversion.InversionParams(num_images=2, num_steps=[1]).num_steps == [1]
