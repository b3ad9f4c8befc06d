import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm import randomness
from ldm.autoencoder.encoding.latents import KIND as LATENTS
from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.diffusion import DenoisingObjective, Schedule, training_times
from ldm.denoiser.model.schedules import ScheduleName
from ldm.denoiser.model.unet import UNet
from ldm.denoiser.training.batches import LatentBatches
from ldm.denoiser.training.bound import VariationalBound
from ldm.denoiser.training.inputs import Inputs, check_fits, load_inputs
from ldm.denoiser.training.validation import Pictures, Validation, drawn, summary
from ldm.precompute.cache import Cache
from tests.kinds import KINDS
from tests.toy_training import accelerator
from tests.training_data import CHANNELS, LATENT_SIZE, NUM_SAMPLES, NUM_TOKENS, texts, unet_params, write_all


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs")
    write_all(path)
    return path


def load(root: Path, *, takes_pooled: bool = False) -> Inputs:
    folders = (root / name for name in ("latents", "captions", "embeddings", "autoencoder", "clip"))
    return load_inputs(*folders, takes_pooled=takes_pooled)


@pytest.fixture(scope="module")
def inputs(root: Path) -> Inputs:
    return load(root)


def test_facts_and_hashes(inputs: Inputs, root: Path):
    assert {k: v for k, v in inputs.facts.items() if k != "null_sha256"} == {
        "latent_scale": {"mean": [1.0] * 4, "std": [3.0] * 4},
        "context_tokens": NUM_TOKENS,
        "factor": 4,
        "image_size_px": 16,
        "latent_channels": 4,
    }
    assert (
        inputs.facts["null_sha256"]
        == artifact.read_passport(root / "embeddings", KINDS["embeddings"]).facts["null_sha256"]
    )
    names = {"autoencoder", "embeddings", "latents_train", "latents_val", "captions_train", "captions_val"}
    assert inputs.sha256.keys() == names and len(set(inputs.sha256.values())) == len(names)


def test_latents_are_scaled_posterior_samples(inputs: Inputs, root: Path):
    samples = np.array([5, 0, 12])
    stored = Cache(root / "latents/train", LATENTS).gather("mean", samples).float()
    noise = torch.randn(3, CHANNELS, LATENT_SIZE, LATENT_SIZE)
    expected = (stored + np.exp(-2) * noise - 1) / 3
    torch.testing.assert_close(inputs.train.latents(samples, noise), expected)


def test_means_are_learned_if_params_say_so(inputs: Inputs, root: Path):
    params, samples = unet_params(latents="mean"), randomness.order(np.arange(40, 48), NUM_SAMPLES["train"], 0)
    stored = Cache(root / "latents/train", LATENTS).gather("mean", samples).float()
    batch, sampled = (LatentBatches(inputs.train, each)(5, slice(0, 8)) for each in (params, unet_params()))
    assert torch.equal(batch["z0"], inputs.train.scale.normalise(stored))
    assert not torch.equal(batch["z0"], sampled["z0"])
    assert all(torch.equal(batch[name], sampled[name]) for name in batch.keys() - {"z0"})
    noise = torch.randn(
        2, 5, CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=randomness.generator(0, "validation noise")
    )[1]
    found = Validation(inputs.val, params, accelerator(params.training))(DenoisingObjective(Blind(), params.diffusion))
    mse = (noise - inputs.val.latents(np.arange(5), None)).square().mean()
    assert found["mse"] == pytest.approx(mse.item(), rel=1e-5)


def test_the_caption_depends_on_seed_sample_and_epoch_alone(inputs: Inputs):
    samples, zeros = np.arange(13), np.zeros(13, dtype=np.int64)
    pairs = inputs.train
    seen = np.array([pairs.captions(samples, 0, zeros + epoch) for epoch in range(30)])
    for i in range(13):
        assert set(seen[:, i]) == set(texts("train", i)), "the sample's own captions, and each has its turn"
    order = np.random.default_rng(0).permutation(13)
    assert pairs.captions(samples[order], 0, zeros + 4) == seen[4, order].tolist()
    other = np.array([pairs.captions(samples, 1, zeros + epoch) for epoch in range(30)])
    assert 0.3 < (other == seen).mean() < 0.8


