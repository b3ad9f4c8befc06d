"""What training an autoencoder needs besides its network: batches of images, and the quality of reconstructions."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ldm import randomness
from ldm.autoencoder.model.network import Autoencoder, to_image, to_signal
from ldm.autoencoder.model.params import StoredParams
from ldm.autoencoder.training import colours, equivariance, latent_noise
from ldm.autoencoder.training.loss_params import ReconstructionParams
from ldm.autoencoder.training.objective import ReconstructionObjective
from ldm.autoencoder.training.params import TrainAutoencoderParams
from ldm.autoencoder.training.perceptual import Lpips
from ldm.compute import attention, process
from ldm.compute.process import Accelerator
from ldm.core import images
from ldm.core.shards import Shards
from ldm.randomness import Order
from ldm.training.batches import rows_per_pass
from ldm.training.params import TrainingParams

_LEAST_MSE = 1e-3
_WINDOW_PX, _WINDOW_STD_PX = 11, 1.5
_NUM_ROWS, _NUM_PIXELS = 64, 2**20
"""Images measured at once, if no training says how many fit, and pixels of them all: decoders of Stable Diffusion take
3 kB of memory for each."""


def open_splits(folder: Path, is_trained: bool, accelerator: Accelerator) -> dict[str, Shards]:
    """The images of `train` and `val`. All of them are checked before a training; else a tar is when it is read.

    IntegrityError: one is missing or damaged.
    """
    splits = {name: Shards(folder / name) for name in ("train", "val")}
    if is_trained:
        process.check_files([file for split in splits.values() for file in split.files], accelerator)
    return splits


class ImageBatches:
    """What `ReconstructionObjective` takes at any step: the `rows` of its global batch."""

    def __init__(
        self, shards: Shards, network: StoredParams, loss: ReconstructionParams, training: TrainingParams
    ) -> None:
        self._shards, self._loss, self._params = shards, loss, training
        self._order = Order(shards.buckets, training.batch_size, training.seed)
        self._channels = network.latent_channels
        self.latent_sizes = [
            (height // network.factor, width // network.factor) for height, width in shards.image_sizes_px
        ]
        """Height and width of the latents of every bucket."""

    def __call__(self, step: int, rows: slice) -> dict[str, Tensor]:
        seed, size, draw = self._params.seed, self._params.batch_size, self._order.at_step(step)
        latent_size, batch = self.latent_sizes[draw.bucket], {"image": self._shards.images(draw.samples[rows].tolist())}
        regularisation, adversarial = self._loss.equivariance, self._loss.adversarial
        if regularisation and (drawn := equivariance.draw(regularisation, latent_size, size, seed, step)):
            latent_size, turns = drawn
            batch["turns"] = turns[rows]
        if self._loss.turned_colours:
            batch["hues"] = colours.draw(self._loss.turned_colours, size, seed, step)[rows]
        if adversarial and step >= adversarial.start_step:
            batch["adversarial"] = torch.ones(len(batch["image"]))
        shape = self._channels, *latent_size
        if self._loss.latent_noise:
            batch["latent_noise"] = latent_noise.draw(self._loss.latent_noise, rows, size, shape, seed, step)
        return {**batch, "noise": randomness.normal(rows, shape, seed, "posterior", step)}

    def keys(self, step: int) -> list[str]:
        """Keys of the samples in the global batch of a step."""
        return [self._shards.keys[sample] for sample in self._order.at_step(step).samples.tolist()]


class Measurement:
    """Losses and reconstruction quality on a split; the processes share the work."""

    def __init__(self, shards: Shards, params: TrainAutoencoderParams, accelerator: Accelerator) -> None:
        self._shards, self._params, self._accelerator = shards, params, accelerator
        area = max(height * width for height, width in shards.image_sizes_px)
        fitting = min(_NUM_ROWS, max(1, _NUM_PIXELS // area))
        self._num_rows = rows_per_pass(params.training, accelerator) if params.training else fitting

    def curves(self, objective: nn.Module) -> dict[str, float]:
        """`loss` (without posterior noise) and `psnr_db` over `num_validation_samples` images, the first ones."""
        assert isinstance(objective, ReconstructionObjective)
        total = torch.zeros(3, dtype=torch.float64)
        for image in self._batches(min(self._params.num_validation_samples, len(self._shards))):
            signal = to_signal(image)
            posterior = objective.autoencoder.encode(signal)
            loss = objective({"image": image, "noise": torch.zeros_like(posterior.mean)})["loss"].item()
            similar = psnr(image, to_image(objective.autoencoder.decode(posterior.mode()))).sum().item()
            total += torch.tensor([loss * len(image), similar, len(image)], dtype=torch.float64)
        loss, similar, count = self._sum(total)
        return {"loss": loss / count, "psnr_db": similar / count}

    @torch.no_grad()
    def metrics(self, autoencoder: Autoencoder, perceptual: Lpips | None) -> dict[str, float]:
        """`psnr_db`, `ssim` and, with its network, `lpips`: means over all images of the split, in float32, of images
        rounded to 8 bits."""
        total = torch.zeros(4, dtype=torch.float64)
        for image in self._batches(len(self._shards)):
            reconstruction = to_image(autoencoder.decode(autoencoder.encode(to_signal(image)).mode()))
            distance = perceptual(to_signal(image), to_signal(reconstruction)).sum().item() if perceptual else 0.0
            values = [psnr(image, reconstruction).sum().item(), ssim(image, reconstruction).sum().item(), distance]
            total += torch.tensor([*values, len(image)], dtype=torch.float64)
        similar, structural, distance, count = self._sum(total)
        metrics = {"psnr_db": round(similar / count, 4), "ssim": round(structural / count, 5)}
        return metrics | ({"lpips": round(distance / count, 5)} if perceptual else {})

    def picture(self, objective: nn.Module) -> images.Image.Image:
        """`draw` in the middle of a training."""
        assert isinstance(objective, ReconstructionObjective)
        return self.draw(objective.autoencoder)

    @torch.no_grad()
    def draw(self, autoencoder: Autoencoder) -> images.Image.Image:
        """A picture of originals, each beside its reconstruction."""
        count, pairs = self._params.num_pictures, list[Tensor]()
        for samples in self._shards.buckets.batches(count, self._num_rows):
            image = self._shards.images(samples.tolist())
            signal = to_signal(image.to(self._accelerator.device))
            reconstruction = to_image(autoencoder.decode(autoencoder.encode(signal).mode())).cpu()
            pairs += torch.stack([image, reconstruction], dim=1).flatten(0, 1)
        return images.grid(pairs, num_columns=8, captions=None)

    def _batches(self, count: int) -> Iterator[UInt8[Tensor, "b 3 h w"]]:
        """The first images of every bucket, `count` in all: this process's share, in batches."""
        for samples in process.share_of(self._shards.buckets.batches(count, self._num_rows), self._accelerator):
            yield self._shards.images(samples.tolist()).to(self._accelerator.device)

    def _sum(self, total: Tensor) -> list[float]:
        return torch.as_tensor(self._accelerator.reduce(total.to(self._accelerator.device))).tolist()


