"""All stages on pictures of three shapes, in this process: each is trained on and sampled at its own size."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.autoencoder.model import networks
from ldm.autoencoder.model.network import to_signal
from ldm.core import artifact, config, images
from ldm.core.errors import ConfigError
from ldm.core.shards import Shards
from ldm.denoiser.model.networks import KIND as UNET
from ldm.denoiser.training.batches import LatentBatches
from ldm.denoiser.training.inputs import LatentsAndCaptions, load_inputs
from ldm.denoiser.training.params import TrainUNetParams
from ldm.tools import cli, pipeline
from ldm.tools.tasks.pictures import of
from tests.forked import run_two
from tests.import_closure import ROOT
from tests.repository import params_of, setting
from tests.stage_scripts import run
from tests.test_stages_pixels import STAGES
from tests.training_data import KEPT

SIZES = {"tall": (40, 24), "square": (32, 32), "wide": (24, 40)}
TRAINING = {"num_steps": 8, "num_warmup_steps": 1, "batch_size": 4, "validate_every_steps": 8, "precision": "fp32"}
VALUES: dict[str, Any] = {
    "machine": {"threads": 1, "num_workers": 0, "attention": "math", "compile": False} | KEPT,
    "prepare__image_size_px": 32,
    "prepare__corpus__pixels__min_side_px": 24,
    "prepare__corpus__pixels__framing": {"kind": "buckets", "step_px": 8, "max_aspect_ratio": 2.0, "crop": "centre"},
    "prepare__corpus__val_fraction": 0.3,
    "prepare__num_samples_per_shard": 8,
    "train_autoencoder__source__network__channels": [16],
    "train_autoencoder__source__network__latent_channels": 6,
    "train_autoencoder__num_validation_samples": 9,
    "train_autoencoder__num_pictures": 6,
    "encode_latents__statistics_tolerance": 1.0,
    "encode_latents__mirrored": True,
    "train_unet__mirroring": {"unless": ["left", "right", "TALL"]},
    "train_clip__source__network": {
        "embed_dim": 8,
        "vision": {"image_size_px": 16, "patch_size_px": 8, "width": 8, "layers": 1, "head_width": 8},
        "text": {
            **{"width": 8, "heads": 1, "layers": 1, "context_length": 16, "num_merges": 50},
            **{"embedding_std": 1.0, "causal": True},
        },
    },
    "train_unet__latents": "sample",
    "train_unet__network__latent_channels": 6,
    "train_unet__network__channels": [16, 16],
    "train_unet__network__head_width": 8,
    "train_unet__network__context_width": 8,
    "train_unet__network__position_embedding": False,
    "train_unet__network__latent_size": 8,
    "train_unet__num_validation_samples": 9,
    "train_unet__num_pictures": 6,
    "sample__drawing__num_steps": 3,
    "sample__num_prompts_held_out": 6,
    "sample__num_prompts_seen": 18,
    "sample__sweep__guidance_scales": [],
    "sample__batch_size": 4,
    "evaluate__accuracy__num_prompts": 18,
    "evaluate__num_reference_images": 12,
    "evaluate__num_kid_subsets": 2,
    "evaluate__kid_subset_size": 4,
    "evaluate__num_pairs": 3,
} | {
    f"{section}__training__{key}": value
    for section in ("train_autoencoder__source", "train_clip__source", "train_unet")
    for key, value in TRAINING.items()
}


def draw(folder: Path, count: int) -> None:
    """Pictures of three shapes, each a colour on another, of which the caption tells shape and colours."""
    colours = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (128, 128, 128)}
    shapes = {"tall": (100, 62), "square": (80, 81), "wide": (60, 100)}
    folder.mkdir(parents=True)
    for number in range(count):
        shape = list(shapes)[number % 3]
        inner, outer = (list(colours)[(number + shift) % 4] for shift in (0, 1 + number // 4 % 3))
        height, width = shapes[shape]
        pixels = np.full((height, width, 3), colours[outer], np.uint8)
        pixels[10 : 20 + number // 4, 10 : width // 2] = colours[inner]
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"{shape} {inner} on {outer} {number}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after all stages."""
    folder = tmp_path_factory.mktemp("buckets")
    draw(folder / "data/source", 72)
    (folder / "params.yaml").write_text(setting(**VALUES)(params_of("folder")))
    (folder / "paths.yaml").write_bytes((ROOT / "paths.yaml").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ACCELERATE_USE_CPU", "true")
        for stage in (*STAGES, "evaluate"):
            run(stage)
    return folder


def inputs_of(made: Path) -> tuple[LatentsAndCaptions, TrainUNetParams]:
    """The training split as `train_unet` reads it, and its section of the params."""
    folders = [made / "data" / name for name in ("latents", "captions", "embeddings", "autoencoder", "clip")]
    params = config.read(TrainUNetParams, "train_unet", made / "params.yaml")
    return load_inputs(*folders, takes_pooled=False).train, params


def shape_of(png: bytes) -> tuple[int, ...]:
    return images.decode(png).shape[:2]


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_picture_is_in_the_bucket_of_its_shape(made: Path, split: str) -> None:
    pictures, captions = Shards(made / "data/images" / split), Shards(made / "data/captions" / split)
    assert pictures.keys == captions.keys and pictures.buckets.sizes_px == list(SIZES.values())
    for number in range(len(pictures)):
        (caption,) = json.loads(captions[number]["json"])["captions"]
        assert shape_of(pictures.image(number)) == SIZES[caption.split()[0]]
    report = json.loads((made / "data/prepare/report.json").read_text())
    assert report["num_seen"] == 72 and report["num_rejected"] == 0


def test_latents_have_the_shapes_of_their_buckets(made: Path) -> None:
    pictures = Shards(made / "data/images/train")
    for number in range(pictures.num_shards):
        mean = artifact.open_tensors(made / f"data/latents/train/{number:05d}.safetensors")["mean"]
        height, width = shape_of(pictures.image(pictures.shard_samples(number)[0]))
        assert mean.shape == (len(pictures.shard_samples(number)), 6, height // 4, width // 4)


def test_images_are_seen_mirrored_unless_their_caption_has_one_of_the_words(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, params = inputs_of(made)
    network, _ = networks.load(made / "data/autoencoder", torch.device("cpu"))
    pictures, batches, real = Shards(made / "data/images/train"), LatentBatches(pairs, params), pairs.latents
    # Without the noise of posteriors.
    monkeypatch.setattr(pairs, "latents", lambda samples, noise, flags: real(samples, torch.zeros_like(noise), flags))
    seen: dict[str, set[bool]] = {}
    for step in range(30):
        numbers = np.array([pairs.keys.index(key) for key in batches.keys(step)])
        pixels = to_signal(pictures.images(numbers.tolist()))
        views = [pairs.scale.normalise(network.encode(signal).mean) for signal in (pixels, pixels.flip(-1))]
        found = batches(step, slice(0, 4))["z0"]
        errors = torch.stack([(found - view).abs().flatten(1).amax(1) for view in views])
        assert errors.amin(0).max() < 0.1 < errors.amax(0).min(), "one view or the other, encoded in bf16"
        for caption, number in zip(pairs.first_captions(numbers), errors.argmin(0).tolist(), strict=True):
            seen.setdefault(caption.split()[0], set()).add(number == 1)
    assert seen == {"tall": {False}, "square": {False, True}, "wide": {False, True}}


def test_prompts_are_sampled_at_the_size_of_their_own_image(made: Path) -> None:
    for name, count in (("held_out", 6), ("seen", 18)):
        samples = Shards(made / "data/samples" / name)
        assert len(samples) == count
        for number in range(count):
            shape = json.loads(samples[number]["json"])["prompt"].split()[0]
            assert shape_of(samples[number]["png"]) == SIZES[shape]
    seen = Shards(made / "data/samples/seen")
    assert len(Counter(shape_of(seen[i]["png"]) for i in range(18))) == 3, "of all sizes"
    metrics = json.loads((made / "data/evaluation/metrics.json").read_text())
    assert metrics["frechet_own_clip_held_out"] > 0 and metrics["frechet_own_clip_reconstructed"] > 0


def test_pictures_of_all_sizes_are_shown(made: Path) -> None:
    # Wide and tall pictures share a cell of 40 x 40 px, which is magnified by 4.
    for name in ("prepare/examples", "autoencoder_results/reconstructions", "unet_results/z0_hat", "samples/grid"):
        width, height = Image.open(made / f"data/{name}.png").size
        assert width % (4 * 40 + 4) == 4 and height > 4 * 40


@pytest.fixture(scope="module")
def loaded(made: Path) -> pipeline.Pipeline:
    return pipeline.Pipeline.load(made, "cpu")


@pytest.mark.parametrize("size_px", [None, *SIZES.values(), (16, 48)])
def test_an_image_of_any_size_is_drawn_when_asked_for(
    loaded: pipeline.Pipeline, size_px: tuple[int, int] | None
) -> None:
    settings = {} if size_px is None else {"size_px": size_px}
    found = loaded(["tall red on green", "wide blue on red"], **settings)
    assert found.shape == (2, 3, *(size_px or (32, 32)))
    assert torch.equal(found, loaded(["tall red on green", "wide blue on red"], **settings))


def test_the_command_takes_a_size_and_a_replay_finds_it(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    assert cli.main(["generate", "wide red", "--size-px", "24", "40", "--output", str(tmp_path)]) == 0
    (png,) = tmp_path.glob("*.png")
    assert shape_of(png.read_bytes()) == (24, 40)
    assert cli.main(["replay", str(png)]) == 0


def test_a_task_draws_at_the_size_too(loaded: pipeline.Pipeline) -> None:
    picture = of(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    assert loaded.img2img(picture, "wide red", size_px=(24, 40), num_steps=4).shape == (1, 3, 24, 40)
    assert loaded.upscale(picture, "wide red", size_px=(24, 40), num_steps=4).shape == (1, 3, 24, 40)


def test_a_size_that_the_networks_cannot_take_is_refused(loaded: pipeline.Pipeline) -> None:
    with pytest.raises(ConfigError, match="size_px: 30 x 40; expected multiples of 8"):
        loaded("wide red", size_px=(30, 40))


def test_a_batch_is_of_one_size_and_each_process_has_its_rows(made: Path) -> None:
    pairs, params = inputs_of(made)
    batches, shapes = LatentBatches(pairs, params), Counter[tuple[int, ...]]()
    for step in range(20):
        whole = batches(step, slice(0, 4))
        halves = [batches(step, rows) for rows in (slice(0, 2), slice(2, 4))]
        assert all(torch.equal(whole[name], torch.cat([half[name] for half in halves])) for name in whole)
        numbers = np.array([pairs.keys.index(key) for key in batches.keys(step)])
        (name,) = {caption.split()[0] for caption in pairs.first_captions(numbers)}
        assert whole["z0"].shape == whole["noise"].shape == (4, 6, SIZES[name][0] // 4, SIZES[name][1] // 4)
        shapes[whole["z0"].shape] += 1
    assert len(shapes) == 3


def test_two_processes_train_to_the_weights_of_one(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("params.yaml", "paths.yaml"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    (tmp_path / "data").mkdir()
    for path in (made / "data").iterdir():
        if not path.name.startswith("unet"):
            (tmp_path / "data" / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    ended = run_two(tmp_path / "said", lambda rank: run("train_unet") and None)
    assert [each.code for each in ended] == [0, 0], ended[0].said
    (_, one), (_, two) = (artifact.read(folder / "data/unet", UNET) for folder in (made, tmp_path))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 2e-4