def test_batches_are_slices_of_the_global_batch(inputs: Inputs):
    batches = LatentBatches(inputs.train, unet_params())
    whole = batches(5, slice(0, 8))
    for rows in (slice(0, 3), slice(3, 8)):
        part = batches(5, rows)
        assert all(torch.equal(part[name], whole[name][rows]) for name in whole)
    samples = randomness.order(np.arange(40, 48), NUM_SAMPLES["train"], 0)
    clean = inputs.train.latents(samples, torch.zeros(8, CHANNELS, LATENT_SIZE, LATENT_SIZE))
    assert 0 < (whole["z0"] - clean).abs().max() < 5 * np.exp(-2) / 3
    correlation = torch.corrcoef(torch.stack([(whole["z0"] - clean).flatten(), whole["noise"].flatten()]))[0, 1]
    assert correlation.abs() < 0.2, "posterior noise and diffusion noise are two"


def test_dropped_captions_become_the_stored_null_embedding(inputs: Inputs):
    for rate in (0.0, 0.25):
        batches = LatentBatches(inputs.train, unet_params(diffusion={"caption_dropout": rate}))
        taken = [batches(step, slice(0, 8)) for step in range(100)]
        dropped = torch.cat([batch["dropped"] for batch in taken])
        is_null = torch.cat([(batch["tokens"] == 7.0).flatten(1).all(1) for batch in taken])
        assert torch.equal(dropped, is_null)
        assert abs(dropped.float().mean().item() - rate) < 4 * (rate * (1 - rate) / 800) ** 0.5 + 1e-9


def test_pooled_features_are_read_for_a_network_that_takes_them(inputs: Inputs, root: Path):
    params = unet_params(diffusion={"caption_dropout": 0.25})
    with_pooled = load(root, takes_pooled=True).train
    found = LatentBatches(with_pooled, params)(3, slice(0, 8))
    assert {*found} == {*(without := LatentBatches(inputs.train, params)(3, slice(0, 8)))} | {"pooled"}
    assert all(torch.equal(found[name], without[name]) for name in without)
    dropped = found["dropped"]
    assert dropped.any() and not dropped.all()
    assert torch.equal(found["pooled"][~dropped], found["tokens"][~dropped, 0]), "as tests.training_data stores them"
    assert not found["pooled"][dropped].any(), "the null embedding's are 0 there"
    assert with_pooled.first_condition(np.arange(2)).parts.keys() == {"tokens", "pooled"}


def test_stratified_times_have_one_in_each_slice(inputs: Inputs):
    uniform = {"time_sampling": {"kind": "uniform"}}
    stratified = LatentBatches(inputs.train, unet_params(diffusion=uniform))
    assert [int(t * 8) for t in stratified(2, slice(0, 8))["t"].tolist()] == list(range(8))
    free = LatentBatches(inputs.train, unet_params(diffusion={**uniform, "stratified_times": False}))
    t = torch.cat([free(step, slice(0, 8))["t"] for step in range(100)])
    assert abs(t.mean().item() - 0.5) < 4 * (1 / 12 / 800) ** 0.5
    assert (torch.bincount((t * 8).long(), minlength=8) > 60).all()


