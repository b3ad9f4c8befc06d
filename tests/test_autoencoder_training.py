from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torchmetrics.functional.image import peak_signal_noise_ratio

from ldm import randomness
from ldm.autoencoder.model.network import Autoencoder, ReconstructionObjective, to_image, to_signal
from ldm.autoencoder.training import reconstruction
from ldm.core import images
from ldm.core.shards import Shards
from tests.toy_training import accelerator
from tests.training_data import NUM_SAMPLES, autoencoder_params, write_images


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


def test_psnr_agrees_with_torchmetrics():
    image, other = pictures()
    for i in range(1, 4):
        expected = peak_signal_noise_ratio(other[i].double(), image[i].double(), data_range=255.0)
        assert reconstruction.psnr(image, other)[i].item() == pytest.approx(expected.item(), rel=1e-6)
    off_by_one = reconstruction.psnr(torch.zeros(1, 3, 4, 4).byte(), torch.ones(1, 3, 4, 4).byte())
    assert off_by_one.item() == pytest.approx(20 * np.log10(255))


def test_ssim_agrees_with_scipy():
    """As scikit-image and the authors' code do it: torchmetrics counts a mirrored border too."""
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
    params = autoencoder_params()
    batches = reconstruction.ImageBatches(splits["train"], params)
    whole = batches(3, slice(0, 8))
    samples = randomness.order(np.arange(24, 32), NUM_SAMPLES["train"], 0)
    expected = images.to_tensor([splits["train"][i]["png"] for i in samples])
    assert torch.equal(whole["image"], expected)
    assert whole["noise"].shape == (8, 4, 4, 4)
    part = batches(3, slice(2, 5))
    assert all(torch.equal(part[name], whole[name][2:5]) for name in whole)
    assert not torch.equal(batches(4, slice(0, 8))["noise"], whole["noise"])


def test_measurement_takes_every_image_once(splits: dict[str, Shards]):
    params = autoencoder_params()
    torch.manual_seed(0)
    autoencoder = Autoencoder(params.network).eval()
    measurement = reconstruction.Measurement(splits["val"], params, accelerator(params.training))
    image = splits["val"].images(range(6))
    with torch.no_grad():
        other = to_image(autoencoder.decode(autoencoder.encode(to_signal(image)).mode()))
    metrics = measurement.metrics(autoencoder)
    assert metrics["psnr_db"] == pytest.approx(reconstruction.psnr(image, other).mean().item(), abs=2e-3)
    assert metrics["ssim"] == pytest.approx(reconstruction.ssim(image, other).mean().item(), abs=1e-4)
    with torch.no_grad():
        curves = measurement.curves(ReconstructionObjective(autoencoder, params.reconstruction))
    assert curves["psnr_db"] == pytest.approx(reconstruction.psnr(image, other)[:4].mean().item(), abs=2e-3)


def test_originals_stand_beside_reconstructions(splits: dict[str, Shards], tmp_path: Path):
    params = autoencoder_params()
    objective = ReconstructionObjective(Autoencoder(params.network), params.reconstruction)
    measurement = reconstruction.Measurement(splits["val"], params, accelerator(params.training))
    measurement.draw(objective, tmp_path / "picture.png")
    image = splits["val"].images(range(1))
    with Image.open(tmp_path / "picture.png") as picture:
        drawn = np.asarray(picture)[4 : 4 + 128, 4 : 4 + 128]
    assert np.array_equal(drawn[::8, ::8].transpose(2, 0, 1), image[0].numpy())