def prove_attention(
    autoencoder: Autoencoder, latent_sizes: Sequence[tuple[int, int]], params: TrainingParams, device: torch.device
) -> None:
    """MachineError unless the attention backend can train the network on latents of these sizes, and measure it in
    float32."""
    shapes = [shape for size in latent_sizes for shape in autoencoder.attention_shapes(*size)]
    attention.prove(device, shapes, params.precision, trains=True)
    attention.prove(device, shapes, "fp32", trains=False)


def psnr(image: UInt8[Tensor, "b 3 h w"], other: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio per image in dB: 10 log10(255^2 / mean squared error); 78.1 for an exact copy.

    torchmetrics is not used here. Its constants are float32, which moves the result by 2e-6 dB, and it gives infinity
    for an exact copy, which can be neither averaged nor written to a file of metrics.
    """
    mse = (image.double() - other.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / mse.clamp(min=_LEAST_MSE))


def ssim(image: UInt8[Tensor, "b 3 h w"], other: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Structural similarity per image: mean over channels and over positions where the whole window is in the image.

    Wang et al. 2004, equation 13, with their Gaussian window of 11 pixels and deviation 1.5. torchmetrics is not used
    here: its mean includes positions in a mirrored border, which moves it by up to 0.11 at 32 pixels and 0.06 at 64.
    Where the whole window is in the image, both agree to 1e-12. A smaller image has the largest odd window that fits.
    """
    x, y = image.double(), other.double()
    width = min(_WINDOW_PX, (min(x.shape[2:]) - 1) // 2 * 2 + 1)
    offsets = torch.arange(width, dtype=x.dtype, device=x.device) - width // 2
    window = torch.softmax(-offsets.square() / (2 * _WINDOW_STD_PX**2), dim=0)

    def blur(values: Tensor) -> Tensor:
        # Along columns, then rows, as sums of moved copies: on a CPU 58 times faster than a convolution in float64.
        for dim in (2, 3):
            size = values.shape[dim] - width + 1
            blurred = torch.zeros_like(values.narrow(dim, 0, size))
            for i, weight in enumerate(window.tolist()):
                blurred.add_(values.narrow(dim, i, size), alpha=weight)
            values = blurred
        return values

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)).flatten(1).mean(1)
