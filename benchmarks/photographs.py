"""An autoencoder of photographs with and without each term of its loss, at equal numbers of updates.

`--folder` holds photographs (`photos/*.jpg`) and networks (`models/`: vgg16, alexnet and efficientnet_lite0, as
safetensors with the names of torchvision and timm). Variants train side by side, one process each. The loss sees vgg16;
the metrics see alexnet (LPIPS) and efficientnet_lite0 (Frechet distance). Every fifth photograph is held out for them.
`docs/photographs.md` has the results.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ldm import randomness
from ldm.autoencoder.model.network import Autoencoder, to_image, to_signal
from ldm.autoencoder.model.networks import build
from ldm.autoencoder.training import equivariance
from ldm.autoencoder.training.loss_params import PerceptualParams
from ldm.autoencoder.training.objective import ReconstructionObjective
from ldm.autoencoder.training.params import TrainedAutoencoderParams
from ldm.autoencoder.training.perceptual import Lpips
from ldm.autoencoder.training.reconstruction import ImageBatches, psnr, ssim
from ldm.compute import devices
from ldm.compute.state import Run
from ldm.core import images
from ldm.core.buckets import Buckets
from ldm.core.params import MachineParams
from ldm.evaluation.metrics import frechet_distance
from ldm.training.history import Row
from ldm.training.loop import train

VARIANTS: dict[str, tuple[Literal["l1", "l2"], float, float, bool]] = {
    "l2": ("l2", 0, 0, False),
    "l1": ("l1", 0, 0, False),
    "lpips": ("l1", 0.1, 0, False),
    "lpips_gan": ("l1", 0.1, 0.5, False),
    "all": ("l1", 0.1, 0.5, True),
}
"""The error, weights of LPIPS and of the discriminator, and whether latents are scaled and turned. `l2` is the plain
loss."""
NUM_UNSEEN_CROPS = 2048
SPLITS = ("train", "val", "held_out")
MACHINE = MachineParams.model_validate(
    {"threads": 1, "num_workers": 0, "attention": "auto", "compile": False, "channels_last": False}
    | {"num_batches_ahead": None, "background_saves": None, "deterministic": True}
    | {"keep_finished_states": False, "num_kept_runs": 1, "max_run_age_days": 1, "trackers": []}
)
NUM_PICTURES = 12
NUM_ROWS = 64
DISCRIMINATOR_START = 0.5


class Crops:
    """Square crops of photographs: number i is a place that belongs to i, mirrored or not."""

    def __init__(self, photos: Sequence[np.ndarray], size_px: int, count: int, seed: int) -> None:
        self._photos, self._size, self._seed = photos, size_px, seed
        self.buckets = Buckets([(size_px, size_px)], [count])
        self.image_sizes_px = [(size_px, size_px)]

    def images(self, numbers: Sequence[int]) -> Tensor:
        return images.stacked([self._crop(number) for number in numbers])

    @cached_property
    def keys(self) -> list[str]:
        return [str(i) for i in range(int(self.buckets.counts[0]))]

    def _crop(self, number: int) -> np.ndarray:
        which, top, left, mirrored = np.random.default_rng((self._seed, number)).random(4)
        photo = self._photos[int(which * len(self._photos))]
        y, x = (int(place * (side - self._size + 1)) for place, side in zip((top, left), photo.shape[:2], strict=True))
        crop = photo[y : y + self._size, x : x + self._size]
        return np.ascontiguousarray(crop[:, ::-1] if mirrored < 0.5 else crop)


def split_of(number: int) -> str:
    """Of every five photographs in the order of their names one is held out, one is to choose by."""
    return {0: "held_out", 1: "val"}.get(number % 5, "train")


def params(variant: str, models: Path, num_steps: int, small: bool, seed: int = 0) -> TrainedAutoencoderParams:
    """`train_autoencoder.source` of a variant."""
    error, lpips, gan, equi = VARIANTS[variant]
    perceptual = {"backbone": "vgg", "weights": str(models / "vgg16.safetensors"), "weight": lpips}
    adversarial = {
        "start_step": int(DISCRIMINATOR_START * num_steps),
        "learning_rate": 5e-4,
        "betas": [0.5, 0.9],
        "max_grad_norm": 1.0,
        "weight": gan,
        "channels": 32 if small else 64,
        "num_layers": 2 if small else 3,
    }
    section: dict[str, Any] = {
        "kind": "train",
        "network": {
            "kind": "kl",
            "patch_px": 4 if small else 2,
            "channels": [32, 64] if small else [64, 128, 256],
            "num_res_blocks": 1 if small else 2,
            "latent_channels": 16,
            "middle_attention": False,
            "quant_conv": True,
            "norm_groups": 8 if small else 16,
        },
        "reconstruction": {
            "error": error,
            "kl_weight": 1e-6,
            "learned_log_variance": False,
            "gradient_weight": 0.0,
            "num_gradient_scales": 3,
            "turned_colours": 0.0,
            "latent_noise": 0.0,
            "perceptual": perceptual if lpips else None,
            "adversarial": adversarial if gan else None,
            "equivariance": {"probability": 0.5, "min_scale": 0.5 if small else 0.25} if equi else None,
        },
        "training": {
            "num_steps": num_steps,
            "batch_size": 8 if small else 16,
            "num_accumulation_steps": 1,
            "learning_rate": 2e-3,
            "betas": [0.9, 0.99],
            "weight_decay": 0.0,
            "muon": {"learning_rate": 5e-3, "momentum": 0.95, "num_iterations": 5},
            "num_warmup_steps": min(100, num_steps // 4),
            "final_learning_rate_fraction": 0.02,
            "max_grad_norm": 1.0,
            "ema_decay": 0.995,
            "precision": "bf16",
            "seed": seed,
            "log_every_steps": 50,
            "validate_every_steps": 10**6,
            "save_every_steps": 10**6,
            "num_kept_states": 1,
            "max_nonfinite_steps": 10,
            "loss_band": None,
        },
    }
    return TrainedAutoencoderParams.model_validate_json(json.dumps(section), strict=True)


def features(models: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Pooled features of efficientnet_lite0 of uint8 images, at 224 pixels."""
    import timm
    from safetensors.torch import load_file

    net = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).to(device).eval()
    # Depthwise convolutions of a CPU take half the time in this layout.
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    weights = load_file(models / "efficientnet_lite0.safetensors")
    net.load_state_dict({name: w.float() for name, w in weights.items() if not name.startswith("classifier")})

    @torch.no_grad()
    def extract(image: Tensor) -> Tensor:
        x = nn.functional.interpolate(image.float(), size=(224, 224), mode="bicubic", antialias=True).clamp(0, 255)
        return net(((x - 127) / 128).contiguous(memory_format=torch.channels_last))

    return extract


