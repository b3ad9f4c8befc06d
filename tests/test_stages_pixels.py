"""All stages in pixel space, in this process: classes of a dataset of torchvision, and images without captions."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from ldm.core import config, images
from ldm.core.params import PathsParams
from ldm.core.shards import Shards
from ldm.tools.report import facts, page
from tests.import_closure import ROOT
from tests.report_html import check_needs_nothing_else
from tests.repository import params_of, setting
from tests.stage_scripts import run
from tests.test_corpora_torchvision import source as fashion
from tests.training_data import KEPT

DVC = YAML(typ="safe").load(ROOT / "dvc.yaml")
STAGES = ("check", "prepare", "train_autoencoder", "encode_latents", "train_clip", "embed_text", "train_unet", "sample")
SMALL: dict[str, Any] = {
    "machine": {"threads": 1, "num_workers": 0, "attention": "math", "compile": False} | KEPT,
    "prepare__image_size_px": 8,
    "prepare__corpus__val_fraction": 0.3,
    "prepare__num_samples_per_shard": 20,
    "encode_latents__statistics_tolerance": 1.0,
    "train_clip__source__network": {
        "embed_dim": 8,
        "vision": {"image_size_px": 8, "patch_size_px": 4, "width": 8, "layers": 1, "head_width": 8},
        "text": {
            **{"width": 8, "heads": 1, "layers": 1, "context_length": 16, "num_merges": 200},
            **{"embedding_std": 1.0, "causal": True},
        },
    },
    "train_unet__network__channels": [8, 8],
    "train_unet__network__num_res_blocks": 1,
    "train_unet__network__attention_levels": [False, True],
    "train_unet__network__head_width": 8,
    "train_unet__network__norm_groups": 4,
    "train_unet__network__context_width": 8,
    "train_unet__network__latent_size": 8,
    "train_unet__training__num_steps": 4,
    "train_unet__training__num_warmup_steps": 1,
    "train_unet__training__batch_size": 8,
    "train_unet__num_validation_samples": 8,
    "train_unet__num_pictures": 2,
    "sample__drawing__num_steps": 12,
    "sample__num_prompts_held_out": 4,
    "sample__num_prompts_seen": 4,
    "sample__sweep__num_prompts": 3,
    "evaluate__num_reference_images": 12,
    "evaluate__num_kid_subsets": 2,
    "evaluate__kid_subset_size": 4,
    "evaluate__num_pairs": 2,
}
TRAINED = {"training__num_steps": 4, "training__num_warmup_steps": 1, "training__batch_size": 8}
UNCAPTIONED: dict[str, Any] = {
    "prepare__captions": "none",
    "train_clip__source": {"kind": "untrained", "network": SMALL["train_clip__source__network"], "seed": 0},
    "train_unet__diffusion__caption_dropout": 0.0,
    "sample__drawing__guidance_scale": 1,
    "sample__sweep__guidance_scales": [],
    "evaluate__accuracy": {"kind": "none"},
}
assert fashion, "a fixture"


@pytest.fixture
def made(request: pytest.FixtureRequest, fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder after all stages, with the params of the recipe in miniature, changed as the test asks."""
    assert fashion == tmp_path / "data/source"
    (tmp_path / "params.yaml").write_text(setting(**SMALL | request.param)(params_of("fashion-mnist")))
    (tmp_path / "paths.yaml").write_bytes((ROOT / "paths.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for stage in (*STAGES, "evaluate"):
        run(stage)
    return tmp_path


@pytest.mark.parametrize(
    "made", [{f"train_clip__source__{key}": value for key, value in TRAINED.items()}], indirect=True
)
def test_a_dataset_of_torchvision_becomes_samples_whose_class_is_read(made: Path) -> None:
    metrics = json.loads((made / "data/evaluation/metrics.json").read_text())
    assert {"class_accuracy_held_out", "class_accuracy_seen_low", "oracle_real", "oracle_shuffled"} <= metrics.keys()
    assert metrics["oracle_reconstructed"] == metrics["oracle_real"], "round trips are exact"
    assert metrics["frechet_own_clip_reconstructed"] < 1e-6
    assert "class" in (made / "data/evaluation/table.md").read_text()
    samples = Shards(made / "data/samples/held_out")
    assert len(samples) == 4 and images.decode_png(samples[0]["png"]).shape == (8, 8, 3)
    text = report_of(made)
    assert "a classifier that learned from real training images" in text.lower() and "<h3>Class</h3>" in text
    with (made / "data/evaluation/confusion.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["images"] == "samples"]
    assert {row["attribute"] for row in rows} == {"class"}
    assert sum(int(row["num"]) for row in rows) == metrics["num_samples_held_out"] + metrics["num_samples_seen"]
    claims = [json.loads(samples[i]["json"])["claim"]["class"] for i in range(4)]
    assert all(name in json.loads(samples[i]["json"])["prompt"] for i, name in enumerate(claims))


@pytest.mark.parametrize("made", [UNCAPTIONED], indirect=True)
def test_images_without_captions_become_samples(made: Path) -> None:
    captions = Shards(made / "data/captions/train")
    records = [json.loads(captions[i]["json"]) for i in range(len(captions))]
    assert all(record["captions"] == [""] and record["claims"] == [None] for record in records)
    metrics = json.loads((made / "data/evaluation/metrics.json").read_text())
    assert not [name for name in metrics if "accuracy" in name or name.startswith("oracle")]
    assert metrics["frechet_own_clip_held_out"] > 0 and len(Shards(made / "data/samples/seen")) == 4
    text = report_of(made)
    assert "distances alone say what samples are worth" in text and "What is taken for what" not in text
    assert "without captions" in text and "least like their prompts" in text


def report_of(made: Path) -> str:
    """The report, which needs nothing else; and every plot of DVC finds its columns, so that it has no complaint."""
    paths = config.read(PathsParams, "paths", made / config.PATHS).model_dump()
    for plot in (plot for plot in DVC["plots"] if isinstance(plot, dict)):
        ((name, values),) = plot.items()
        for path, columns in values["y"].items():
            folder, _, file = path.removeprefix("${paths.").partition("}/")
            with (made / paths[folder] / file).open(newline="") as stream:
                rows = list(csv.DictReader(stream))
            wanted = {values["x"], *([columns] if isinstance(columns, str) else columns)}
            assert not rows or wanted <= rows[0].keys(), name
    text = page.write(facts.read(made, None))
    check_needs_nothing_else(text)
    return text