def test_the_last_slice_of_stratified_times_does_not_reach_pure_noise(inputs: Inputs, monkeypatch: pytest.MonkeyPatch):
    """In float32 (2047 + u) / 2048 is 1 for u above 1 - 6e-5: once in 16,000 steps of such a batch."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 1 - 2**-24))
    for sampling in ({"kind": "uniform"}, {"kind": "logit_normal", "mean": 0.0, "std": 1.0}):
        params = unet_params(diffusion={"time_sampling": sampling}, training={"batch_size": 2048})
        assert 0.99 < LatentBatches(inputs.train, params)(0, slice(2047, 2048))["t"].item() < 1


def test_offset_noise_is_shared_by_the_positions_of_a_channel(inputs: Inputs):
    params = unet_params(diffusion={"offset_noise": 0.5})
    with_offset, without = LatentBatches(inputs.train, params), LatentBatches(inputs.train, unet_params())
    offsets: list[torch.Tensor] = []
    for step in range(60):
        found, plain = with_offset(step, slice(0, 8)), without(step, slice(0, 8))
        assert all(torch.equal(found[name], plain[name]) for name in found if name != "noise")
        offset = found["noise"] - plain["noise"]
        torch.testing.assert_close(offset, offset[:, :, :1, :1].expand_as(offset), rtol=0, atol=1e-5)
        torch.testing.assert_close(with_offset(step, slice(3, 5))["noise"], found["noise"][3:5], rtol=0, atol=0)
        offsets.append(offset[:, :, 0, 0])
    drawn = torch.stack(offsets)  # 60 steps x 8 rows x 4 channels, all independent
    assert float(drawn.std()) == pytest.approx(0.5, rel=0.07)
    assert abs(float(drawn.mean())) < 4 * 0.5 / drawn.numel() ** 0.5
    assert abs(float(torch.corrcoef(drawn.flatten(0, 1).T).fill_diagonal_(0).abs().max())) < 0.2


class Blind(torch.nn.Module):
    """Predicts zero: the loss is then the mean square of the target."""

    def forward(self, z: torch.Tensor, time: torch.Tensor, condition: Condition) -> torch.Tensor:
        return torch.zeros_like(z)


@pytest.mark.parametrize("num_accumulation_steps", [1, 4])
def test_validation_is_the_loss_at_fixed_noise_and_times(inputs: Inputs, num_accumulation_steps: int):
    params = unet_params(training={"num_accumulation_steps": num_accumulation_steps})
    validation = Validation(inputs.val, params, accelerator(params.training))
    found = validation(DenoisingObjective(Blind(), params.diffusion))
    posterior, noise = torch.randn(
        2, 5, CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=randomness.generator(0, "validation noise")
    )
    mse = (noise - inputs.val.latents(np.arange(5), posterior)).square().flatten(1).mean(1)
    place = randomness.order(np.arange(5), 5, randomness.key(0, "validation time"))
    first = torch.from_numpy(place + 0.5) / 5 < 0.5
    assert found["loss"] == found["mse"] == pytest.approx(mse.mean().item(), rel=1e-5)
    assert found["mse_bucket_1"] == pytest.approx(mse[first].mean().item(), rel=1e-5)
    assert found["mse_bucket_2"] == pytest.approx(mse[~first].mean().item(), rel=1e-5)
    assert found["mse_noisiest"] == pytest.approx(mse[int(place.argmax())].item(), rel=1e-5)
    z0 = inputs.val.latents(np.arange(5), posterior)
    bound = VariationalBound(params.diffusion, z0, torch.from_numpy(place))
    expected = bound.terms(float(bound.weights @ mse.double()))
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_a_slice_of_the_times_without_samples_has_no_error(inputs: Inputs):
    params = unet_params(num_validation_samples=3, num_validation_buckets=4)
    found = Validation(inputs.val, params, accelerator(params.training))(DenoisingObjective(Blind(), params.diffusion))
    assert sorted(name for name in found if name.startswith("mse_bucket")) == [f"mse_bucket_{n}" for n in (1, 3, 4)]


def test_buckets_are_slices_of_the_training_times(inputs: Inputs):
    params = unet_params()

    class Time(Blind):
        def forward(self, z: torch.Tensor, time: torch.Tensor, condition: Condition) -> torch.Tensor:
            seen.append(time / 1000)
            return torch.zeros_like(z)

    seen: list[torch.Tensor] = []
    validation = Validation(inputs.val, params, accelerator(params.training))
    validation(DenoisingObjective(Time(), params.diffusion))
    expected = training_times((torch.arange(5) + 0.5) / 5, params.diffusion)
    torch.testing.assert_close(torch.cat(seen).sort().values, expected, atol=1e-5, rtol=0)


def test_pictures_show_captions_and_noise_levels(inputs: Inputs, tmp_path: Path):
    params = unet_params()
    objective = DenoisingObjective(UNet(params.network), params.diffusion).eval()
    pictures = Pictures(inputs.val, inputs.autoencoder, params, torch.device("cpu"))
    pictures(objective).save(tmp_path / "a.png")
    pictures(objective).save(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 5 * 132 + 4
        cells = [np.asarray(picture)[4:132, 4 + 132 * i : 132 * (i + 1)] for i in range(5)]
    assert all(not np.array_equal(cells[0], cell) for cell in cells[1:])


def test_pictures_while_training_have_a_column_more_which_guidance_changes(inputs: Inputs, tmp_path: Path):
    columns: list[list[np.ndarray]] = []
    torch.manual_seed(0)
    unet = UNet(unet_params().network)
    for weight in unet.parameters():  # as built it sees no caption
        torch.nn.init.normal_(weight, std=0.1)
    for scale in (1.0, 1.0, 3.0):
        params = unet_params(picture_guidance_scale=scale)
        objective = DenoisingObjective(unet, params.diffusion).eval()
        pictures = Pictures(inputs.val, inputs.autoencoder, params, torch.device("cpu"))
        pictures(objective).save(tmp_path / "last.png")
        pictures.while_training(objective).save(tmp_path / "on the way.png")
        last, way = (np.asarray(Image.open(tmp_path / name)) for name in ("last.png", "on the way.png"))
        assert way.shape[1] == last.shape[1] + 132
        columns.append([way[:, 132 * i : 132 * (i + 1)] for i in range(6)])
        assert np.array_equal(way[4:132, : 5 * 132], last[4:132, : 5 * 132]), "the others are as in the last picture"
    assert all(np.array_equal(a, b) for a, b in zip(columns[0], columns[1], strict=True)), "equal on every machine"
    assert [np.array_equal(a, b) for a, b in zip(columns[1], columns[2], strict=True)] == [True] * 5 + [False]


@pytest.mark.parametrize("name", ["flow", "cosine", "vp"])
def test_what_is_drawn_has_the_deviation_of_the_data(name: ScheduleName):
    """Data of deviation 0.5: the exact denoiser is linear, and the flow takes noise to half of it."""
    schedule, noise, sizes = Schedule(name), torch.randn(2, 3, 4, 4), list[int]()

    def denoise(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sizes.append(len(t))
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return (alpha * 0.25 / (alpha**2 * 0.25 + sigma**2))[:, None, None, None] * z

    torch.testing.assert_close(drawn(denoise, schedule, noise, 400), 0.5 * noise, atol=0, rtol=0.02)
    assert sizes == [2] * 400


def test_latents_of_another_autoencoder_are_refused(root: Path, tmp_path: Path):
    shutil.copytree(root, tmp_path / "copy")
    passport, tensors = artifact.read(tmp_path / "copy/autoencoder", KINDS["autoencoder"])
    tensors["quant_conv.bias"] += 1
    written = artifact.write(tmp_path / "copy/autoencoder", KINDS["autoencoder"], passport.config, tensors, {}, {})
    with pytest.raises(IntegrityError) as caught:
        load(tmp_path / "copy")
    assert passport.content_sha256 in str(caught.value) and written.content_sha256 in str(caught.value)


def test_a_missing_latent_is_refused(root: Path, tmp_path: Path):
    shutil.copytree(root, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/captions/val")
    shutil.copytree(root / "captions/train", tmp_path / "copy/captions/val")
    with pytest.raises(IntegrityError, match=r"6 latents; expected 13, as there are samples in"):
        load(tmp_path / "copy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 8}, "latent_channels: found 8; expected 4, as the latents have"),
        ({"latent_size": 8}, "latent_size: found 8; expected 4, as the latents have"),
        ({"context_width": 16}, "context_width: found 16; expected 8, as the embeddings have"),
        ({"max_context_tokens": 4}, "max_context_tokens: found 4; expected 5, as the embeddings have"),
    ],
)
def test_a_network_of_another_shape_is_refused(inputs: Inputs, changes: dict[str, int], message: str):
    with pytest.raises(ConfigError, match=message):
        check_fits(unet_params(network=changes), inputs)
    check_fits(unet_params(), inputs)
    check_fits(unet_params(network={"max_context_tokens": 4, "num_context_layers": 0}), inputs)


def test_summary_takes_the_last_validation():
    rows = [{"caption_dropout": 0.1}, {"caption_dropout": float("nan")}, {"caption_dropout": 0.3}]
    validation = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    assert summary(rows, validation) == {"validation_loss": 1.0, "caption_dropout_observed": 0.2}