@torch.no_grad()
def measure(autoencoder: Autoencoder, crops: Crops, models: Path, device: torch.device, count: int) -> dict[str, float]:
    """Means over the crops, and the Frechet distance between features of crops and of their reconstructions."""
    alex = PerceptualParams(backbone="alex", weights=str(models / "alexnet.safetensors"), weight=1)
    distance, extract = Lpips(alex).to(device), features(models, device)
    sums: dict[str, float] = {}
    real, fake = list[Tensor](), list[Tensor]()
    for start in range(0, count, NUM_ROWS):
        image = crops.images(range(start, min(start + NUM_ROWS, count))).to(device)
        z = autoencoder.encode(to_signal(image)).mode()
        other = to_image(autoencoder.decode(z))
        half, less = torch.Size(side // 2 for side in z.shape[2:]), torch.Size(side // 2 for side in image.shape[2:])
        small = to_image(equivariance.resized(to_signal(image), less))
        values = {
            "psnr_db": psnr(image, other),
            "ssim": ssim(image, other),
            "lpips_alex": distance(to_signal(image), to_signal(other)),
            "psnr_db_halved": psnr(small, to_image(autoencoder.decode(equivariance.resized(z, half)))),
            "psnr_db_turned": psnr(image.rot90(1, (2, 3)), to_image(autoencoder.decode(z.rot90(1, (2, 3))))),
        }
        for name, value in values.items():
            sums[name] = sums.get(name, 0) + float(value.double().sum())
        real.append(extract(image).cpu())
        fake.append(extract(other).cpu())
    return {name: value / count for name, value in sums.items()} | {
        "frechet_efficientnet": frechet_distance(torch.cat(fake), torch.cat(real))
    }


@torch.no_grad()
def draw(autoencoder: Autoencoder | None, crops: Crops, device: torch.device, path: Path) -> None:
    """The first crops, or their reconstructions, in a row."""
    image = crops.images(range(NUM_PICTURES)).to(device)
    if autoencoder is not None:
        image = to_image(autoencoder.decode(autoencoder.encode(to_signal(image)).mode()))
    images.grid(list(image.cpu()), num_columns=NUM_PICTURES, captions=None).save(path)


def trained(section: TrainedAutoencoderParams, crops: Crops, out: Path, name: str) -> tuple[Autoencoder, Row]:
    """The network of a variant after its updates, and the last row of its curve."""
    assert section.training and section.reconstruction
    accelerator = devices.start(MACHINE)
    torch.manual_seed(randomness.key(section.training.seed, "weights"))
    objective = ReconstructionObjective(build(section.network), section.reconstruction)
    batches = ImageBatches(crops, section.network, section.reconstruction, section.training)  # pyright: ignore[reportArgumentType]
    history = train(
        objective,
        batches,
        batches.keys,
        section.training,
        accelerator,
        Run(out / "runs", name, {"params": section.model_dump_json()}),
        validate=lambda objective: {},
        adversary=section.reconstruction.adversarial,
        name=name,
    )
    return objective.autoencoder, history.training[-1]


def main() -> None:
    """Train one variant and measure it on photographs that training has not seen: those to choose by, and the rest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--num-steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the training (default 0)")
    parser.add_argument("--small", action="store_true", help="a smaller network at 64 px, for a CPU")
    given = parser.parse_args()
    models, name, size_px = given.folder / "models", given.variant, 64 if given.small else 128
    photos = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((given.folder / "photos").glob("*.jpg"))]
    splits = {split: [photo for i, photo in enumerate(photos) if split_of(i) == split] for split in SPLITS}
    given.out.mkdir(parents=True, exist_ok=True)
    crops = Crops(splits["train"], size_px, 10**6, 0)
    autoencoder, last = trained(params(name, models, given.num_steps, given.small, given.seed), crops, given.out, name)
    device = next(autoencoder.parameters()).device
    result: dict[str, Any] = {"variant": name, "num_steps": given.num_steps, "seed": given.seed, "last": last}
    for split in SPLITS[1:]:
        unseen = Crops(splits[split], size_px, NUM_UNSEEN_CROPS, 1)
        draw(None, unseen, device, given.out / f"{split}-original.png")
        draw(autoencoder, unseen, device, given.out / f"{split}-{name}.png")
        result[split] = measure(autoencoder, unseen, models, device, NUM_UNSEEN_CROPS)
    (given.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
