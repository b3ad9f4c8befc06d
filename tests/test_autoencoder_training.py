import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ldm import randomness
from ldm.autoencoder.model.network import to_image, to_signal
from ldm.autoencoder.model.networks import build
from ldm.autoencoder.model.params import KLAutoencoderParams
from ldm.autoencoder.training import latent_noise, reconstruction
from ldm.autoencoder.training.loss_params import ReconstructionParams
from ldm.autoencoder.training.objective import ReconstructionObjective
from ldm.autoencoder.training.params import PretrainedAutoencoderParams
from ldm.core import images
from ldm.core.shards import Shards
from ldm.training.params import TrainingParams
from tests.toy_training import accelerator
from tests.training_data import AUTOENCODER, NUM_SAMPLES, autoencoder_params, write_images

TRAINING = TrainingParams.model_validate_json(json.dumps(AUTOENCODER["source"]["training"]))
NETWORK = KLAutoencoderParams.model_validate(AUTOENCODER["source"]["network"])
BROUGHT = PretrainedAutoencoderParams(
    kind="pretrained", path="x", factor=4, latent_channels=4, reconstruction=None, training=None
)
LOSS = ReconstructionParams.model_validate(AUTOENCODER["source"]["reconstruction"])


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shards]:
    root = tmp_path_factory.mktemp("images")
    write_images(root)
    return {name: Shards(root / name) for name in NUM_SAMPLES}


def pictures(num: int = 4, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (num, 3, size, size), generator=generator)
    smooth = torch.nn.functional.avg_pool2d(image.float(), 5, 1, 2)
    noise = torch.randn(image.shape, generator=generator) * torch.tensor([0.0, 2.0, 20.0, 60.0])[:num, None, None, None]
    return smooth.byte(), (smooth + noise).clamp(0, 255).byte()


@pytest.mark.parametrize("size", [11, 32, 64])
def test_both_measures_agree_with_torchmetrics_as_far_as_their_docstrings_say(size: int):
    """Random and smooth images. Its map of similarities is cut to where the whole window lies in the image."""
    noise = torch.randint(0, 256, (4, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()
    for image, other in (pictures(size=size), (noise, noise.flip(0))):
        ours, theirs = image.double(), other.double()
        expected = peak_signal_noise_ratio(theirs, ours, data_range=255.0, dim=(1, 2, 3), reduction="none")
        differ = torch.isfinite(expected)  # an exact copy is infinitely good to it
        off = (reconstruction.psnr(image, other) - expected)[differ].abs().max()
        assert differ.sum() >= 3 and 0 < off < 3e-6
        mean, similarities = structural_similarity_index_measure(
            theirs, ours, data_range=255.0, reduction="none", return_full_image=True
        )
        inside = similarities[..., 5:-5, 5:-5].flatten(1).mean(1)
        found = reconstruction.ssim(image, other)
        assert (found - inside).abs().max() < 1e-12
        border = (found - mean).abs().max()
        assert 1e-4 < border < {11: 0.25, 32: 0.11, 64: 0.065}[size], "its own mean counts a mirrored border"


def test_psnr_of_one_step_and_of_none():
    black = torch.zeros(1, 3, 4, 4).byte()
    assert reconstruction.psnr(black, black + 1).item() == pytest.approx(20 * np.log10(255))
    assert reconstruction.psnr(black, black).item() == pytest.approx(20 * np.log10(255) + 30)


def test_ssim_agrees_with_scipy():
    """As scikit-image and the authors' code do it."""
    image, other = pictures()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def blur(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, truncate=3.4)[5:-5, 5:-5]

    expected = np.zeros(4)
    for i, c in np.ndindex(4, 3):
        x, y = image[i, c].double().numpy(), other[i, c].double().numpy()
        mx, my = blur(x), blur(y)
        structure = (2 * (blur(x * y) - mx * my) + c2) / (blur(x * x) - mx**2 + blur(y * y) - my**2 + c2)
        expected[i] += ((2 * mx * my + c1) / (mx**2 + my**2 + c1) * structure).mean() / 3
    values = reconstruction.ssim(image, other).numpy()
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-10)
    assert values[0] == 1.0 and (np.diff(values) < 0).all()


def test_batches_follow_the_order_and_slices_agree_with_the_whole(splits: dict[str, Shards]):
    batches = reconstruction.ImageBatches(splits["train"], NETWORK, LOSS, TRAINING)
    whole = batches(3, slice(0, 8))
    samples = randomness.order(np.arange(24, 32), NUM_SAMPLES["train"], 0)
    expected = images.to_tensor([splits["train"][i]["png"] for i in samples])
    assert torch.equal(whole["image"], expected)
    assert whole["noise"].shape == (8, 4, 4, 4)
    assert torch.equal(whole["latent_noise"], latent_noise.draw(0.5, slice(0, 8), 8, (4, 4, 4), TRAINING.seed, 3))
    without = reconstruction.ImageBatches(
        splits["train"], NETWORK, LOSS.model_copy(update={"latent_noise": 0.0}), TRAINING
    )
    assert without(3, slice(0, 8)).keys() == whole.keys() - {"latent_noise"}
    part = batches(3, slice(2, 5))
    assert all(torch.equal(part[name], whole[name][2:5]) for name in whole)
    assert not torch.equal(batches(4, slice(0, 8))["noise"], whole["noise"])


def test_measurement_takes_every_image_once(splits: dict[str, Shards]):
    params = autoencoder_params()
    torch.manual_seed(0)
    autoencoder = build(NETWORK).eval()
    measurement = reconstruction.Measurement(splits["val"], params, accelerator(TRAINING))
    image = splits["val"].images(range(6))
    with torch.no_grad():
        other = to_image(autoencoder.decode(autoencoder.encode(to_signal(image)).mode()))
    metrics = measurement.metrics(autoencoder, None)
    assert metrics["psnr_db"] == pytest.approx(reconstruction.psnr(image, other).mean().item(), abs=2e-3)
    assert metrics["ssim"] == pytest.approx(reconstruction.ssim(image, other).mean().item(), abs=1e-4)
    with torch.no_grad():
        curves = measurement.curves(ReconstructionObjective(autoencoder, LOSS))
    assert curves["psnr_db"] == pytest.approx(reconstruction.psnr(image, other)[:4].mean().item(), abs=2e-3)


def test_what_is_not_trained_is_measured_on_as_many_pixels_as_fit(
    splits: dict[str, Shards], monkeypatch: pytest.MonkeyPatch
):
    sizes: list[int] = []
    autoencoder = build(NETWORK).eval()
    monkeypatch.setattr(autoencoder, "decode", lambda z, real=autoencoder.decode: sizes.append(len(z)) or real(z))
    monkeypatch.setattr(reconstruction, "_NUM_PIXELS", 2 * 16 * 16)
    params = autoencoder_params().model_copy(update={"source": BROUGHT})
    measurement = reconstruction.Measurement(splits["val"], params, accelerator(TRAINING))
    measurement.metrics(autoencoder, None)
    measurement.draw(autoencoder)
    assert max(sizes) == 2


def test_originals_stand_beside_reconstructions(splits: dict[str, Shards], tmp_path: Path):
    params = autoencoder_params()
    measurement = reconstruction.Measurement(splits["val"], params, accelerator(TRAINING))
    measurement.draw(build(NETWORK)).save(tmp_path / "picture.png")
    image = splits["val"].images(range(1))
    with Image.open(tmp_path / "picture.png") as picture:
        drawn = np.asarray(picture)[4 : 4 + 128, 4 : 4 + 128]
    assert np.array_equal(drawn[::8, ::8].transpose(2, 0, 1), image[0].numpy())
